//! Sets of an open capture, with what an earlier run remembers of its hours.

use std::{io, sync::Arc, thread};

use super::{Decisions, Sets, Thresholds};
use crate::output::note;
use crate::{
    capture::{OpenCapture, OpenError},
    edge::{Undirected, WorkError},
};

/// What communication sets are learned by.
#[derive(Clone, Debug, Default)]
pub(crate) struct Learning {
    pub(crate) decisions: Arc<Decisions>,
    pub(crate) thresholds: Thresholds,
}

/// The sets of a capture, and how many rows of each run had no known direction.
pub(crate) type Learned = (Sets, Undirected);

/// Learns the sets of a capture, in a thread that nobody has to wait for after Ctrl-C.
///
/// # Errors
/// A file can't be read: see [`OpenCapture::read`].
pub(crate) async fn learn(capture: &OpenCapture, learning: &Learning) -> Result<Learned, OpenError> {
    let learn = Learn::new(capture, learning);
    Ok(tokio::task::spawn_blocking(move || learn.run()).await.map_err(io::Error::other)??)
}

/// All that learning takes, for a thread of its own.
pub(crate) struct Learn {
    capture: OpenCapture,
    learning: Learning,
}

impl Learn {
    pub(crate) fn new(capture: &OpenCapture, learning: &Learning) -> Self {
        Self { capture: capture.clone(), learning: learning.clone() }
    }

    /// Reads the flows and learns from them.
    ///
    /// # Errors
    /// A file can't be read.
    pub(crate) fn run(self) -> Result<Learned, WorkError> {
        let Self { capture: OpenCapture { input, mut files, superseded, flows, index, runs, .. }, learning } = self;
        let learn =
            |communications| Sets::learn(communications, &index, &runs, &learning.decisions, learning.thresholds);
        let Some(state) = input.state else {
            let (communications, undirected) = flows.communications()?;
            return Ok((learn(communications), undirected));
        };
        let (communications, undirected, blocks) = flows.communications_since(state.take_blocks())?;
        files.extend(superseded);
        let sets = thread::scope(|scope| {
            scope.spawn(|| {
                // What is known is right even where it can't be kept for the next time.
                if let Err(error) = state.save(&files, blocks) {
                    note!("{:#}", anyhow::Error::from(error));
                }
            });
            learn(communications)
        });
        Ok((sets, undirected))
    }
}
