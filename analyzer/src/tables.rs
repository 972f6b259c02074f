//! A capture as SQL tables: the datasets `flows`, `inventory` and `health`, what is derived of them, and functions.

#[cfg(feature = "ballista")]
mod ballista;
mod edges;
mod function;
mod help;
mod learned;
mod views;

use std::{collections::VecDeque, io, path::PathBuf, sync::Arc};

use arrow::datatypes::SchemaRef;
use datafusion::{
    common::ParamValues,
    datasource::{
        MemTable, TableProvider,
        file_format::parquet::ParquetFormat,
        listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl},
    },
    error::DataFusionError,
    execution::{
        context::SQLOptions,
        disk_manager::{DiskManagerBuilder, DiskManagerMode},
        runtime_env::RuntimeEnvBuilder,
    },
    prelude::{DataFrame, SessionConfig, SessionContext},
    sql::{
        parser::{DFParser, Statement},
        sqlparser::dialect::PostgreSqlDialect,
    },
};
use schemas::{
    capture::CaptureFile,
    flow::FlowRecord,
    health::HealthRecord,
    inventory::InventoryRecord,
    table::{Record, Table},
};
use tempfile::TempDir;
use url::Url;

use crate::{capture::OpenCapture, edge::repeats, sets::Learning};
#[cfg(feature = "ballista")]
pub(crate) use ballista::{BallistaError, Executor, execute, schedule};
use edges::EdgeTable;
pub(crate) use help::explain;
use learned::LearnedTables;

/// A capture's tables, for queries.
pub(crate) struct Session {
    context: SessionContext,
    /// Files that the datasets are of.
    #[cfg(feature = "ballista")]
    files: Vec<CaptureFile>,
    /// Where queries put what does not fit into memory; removed with this.
    _spill: Option<TempDir>,
}

/// Why a capture's tables can't be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    /// A file's path can't be given to the query engine.
    #[error("cannot read {path}")]
    Path {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The query engine can't be set up.
    #[error("cannot set up the query engine")]
    Engine(#[from] DataFusionError),
}

impl Session {
    /// Makes the tables of an open capture; `memory_bytes` are what sorts, joins and groups may take before they use
    /// temporary files.
    ///
    /// # Errors
    /// The query engine can't be set up.
    pub(crate) async fn new(
        capture: &OpenCapture,
        learning: &Learning,
        memory_bytes: usize,
    ) -> Result<Self, SessionError> {
        // Where nothing can be written, everything has to fit into memory.
        let spill = tempfile::tempdir().ok();
        let mode = spill.as_ref().map(|spill| DiskManagerMode::Directories(vec![spill.path().into()]));
        let disk = DiskManagerBuilder::default().with_mode(mode.unwrap_or(DiskManagerMode::Disabled));
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_limit(memory_bytes, 1.0)
            .with_disk_manager_builder(disk)
            .build_arc()?;
        let context = SessionContext::new_with_config_rt(session_config(), runtime);
        function::register(&context);
        let files = &capture.files;
        register(&context, FlowRecord::DATASET, FlowRecord::schema(), files).await?;
        register(&context, InventoryRecord::DATASET, InventoryRecord::schema(), files).await?;
        register(&context, HealthRecord::DATASET, HealthRecord::schema(), files).await?;
        context.register_table("edges", Arc::new(EdgeTable(Arc::clone(&capture.flows))))?;
        LearnedTables::new(capture, learning).register(&context)?;
        for (name, _, query) in views::VIEWS {
            view(&context, name, query).await?;
        }
        Ok(Self {
            context,
            #[cfg(feature = "ballista")]
            files: files.clone(),
            _spill: spill,
        })
    }

    /// Plans queries, which semicolons separate; a capture can only be read.
    ///
    /// # Errors
    /// A query is wrong, would write, or names a parameter that has no value.
    pub(crate) async fn sql(&self, queries: &str, params: &ParamValues) -> Result<Vec<DataFrame>, DataFusionError> {
        plan(&self.context, queries, params).await
    }
}

/// How queries are read and planned.
fn session_config() -> SessionConfig {
    SessionConfig::new()
        .with_information_schema(true)
        // The generic dialect takes a column named `cluster` for the keyword of Hive's `cluster by`.
        .set_str("datafusion.sql_parser.dialect", "PostgreSQL")
        // DataFusion 55.2 gives extracted struct fields names that clash when a table is joined with itself.
        .set_bool("datafusion.optimizer.enable_leaf_expression_pushdown", false)
}

/// The statements that semicolons separate.
fn statements(queries: &str) -> Result<VecDeque<Statement>, DataFusionError> {
    DFParser::parse_sql_with_dialect(queries, &PostgreSqlDialect {})
}

/// Plans queries, which semicolons separate and which may only read.
async fn plan(
    context: &SessionContext,
    queries: &str,
    params: &ParamValues,
) -> Result<Vec<DataFrame>, DataFusionError> {
    let read_only = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    let mut frames = Vec::new();
    for statement in statements(queries)? {
        let plan = context.state().statement_to_plan(statement).await?;
        read_only.verify_plan(&plan)?;
        frames.push(context.execute_logical_plan(plan).await?.with_param_values(params.clone())?);
    }
    Ok(frames)
}

/// Registers a dataset's files as one table, without repeated rows.
async fn register(
    context: &SessionContext,
    dataset: &'static str,
    schema: SchemaRef,
    files: &[CaptureFile],
) -> Result<(), SessionError> {
    let files: Vec<&CaptureFile> = files.iter().filter(|file| file.dataset == dataset).collect();
    let paths: Vec<ListingTableUrl> = files.iter().map(|file| table_url(file)).collect::<Result<_, _>>()?;
    let provider: Arc<dyn TableProvider> = if paths.is_empty() {
        Arc::new(MemTable::try_new(schema, vec![vec![]])?)
    } else {
        let options = ListingOptions::new(Arc::new(ParquetFormat::default()));
        let config = ListingTableConfig::new_with_multi_paths(paths).with_listing_options(options).with_schema(schema);
        Arc::new(ListingTable::try_new(config)?)
    };
    if repeats(&files).contains(&true) {
        context.register_table(format!("{dataset}_files"), provider)?;
        view(context, dataset, &DEDUPLICATED.replace("{dataset}", dataset)).await
    } else {
        context.register_table(dataset, provider)?;
        Ok(())
    }
}

async fn view(context: &SessionContext, name: &str, query: &str) -> Result<(), SessionError> {
    let plan = context.sql(query).await?;
    context.register_table(name, plan.into_view())?;
    Ok(())
}

fn table_url(file: &CaptureFile) -> Result<ListingTableUrl, SessionError> {
    let input_error = |source| SessionError::Path { path: file.path.clone(), source };
    let path = std::path::absolute(&file.path).map_err(input_error)?;
    let not_a_path = |()| input_error(io::Error::other("not an absolute path"));
    // Not parsed from text: a path may contain what would be a pattern there.
    Ok(ListingTableUrl::try_new(Url::from_file_path(path).map_err(not_a_path)?, None)?)
}

const DEDUPLICATED: &str = include_str!("tables/deduplicated.sql");
