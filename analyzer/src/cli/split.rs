//! Where the past of a capture ends.

use std::{
    str::FromStr,
    time::{Duration, UNIX_EPOCH},
};

use schemas::{
    hour::{Hour, HourRange},
    table::TimestampMs,
};

/// Where the past ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Split {
    /// At a time.
    At(TimestampMs),
    /// So long before the end.
    Last(Duration),
    /// After this share of the capture.
    Share(f64),
}

impl Split {
    /// The first hour that is not of the past, of a capture of these hours.
    pub(crate) fn hour(self, HourRange { first: Hour(first), last: Hour(last) }: HourRange) -> Hour {
        Hour(match self {
            Self::At(time) => Hour::of(time).0,
            Self::Last(duration) => {
                last + 1 - i64::try_from(duration.as_secs().div_ceil(3600)).unwrap_or(i64::MAX).min(last + 1 - first)
            }
            Self::Share(share) => first + ((last + 1 - first) as f64 * share).round() as i64,
        })
    }
}

impl FromStr for Split {
    type Err = String;

    /// Reads a time such as `2026-03-20` or `2026-03-20T08:00:00Z`, a duration before the end such as `7d`, or a share
    /// such as `70%`.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(share) = text.strip_suffix('%') {
            let share: f64 = share.trim().parse().map_err(|_| "it is no percentage")?;
            return if share > 0.0 && share < 100.0 {
                Ok(Self::Share(share / 100.0))
            } else {
                Err("it is not between 0 and 100 %".into())
            };
        }
        let whole = if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.to_owned() };
        if let Ok(time) = humantime::parse_rfc3339_weak(whole.trim_end_matches('Z')) {
            let since = time.duration_since(UNIX_EPOCH).map_err(|_| "it is before 1970")?;
            return Ok(Self::At(TimestampMs(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))));
        }
        match humantime::parse_duration(text) {
            Ok(duration) if !duration.is_zero() => Ok(Self::Last(duration)),
            _ => Err(
                "it is neither a time such as 2026-03-20T08:00:00Z, nor a duration before the end such as 7d, nor a \
                      share such as 70%"
                    .into(),
            ),
        }
    }
}
