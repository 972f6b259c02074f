//! Ctrl-C, which is heard at every moment: also while a disk does not answer, and while many files are opened.
//!
//! A thread of its own listens, the only one that takes the signal: given to one that waits for a disk, it would wait too. The
//! command is dropped where it waits, which removes what it has not finished; and where it
//! does not come to wait within a moment, the process ends all the same.

use std::{
    io, process,
    sync::{
        Once,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::{SigSet, Signal as Interrupt};
use tokio::{
    runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
    time::sleep,
};

use crate::{
    exit::Exit,
    output::{self, note},
};

/// What Ctrl-C means for a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// It is given up.
    GiveUp,
    /// It is given up, and has perhaps changed a cluster by then.
    GiveUpChanges,
    /// It records, and ends by itself, with what it has yet to write; it takes so many Ctrl-C for that, and is given up at one
    /// more.
    Finish(usize),
}

/// Says that from now on a command that records hears Ctrl-C itself, and has something to finish.
pub(crate) fn records() {
    RECORDS.store(true, Ordering::Relaxed);
}

static RECORDS: AtomicBool = AtomicBool::new(false);

/// Leaves Ctrl-C to the thread that listens; to be called before there are others.
pub(crate) fn leave_to_listener() {
    // Programs that are started get a mask of their own.
    let _ = SigSet::from(Interrupt::SIGINT).thread_block();
}

/// Listens from now on; what is returned is there once the command is to be dropped.
///
/// # Errors
/// The system has no threads or signals left.
pub(crate) fn listen(meaning: Meaning) -> io::Result<oneshot::Receiver<()>> {
    let (drop_command, is_dropped) = oneshot::channel();
    let (ready, is_ready) = mpsc::channel();
    let listen = move || {
        let begun = runtime::Builder::new_current_thread().enable_all().build().and_then(|runtime| {
            let of_runtime = runtime.enter();
            let interrupt = signal(SignalKind::interrupt())?;
            drop(of_runtime);
            SigSet::from(Interrupt::SIGINT).thread_unblock()?;
            Ok((runtime, interrupt))
        });
        match begun {
            Ok((runtime, interrupt)) => {
                let _ = ready.send(Ok(()));
                runtime.block_on(heard(interrupt, meaning, drop_command));
                leave(meaning);
            }
            Err(error) => drop(ready.send(Err(error))),
        }
    };
    thread::Builder::new().name("interrupt".into()).spawn(listen)?;
    is_ready.recv().map_err(io::Error::other)??;
    Ok(is_dropped)
}

/// Completes when the process is to end, whatever the command does.
async fn heard(mut interrupt: Signal, meaning: Meaning, drop_command: oneshot::Sender<()>) {
    interrupt.recv().await;
    let (limit, remark) = match meaning {
        Meaning::GiveUp | Meaning::GiveUpChanges => {
            let _ = drop_command.send(());
            (GRACE, None)
        }
        Meaning::Finish(_) if !RECORDS.load(Ordering::Relaxed) => (GRACE, None),
        Meaning::Finish(taken) => {
            for _ in 1..taken {
                interrupt.recv().await;
            }
            (PATIENCE, Some("flowscribe: what was recorded is still being written; Ctrl-C gives it up\n"))
        }
    };
    tokio::select! {
        _ = interrupt.recv() => return,
        () = sleep(limit) => {}
    }
    if let Some(remark) = remark {
        briefly(move || output::say(format_args!("{remark}"), ""));
        interrupt.recv().await;
    }
}

/// Ends the process, without what is unfinished.
fn leave(meaning: Meaning) -> ! {
    // A set of files is of one kind where the disk lets it be.
    let until = Instant::now() + PATIENCE;
    while output::is_appearing() && Instant::now() < until {
        thread::sleep(GRACE / 20);
    }
    briefly(output::remove_unfinished);
    briefly(move || say_interrupted(meaning));
    process::exit(Exit::Interrupted.status().into())
}

/// Says what is left of a command that was interrupted.
pub(crate) fn say_interrupted(meaning: Meaning) {
    let outcome = match meaning {
        Meaning::GiveUpChanges => "what is listed above is done, and perhaps what would be next",
        Meaning::Finish(_) if RECORDS.load(Ordering::Relaxed) => "and what it had not written yet is lost",
        Meaning::GiveUp if output::has_appeared() => "and what it had not written yet is left out",
        Meaning::GiveUp | Meaning::Finish(_) => "nothing was written",
    };
    // The command's own end and the one that is forced may meet.
    static SAID: Once = Once::new();
    SAID.call_once(|| note!("flowscribe: interrupted, {outcome}"));
}

/// Does something that a disk or a terminal may keep from ending.
fn briefly(action: impl FnOnce() + Send + 'static) {
    let (done, is_done) = mpsc::channel();
    let started = thread::Builder::new().spawn(move || {
        action();
        let _ = done.send(());
    });
    if started.is_ok() {
        let _ = is_done.recv_timeout(GRACE);
    }
}

/// How long a command that is interrupted may take to notice.
const GRACE: Duration = Duration::from_millis(500);
/// How long one that records may write before it is said that it does.
const PATIENCE: Duration = Duration::from_secs(5);
