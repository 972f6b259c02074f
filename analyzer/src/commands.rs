//! What `flowscribe` can be asked to do: a file, or a folder, for each command (`prune` is in `compact`), and `shared` for
//! what several do.

mod apply;
mod backtest;
#[cfg(feature = "ballista")]
mod ballista;
mod compact;
mod connectivity;
mod diff;
mod explain;
mod import;
mod inventory;
mod monitor;
mod receive;
mod regenerate;
mod report;
mod sets;
mod shared;
mod sql;
mod verify;

use tokio::sync::oneshot;

use crate::{
    cli::{Args, Command},
    exit::Exit,
    interrupt::Meaning,
};

/// Runs a command until it is done or to be dropped; what to exit with, and `None` if it was dropped.
///
/// # Errors
/// The command's.
pub(crate) async fn run(args: &Args, is_dropped: oneshot::Receiver<()>) -> anyhow::Result<Option<Exit>> {
    let judged = |is_well: bool| Ok(Some(Exit::judged(is_well)));
    let command = async {
        match &args.command {
            Command::Monitor(args) => monitor::run(args).await?,
            Command::Report(args) => return Ok(Some(report::run(args).await?)),
            Command::Inventory(args) => inventory::run(args).await?,
            Command::Receive(args) => receive::run(args).await?,
            Command::Import(args) => import::run(args)?,
            Command::Compact(args) => compact::run(args).await?,
            Command::Prune(args) => compact::prune(args).await?,
            Command::Sets(args) => sets::run(args).await?,
            Command::Sql(args) => sql::run(args).await?,
            #[cfg(feature = "ballista")]
            Command::BallistaScheduler(args) => ballista::schedule(args).await?,
            #[cfg(feature = "ballista")]
            Command::BallistaExecutor(args) => ballista::execute(args).await?,
            Command::Connectivity(args) => connectivity::run(args)?,
            Command::Explain(args) => explain::run(args).await?,
            Command::Backtest(args) => backtest::run(args).await?,
            Command::Verify(args) => return Ok(Some(verify::run(args).await?)),
            Command::Diff(args) => return judged(diff::run(args).await?),
            Command::Apply(args) => return judged(apply::run(args).await?),
            Command::Regenerate(args) => return Ok(Some(regenerate::run(args).await?)),
        }
        anyhow::Ok(Some(Exit::Done))
    };
    if matches!(args.command.on_interrupt(), Meaning::Finish(_)) {
        return command.await;
    }
    tokio::select! {
        done = Box::pin(command) => done,
        Ok(()) = is_dropped => Ok(None),
    }
}
