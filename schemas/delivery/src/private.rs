//! Files for nobody but who runs the program: what is on its way says who talks to whom, and is no one else's to read.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

/// Makes a folder that nobody else can look into, unless it is there; those above it are as others are.
///
/// # Errors
/// It can't be made.
pub fn create_folder(folder: &Path) -> io::Result<()> {
    if let Some(above) = folder.parent() {
        fs::create_dir_all(above)?;
    }
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        created => created,
    }
}

/// Opens a file for writing that nobody else can read, which is made anew or emptied.
///
/// # Errors
/// It can't be made.
pub fn create(file: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(file)
}

/// The same of a file that is not there yet, for reading too.
///
/// # Errors
/// It is there, or can't be made.
pub fn create_new(file: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn nobody_else_reads_what_is_on_its_way() {
        let directory = tempfile::tempdir().expect("a directory");
        let folder = directory.path().join("above/spool");
        create_folder(&folder).expect("made");
        create_folder(&folder).expect("there");
        create(&folder.join("a")).expect("made");
        create_new(&folder.join("b")).expect("made");
        assert!(create_new(&folder.join("a")).is_err() && create_folder(&folder.join("a")).is_err());
        let mode = |path: &Path| path.metadata().expect("it is there").permissions().mode() & 0o777;
        assert_eq!((mode(&folder), mode(&folder.join("a")), mode(&folder.join("b"))), (0o700, 0o600, 0o600));
        assert_ne!(mode(&directory.path().join("above")), 0o700, "as others are");
    }
}
