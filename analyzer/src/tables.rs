//! A capture as SQL tables: the datasets `flows`, `inventory` and `health`, what is derived of them, and functions.

#[cfg(feature = "ballista")]
mod ballista;
mod function;
mod help;
mod learned;

use std::{collections::VecDeque, io, net::IpAddr, path::PathBuf, sync::Arc};

use arrow::{
    compute::cast,
    datatypes::{DataType, SchemaRef},
};
use datafusion::{
    common::{ParamValues, cast::as_string_array},
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
use indicatif::ProgressBar;
use schemas::{
    capture::{CaptureFile, Problem, Runs},
    flow::FlowRecord,
    health::HealthRecord,
    index::Index,
    inventory::InventoryRecord,
    table::{Record, Table},
};
use tempfile::TempDir;
use url::Url;

use crate::{
    capture::{
        cache::{State, StateError},
        health::{self, Run},
        open::{Opening, OpeningError},
    },
    cli::InputArgs,
    edge::{EdgeTable, Flows, Overlaps, Undirected, repeats},
    policy::Names,
    sets::{Decisions, DecisionsError, Sets, Thresholds},
};
#[cfg(feature = "ballista")]
pub(crate) use ballista::{BallistaError, execute, schedule};
pub(crate) use help::explain;
use learned::Learned;

/// A capture that is open for questions.
pub(crate) struct Tables {
    context: SessionContext,
    /// Who was who.
    pub(crate) index: Arc<Index>,
    /// What agents say of their recording.
    pub(crate) runs: Arc<Vec<Run>>,
    /// Which of them recorded one node at the same time.
    pub(crate) overlaps: Arc<Overlaps>,
    /// What of the input is used.
    pub(crate) files: Vec<CaptureFile>,
    /// What is not, and why.
    pub(crate) problems: Vec<Problem>,
    learned: Arc<Learned>,
    /// The flows, to be read in another way.
    pub(crate) flows: Arc<Flows>,
    progress: ProgressBar,
    pub(crate) opening: Opening,
    /// Where queries put what does not fit into memory; removed with this.
    _spill: Option<TempDir>,
}

/// What communication sets are learned by.
#[derive(Clone, Debug, Default)]
pub(crate) struct Learning {
    pub(crate) decisions: Arc<Decisions>,
    pub(crate) thresholds: Thresholds,
    /// What a former run remembers.
    pub(crate) state: Option<Arc<State>>,
}

/// Why nothing can be learned.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LearningError {
    /// The decisions can't be read, or are not valid.
    #[error(transparent)]
    Decisions(#[from] DecisionsError),
    /// What is remembered can't be read or kept.
    #[error(transparent)]
    State(#[from] StateError),
}

/// Why a capture can't be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TablesError {
    /// The capture can't be opened.
    #[error(transparent)]
    Opening(#[from] OpeningError),
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
    /// There is no room for temporary files, or no thread.
    #[error("cannot set up the query engine")]
    System(#[from] io::Error),
}

impl Tables {
    /// Opens the inputs and asks them something; where a file turns out to be damaged inside, without it once more.
    ///
    /// # Errors
    /// The inputs can't be opened, or the question fails for another reason.
    pub(crate) async fn ask<T, E>(
        args: &InputArgs,
        learning: &Learning,
        question: impl AsyncFn(&Self) -> Result<T, E>,
    ) -> Result<(Self, T), E>
    where
        E: From<TablesError>,
    {
        let mut tables =
            Self::over(Opening::new(args, learning.state.as_ref()).await.map_err(TablesError::from)?, args, learning)
                .await?;
        let mut tries = 1;
        loop {
            let answer = question(&tables).await;
            tables.progress.finish_and_clear();
            match answer {
                Ok(answer) => return Ok((tables, answer)),
                Err(error) if tries == TRIES => return Err(error),
                // A file whose footer is whole may still be damaged, or was merged into another one meanwhile.
                Err(error) => {
                    let opening = tables
                        .opening
                        .again(args, learning.state.as_ref())
                        .await
                        .map_err(TablesError::from)?
                        .ok_or(error)?;
                    tables = Self::over(opening, args, learning).await?;
                }
            }
            tries += 1;
        }
    }

    /// Plans queries, which semicolons separate; a capture can only be read.
    ///
    /// # Errors
    /// A query is wrong, would write, or names a parameter that has no value.
    pub(crate) async fn sql(&self, queries: &str, params: &ParamValues) -> Result<Vec<DataFrame>, DataFusionError> {
        plan(&self.context, queries, params).await
    }

    /// The communication sets, and how many rows of each run had no known direction.
    ///
    /// # Errors
    /// A file can't be read.
    pub(crate) async fn learned(&self) -> Result<Arc<(Sets, Undirected)>, DataFusionError> {
        self.learned.get().await
    }

    /// The DNS names that clients had resolved to addresses.
    ///
    /// # Errors
    /// A file can't be read.
    pub(crate) async fn names(&self) -> Result<Names, DataFusionError> {
        let query =
            "select distinct destination_address, destination_name from flows where destination_name is not null";
        let mut names = Names::new();
        // Every file says so in its footer, which was read: no need to read them all again.
        if !self.files.iter().any(|file| file.has_names) {
            return Ok(names);
        }
        for batch in self.context.sql(query).await?.collect().await? {
            let texts = |column: usize| cast(batch.column(column), &DataType::Utf8);
            let (addresses, told) = (texts(0)?, texts(1)?);
            let (addresses, told) = (as_string_array(&addresses)?, as_string_array(&told)?);
            for (address, name) in addresses.iter().zip(told) {
                if let (Some(Ok(address)), Some(name)) = (address.map(str::parse::<IpAddr>), name) {
                    names.entry(address).or_default().insert(name.to_owned());
                }
            }
        }
        Ok(names)
    }

    /// Different rows of flows that it was learned from, those that rollups sum up among them.
    pub(crate) fn flow_rows(&self) -> i64 {
        let is_of_flows = |file: &&CaptureFile| file.dataset == FlowRecord::DATASET || file.summary.is_some();
        let mut runs = Runs::default();
        let mut untold = 0;
        for file in self.files.iter().filter(is_of_flows) {
            match (file.runs.is_empty(), file.rows) {
                (true, rows) => untold += rows,
                // Of forgotten rows, only their numbers are there.
                (false, 0) if file.summary.is_none() => {}
                _ => runs.add(&file.runs),
            }
        }
        untold + runs.rows()
    }

    async fn over(opening: Opening, args: &InputArgs, learning: &Learning) -> Result<Self, TablesError> {
        let Opening { files, problems, runs, index, .. } = opening.clone();
        // Where nothing can be written, everything has to fit into memory.
        let spill = tempfile::tempdir().ok();
        let mode = spill.as_ref().map(|spill| DiskManagerMode::Directories(vec![spill.path().into()]));
        let disk = DiskManagerBuilder::default().with_mode(mode.unwrap_or(DiskManagerMode::Disabled));
        let memory_bytes = args.memory_mib as usize * (1 << 20);
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_limit(memory_bytes, 1.0)
            .with_disk_manager_builder(disk)
            .build_arc()?;
        let context = SessionContext::new_with_config_rt(session_config(), runtime);
        function::register(&context);
        register(&context, FlowRecord::DATASET, FlowRecord::schema(), &files).await?;
        register(&context, InventoryRecord::DATASET, InventoryRecord::schema(), &files).await?;
        register(&context, HealthRecord::DATASET, HealthRecord::schema(), &files).await?;

        let progress = ProgressBar::no_length();
        let overlaps = Arc::new(health::overlaps(&runs));
        let flows = Arc::new(Flows::new(&files, Arc::clone(&index), Arc::clone(&overlaps), progress.clone()));
        context.register_table("edges", Arc::new(EdgeTable(Arc::clone(&flows))))?;
        let learned = Arc::new(Learned::new(Arc::clone(&flows), &opening, learning.clone()));
        learned.register(&context)?;
        for (name, _, query) in help::VIEWS {
            view(&context, name, query).await?;
        }
        Ok(Self { context, index, runs, overlaps, files, problems, learned, flows, progress, opening, _spill: spill })
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
) -> Result<(), TablesError> {
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

async fn view(context: &SessionContext, name: &str, query: &str) -> Result<(), TablesError> {
    let plan = context.sql(query).await?;
    context.register_table(name, plan.into_view())?;
    Ok(())
}

fn table_url(file: &CaptureFile) -> Result<ListingTableUrl, TablesError> {
    let input_error = |source| TablesError::Path { path: file.path.clone(), source };
    let path = std::path::absolute(&file.path).map_err(input_error)?;
    let not_a_path = |()| input_error(io::Error::other("not an absolute path"));
    // Not parsed from text: a path may contain what would be a pattern there.
    Ok(ListingTableUrl::try_new(Url::from_file_path(path).map_err(not_a_path)?, None)?)
}

/// How often a question is asked, of a capture that changes meanwhile.
const TRIES: usize = 4;
const DEDUPLICATED: &str = include_str!("sql/deduplicated.sql");
