//! A capture as SQL tables: the datasets `flows`, `inventory` and `health`, what is derived of them, and functions.

mod function;
mod help;
mod learned;

use std::{
    collections::{BTreeSet, HashSet},
    fs, io,
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
};

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
    sql::{parser::DFParser, sqlparser::dialect::PostgreSqlDialect},
};
use indicatif::ProgressBar;
use schemas::{
    capture::{self, CaptureFile, Listing, Problem},
    flow::FlowRecord,
    health::HealthRecord,
    index::Index,
    inventory::InventoryRecord,
    table::{Record, Table},
};
use tempfile::TempDir;
use url::Url;

use crate::{
    args::InputArgs,
    edge::{EdgeTable, Flows, Undirected, repeats},
    identity,
    policy::Names,
    remote::{self, Local, RemoteError},
    runs::{self, Run},
    sets::{Decisions, Sets, Thresholds},
};
pub(crate) use help::explain;
use learned::Learned;

/// A capture that is open for questions.
pub(crate) struct Tables {
    context: SessionContext,
    /// Who was who.
    pub(crate) index: Arc<Index>,
    /// What agents say of their recording.
    pub(crate) runs: Arc<Vec<Run>>,
    /// What of the input is used.
    pub(crate) files: Vec<CaptureFile>,
    /// What is not, and why.
    pub(crate) problems: Vec<Problem>,
    learned: Arc<Learned>,
    progress: ProgressBar,
    /// Holds what came from an object store.
    fetched: Arc<Local>,
    /// Where queries put what does not fit into memory; removed with this.
    _spill: Option<TempDir>,
}

/// What communication sets are learned by.
#[derive(Clone, Debug)]
pub(crate) struct Learning {
    pub(crate) decisions: Arc<Decisions>,
    pub(crate) thresholds: Thresholds,
}

/// Why a capture can't be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TablesError {
    /// An input is not there.
    #[error("cannot read input {path}")]
    Input {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Addresses mean something in one cluster only.
    #[error("the input holds several clusters ({clusters}): name one with --cluster-name")]
    SeveralClusters { clusters: String },
    /// The named cluster is not there.
    #[error("the input holds no cluster `{wanted}`, only {clusters}")]
    NoSuchCluster { wanted: String, clusters: String },
    /// The query engine can't be set up.
    #[error("cannot set up the query engine")]
    Engine(#[from] DataFusionError),
    /// A capture in an object store can't be fetched.
    #[error(transparent)]
    Remote(#[from] RemoteError),
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
        let tables = Self::open(args, learning).await?;
        let answer = question(&tables).await;
        tables.progress.finish_and_clear();
        match answer {
            Ok(answer) => Ok((tables, answer)),
            // A file whose footer is whole may still be damaged.
            Err(error) => {
                let whole = tables.without_damaged(args, learning).await?.ok_or(error)?;
                let answer = question(&whole).await?;
                whole.progress.finish_and_clear();
                Ok((whole, answer))
            }
        }
    }

    /// Opens the inputs; what can't be read is left out and told in [`Self::problems`].
    ///
    /// # Errors
    /// An input does not exist, or the query engine can't be set up.
    async fn open(args: &InputArgs, learning: &Learning) -> Result<Self, TablesError> {
        let InputArgs { input, cluster_name: cluster, cache, .. } = args;
        let fetched = Arc::new(remote::fetch(input, cache.as_deref()).await?);
        let Local { inputs: paths, problems, .. } = &*fetched;
        for path in paths {
            fs::metadata(path).map_err(|source| TablesError::Input { path: path.clone(), source })?;
        }
        let first = input.first().cloned().unwrap_or_default();
        let paths = paths.clone();
        let listing = tokio::task::spawn_blocking(move || capture::list(&paths)).await.map_err(io::Error::other)?;
        let mut listing = listing.map_err(|source| TablesError::Input { path: first, source })?;
        listing.problems.extend(problems.iter().cloned());
        let clusters: BTreeSet<String> = listing.files.iter().map(|file| file.cluster.clone()).collect();
        let named = || clusters.iter().cloned().collect::<Vec<_>>().join(", ");
        match cluster {
            Some(wanted) if !clusters.is_empty() && !clusters.contains(wanted) => {
                return Err(TablesError::NoSuchCluster { wanted: wanted.clone(), clusters: named() });
            }
            Some(wanted) => listing.files.retain(|file| file.cluster == *wanted),
            None if clusters.len() > 1 => return Err(TablesError::SeveralClusters { clusters: named() }),
            None => {}
        }
        Self::over(listing, fetched, args, learning).await
    }

    /// Opens the input again without the files that turned out to be damaged when they were read; `None` when all are
    /// whole, so that the cause must be another one.
    ///
    /// # Errors
    /// As [`Self::open`].
    async fn without_damaged(&self, args: &InputArgs, learning: &Learning) -> Result<Option<Self>, TablesError> {
        let damaged: Vec<Problem> = self.files.iter().filter_map(|file| capture::verify(file).err()).collect();
        if damaged.is_empty() {
            return Ok(None);
        }
        let paths: HashSet<&PathBuf> = damaged.iter().map(|problem| &problem.path).collect();
        let files = self.files.iter().filter(|file| !paths.contains(&file.path)).cloned().collect();
        let mut problems = self.problems.clone();
        problems.extend(damaged.iter().cloned());
        problems.sort();
        let fetched = Arc::clone(&self.fetched);
        Self::over(Listing { files, problems }, fetched, args, learning).await.map(Some)
    }

    /// Plans queries, which semicolons separate; a capture can only be read.
    ///
    /// # Errors
    /// A query is wrong, would write, or names a parameter that has no value.
    pub(crate) async fn sql(&self, queries: &str, params: &ParamValues) -> Result<Vec<DataFrame>, DataFusionError> {
        let read_only = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        let mut frames = Vec::new();
        for statement in DFParser::parse_sql_with_dialect(queries, &PostgreSqlDialect {})? {
            let plan = self.context.state().statement_to_plan(statement).await?;
            read_only.verify_plan(&plan)?;
            frames.push(self.context.execute_logical_plan(plan).await?.with_param_values(params.clone())?);
        }
        Ok(frames)
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

    /// Rows of a dataset, repetitions counted.
    pub(crate) fn rows(&self, dataset: &str) -> i64 {
        self.files.iter().filter(|file| file.dataset == dataset).map(|file| file.rows).sum()
    }

    async fn over(
        listing: Listing,
        fetched: Arc<Local>,
        args: &InputArgs,
        learning: &Learning,
    ) -> Result<Self, TablesError> {
        let clock_skew_ms = args.clock_skew_ms;
        let read = move || {
            let Listing { mut files, mut problems } = listing;
            let (runs, damaged) = runs::read(&files);
            let heard = runs.iter().filter_map(Run::heard).collect();
            let (index, more) = identity::read(&files, heard, clock_skew_ms);
            problems.extend(damaged.into_iter().chain(more));
            problems.sort();
            let unusable: HashSet<&PathBuf> = problems.iter().map(|problem| &problem.path).collect();
            files.retain(|file| !unusable.contains(&file.path));
            (files, problems, Arc::new(runs), Arc::new(index))
        };
        // In a thread that nobody has to wait for after Ctrl-C.
        let (files, problems, runs, index) = tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?;

        // Where nothing can be written, everything has to fit into memory.
        let spill = tempfile::tempdir().ok();
        let mode = spill.as_ref().map(|spill| DiskManagerMode::Directories(vec![spill.path().into()]));
        let disk = DiskManagerBuilder::default().with_mode(mode.unwrap_or(DiskManagerMode::Disabled));
        let memory_bytes = args.memory_mib as usize * (1 << 20);
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_limit(memory_bytes, 1.0)
            .with_disk_manager_builder(disk)
            .build_arc()?;
        let config = SessionConfig::new()
            .with_information_schema(true)
            // The generic dialect takes a column named `cluster` for the keyword of Hive's `cluster by`.
            .set_str("datafusion.sql_parser.dialect", "PostgreSQL")
            // DataFusion 55.2 gives extracted struct fields names that clash when a table is joined with itself.
            .set_bool("datafusion.optimizer.enable_leaf_expression_pushdown", false);
        let context = SessionContext::new_with_config_rt(config, runtime);
        function::register(&context);
        register(&context, FlowRecord::DATASET, FlowRecord::schema(), &files).await?;
        register(&context, InventoryRecord::DATASET, InventoryRecord::schema(), &files).await?;
        register(&context, HealthRecord::DATASET, HealthRecord::schema(), &files).await?;

        let of_flows: Vec<_> = files.iter().filter(|file| file.dataset == FlowRecord::DATASET).collect();
        let progress = ProgressBar::no_length();
        let flows = Arc::new(Flows::new(&of_flows, Arc::clone(&index), progress.clone()));
        context.register_table("edges", Arc::new(EdgeTable(Arc::clone(&flows))))?;
        let learned = Arc::new(Learned::new(flows, Arc::clone(&index), Arc::clone(&runs), learning.clone()));
        learned.register(&context)?;
        for (name, _, query) in help::VIEWS {
            view(&context, name, query).await?;
        }
        Ok(Self { context, index, runs, files, problems, learned, progress, fetched, _spill: spill })
    }
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
    let input_error = |source| TablesError::Input { path: file.path.clone(), source };
    let path = std::path::absolute(&file.path).map_err(input_error)?;
    let not_a_path = |()| input_error(io::Error::other("not an absolute path"));
    // Not parsed from text: a path may contain what would be a pattern there.
    Ok(ListingTableUrl::try_new(Url::from_file_path(path).map_err(not_a_path)?, None)?)
}

const DEDUPLICATED: &str = include_str!("sql/deduplicated.sql");
