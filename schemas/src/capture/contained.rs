//! Panics of the Parquet and Arrow libraries over a damaged file: they are errors of that file, and of nothing else.

use std::{
    any::Any,
    cell::Cell,
    panic::{self, AssertUnwindSafe},
    sync::Once,
};

use arrow::error::ArrowError;
use parquet::errors::ParquetError;

/// An error that says what a library did not expect.
pub(super) trait Unexpected {
    fn unexpected(message: String) -> Self;
}

impl Unexpected for ParquetError {
    fn unexpected(message: String) -> Self {
        Self::General(message)
    }
}

impl Unexpected for ArrowError {
    fn unexpected(message: String) -> Self {
        Self::ParquetError(message)
    }
}

/// Does something with a file; a panic is an error. What is used by it is not to be used again then.
///
/// # Errors
/// Its own, and what it panicked with.
pub(super) fn contained<T, E: Unexpected>(read: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    static QUIET: Once = Once::new();
    // What is contained is said as an error, and not also as a panic.
    QUIET.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !CONTAINS.get() {
                before(info);
            }
        }));
    });
    let outer = CONTAINS.replace(true);
    let done = panic::catch_unwind(AssertUnwindSafe(read));
    CONTAINS.set(outer);
    done.unwrap_or_else(|panic| Err(E::unexpected(format!("its reader did not expect: {}", message(&*panic)))))
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("something else")
}

/// Batches of a reader, up to the first at which it panics.
pub(super) struct Contained<I>(pub(super) Option<I>);

impl<T, E: Unexpected, I: Iterator<Item = Result<T, E>>> Iterator for Contained<I> {
    type Item = Result<T, E>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut has_returned = false;
        let next = contained(|| {
            let next = self.0.as_mut().and_then(Iterator::next).transpose();
            has_returned = true;
            next
        });
        if !has_returned {
            self.0 = None;
        }
        next.transpose()
    }
}

thread_local! {
    static CONTAINS: Cell<bool> = const { Cell::new(false) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_the_last_error_of_what_panicked() {
        let items = (0..5).map(|number| match number {
            1 => Err(ArrowError::DivideByZero),
            3 => panic!("at {number}"),
            number => Ok(number),
        });
        let found: Vec<String> = Contained(Some(items)).map(|item| format!("{item:?}")).collect();
        let expected =
            ["Ok(0)", "Err(DivideByZero)", "Ok(2)", "Err(ParquetError(\"its reader did not expect: at 3\"))"];
        assert_eq!(found, expected);
        assert!(panic::catch_unwind(|| panic!("heard")).is_err(), "others are panics as before");
    }
}
