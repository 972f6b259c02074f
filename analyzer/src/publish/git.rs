//! A set of policies on a branch of a Git repository: each change is a commit, and pushing is the user's.
//!
//! The commit is made of the branch itself, so that nothing that is checked out or staged gets into it. Only where the
//! branch is the one that is checked out, its files follow, and nothing may be unfinished there.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use git2::{
    BranchType, Commit, ErrorCode, FileMode, ObjectType, Repository, Signature, Status, StatusOptions, Tree,
    build::{CheckoutBuilder, TreeUpdateBuilder},
};

use super::directory::{self, Files, TreeError};
use crate::netpol::Difference;

/// Why a branch can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GitError {
    #[error("{path} is no Git repository that can be used")]
    Open {
        path: PathBuf,
        #[source]
        source: git2::Error,
    },
    #[error("branch {branch} of {path}: cannot {what}")]
    Git {
        path: PathBuf,
        branch: String,
        what: &'static str,
        #[source]
        source: git2::Error,
    },
    #[error("branch {branch} of {path} is checked out, and {file} is not committed there: commit or stash it")]
    Unfinished { path: PathBuf, branch: String, file: String },
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// A branch, and the directory of it that the set is in.
pub(crate) struct Branch {
    repository: PathBuf,
    name: String,
    directory: PathBuf,
}

impl Branch {
    /// Names a branch; it need not be there yet.
    ///
    /// # Errors
    /// There is no repository.
    pub(crate) fn open(repository: &Path, name: &str, directory: &Path) -> Result<Self, GitError> {
        let open = Repository::open(repository);
        open.map_err(|source| GitError::Open { path: repository.into(), source })?;
        // Trees know neither dots nor slashes at the ends.
        let directory = directory.components().filter(|part| matches!(part, std::path::Component::Normal(_))).collect();
        Ok(Self { repository: repository.into(), name: name.into(), directory })
    }

    /// The files of the set, as the branch has them; or, if it is not there yet, what is checked out.
    ///
    /// # Errors
    /// The repository can't be read.
    pub(crate) fn read(&self) -> Result<Files, GitError> {
        let repository = self.repository()?;
        let read = || {
            let Some(tip) = self.tip(&repository)? else { return Ok(Files::new()) };
            self.files(&repository, &tip.tree()?)
        };
        read().map_err(|source| self.failed("be read", source))
    }

    /// Commits files in place of the last ones.
    ///
    /// # Errors
    /// The repository can't be written, a file in the way is not ours, or work is unfinished where this is checked out.
    pub(crate) fn commit(&self, last: &Files, files: &Files, difference: &Difference) -> Result<(), GitError> {
        let removed = directory::removed(last, files)?;
        let repository = self.repository()?;
        let is_checked_out = self.is_checked_out(&repository);
        if is_checked_out && let Some(file) = self.unfinished(&repository)? {
            let (path, branch) = (self.repository.clone(), self.name.clone());
            return Err(GitError::Unfinished { path, branch, file });
        }
        let commit = || {
            let tip = self.tip(&repository)?;
            let mut update = TreeUpdateBuilder::new();
            for (name, text) in files.iter().filter(|(name, text)| last.get(*name) != Some(text)) {
                let blob = repository.blob(text.as_bytes())?;
                update.upsert(self.directory.join(name), blob, FileMode::Blob);
            }
            for name in removed {
                update.remove(self.directory.join(name));
            }
            let base = match &tip {
                Some(tip) => tip.tree()?,
                None => repository.find_tree(repository.treebuilder(None)?.write()?)?,
            };
            let tree = repository.find_tree(update.create_updated(&repository, &base)?)?;
            let author = repository.signature().or_else(|_| Signature::now(NAME, EMAIL))?;
            let message = message(difference);
            let parents: Vec<&Commit<'_>> = tip.iter().collect();
            let commit = repository.commit(None, &author, &author, &message, &tree, &parents)?;
            let name = format!("refs/heads/{}", self.name);
            // A commit of somebody else since is not lost: then the branch is not at the tip any more.
            match self.branch(&repository)? {
                Some(at) => repository.reference_matching(&name, commit, true, at.id(), REFLOG)?,
                None => repository.reference(&name, commit, false, REFLOG)?,
            };
            Ok(())
        };
        commit().map_err(|source| self.failed("be committed to", source))?;
        if is_checked_out {
            let checkout = |repository: &Repository| {
                repository.checkout_head(Some(CheckoutBuilder::new().force().path(&self.directory)))
            };
            checkout(&repository).map_err(|source| self.failed("be checked out", source))?;
        }
        Ok(())
    }

    fn repository(&self) -> Result<Repository, GitError> {
        Repository::open(&self.repository).map_err(|source| GitError::Open { path: self.repository.clone(), source })
    }

    fn failed(&self, what: &'static str, source: git2::Error) -> GitError {
        GitError::Git { path: self.repository.clone(), branch: self.name.clone(), what, source }
    }

    fn branch<'r>(&self, repository: &'r Repository) -> Result<Option<Commit<'r>>, git2::Error> {
        match repository.find_branch(&self.name, BranchType::Local) {
            Ok(branch) => branch.get().peel_to_commit().map(Some),
            Err(error) if error.code() == ErrorCode::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What a commit goes on from: the branch, or else what is checked out; `None` in an empty repository.
    fn tip<'r>(&self, repository: &'r Repository) -> Result<Option<Commit<'r>>, git2::Error> {
        if let Some(commit) = self.branch(repository)? {
            return Ok(Some(commit));
        }
        match repository.head() {
            Ok(head) => head.peel_to_commit().map(Some),
            Err(error) if [ErrorCode::UnbornBranch, ErrorCode::NotFound].contains(&error.code()) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn files(&self, repository: &Repository, tree: &Tree<'_>) -> Result<Files, git2::Error> {
        let entry = match tree.get_path(&self.directory) {
            Ok(entry) => entry,
            Err(error) if error.code() == ErrorCode::NotFound => return Ok(Files::new()),
            Err(error) => return Err(error),
        };
        let folder = repository.find_tree(entry.id())?;
        let mut files = Files::new();
        for entry in folder.iter().filter(|entry| entry.kind() == Some(ObjectType::Blob)) {
            if let Some(name) = entry.name()
                && directory::is_of_set(name)
            {
                let blob = repository.find_blob(entry.id())?;
                files.insert(name.into(), String::from_utf8_lossy(blob.content()).into_owned());
            }
        }
        Ok(files)
    }

    fn is_checked_out(&self, repository: &Repository) -> bool {
        if repository.is_bare() {
            return false;
        }
        let head = repository.find_reference("HEAD");
        let target = head.ok().and_then(|head| head.symbolic_target().map(str::to_owned));
        target.is_some_and(|target| target == format!("refs/heads/{}", self.name))
    }

    /// A file of the set's directory that is changed and not committed.
    fn unfinished(&self, repository: &Repository) -> Result<Option<String>, GitError> {
        let mut options = StatusOptions::new();
        options.pathspec(&self.directory).include_untracked(true).recurse_untracked_dirs(true);
        let statuses = repository.statuses(Some(&mut options)).map_err(|source| self.failed("be looked at", source))?;
        let changed = statuses.iter().find(|entry| entry.status() != Status::CURRENT && !entry.status().is_ignored());
        Ok(changed.map(|entry| entry.path().unwrap_or("a file").to_owned()))
    }
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

/// Who commits where Git is not told who it is.
const NAME: &str = "flowscribe";
const EMAIL: &str = "flowscribe@localhost";
const REFLOG: &str = "flowscribe regenerate";
