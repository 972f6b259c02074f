//! Runs an iterator program over everything it is for: aya can make iterators, but not over a map.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::BorrowedFd,
};

use super::syscall;

/// Reads an iterator to its end; over the elements of a map, where there is one. Returns what its program wrote.
///
/// # Errors
/// The kernel refuses the iterator.
pub(super) fn walk(program: BorrowedFd<'_>, map: Option<BorrowedFd<'_>>) -> io::Result<Vec<u8>> {
    let mut iterator = File::from(syscall::iterator(program, map)?);
    let mut written = Vec::new();
    let mut chunk = [0; 4096];
    // Where the program writes nothing, a read ends where the walk does, or after a million elements, to be read on.
    loop {
        match iterator.read(&mut chunk) {
            Ok(0) => return Ok(written),
            Ok(length) => written.extend_from_slice(&chunk[..length]),
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            Err(error) => return Err(error),
        }
    }
}
