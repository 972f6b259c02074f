//! SQL functions for labels, addresses and histograms. For bins of time, DataFusion has `date_bin` and `date_trunc`.

use std::{net::IpAddr, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanBuilder, Int64Array, StringArray, StringBuilder},
    datatypes::{DataType, Float64Type, Int64Type},
};
use datafusion::{
    error::{DataFusionError, Result},
    logical_expr::{Accumulator, ColumnarValue, Volatility, create_udaf, create_udf},
    prelude::SessionContext,
    scalar::ScalarValue,
};
use ipnet::IpNet;
use schemas::{
    event::RTT_BUCKETS,
    inventory::Labels,
    table::{Cell, RttHistogram},
};

/// What the functions are called with, and what they do.
pub(super) const FUNCTIONS: [(&str, &str); 5] = [
    ("label(labels, 'app')", "The value of a label in a column of labels; null where the label is not there."),
    ("in_cidr(address, '10.0.0.0/8')", "Whether an address is in a range; an address is the range of itself."),
    ("network(address, 24)", "The range of that prefix length that an IPv4 address is in; for IPv6, the /64."),
    (
        "rtt_quantile_us(rtt_us_hist, 0.95)",
        "An aggregate: below how many microseconds that share of round-trip times was; null where none is known, or it \
         is above the last bound of 262 ms.",
    ),
    (
        "date_bin(interval '15 minutes', window_start)",
        "The start of the bin of time; date_trunc('day', …) for calendar units.",
    ),
];

/// Makes the functions known.
pub(super) fn register(context: &SessionContext) {
    let text = DataType::Utf8;
    let two = || vec![DataType::Utf8, DataType::Utf8];
    context.register_udf(create_udf("label", two(), text.clone(), Volatility::Immutable, Arc::new(label)));
    context.register_udf(create_udf("in_cidr", two(), DataType::Boolean, Volatility::Immutable, Arc::new(in_cidr)));
    let prefixed = vec![DataType::Utf8, DataType::Int64];
    context.register_udf(create_udf("network", prefixed, text, Volatility::Immutable, Arc::new(network)));
    context.register_udaf(create_udaf(
        "rtt_quantile_us",
        vec![<RttHistogram as Cell>::data_type(), DataType::Float64],
        Arc::new(DataType::Int64),
        Volatility::Immutable,
        Arc::new(|_| Ok(Box::new(Quantile::default()))),
        Arc::new(vec![DataType::Int64; RTT_BUCKETS + 1]),
    ));
}

fn label(args: &[ColumnarValue]) -> Result<ColumnarValue> {
    let arrays = ColumnarValue::values_to_arrays(args)?;
    let (labels, keys) = (arrays[0].as_string::<i32>(), arrays[1].as_string::<i32>());
    let mut values = StringBuilder::new();
    // Rows that follow each other often have the same labels.
    let mut last: Option<(&str, Labels)> = None;
    for (json, key) in labels.iter().zip(keys) {
        let (Some(json), Some(key)) = (json, key) else {
            values.append_null();
            continue;
        };
        if last.as_ref().is_none_or(|(known, _)| *known != json) {
            let read = serde_json::from_str(json);
            last = Some((json, read.map_err(|_| refused("label", json, "a map of labels, as column `labels` has"))?));
        }
        values.append_option(last.as_ref().and_then(|(_, labels)| labels.get(key)));
    }
    Ok(ColumnarValue::Array(Arc::new(values.finish())))
}

fn in_cidr(args: &[ColumnarValue]) -> Result<ColumnarValue> {
    let arrays = ColumnarValue::values_to_arrays(args)?;
    let (addresses, ranges) = (arrays[0].as_string::<i32>(), arrays[1].as_string::<i32>());
    // It is mostly the same on all rows.
    let mut last: Option<(&str, IpNet)> = None;
    let mut answers = BooleanBuilder::with_capacity(addresses.len());
    for (address, range) in addresses.iter().zip(ranges) {
        let (Some(address), Some(range)) = (address, range) else {
            answers.append_null();
            continue;
        };
        let known = match last.filter(|(known, _)| *known == range) {
            Some((_, known)) => known,
            None => {
                // An address is the range of itself, as it is in decisions.
                let read = range.parse().or_else(|_| range.parse::<IpAddr>().map(IpNet::from));
                last.insert((range, read.map_err(|_| refused("in_cidr", range, "a range, such as 10.0.0.0/8"))?)).1
            }
        };
        answers.append_option(address.parse::<IpAddr>().ok().map(|address| known.contains(&address)));
    }
    Ok(ColumnarValue::Array(Arc::new(answers.finish())))
}

fn network(args: &[ColumnarValue]) -> Result<ColumnarValue> {
    let arrays = ColumnarValue::values_to_arrays(args)?;
    let (addresses, lengths) = (arrays[0].as_string::<i32>(), arrays[1].as_primitive::<Int64Type>());
    let range = |(address, length): (Option<&str>, Option<i64>)| {
        let Some(length) = length else { return Ok(None) };
        let of_ipv4 = u8::try_from(length).ok().filter(|length| *length <= IPV4_LENGTH);
        let of_ipv4 = of_ipv4.ok_or_else(|| refused("network", &length.to_string(), "a prefix length from 0 to 32"))?;
        let Some(address) = address.and_then(|address| address.parse::<IpAddr>().ok()) else { return Ok(None) };
        let length = if address.is_ipv6() { IPV6_PREFIX } else { of_ipv4 };
        Ok(IpNet::new(address, length).ok().map(|range| range.trunc().to_string()))
    };
    let ranges: StringArray = addresses.iter().zip(lengths).map(range).collect::<Result<_>>()?;
    Ok(ColumnarValue::Array(Arc::new(ranges)))
}

/// Says that a function can't be called with a value, and what with.
fn refused(function: &str, value: &str, wanted: &str) -> DataFusionError {
    let shown: String = value.chars().take(SHOWN_CHARS).collect();
    DataFusionError::Execution(format!("{function}: `{shown}` is not {wanted}"))
}

/// Sums histograms, and finds the bound below which a share of the counts is.
#[derive(Debug, Default)]
struct Quantile {
    counts: [i64; RTT_BUCKETS],
    share: Option<f64>,
}

impl Accumulator for Quantile {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let (lists, shares) = (values[0].as_fixed_size_list(), values[1].as_primitive::<Float64Type>());
        for row in 0..lists.len() {
            if lists.is_valid(row) {
                let counts = lists.value(row);
                let counts = counts.as_primitive::<Int64Type>().values();
                self.counts.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
            }
            if shares.is_valid(row) {
                let share = shares.value(row);
                if !(0.0..=1.0).contains(&share) {
                    return Err(refused("rtt_quantile_us", &share.to_string(), "a share from 0 to 1"));
                }
                self.share = Some(share);
            }
        }
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let all: i64 = self.counts.iter().sum();
        let wanted = (all as f64 * self.share.unwrap_or_default()).ceil() as i64;
        let mut below = 0;
        let bucket = self.counts.iter().position(|count| {
            below += count;
            below >= wanted
        });
        // Bucket i holds what is below 64 µs × 4^i; the last one has no bound.
        let bound = bucket.filter(|bucket| all > 0 && bucket + 1 < RTT_BUCKETS).map(|bucket| 64_i64 << (2 * bucket));
        Ok(ScalarValue::Int64(bound))
    }

    fn size(&self) -> usize {
        size_of::<Self>()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        // The share as parts of a million: a state is all of one type.
        let share = ScalarValue::Int64(self.share.map(|share| (share * MILLION).round() as i64));
        Ok(self.counts.iter().map(|count| ScalarValue::Int64(Some(*count))).chain([share]).collect())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let (counts, share) = states.split_at(RTT_BUCKETS);
        for (sum, counts) in self.counts.iter_mut().zip(counts) {
            *sum += counts.as_primitive::<Int64Type>().iter().flatten().sum::<i64>();
        }
        let share: Option<&Int64Array> = share.first().map(|share| share.as_primitive());
        self.share = share.into_iter().flatten().flatten().fold(self.share, |_, share| Some(share as f64 / MILLION));
        Ok(())
    }
}

const MILLION: f64 = 1_000_000.0;
const IPV4_LENGTH: u8 = 32;
const IPV6_PREFIX: u8 = 64;
/// Most characters of a value in a message.
const SHOWN_CHARS: usize = 40;
