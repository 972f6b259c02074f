//! The tables that are learned from the whole capture, once, when one of them is asked first.

use std::{fmt, io, sync::Arc};

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
use schemas::table::Table;
use tokio::{sync::OnceCell, task};

use crate::{
    capture::OpenCapture,
    sets::{CommunicationRow, CoverageRow, GapRow, Learn, Learned, Learning, SetRow, Sets, WorkloadRow},
};

/// What is learned, and from what.
pub(super) struct LearnedTables {
    capture: OpenCapture,
    learning: Learning,
    learned: OnceCell<Learned>,
}

/// One of the tables.
struct LearnedTable<T> {
    of: Arc<LearnedTables>,
    rows: fn(&Sets) -> Vec<T>,
}

impl LearnedTables {
    pub(super) fn new(capture: &OpenCapture, learning: &Learning) -> Arc<Self> {
        Arc::new(Self { capture: capture.clone(), learning: learning.clone(), learned: OnceCell::new() })
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
        context.register_table(T::NAME, Arc::new(LearnedTable { of: Arc::clone(self), rows })).map(drop)
    }

    /// Learns, unless that was done.
    async fn get(&self) -> Result<&Learned, DataFusionError> {
        let learn = async || {
            let learn = Learn::new(&self.capture, &self.learning);
            let learned = task::spawn_blocking(move || learn.run()).await.map_err(io::Error::other)?;
            learned.map_err(|error| DataFusionError::External(error.into()))
        };
        self.learned.get_or_try_init(learn).await
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
        let (sets, _) = self.of.get().await?;
        let rows = (self.rows)(sets).chunks(BATCH_ROWS).map(T::encode).collect();
        MemTable::try_new(T::schema(), vec![rows])?.scan(state, projection, filters, limit).await
    }
}

const BATCH_ROWS: usize = 8192;
