//! Runs the tests and reports them as libtest does, and reports one that lacks what it needs as ignored: libtest decides
//! at build time what to ignore, while root, a kernel or a program is missing at run time.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use libtest_mimic::{Arguments, Completion, Trial};

/// A test of a module, which [`tests`] lists.
pub(crate) struct Test {
    pub(crate) module: &'static str,
    pub(crate) name: &'static str,
    pub(crate) run: fn() -> Ran,
}

/// How a test ended that did not panic: it ran, or something it needs is missing.
pub(crate) type Ran = Result<(), Missing>;

/// Why a test can't run on this machine.
#[derive(Debug)]
pub(crate) struct Missing(pub(crate) String);

/// What a test may return: nothing where it can run everywhere.
pub(crate) trait Outcome {
    fn ran(self) -> Ran;
}

impl Outcome for () {
    fn ran(self) -> Ran {
        Ok(self)
    }
}

impl Outcome for Ran {
    fn ran(self) -> Ran {
        self
    }
}

/// Lists the tests of a module; the compiler warns of one that is not listed as of any unused function.
macro_rules! tests {
    ($($name:ident),+ $(,)?) => {
        pub(crate) const TESTS: &[$crate::harness::Test] = &[$($crate::harness::Test {
            module: module_path!(),
            name: stringify!($name),
            run: || $crate::harness::Outcome::ran($name()),
        }),+];
    };
}

/// Stops a test that needs something unless it is there.
///
/// # Errors
/// It is not.
pub(crate) fn require(is_there: bool, reason: &str) -> Ran {
    if is_there { Ok(()) } else { Err(Missing(reason.into())) }
}

/// Runs the tests that the command line asks for.
pub(crate) fn run(modules: &[&[Test]], only_on_demand: bool) -> ExitCode {
    let trials = modules.iter().copied().flatten().map(|test| test.trial().with_ignored_flag(only_on_demand));
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

impl Test {
    fn trial(&self) -> Trial {
        let Self { module, name, run } = self;
        // As libtest names tests: without the name of the binary.
        let name = module.split_once("::").map_or_else(|| (*name).into(), |(_, module)| format!("{module}::{name}"));
        let (shown, run) = (name.clone(), *run);
        Trial::ignorable_test(name, move || {
            let Err(Missing(reason)) = run() else { return Ok(Completion::Completed) };
            let _ = writeln!(io::stderr(), "SKIPPED {shown}: {reason}");
            Ok(Completion::ignored_with(reason))
        })
    }
}
