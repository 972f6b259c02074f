//! A set of policies on a branch of a Git repository: each change is a commit, and pushing is the user's.
//!
//! The commit is made by `git fast-import` of the branch itself, so that nothing that is checked out or staged gets into it, and
//! a commit of somebody else since is refused instead of lost. Only where the branch is the one that is checked out, its files
//! follow, and nothing may be unfinished there.

use std::{
    env, fmt,
    io::{self, Write},
    path::{Component, Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use super::directory::{self, Files, TreeError};
use crate::netpol::Difference;

/// Why a branch can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GitError {
    #[error("cannot run git, which --git needs: install it, or name another place with --output")]
    Program(#[source] io::Error),
    #[error("{path} is no Git repository that can be used: {reason}")]
    Open { path: PathBuf, reason: String },
    #[error("branch {branch} of {path}: cannot {action}: {reason}")]
    Git { path: PathBuf, branch: String, action: &'static str, reason: String },
    #[error("branch {branch} of {path} is checked out, and {file} is not committed there: commit or stash it")]
    Unfinished { path: PathBuf, branch: String, file: String },
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// A branch, and the directory of it that the set is in.
pub(crate) struct Branch {
    repository: PathBuf,
    name: String,
    /// Its parts with slashes between them; empty for the root.
    directory: String,
}

impl Branch {
    /// Names a branch; it need not be there yet.
    ///
    /// # Errors
    /// There is no repository, or no Git.
    pub(crate) fn open(repository: &Path, name: &str, directory: &Path) -> Result<Self, GitError> {
        // Trees know neither dots nor slashes at the ends.
        let parts = directory.components().filter_map(|part| match part {
            Component::Normal(part) => Some(part.to_string_lossy()),
            _ => None,
        });
        let directory = parts.collect::<Vec<_>>().join("/");
        let branch = Self { repository: repository.into(), name: name.into(), directory };
        match branch.git(["rev-parse", "--git-dir"], &[])? {
            Ok(_) => Ok(branch),
            Err(reason) => Err(GitError::Open { path: repository.into(), reason }),
        }
    }

    /// The files of the set, as the branch has them; or, if it is not there yet, what is checked out.
    ///
    /// # Errors
    /// The repository can't be read.
    pub(crate) fn read(&self) -> Result<Files, GitError> {
        let Some(tip) = self.tip()? else { return Ok(Files::new()) };
        let Some(tree) = self.resolve(&format!("{tip}:{}", self.directory))? else { return Ok(Files::new()) };
        let listed = self.get("read it", ["ls-tree", "-z", &tree], &[])?;
        let listed = String::from_utf8_lossy(&listed);
        // The mode, `blob` and its id; a tab, and its name.
        let entry = |entry: &'_ str| -> Option<(String, String)> {
            let (object, name) = entry.split_once('\t')?;
            let (_, id) = object.split_once(" blob ")?;
            directory::is_of_set(name).then(|| (name.to_owned(), id.to_owned()))
        };
        let (names, ids): (Vec<String>, Vec<String>) = listed.split('\0').filter_map(entry).unzip();
        let batch = self.get("read it", ["cat-file", "--batch"], ids.join("\n").as_bytes())?;
        Ok(names.into_iter().zip(contents(&batch)).collect())
    }

    /// Commits files in place of the last ones.
    ///
    /// # Errors
    /// The repository can't be written, a file in the way is not ours, or work is unfinished where this is checked out.
    pub(crate) fn commit(&self, last: &Files, files: &Files, difference: &Difference) -> Result<(), GitError> {
        let removed = directory::removed(last, files)?;
        let is_checked_out = self.is_checked_out()?;
        if is_checked_out && let Some(file) = self.unfinished()? {
            let (path, branch) = (self.repository.clone(), self.name.clone());
            return Err(GitError::Unfinished { path, branch, file });
        }
        let committer = self.committer()?;
        let message = message(difference);
        let mut import = format!("commit refs/heads/{}\ncommitter ", self.name).into_bytes();
        import.extend(committer.trim_ascii_end());
        import.extend(format!("\ndata {}\n{message}\n", message.len()).into_bytes());
        if let Some(tip) = self.tip()? {
            import.extend(format!("from {tip}\n").into_bytes());
        }
        for (name, text) in files.iter().filter(|(name, text)| last.get(*name) != Some(text)) {
            import.extend(b"M 100644 inline ");
            import.extend(self.quoted(name).into_bytes());
            import.extend(format!("\ndata {}\n{text}\n", text.len()).into_bytes());
        }
        for name in removed {
            import.extend(b"D ");
            import.extend(self.quoted(name).into_bytes());
            import.push(b'\n');
        }
        // A commit of somebody else since is not lost: then this one does not follow the branch, which is refused.
        self.get("commit", ["fast-import", "--quiet", "--date-format=raw"], &import)?;
        if is_checked_out {
            let restore = ["restore", "--source=HEAD", "--staged", "--worktree", "--", &self.pathspec()];
            self.get("check it out", restore, &[])?;
        }
        Ok(())
    }

    /// What Git prints, or else why it refuses, with an input and in this repository alone, whatever a hook or a shell has set.
    ///
    /// # Errors
    /// There is no Git.
    fn git<const N: usize>(&self, arguments: [&str; N], input: &[u8]) -> Result<Result<Vec<u8>, String>, GitError> {
        let mut git = Command::new("git");
        git.arg("-C").arg(&self.repository);
        for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR"] {
            git.env_remove(variable);
        }
        // What is no repository itself is none because a folder above is.
        if let Some(above) = self.repository.canonicalize().ok().as_deref().and_then(Path::parent) {
            git.env("GIT_CEILING_DIRECTORIES", above);
        }
        git.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = git.spawn().map_err(GitError::Program)?;
        let stdin = running.stdin.take();
        let output = thread::scope(|scope| {
            // What ends before it has read everything says so by its status.
            scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input)));
            running.wait_with_output()
        });
        let output = output.map_err(GitError::Program)?;
        if output.status.success() {
            return Ok(Ok(output.stdout));
        }
        let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Ok(Err(if reason.is_empty() { output.status.to_string() } else { reason }))
    }

    /// What Git prints where it must not refuse.
    fn get<const N: usize>(
        &self,
        action: &'static str,
        arguments: [&str; N],
        input: &[u8],
    ) -> Result<Vec<u8>, GitError> {
        self.git(arguments, input)?.map_err(|reason| {
            let (path, branch) = (self.repository.clone(), self.name.clone());
            GitError::Git { path, branch, action, reason }
        })
    }

    /// The object that a name stands for, if there is one.
    fn resolve(&self, name: &str) -> Result<Option<String>, GitError> {
        let resolved = self.git(["rev-parse", "--verify", "--quiet", "--end-of-options", name], &[])?;
        Ok(resolved.ok().map(|id| String::from_utf8_lossy(&id).trim().to_owned()))
    }

    /// What a commit goes on from: the branch, or else what is checked out; `None` in an empty repository.
    fn tip(&self) -> Result<Option<String>, GitError> {
        match self.resolve(&format!("refs/heads/{}^{{commit}}", self.name))? {
            Some(tip) => Ok(Some(tip)),
            None => self.resolve("HEAD^{commit}"),
        }
    }

    /// Who commits, and when, as Git knows it, or else under a name of ours.
    fn committer(&self) -> Result<Vec<u8>, GitError> {
        let is_known = env::var_os("GIT_COMMITTER_EMAIL").is_some() || self.git(["config", "user.email"], &[])?.is_ok();
        if is_known {
            return self.get("commit", ["var", "GIT_COMMITTER_IDENT"], &[]);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Ok(format!("flowscribe <flowscribe@localhost> {now} +0000").into_bytes())
    }

    fn is_checked_out(&self) -> Result<bool, GitError> {
        let is =
            |printed: Result<Vec<u8>, String>, text: &str| printed.is_ok_and(|of| of.trim_ascii() == text.as_bytes());
        let has_files = is(self.git(["rev-parse", "--is-bare-repository"], &[])?, "false");
        let head = self.git(["symbolic-ref", "--quiet", "HEAD"], &[])?;
        Ok(has_files && is(head, &format!("refs/heads/{}", self.name)))
    }

    /// A file of the set's directory that is changed and not committed.
    fn unfinished(&self) -> Result<Option<String>, GitError> {
        let status = ["status", "--porcelain", "-z", "--untracked-files=all", "--", &self.pathspec()];
        let changed = self.get("read its state", status, &[])?;
        // XY, a space and the path.
        let first = changed.split(|byte| *byte == 0).find_map(|entry| entry.get(3..));
        Ok(first.map(|path| String::from_utf8_lossy(path).into_owned()))
    }

    /// The set's directory as Git's commands take it, whatever is in its name.
    fn pathspec(&self) -> String {
        format!(":(top,literal){}", self.directory)
    }

    /// A file of the set's directory as `git fast-import` takes it.
    fn quoted(&self, name: &str) -> String {
        let path = if self.directory.is_empty() { name.to_owned() } else { format!("{}/{name}", self.directory) };
        format!("\"{}\"", path.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
    }
}

/// The contents of what `git cat-file --batch` prints: for each object a line that ends with its size, and so many bytes.
fn contents(mut batch: &[u8]) -> Vec<String> {
    let mut contents = Vec::new();
    while let Some(end) = batch.iter().position(|byte| *byte == b'\n') {
        let (header, rest) = (String::from_utf8_lossy(&batch[..end]), &batch[end + 1..]);
        let size: usize = header.rsplit(' ').next().and_then(|size| size.parse().ok()).unwrap_or(0);
        contents.push(String::from_utf8_lossy(rest.get(..size).unwrap_or(rest)).into_owned());
        batch = rest.get(size + 1..).unwrap_or_default();
    }
    contents
}

impl fmt::Display for Branch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "branch {} of {}", self.name, self.repository.display())
    }
}

/// What a commit says: how much is different, and what.
fn message(difference: &Difference) -> String {
    if difference.is_none() {
        return "Update what is said of network policies\n\nThey allow what they did before.\n".into();
    }
    let lines: String = difference.lines().into_iter().map(|(sign, line)| format!("{sign} {line}\n")).collect();
    format!("Update network policies: {}\n\n{lines}", difference.brief())
}
