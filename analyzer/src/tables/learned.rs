//! The tables that are learned from the whole capture, once, when one of them is asked first.

use std::{fmt, sync::Arc, thread};

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider},
    datasource::MemTable,
    error::DataFusionError,
    logical_expr::{Expr, TableType},
    physical_plan::ExecutionPlan,
    prelude::SessionContext,
};
use schemas::{capture::CaptureFile, index::Index, table::Table};
use tokio::sync::OnceCell;

use super::Learning;
use crate::{
    capture::{health::Run, open::Opening},
    edge::{Flows, Undirected},
    sets::{CommunicationRow, CoverageRow, GapRow, SetRow, Sets, WorkloadRow},
};

/// What is learned, and from what.
pub(super) struct Learned {
    flows: Arc<Flows>,
    index: Arc<Index>,
    runs: Arc<Vec<Run>>,
    files: Arc<[CaptureFile]>,
    learning: Learning,
    answer: OnceCell<Arc<(Sets, Undirected)>>,
}

/// One of its tables.
struct LearnedTable<T> {
    learned: Arc<Learned>,
    rows: fn(&Sets) -> Vec<T>,
}

impl Learned {
    pub(super) fn new(flows: Arc<Flows>, opening: &Opening, learning: Learning) -> Self {
        let Opening { mut files, superseded, index, runs, .. } = opening.clone();
        files.extend(superseded);
        Self { flows, index, runs, files: files.into(), learning, answer: OnceCell::new() }
    }

    /// Learns, unless that was done.
    ///
    /// # Errors
    /// A file can't be read.
    pub(super) async fn get(&self) -> Result<Arc<(Sets, Undirected)>, DataFusionError> {
        self.answer.get_or_try_init(|| self.learn()).await.cloned()
    }

    pub(super) fn register(self: &Arc<Self>, context: &SessionContext) -> Result<(), DataFusionError> {
        self.register_one::<CommunicationRow>(context, Sets::communications)?;
        self.register_one::<SetRow>(context, Sets::rows)?;
        self.register_one::<WorkloadRow>(context, Sets::workload_rows)?;
        self.register_one::<CoverageRow>(context, |sets| sets.exposure.coverage())?;
        self.register_one::<GapRow>(context, |sets| sets.exposure.gap_rows())
    }

    fn register_one<T: Table>(
        self: &Arc<Self>,
        context: &SessionContext,
        rows: fn(&Sets) -> Vec<T>,
    ) -> Result<(), DataFusionError> {
        context.register_table(T::NAME, Arc::new(LearnedTable { learned: Arc::clone(self), rows })).map(drop)
    }

    async fn learn(&self) -> Result<Arc<(Sets, Undirected)>, DataFusionError> {
        let (flows, index, runs) = (Arc::clone(&self.flows), Arc::clone(&self.index), Arc::clone(&self.runs));
        let Learning { decisions, thresholds, state } = self.learning.clone();
        let files = Arc::clone(&self.files);
        let learn = move || {
            let learn = |communications| Sets::learn(communications, &index, &runs, &decisions, thresholds);
            let Some(state) = state else {
                let (communications, undirected) = flows.communications()?;
                return Ok((learn(communications), undirected));
            };
            let (communications, undirected, blocks) = flows.communications_since(state.take_blocks())?;
            let sets = thread::scope(|scope| {
                scope.spawn(|| {
                    // What is known is right even where it can't be kept for the next time.
                    if let Err(error) = state.save(&files, blocks) {
                        eprintln!("{:#}", anyhow::Error::from(error));
                    }
                });
                learn(communications)
            });
            Ok((sets, undirected))
        };
        let external = |error: Box<dyn std::error::Error + Send + Sync>| DataFusionError::External(error);
        let learned = tokio::task::spawn_blocking(learn).await.map_err(|error| external(error.into()))?;
        learned.map(Arc::new).map_err(|error: crate::edge::WorkError| external(error.into()))
    }
}

impl<T> fmt::Debug for LearnedTable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LearnedTable").finish_non_exhaustive()
    }
}

#[async_trait]
impl<T: Table> TableProvider for LearnedTable<T> {
    fn schema(&self) -> SchemaRef {
        T::schema()
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        let answer = self.learned.get().await?;
        let rows = (self.rows)(&answer.0).chunks(BATCH_ROWS).map(T::encode).collect();
        MemTable::try_new(T::schema(), vec![rows])?.scan(state, projection, filters, limit).await
    }
}

const BATCH_ROWS: usize = 8192;
