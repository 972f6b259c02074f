//! `flowscribe ballista-scheduler` and `ballista-executor`: the parts of a cluster that answers queries.

use crate::{
    cli::{ExecutorArgs, SchedulerArgs},
    logging::log_to_stderr,
    tables::{self, BallistaError, Executor},
};

/// Runs a scheduler until it is ended.
///
/// # Errors
/// It can't listen.
pub(crate) async fn schedule(args: &SchedulerArgs) -> Result<(), BallistaError> {
    log_to_stderr();
    tables::schedule(args.address).await
}

/// Runs an executor until it is ended.
///
/// # Errors
/// It can't listen, or reach its scheduler.
pub(crate) async fn execute(args: &ExecutorArgs) -> Result<(), BallistaError> {
    log_to_stderr();
    let ExecutorArgs { scheduler, address, control_address, tasks, work_dir } = args;
    tables::execute(Executor {
        scheduler: scheduler.clone(),
        address: *address,
        control_address: *control_address,
        tasks: *tasks,
        work_dir: work_dir.clone(),
    })
    .await
}
