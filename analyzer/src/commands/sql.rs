//! `flowscribe sql`: any query over the capture's tables.

use std::{
    fs,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
};

use datafusion::{common::ParamValues, error::DataFusionError, scalar::ScalarValue};
use futures::StreamExt;

use super::shared::capture::{self, CaptureError};
use crate::{
    capture::{OpenCapture, OpenError},
    cli::{Format, SqlArgs},
    output::{self, OutputError, ResultWriter},
    tables::{self, Session, SessionError},
};

/// Why a query can't be answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SqlError {
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("the query failed")]
    Query(#[source] DataFusionError),
    #[error("the query needs more memory: allow it with --memory-mib")]
    Memory(#[source] DataFusionError),
    #[error("cannot read the query {path}")]
    QueryFile {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("there is no query: name one, or a file with --query-file")]
    NoQuery,
    #[error("a file and Parquet take one result: ask one query, or print to standard output")]
    SeveralResults,
    #[error("Parquet is not for terminals: name a file with --output")]
    ParquetOnTerminal,
    #[error(transparent)]
    Output(#[from] OutputError),
    #[cfg(feature = "ballista")]
    #[error(transparent)]
    Ballista(#[from] tables::BallistaError),
}

/// Runs the queries and writes their results; files that can't be read are told on standard error.
///
/// # Errors
/// An input is not there, the query is wrong, or the output can't be written.
pub(crate) async fn run(args: &SqlArgs) -> Result<(), SqlError> {
    let SqlArgs { input, learn, query, query_file, params, format, output, tables, .. } = args;
    #[cfg(feature = "ballista")]
    let SqlArgs { ballista, ballista_share, .. } = args;
    if *tables {
        return Ok(output::write(&tables::explain().await?, None)?);
    }
    if *format == Format::Parquet && output.is_none() && io::stdout().is_terminal() {
        return Err(SqlError::ParquetOnTerminal);
    }
    let query = match query_file {
        Some(path) => {
            let file = path.clone();
            // In a thread that nobody has to wait for after Ctrl-C: standard input may be a terminal.
            let read = tokio::task::spawn_blocking(move || read(&file)).await.map_err(io::Error::other).flatten();
            read.map_err(|source| SqlError::QueryFile { path: path.clone(), source })?
        }
        None => query.clone().unwrap_or_default(),
    };
    if query.trim().is_empty() {
        return Err(SqlError::NoQuery);
    }
    let params: Vec<(&str, ScalarValue)> = params.iter().map(|(name, text)| (&**name, value(text))).collect();
    let params = ParamValues::from(params);
    let (mut capture, learning) = capture::open(input, learn).await?;
    let read = async |capture: &OpenCapture| -> Result<Vec<ResultWriter>, SqlError> {
        let session = Session::new(capture, &learning, input.memory_mib as usize * (1 << 20)).await?;
        #[cfg(feature = "ballista")]
        let (frames, _cluster) = match ballista {
            Some(url) => {
                let (frames, cluster) = session.sql_on((url, ballista_share.as_deref()), &query, &params).await?;
                (frames, Some(cluster))
            }
            None => (session.sql(&query, &params).await?, None),
        };
        #[cfg(not(feature = "ballista"))]
        let frames = session.sql(&query, &params).await?;
        if frames.is_empty() {
            return Err(SqlError::NoQuery);
        }
        if frames.len() > 1 && (output.is_some() || *format == Format::Parquet) {
            return Err(SqlError::SeveralResults);
        }
        let mut writers = Vec::with_capacity(frames.len());
        for frame in frames {
            let mut writer = ResultWriter::new(*format, frame.schema().inner(), output.as_deref())?;
            let mut batches = frame.execute_stream().await?;
            while let Some(batch) = batches.next().await {
                writer.add(batch?)?;
            }
            writers.push(writer);
        }
        Ok(writers)
    };
    let writers = capture.read(read).await?;
    capture::check_readable(&capture)?;
    output::skipped(&capture.problems);
    for (number, writer) in writers.into_iter().enumerate() {
        if number > 0 {
            output::write("\n", None)?;
        }
        writer.finish()?;
    }
    Ok(())
}

impl From<DataFusionError> for SqlError {
    fn from(error: DataFusionError) -> Self {
        match error.find_root() {
            DataFusionError::ResourcesExhausted(_) => Self::Memory(error),
            _ => Self::Query(error),
        }
    }
}

fn read(path: &Path) -> io::Result<String> {
    if path == Path::new("-") { io::read_to_string(io::stdin()) } else { fs::read_to_string(path) }
}

/// A parameter's value: what looks like a number or a truth is one.
fn value(text: &str) -> ScalarValue {
    let number = || text.parse::<i64>().map(ScalarValue::from).ok();
    let fraction = || text.parse::<f64>().map(ScalarValue::from).ok();
    let truth = || text.parse::<bool>().map(ScalarValue::from).ok();
    number().or_else(fraction).or_else(truth).unwrap_or_else(|| ScalarValue::from(text))
}
