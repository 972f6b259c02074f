//! `flowscribe sql`: any query over the capture's tables.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::error::DataFusionError;

use crate::{
    args::SqlArgs,
    output::{self, OutputError},
    tables::{Tables, TablesError},
};

/// Why a query can't be answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SqlError {
    #[error(transparent)]
    Tables(#[from] TablesError),
    #[error("the query failed")]
    Query(#[from] DataFusionError),
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// Runs the query and prints its result; files that can't be read are told on standard error.
///
/// # Errors
/// An input is not there, the query is wrong, or the output can't be written.
pub(crate) async fn run(args: &SqlArgs) -> Result<(), SqlError> {
    let SqlArgs { input, query, format } = args;
    let (tables, batches) = Tables::ask::<_, SqlError>(input, async |tables| result(tables, query).await).await?;
    for problem in &tables.problems {
        eprintln!("skipped {problem}");
    }
    output::write(&output::table(&batches, *format)?, None)?;
    Ok(())
}

/// A query's result: at least one batch, so that even an empty one has its columns.
async fn result(tables: &Tables, query: &str) -> Result<Vec<RecordBatch>, DataFusionError> {
    let frame = tables.sql(query).await?;
    let empty = RecordBatch::new_empty(Arc::clone(frame.schema().inner()));
    let batches = frame.collect().await?;
    Ok(if batches.is_empty() { vec![empty] } else { batches })
}
