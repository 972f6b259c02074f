//! SQL functions for labels, addresses and histograms. For bins of time, DataFusion has `date_bin` and `date_trunc`.

use std::{net::IpAddr, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, StringArray, StringBuilder},
    datatypes::{DataType, Float64Type, Int64Type},
};
use datafusion::{
    error::Result,
    logical_expr::{Accumulator, ColumnarValue, Volatility, create_udaf, create_udf},
    prelude::SessionContext,
    scalar::ScalarValue,
};
use ipnet::IpNet;
use schemas::{
    event::RTT_BUCKETS,
    inventory::{Labels, parse_labels},
    table::{Cell, RttHistogram},
};

/// What the functions are called with, and what they do.
pub(super) const FUNCTIONS: [(&str, &str); 5] = [
    ("label(labels, 'app')", "The value of a label in a column of labels; null where the label is not there."),
    ("in_cidr(address, '10.0.0.0/8')", "Whether an address is in a range."),
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
            last = Some((json, parse_labels(json)));
        }
        values.append_option(last.as_ref().and_then(|(_, labels)| labels.get(key)));
    }
    Ok(ColumnarValue::Array(Arc::new(values.finish())))
}

fn in_cidr(args: &[ColumnarValue]) -> Result<ColumnarValue> {
    let arrays = ColumnarValue::values_to_arrays(args)?;
    let (addresses, ranges) = (arrays[0].as_string::<i32>(), arrays[1].as_string::<i32>());
    let is_in = |(address, range): (Option<&str>, Option<&str>)| {
        let (address, range) = (address?.parse::<IpAddr>().ok()?, range?.parse::<IpNet>().ok()?);
        Some(range.contains(&address))
    };
    let answers: BooleanArray = addresses.iter().zip(ranges).map(is_in).collect();
    Ok(ColumnarValue::Array(Arc::new(answers)))
}

fn network(args: &[ColumnarValue]) -> Result<ColumnarValue> {
    let arrays = ColumnarValue::values_to_arrays(args)?;
    let (addresses, lengths) = (arrays[0].as_string::<i32>(), arrays[1].as_primitive::<Int64Type>());
    let range = |(address, length): (Option<&str>, Option<i64>)| {
        let (address, length) = (address?.parse::<IpAddr>().ok()?, u8::try_from(length?).ok()?);
        let length = if address.is_ipv6() { IPV6_PREFIX } else { length };
        Some(IpNet::new(address, length).ok()?.trunc().to_string())
    };
    let ranges: StringArray = addresses.iter().zip(lengths).map(range).collect();
    Ok(ColumnarValue::Array(Arc::new(ranges)))
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
                self.share = Some(shares.value(row));
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
const IPV6_PREFIX: u8 = 64;
