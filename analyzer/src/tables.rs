//! A capture as SQL tables: `flows`, `inventory`, `health`, and the view `edges`.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs, io,
    path::PathBuf,
    sync::Arc,
};

use arrow::datatypes::SchemaRef;
use datafusion::{
    datasource::{
        MemTable, TableProvider,
        file_format::parquet::ParquetFormat,
        listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl},
    },
    error::DataFusionError,
    execution::context::SQLOptions,
    prelude::{DataFrame, SessionConfig, SessionContext},
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
use url::Url;

use crate::{
    args::InputArgs,
    communication::Communications,
    edge::{EdgeTable, Flows, Undirected},
    identity,
    runs::{self, Run},
};

/// A capture that is open for questions.
pub(crate) struct Tables {
    context: SessionContext,
    /// Who was who.
    pub(crate) index: Arc<Index>,
    /// What agents say of their recording.
    pub(crate) runs: Vec<Run>,
    /// What of the input is used.
    pub(crate) files: Vec<CaptureFile>,
    /// What is not, and why.
    pub(crate) problems: Vec<Problem>,
    flows: Arc<Flows>,
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
    #[error("the input holds several clusters ({clusters}): name one with --cluster")]
    SeveralClusters { clusters: String },
    /// The named cluster is not there.
    #[error("the input holds no cluster `{wanted}`, only {clusters}")]
    NoSuchCluster { wanted: String, clusters: String },
    /// A query failed, or was wrong.
    #[error(transparent)]
    Query(#[from] DataFusionError),
}

impl Tables {
    /// Opens the inputs and asks them something; where a file turns out to be damaged inside, without it once more.
    ///
    /// # Errors
    /// The inputs can't be opened, or the question fails for another reason.
    pub(crate) async fn ask<T, E>(
        args: &InputArgs,
        question: impl AsyncFn(&Self) -> Result<T, DataFusionError>,
    ) -> Result<(Self, T), E>
    where
        E: From<TablesError> + From<DataFusionError>,
    {
        let tables = Self::open(args).await?;
        match question(&tables).await {
            Ok(answer) => Ok((tables, answer)),
            // A file whose footer is whole may still be damaged.
            Err(error) => {
                let whole = tables.without_damaged(args).await?.ok_or(error)?;
                let answer = question(&whole).await?;
                Ok((whole, answer))
            }
        }
    }

    /// Opens the inputs; what can't be read is left out and told in [`Self::problems`].
    ///
    /// # Errors
    /// An input does not exist, or the query engine can't be set up.
    async fn open(args: &InputArgs) -> Result<Self, TablesError> {
        let InputArgs { input, cluster, clock_skew_ms } = args;
        for path in input {
            fs::metadata(path).map_err(|source| TablesError::Input { path: path.clone(), source })?;
        }
        let first = input.first().cloned().unwrap_or_default();
        let mut listing = capture::list(input).map_err(|source| TablesError::Input { path: first, source })?;
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
        Self::over(listing, *clock_skew_ms).await
    }

    /// Opens the input again without the files that turned out to be damaged when they were read; `None` when all are
    /// whole, so that the cause must be another one.
    ///
    /// # Errors
    /// As [`Self::open`].
    async fn without_damaged(&self, args: &InputArgs) -> Result<Option<Self>, TablesError> {
        let damaged: Vec<Problem> = self.files.iter().filter_map(|file| capture::verify(file).err()).collect();
        if damaged.is_empty() {
            return Ok(None);
        }
        let paths: HashSet<&PathBuf> = damaged.iter().map(|problem| &problem.path).collect();
        let files = self.files.iter().filter(|file| !paths.contains(&file.path)).cloned().collect();
        let mut problems = self.problems.clone();
        problems.extend(damaged.iter().cloned());
        problems.sort();
        Self::over(Listing { files, problems }, args.clock_skew_ms).await.map(Some)
    }

    /// Plans a query; a capture can only be read.
    ///
    /// # Errors
    /// The query is wrong, or would write.
    pub(crate) async fn sql(&self, query: &str) -> Result<DataFrame, DataFusionError> {
        let read_only = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        self.context.sql_with_options(query, read_only).await
    }

    /// Rows of a dataset, repetitions counted.
    pub(crate) fn rows(&self, dataset: &str) -> i64 {
        self.files.iter().filter(|file| file.dataset == dataset).map(|file| file.rows).sum()
    }

    async fn over(listing: Listing, clock_skew_ms: u32) -> Result<Self, TablesError> {
        let Listing { mut files, mut problems } = listing;
        let (runs, damaged) = runs::read(&files);
        let heard = runs.iter().filter_map(Run::heard).collect();
        let (index, more) = identity::read(&files, heard, clock_skew_ms);
        problems.extend(damaged.into_iter().chain(more));
        problems.sort();
        files.retain(|file| problems.iter().all(|problem| problem.path != file.path));
        let index = Arc::new(index);

        let config = SessionConfig::new()
            .with_information_schema(true)
            // The generic dialect takes a column named `cluster` for the keyword of Hive's `cluster by`.
            .set_str("datafusion.sql_parser.dialect", "PostgreSQL")
            // DataFusion 55.2 gives extracted struct fields names that clash when a table is joined with itself.
            .set_bool("datafusion.optimizer.enable_leaf_expression_pushdown", false);
        let context = SessionContext::new_with_config(config);
        register(&context, FlowRecord::DATASET, FlowRecord::schema(), &files).await?;
        register(&context, InventoryRecord::DATASET, InventoryRecord::schema(), &files).await?;
        register(&context, HealthRecord::DATASET, HealthRecord::schema(), &files).await?;
        let flow_files: Vec<CaptureFile> =
            files.iter().filter(|file| file.dataset == FlowRecord::DATASET).cloned().collect();
        let flows = Arc::new(Flows::new(&flow_files, Arc::clone(&index), ProgressBar::hidden(), Arc::default()));
        context.register_table("edges", Arc::new(EdgeTable(Arc::clone(&flows))))?;
        Ok(Self { context, index, runs, files, problems, flows })
    }

    /// Who talked to whom, over the whole capture.
    ///
    /// # Errors
    /// A file can't be read.
    pub(crate) async fn communications(&self) -> Result<(Communications, Undirected), DataFusionError> {
        let flows = Arc::clone(&self.flows);
        let folded = tokio::task::spawn_blocking(move || flows.communications()).await;
        let folded = folded.map_err(|error| DataFusionError::External(error.into()))?;
        folded.map_err(|error| DataFusionError::External(error.into()))
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
    if may_repeat(&files) {
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

/// Whether two files may hold the same row: their ranges of one run overlap, or one does not tell its range.
fn may_repeat(files: &[&CaptureFile]) -> bool {
    let mut ranges: BTreeMap<&str, Vec<(i64, i64)>> = BTreeMap::new();
    for file in files {
        let Some((run, first, last)) = &file.run else { return true };
        ranges.entry(run).or_default().push((*first, *last));
    }
    ranges.values_mut().any(|ranges| {
        ranges.sort_unstable();
        ranges.windows(2).any(|pair| pair[1].0 <= pair[0].1)
    })
}

fn table_url(file: &CaptureFile) -> Result<ListingTableUrl, TablesError> {
    let input_error = |source| TablesError::Input { path: file.path.clone(), source };
    let path = fs::canonicalize(&file.path).map_err(input_error)?;
    let not_a_path = |()| input_error(io::Error::other("not an absolute path"));
    // Not parsed from text: a path may contain what would be a pattern there.
    Ok(ListingTableUrl::try_new(Url::from_file_path(path).map_err(not_a_path)?, None)?)
}

const DEDUPLICATED: &str = include_str!("sql/deduplicated.sql");
