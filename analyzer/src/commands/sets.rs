//! `flowscribe sets`: the communication sets that a capture teaches, as text or as JSON.

use datafusion::error::DataFusionError;

use crate::{
    cli::{SetsArgs, SetsFormat},
    communication::Workload,
    output::{self, OutputError},
    sets::EncodeError,
    tables::{LearningError, Tables, TablesError},
};

/// Why sets can't be listed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetsError {
    #[error(transparent)]
    Tables(#[from] TablesError),
    #[error("cannot read the capture")]
    Read(#[from] DataFusionError),
    #[error(transparent)]
    Learning(#[from] LearningError),
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error("cannot write the sets as JSON")]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// Learns the sets and prints them.
///
/// # Errors
/// An input is not there, decisions are not valid, or the output can't be written.
pub(crate) async fn run(args: &SetsArgs) -> Result<(), SetsError> {
    let SetsArgs { input, learn, namespaces, format, output } = args;
    let learning = learn.learning(input)?;
    let question = async |tables: &Tables| Ok(tables.learned().await?);
    let (tables, learned) = Tables::ask::<_, SetsError>(input, &learning, question).await?;
    let sets = &learned.0;
    let is_wanted = |workload: &Workload| {
        namespaces.is_empty() || namespaces.iter().any(|name| name.trim() == &*workload.namespace)
    };
    let text = match format {
        SetsFormat::Table => sets.told(is_wanted),
        SetsFormat::Json => format!("{}\n", serde_json::to_string_pretty(&sets.json(is_wanted)?)?),
    };
    output::write(&text, output.as_deref())?;
    for problem in &tables.problems {
        eprintln!("skipped {problem}");
    }
    eprint!("{}{}", tables.overlaps.text(), sets.idle_remarks());
    Ok(())
}
