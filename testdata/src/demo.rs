//! `cargo demo`: an application of twelve workloads in the lab, recorded and turned into policies.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use schemas::capture::{DATASETS, UNFINISHED_FILES};

use crate::{
    app::App,
    lab::{self, Lab},
    recording::{self, Recording},
};

/// Plays, records and reports; without root or eBPF, says so and reports on the committed capture.
///
/// # Errors
/// A part of the lab or of the recording fails.
pub fn run(capture: Option<&Path>) -> Result<()> {
    let executable = lab::own_executable()?;
    let missing = match Lab::missing() {
        Some(missing) => Some(missing),
        None => {
            let capture = capture.map_or_else(default_capture, |path| Ok(path.to_path_buf()))?;
            match live(&executable, &capture) {
                Ok(()) => return report(&executable, &capture),
                // The lab is up, but the kernel does not let the exporter watch it.
                Err(error) if error.to_string().contains(NOT_WATCHED) => Some(error.to_string()),
                Err(error) => return Err(error),
            }
        }
    };
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("captures/demo");
    let reason = missing.unwrap_or_default();
    eprintln!("not live here: {reason}; replaying the committed capture {}", committed.display());
    report(&executable, &committed)
}

/// Records the application once, in place of the capture that may be there.
fn live(executable: &Path, capture: &Path) -> Result<()> {
    if capture.exists() {
        let is_own = |entry: &fs::DirEntry| {
            DATASETS.iter().chain([&UNFINISHED_FILES]).any(|directory| entry.file_name() == *directory)
        };
        if let Some(other) = fs::read_dir(capture)?.flatten().find(|entry| !is_own(entry)) {
            bail!("{} is not of a capture: name another directory", other.path().display());
        }
        fs::remove_dir_all(capture).with_context(|| format!("clear {}", capture.display()))?;
    }
    fs::create_dir_all(capture)?;
    let started = Instant::now();
    let mut lab = Lab::new(executable)?;
    let app = App::parse(MICROSERVICES)?.start(&mut lab, NAMESPACE)?;
    let pods: usize = app.pods.values().map(Vec::len).sum();
    eprintln!("lab: {} workloads, {pods} pods, each a network namespace; {} calls", app.pods.len(), app.calls.len());
    let recording = Recording::start(executable, &lab, capture, &[] as &[&str])?;
    eprintln!("recording with: flowscribe-exporter --inventory … --output {}", capture.display());
    app.probe(&mut lab)?;
    app.play(&mut lab, CALLS)?;
    recording.stop()?;
    drop(lab);
    eprintln!("recorded and cleaned up in {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

fn report(executable: &Path, capture: &Path) -> Result<()> {
    eprintln!("policies of: flowscribe report --input {} --namespaces {NAMESPACE}\n", capture.display());
    let input = capture.to_string_lossy();
    let output = recording::flowscribe(executable, &["report", "--input", &input, "--namespaces", NAMESPACE])?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    eprint!("\n{}", String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        bail!("flowscribe report ended with {}", output.status);
    }
    eprintln!("ask on: flowscribe sql --input {} 'select * from edges'", capture.display());
    Ok(())
}

/// Beside the program, in the build's own directory.
fn default_capture() -> Result<PathBuf> {
    let executable = lab::own_executable()?;
    let target = executable.parent().and_then(Path::parent).context("this program is in a directory")?;
    Ok(target.join("demo").join("capture"))
}

/// Namespace, in the sense of Kubernetes, that the application runs in.
pub const NAMESPACE: &str = "demo";
/// The application's manifest; see `testdata/README.md`.
pub const MICROSERVICES: &str = include_str!("../apps/microservices-demo.yaml");
const CALLS: u32 = 5;
const NOT_WATCHED: &str = "cannot watch the kernel's sockets";
