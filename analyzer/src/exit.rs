//! How a command ends, for whoever runs it: the one table of exit statuses, which README shows.

use std::process::ExitCode;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It is done, and nothing is wrong.
    Done,
    /// It is done, and its verdict is not well: something is denied, different, or left undone.
    Verdict,
    /// It can't be done or decided: nothing to read, no permission, a wrong path, name or command line.
    Undecided,
    /// The set of policies changed (`--exit-code`).
    Changed,
    /// Another run holds the lease.
    Busy,
    /// What was there is kept, as a part of the capture can't be read.
    Kept,
    /// It was interrupted.
    Interrupted,
}

impl Exit {
    /// All of them.
    pub(crate) const ALL: [Self; 7] =
        [Self::Done, Self::Verdict, Self::Undecided, Self::Changed, Self::Busy, Self::Kept, Self::Interrupted];

    /// Of a verdict.
    pub(crate) const fn judged(is_well: bool) -> Self {
        if is_well { Self::Done } else { Self::Verdict }
    }

    /// The exit status.
    pub(crate) const fn status(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Verdict => 1,
            Self::Undecided => 2,
            Self::Changed => 3,
            Self::Busy => 4,
            Self::Kept => 5,
            // What shells report of a program that Ctrl-C ended: 128 and the number of SIGINT.
            Self::Interrupted => 130,
        }
    }

    /// What it means, as help and README have it.
    pub(crate) const fn meaning(self) -> &'static str {
        match self {
            Self::Done => "done, and nothing is wrong",
            Self::Verdict => "a verdict: something is denied, different, or left undone",
            Self::Undecided => "not decided: nothing to read, no permission, or a wrong path, name or command line",
            Self::Changed => "the set of policies changed (regenerate --exit-code)",
            Self::Busy => "another run holds the lease (regenerate --lease)",
            Self::Kept => "what was there is kept, as a part of the capture can't be read",
            Self::Interrupted => "interrupted",
        }
    }

    /// The table as help has it.
    pub(crate) fn help() -> String {
        let lines = Self::ALL.map(|exit| format!("  {:<4} {}\n", exit.status(), exit.meaning()));
        format!("Exit status:\n{}", lines.concat())
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.status())
    }
}
