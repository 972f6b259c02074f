//! The same queries on a Ballista cluster, for flows that are more than one machine's.
//!
//! ```text
//! flows, inventory, health ─────────────────────── files ──► executors
//! edges, sets, …  ──made here, as they always are──► Parquet ──┘
//! ```
//!
//! What is derived of flows is small, and made here (from rollups in seconds); what is asked of the flows themselves is
//! done where the executors are. They have to see the files under the same paths: a file system that all share.

use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use ballista::prelude::SessionContextExt as _;
use ballista_core::registry::BallistaFunctionRegistry;
use ballista_executor::executor_process::{ExecutorProcessConfig, start_executor_process};
use ballista_scheduler::{
    cluster::BallistaCluster,
    config::{SchedulerConfig, TaskDistributionPolicy},
    scheduler_process::start_server,
};
use datafusion::{
    common::ParamValues,
    dataframe::DataFrameWriteOptions,
    datasource::{
        file_format::parquet::ParquetFormat,
        listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl},
    },
    error::DataFusionError,
    execution::{SessionState, SessionStateBuilder},
    prelude::{DataFrame, SessionConfig, SessionContext},
};
use schemas::{
    flow::FlowRecord,
    health::HealthRecord,
    inventory::InventoryRecord,
    table::{Record, Table},
};
use tempfile::TempDir;
use url::Url;

use super::{Session, SessionError, function, register, session_config, statements};

/// A cluster with the tables of a capture.
pub(crate) struct Distributed {
    context: SessionContext,
    /// Holds what was derived here.
    _derived: TempDir,
}

/// Why a cluster can't be used, or a part of it not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BallistaError {
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("cannot use the Ballista cluster at {url}")]
    Cluster {
        url: String,
        #[source]
        source: DataFusionError,
    },
    #[error("cannot prepare the query for the cluster")]
    Query(#[from] DataFusionError),
    #[error("cannot write what executors need to {path}: name a directory that all of them see with --ballista-share")]
    Share {
        path: std::path::PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot run this part of a Ballista cluster: {0}")]
    Run(String),
}

impl Session {
    /// Registers what queries need at a cluster, and plans them there.
    ///
    /// # Errors
    /// The cluster does not answer, a query is wrong, or what is derived can't be written where executors see it.
    pub(crate) async fn sql_on(
        &self,
        (url, share): (&str, Option<&Path>),
        queries: &str,
        params: &ParamValues,
    ) -> Result<(Vec<DataFrame>, Distributed), BallistaError> {
        // Whether queries are right is told here.
        self.sql(queries, params).await?;
        let mut names = BTreeSet::new();
        for statement in statements(queries)? {
            let tables = self.context.state().resolve_table_references(&statement)?;
            names.extend(tables.into_iter().map(|table| table.table().to_owned()));
        }
        let share = share.map_or_else(std::env::temp_dir, Path::to_path_buf);
        let derived = tempfile::Builder::new().prefix("flowscribe-").tempdir_in(&share);
        let derived = derived.map_err(|source| BallistaError::Share { path: share, source })?;
        let cluster_error = |source| BallistaError::Cluster { url: url.into(), source };
        let state = state(session_config());
        let context = SessionContext::remote_with_state(url, state).await.map_err(cluster_error)?;
        function::register(&context);
        register(&context, FlowRecord::DATASET, plain(&FlowRecord::schema()), &self.files).await?;
        register(&context, InventoryRecord::DATASET, plain(&InventoryRecord::schema()), &self.files).await?;
        register(&context, HealthRecord::DATASET, plain(&HealthRecord::schema()), &self.files).await?;
        for name in names {
            if context.table_exist(&*name)? || !self.context.table_exist(&*name)? {
                continue;
            }
            let table = self.context.table(&*name).await?;
            let schema = plain(table.schema().inner());
            let path = derived.path().join(format!("{name}.parquet"));
            let options = DataFrameWriteOptions::new().with_single_file_output(true);
            table.write_parquet(&path.to_string_lossy(), options, None).await?;
            let not_a_path = |()| DataFusionError::Plan(format!("{} is no absolute path", path.display()));
            let url = ListingTableUrl::try_new(Url::from_file_path(&path).map_err(not_a_path)?, None)?;
            let options = ListingOptions::new(Arc::new(ParquetFormat::default()));
            let config = ListingTableConfig::new(url).with_listing_options(options).with_schema(schema);
            context.register_table(&*name, Arc::new(ListingTable::try_new(config)?))?;
        }
        let frames = super::plan(&context, queries, params).await?;
        Ok((frames, Distributed { context, _derived: derived }))
    }
}

impl Drop for Distributed {
    /// Ends with its tables.
    fn drop(&mut self) {
        let _ = self.context.deregister_table(FlowRecord::DATASET);
    }
}

/// A schema without dictionaries: Ballista 55 sends their values from one executor to another, and then misses the
/// dictionaries that its plans have.
fn plain(schema: &SchemaRef) -> SchemaRef {
    let field = |field: &FieldRef| match field.data_type() {
        DataType::Dictionary(_, values) => Field::new(field.name(), (**values).clone(), field.is_nullable()),
        _ => (**field).clone(),
    };
    Arc::new(Schema::new(schema.fields().iter().map(field).collect::<Vec<_>>()))
}

/// A session that knows the functions of queries.
fn state(config: SessionConfig) -> SessionState {
    let state = SessionStateBuilder::new().with_config(config).with_default_features().build();
    let context = SessionContext::new_with_state(state);
    function::register(&context);
    context.state()
}

/// Runs a scheduler until it is ended.
///
/// # Errors
/// It can't listen.
pub(crate) async fn schedule(address: SocketAddr) -> Result<(), BallistaError> {
    let config = SchedulerConfig {
        bind_host: address.ip().to_string(),
        bind_port: address.port(),
        external_host: address.ip().to_string(),
        // By default, one executor is filled before the next one has anything to do.
        task_distribution: TaskDistributionPolicy::RoundRobin,
        override_session_builder: Some(Arc::new(|config| Ok(state(config)))),
        ..SchedulerConfig::default()
    };
    let run_error = |error: ballista_core::error::BallistaError| BallistaError::Run(error.to_string());
    let cluster = BallistaCluster::new_from_config(&config).await.map_err(run_error)?;
    start_server(cluster, address, Arc::new(config)).await.map_err(run_error)
}

/// What an executor needs to know.
pub(crate) struct Executor {
    /// Host and port of its scheduler.
    pub(crate) scheduler: (String, u16),
    /// Where others fetch its results.
    pub(crate) address: SocketAddr,
    /// Where the scheduler reaches it.
    pub(crate) control_address: SocketAddr,
    /// Tasks at once; 0 is one per processor.
    pub(crate) tasks: usize,
    /// Directory for results that are under way; a temporary one if `None`.
    pub(crate) work_dir: Option<PathBuf>,
}

/// Runs an executor until it is ended.
///
/// # Errors
/// It can't listen, or reach its scheduler.
pub(crate) async fn execute(executor: Executor) -> Result<(), BallistaError> {
    let Executor { scheduler, address, control_address, tasks, work_dir } = executor;
    let registry = BallistaFunctionRegistry::from(&state(session_config()));
    let host = |address: &SocketAddr| address.ip().to_string();
    let (scheduler_host, scheduler_port) = scheduler;
    let config = ExecutorProcessConfig {
        bind_host: host(&address),
        external_host: Some(host(&address)),
        port: address.port(),
        grpc_port: control_address.port(),
        scheduler_host,
        scheduler_port,
        vcores: tasks,
        scheduler_connect_timeout_seconds: CONNECT_SECONDS,
        work_dir: work_dir.map(|path| path.to_string_lossy().into_owned()),
        override_function_registry: Some(Arc::new(registry)),
        ..ExecutorProcessConfig::default()
    };
    start_executor_process(Arc::new(config)).await.map_err(|error| BallistaError::Run(error.to_string()))
}

/// How long an executor waits for its scheduler.
const CONNECT_SECONDS: u16 = 60;
