//! The table `edges`, which is made of the flows whenever it is asked.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider},
    error::DataFusionError,
    execution::{SendableRecordBatchStream, TaskContext},
    logical_expr::{Expr, TableType},
    physical_plan::{
        ExecutionPlan,
        stream::RecordBatchReceiverStreamBuilder,
        streaming::{PartitionStream, StreamingTableExec},
    },
};
use schemas::table::{Columns, Table};

use crate::edge::{EdgeRow, Flows};

/// The table `edges`: the flows are read and folded whenever it is asked.
#[derive(Debug)]
pub(crate) struct EdgeTable(pub(crate) Arc<Flows>);

#[async_trait]
impl TableProvider for EdgeTable {
    fn schema(&self) -> SchemaRef {
        EdgeRow::schema()
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        let columns = projection.cloned().unwrap_or_else(|| (0..EdgeRow::WIDTH).collect());
        let schema = Arc::new(EdgeRow::schema().project(&columns)?);
        let parts = self.0.parts(state.config().target_partitions());
        let stream = |part| -> Arc<dyn PartitionStream> {
            let (flows, schema, columns) = (Arc::clone(&self.0), Arc::clone(&schema), columns.clone());
            Arc::new(EdgeStream { flows, schema, columns, part: (part, parts) })
        };
        self.0.begin();
        let streams = (0..parts).map(stream).collect();
        Ok(Arc::new(StreamingTableExec::try_new(schema, streams, None, None, false, limit)?))
    }
}

#[derive(Debug)]
struct EdgeStream {
    flows: Arc<Flows>,
    schema: SchemaRef,
    columns: Vec<usize>,
    part: (usize, usize),
}

impl PartitionStream for EdgeStream {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let mut builder = RecordBatchReceiverStreamBuilder::new(Arc::clone(&self.schema), 2);
        let (sender, flows) = (builder.tx(), Arc::clone(&self.flows));
        let (columns, part) = (self.columns.clone(), self.part);
        builder.spawn_blocking(move || {
            let made = flows.make_rows(part, &columns, |batch| sender.blocking_send(Ok(batch)).is_ok());
            made.map_err(|error| DataFusionError::External(error.into()))
        });
        builder.build()
    }
}
