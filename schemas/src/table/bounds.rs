//! What values of a row may be. Whoever writes rows decides neither about memory nor about the names of files, and no sum of
//! theirs undoes what others saw.

use std::{ops::Range, sync::Arc};

use crate::value::{Port, RttHistogram, TimestampMs};

/// Why a value can't be one of a column.
type Reason = &'static str;

/// A value of a row from outside.
pub trait Bounded {
    /// Why it can't be the value of a column, if it can't.
    fn refusal(&self, column: &str) -> Option<Reason>;
}

/// What the counts, or the numbers of rows, of a column can be. What was exported and is given up later counts against it.
pub fn numbers_of(column: &str) -> Range<i64> {
    let least = if column == "exported" { 1 - MOST } else { 0 };
    least..MOST
}

/// Why a number can't be one of a column, as [`numbers_of`] has it.
pub fn of_number(number: i64, column: &str) -> Option<Reason> {
    let numbers = numbers_of(column);
    let reason =
        if number < 0 && numbers.start == 0 { "is negative" } else { "is larger than anything that is counted" };
    (!numbers.contains(&number)).then_some(reason)
}

/// Why a text of so many bytes can't be one of a column.
pub fn of_length(length: usize, column: &str) -> Option<Reason> {
    let most = match column {
        "run_id" => RUN_BYTES,
        "node" | "cluster" => NAME_BYTES,
        _ => TEXT_BYTES,
    };
    (length > most).then_some("is longer than such a text can be")
}

impl Bounded for i64 {
    fn refusal(&self, column: &str) -> Option<Reason> {
        of_number(*self, column)
    }
}

impl Bounded for TimestampMs {
    fn refusal(&self, _: &str) -> Option<Reason> {
        (!(0..LATEST_MS).contains(&self.0)).then_some("is no time of this century")
    }
}

impl Bounded for Arc<str> {
    fn refusal(&self, column: &str) -> Option<Reason> {
        let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        if column == "run_id" && (self.is_empty() || !self.as_bytes().iter().all(is_plain)) {
            return Some("is not made of letters, digits, `-`, `.` and `_`");
        }
        if self.bytes().any(|byte| byte.is_ascii_control()) {
            return Some("has control characters");
        }
        of_length(self.len(), column)
    }
}

impl Bounded for RttHistogram {
    fn refusal(&self, column: &str) -> Option<Reason> {
        self.0.iter().find_map(|count| of_number(*count, column))
    }
}

impl Bounded for Port {
    fn refusal(&self, column: &str) -> Option<Reason> {
        let Self { name, protocol, port: _, target, node_port: _ } = self;
        name.refusal(column).or_else(|| protocol.refusal(column)).or_else(|| target.refusal(column))
    }
}

impl Bounded for bool {
    fn refusal(&self, _: &str) -> Option<Reason> {
        None
    }
}

impl Bounded for u16 {
    fn refusal(&self, _: &str) -> Option<Reason> {
        None
    }
}

impl Bounded for f64 {
    fn refusal(&self, _: &str) -> Option<Reason> {
        (!self.is_finite()).then_some("is no number")
    }
}

impl<T: Bounded> Bounded for Option<T> {
    fn refusal(&self, column: &str) -> Option<Reason> {
        self.as_ref().and_then(|value| value.refusal(column))
    }
}

impl<T: Bounded> Bounded for Vec<T> {
    fn refusal(&self, column: &str) -> Option<Reason> {
        if self.len() > MOST_ITEMS {
            return Some("has more items than such a list can have");
        }
        self.iter().find_map(|value| value.refusal(column))
    }
}

/// The smallest number that is too large: from here on, JSON's readers lose digits. A terabit per second is 2⁵³ bytes in 20 hours.
const MOST: i64 = 1 << 53;
/// The start of the year 2100.
const LATEST_MS: i64 = 4_102_444_800_000;
/// A run is named by 32 hexadecimal digits.
const RUN_BYTES: usize = 64;
/// The longest DNS subdomain, which names of nodes are (Kubernetes: Object Names and IDs).
const NAME_BYTES: usize = 253;
/// The most that all annotations of an object take (Kubernetes: Annotations); labels and selectors take less.
const TEXT_BYTES: usize = 256 << 10;
/// Far more than a node has pods' ranges or a Service ports.
const MOST_ITEMS: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_bounded() {
        let text = |text: &str, column: &str| Arc::<str>::from(text).refusal(column);
        assert_eq!(text("3f9a00112233445566778899aabbccdd", "run_id"), None);
        for wrong in ["", "../x", "a/b", "a\0b", "ü", &"a".repeat(65)] {
            assert!(text(wrong, "run_id").is_some(), "{wrong:?}");
        }
        assert_eq!((text(&"n".repeat(253), "node"), text("größer", "cluster")), (None, None));
        assert!(text(&"n".repeat(254), "node").is_some() && text("a\u{1b}b", "source_pod").is_some());
        assert!(text(&"n".repeat((256 << 10) + 1), "labels").is_some());
        assert_eq!((0_i64.refusal("seq"), ((1_i64 << 53) - 1).refusal("bytes_sent")), (None, None));
        assert_eq!((-60_i64).refusal("exported"), None);
        assert!(i64::MIN.refusal("exported").is_some());
        assert!([-1_i64, 1 << 53, i64::MAX, i64::MIN].iter().all(|number| number.refusal("connections").is_some()));
        assert!(
            TimestampMs(-1).refusal("first_seen").is_some() && TimestampMs(i64::MAX).refusal("first_seen").is_some()
        );
        assert_eq!(TimestampMs(1_795_651_200_000).refusal("first_seen"), None);
        let mut histogram = RttHistogram::default();
        histogram.0[3] = -5;
        assert!(
            histogram.refusal("rtt_us_hist").is_some() && vec![Arc::<str>::from("a\n")].refusal("programs").is_some()
        );
    }
}
