//! What the scene says to processes that are under way: files that appear in a directory.

use std::{path::Path, thread, time::Duration};

/// Waits until a signal is given; for ever if it never is.
pub(crate) fn wait(directory: &Path, name: &str) {
    while !directory.join(name).exists() {
        thread::sleep(Duration::from_millis(50));
    }
}
