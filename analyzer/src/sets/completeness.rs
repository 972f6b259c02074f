//! How much of what a workload does has been seen: not asserted, but estimated from how often edges were seen.
//!
//! Time is divided into bins, of which an edge is in some. Edges that were in one bin only tell of those that were in none:
//!
//! - *coverage*: of all that edges will do in another period of the same length (their bins, summed), the part that
//!   edges will do which are known. The point estimate is the sample coverage for incidence data of Chao & Jost (2012,
//!   Ecology 93:2533), after Good (1953). The interval is one of prediction: it is for what will happen, and not for its
//!   mean. With `Q1` and `Q2` edges in one and in two bins, the number of bins of unknown edges is expected to be `Q1`,
//!   and to differ from it with a variance of at most `2 Q1 + 2 Q2` (sums of Poisson counts, as in Robbins 1968).
//! - *unseen*: at least so many edges are there and were not seen: Chao2 (Chao 1987, Biometrics 43:783), with its
//!   interval. It is a lower bound.
//!
//! Both suppose that bins are alike and know nothing of each other. That is tested: where edges come in bursts, longer
//! bins are tried, and where they go on coming newly, nothing is said. Of a rare edge, bins that follow one another count
//! as one.

use roaring::RoaringBitmap;

/// What is said of completeness.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Completeness {
    /// It can't be told, and why.
    Unknown(String),
    /// It can.
    Known(Estimate),
}

/// The estimate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Estimate {
    /// Coverage of the next period, from 0 to 1, with a 95 % interval.
    pub(crate) coverage: f64,
    pub(crate) coverage_interval: (f64, f64),
    /// Edges that are there and were not seen, at least, with a 95 % interval.
    pub(crate) unseen: f64,
    pub(crate) unseen_interval: (f64, f64),
    /// Bins, and hours in each.
    pub(crate) bins: u64,
    pub(crate) bin_hours: u32,
}

impl Default for Completeness {
    fn default() -> Self {
        Self::Unknown("nothing was seen".into())
    }
}

impl Completeness {
    /// Of edges, by the hours in which each was seen, within the hours in which they could be.
    pub(super) fn of<'a>(observable: &RoaringBitmap, edges: impl IntoIterator<Item = &'a RoaringBitmap>) -> Self {
        let edges: Vec<&RoaringBitmap> = edges.into_iter().collect();
        let mut exposed = observable.clone();
        edges.iter().for_each(|hours| exposed |= *hours);
        if exposed.len() > MOST_HOURS {
            return Self::Unknown("clocks are wrong: more hours than there can be".into());
        }
        let exposed: Vec<u32> = exposed.iter().collect();
        let mut reason = String::new();
        for bin_hours in BIN_HOURS {
            let bins = exposed.len() as u64 / u64::from(bin_hours);
            if bins < MIN_BINS {
                if reason.is_empty() {
                    reason = format!("observed for {} of at least {MIN_BINS} hours", exposed.len());
                }
                break;
            }
            // Bins are of hours that follow one another, others left out; what is left over is at the beginning.
            let skipped = exposed.len() - bins as usize * bin_hours as usize;
            let binned = |hours: &&RoaringBitmap| {
                // Both are in order, and every hour of an edge is among those that are exposed.
                let mut place = 0;
                let bin = |hour: u32| {
                    place += exposed[place..].iter().take_while(|exposed| **exposed < hour).count();
                    Some((place.checked_sub(skipped)? / bin_hours as usize) as u32)
                };
                let mut bins: Vec<u32> = hours.iter().filter_map(bin).collect();
                bins.dedup();
                RoaringBitmap::from_sorted_iter(bins).unwrap_or_default()
            };
            let binned: Vec<RoaringBitmap> = edges.iter().map(binned).collect();
            let incidence = Incidence { bins, edges: &binned };
            match incidence.objection() {
                None => return incidence.estimate(bin_hours).map_or_else(Self::default, Self::Known),
                Some(objection) => reason = objection.into(),
            }
        }
        Self::Unknown(reason)
    }

    /// In words.
    pub(crate) fn told(&self) -> String {
        match self {
            Self::Unknown(reason) => format!("of unknown completeness ({reason})"),
            Self::Known(Estimate { coverage, coverage_interval: (low, high), unseen, unseen_interval, .. }) => {
                let percent = |share: &f64| format!("{:.1}", (share * 1000.0).floor() / 10.0);
                let text = format!("{} % complete ({}–{} %)", percent(coverage), percent(low), percent(high));
                match (unseen.floor(), unseen_interval) {
                    (0.0, _) => text,
                    (unseen, (low, high)) => {
                        format!("{text}, at least {unseen} edges unseen ({:.0}–{:.0})", low.floor(), high.ceil())
                    }
                }
            }
        }
    }

    pub(crate) const fn known(&self) -> Option<&Estimate> {
        match self {
            Self::Known(estimate) => Some(estimate),
            Self::Unknown(_) => None,
        }
    }

    pub(crate) fn unknown(&self) -> Option<&str> {
        match self {
            Self::Known(_) => None,
            Self::Unknown(reason) => Some(reason),
        }
    }
}

/// In which bins edges were.
struct Incidence<'a> {
    bins: u64,
    edges: &'a [RoaringBitmap],
}

impl Incidence<'_> {
    /// Why bins are not alike and independent; `None` if nothing speaks against it.
    fn objection(&self) -> Option<&'static str> {
        let bins = self.bins as f64;
        // Runs of bins that follow one another, against as many bins in any order (Wald & Wolfowitz 1940). What is there
        // most of the time says nothing about what is rare, and rare ones are not to be hidden by many others.
        let clustering = |most: u64| {
            let (mut excess, mut variance) = (0.0, 0.0);
            for edge in self.edges.iter().filter(|edge| (2..=most).contains(&edge.len())) {
                let count = edge.len() as f64;
                excess += count * (bins - count + 1.0) / bins - runs(edge) as f64;
                variance +=
                    count * (count - 1.0) * (bins - count) * (bins - count + 1.0) / (bins * bins * (bins - 1.0));
            }
            variance > 0.0 && excess / f64::sqrt(variance) > SIGNIFICANT
        };
        let most =
            std::iter::successors(Some(RARE_BINS), |most| Some(most * 2)).take_while(|most| *most < self.bins / 2);
        if most.chain([self.bins / 2]).any(clustering) {
            return Some("edges come in bursts, which are too long to be counted apart");
        }
        // Of edges that were in one half only, as many are expected in each.
        let half = (self.bins / 2) as u32;
        let seen = || self.edges.iter().filter_map(|edge| Some((edge.min()?, edge.max()?)));
        let first = seen().filter(|(_, last)| *last < half).count() as f64;
        let second = seen().filter(|(first, _)| *first >= self.bins as u32 - half).count() as f64;
        let is_growing = second > first && (second - first) / f64::sqrt(second + first) > SIGNIFICANT;
        is_growing.then_some("new edges still come more often than before")
    }

    /// `None` if no edge was in any bin.
    fn estimate(&self, bin_hours: u32) -> Option<Estimate> {
        let seen: Vec<(u64, u64)> =
            self.edges.iter().map(|e| (incidences(e), e.len())).filter(|(_, bins)| *bins > 0).collect();
        let in_bins = |bins: u64| seen.iter().filter(|(count, _)| *count == bins).count() as f64;
        let total = seen.iter().map(|(_, bins)| bins).sum::<u64>() as f64;
        let (ones, twos, bins) = (in_bins(1), in_bins(2), self.bins as f64);
        if total == 0.0 {
            return None;
        }
        let unknown = if ones == 0.0 { 0.0 } else { ones * ((bins - 1.0) * ones) / ((bins - 1.0) * ones + 2.0 * twos) };
        // How long a burst is, in bins.
        let of_ones = seen.iter().filter(|(count, _)| *count == 1).map(|(_, bins)| bins).sum::<u64>() as f64;
        let length = if ones == 0.0 { 1.0 } else { of_ones / ones };
        // That there are no edges in one bin does not say that there is none in the next period: one more is taken.
        let most = unknown + Z * f64::sqrt(2.0 * (ones + 1.0) + 2.0 * twos);
        let least = unknown - Z * f64::sqrt(2.0 * ones + 2.0 * twos);
        let part = |unknown: f64| (1.0 - length * unknown / total).clamp(0.0, 1.0);
        let (unseen, variance) = chao2(seen.len() as f64, ones, twos, bins);
        let spread = f64::exp(Z * f64::sqrt(f64::ln_1p(variance / (unseen * unseen))));
        let unseen_interval = if unseen > 0.0 { (unseen / spread, unseen * spread) } else { (0.0, 0.0) };
        Some(Estimate {
            coverage: part(unknown),
            coverage_interval: (part(most), part(least.max(0.0))),
            unseen,
            unseen_interval,
            bins: self.bins,
            bin_hours,
        })
    }
}

/// In how many bins an edge was. Of a rare one, those that follow one another are one: it may be one burst.
fn incidences(edge: &RoaringBitmap) -> u64 {
    if edge.len() > RARE_BINS { edge.len() } else { runs(edge) }
}

/// Runs of bins that follow one another.
fn runs(edge: &RoaringBitmap) -> u64 {
    let mut last = None;
    edge.iter().filter(|bin| last.replace(*bin).is_none_or(|last| last + 1 < *bin)).count() as u64
}

/// Edges that were in no bin, at least, and the variance of that; of so many that were seen, in so many bins.
fn chao2(seen: f64, ones: f64, twos: f64, bins: f64) -> (f64, f64) {
    let a = (bins - 1.0) / bins;
    if twos > 0.0 {
        let ratio = ones / twos;
        let variance = twos * (a / 2.0 * ratio.powi(2) + a * a * ratio.powi(3) + a * a / 4.0 * ratio.powi(4));
        return (a * ones * ones / (2.0 * twos), variance);
    }
    let unseen = a * ones * (ones - 1.0) / 2.0;
    let variance = unseen + a * a * ones * (2.0 * ones - 1.0).powi(2) / 4.0
        - a * a * ones.powi(4) / (4.0 * (seen + unseen)).max(1.0);
    (unseen, variance.max(0.0))
}

/// Lengths of bins that are tried, until bins are independent.
const BIN_HOURS: [u32; 3] = [1, 24, 168];
/// A century.
const MOST_HOURS: u64 = 100 * 366 * 24;
/// Fewer bins tell nothing.
const MIN_BINS: u64 = 12;
/// Of an edge that was in at most so many bins, one more or less matters.
const RARE_BINS: u64 = 5;
/// One in a hundred by chance.
const SIGNIFICANT: f64 = 2.33;
/// 95 % of a normal distribution is within so many standard deviations.
const Z: f64 = 1.96;

#[cfg(test)]
mod tests {
    use super::*;

    /// Uniform numbers of a fixed seed (Steele et al. 2014, SplitMix64).
    struct Chance(u64);

    impl Chance {
        fn uniform(&mut self) -> f64 {
            self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut bits = self.0;
            bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((bits ^ (bits >> 31)) >> 11) as f64 / (1u64 << 53) as f64
        }

        fn below(&mut self, end: u32) -> u32 {
            (self.uniform() * f64::from(end)) as u32
        }

        fn normal(&mut self) -> f64 {
            let (a, b) = (self.uniform().max(f64::MIN_POSITIVE), self.uniform());
            f64::sqrt(-2.0 * a.ln()) * f64::cos(std::f64::consts::TAU * b)
        }

        /// Hours of an edge that is in any with a probability.
        fn hours(&mut self, hours: u32, probability: f64) -> RoaringBitmap {
            (0..hours).filter(|_| self.uniform() < probability).collect()
        }
    }

    /// What came of many runs.
    #[derive(Debug, Default)]
    struct Outcome {
        runs: u32,
        unknown: u32,
        within: u32,
        /// Unknown, or not less than said.
        conservative: u32,
        width: f64,
    }

    impl Outcome {
        /// Learns from one period, and looks at the next.
        fn look(&mut self, period: u32, edges: &[RoaringBitmap]) {
            self.runs += 1;
            let within = |hours: &RoaringBitmap, from: u32| -> RoaringBitmap {
                hours.iter().filter(|hour| (from..from + period).contains(hour)).map(|hour| hour - from).collect()
            };
            let (first, next): (Vec<_>, Vec<_>) = edges.iter().map(|e| (within(e, 0), within(e, period))).unzip();
            let all: RoaringBitmap = (0..period).collect();
            let said = Completeness::of(&all, &first);
            let Some(Estimate { coverage_interval: (low, high), bin_hours, .. }) = said.known() else {
                (self.unknown, self.conservative) = (self.unknown + 1, self.conservative + 1);
                return;
            };
            let bins = |hours: &RoaringBitmap| {
                hours.iter().map(|hour| hour / bin_hours).collect::<RoaringBitmap>().len() as f64
            };
            let sum = |is_wanted: fn(&RoaringBitmap) -> bool| {
                let wanted = first.iter().zip(&next).filter(|(first, _)| is_wanted(first));
                wanted.map(|(_, next)| bins(next)).sum::<f64>()
            };
            let (known, all) = (sum(|first| !first.is_empty()), sum(|_| true));
            let came = if all == 0.0 { 1.0 } else { known / all };
            let tolerance = 1e-9;
            self.within += u32::from(came >= low - tolerance && came <= high + tolerance);
            self.conservative += u32::from(came >= low - tolerance);
            self.width += high - low;
        }

        fn print(&self, regime: &str) {
            let known = f64::from(self.runs - self.unknown).max(1.0);
            println!(
                "{regime:<38} unknown {:>5.1} %  within {:>5.1} %  conservative {:>5.1} %  width {:.3}",
                100.0 * f64::from(self.unknown) / f64::from(self.runs),
                100.0 * f64::from(self.within) / known,
                100.0 * f64::from(self.conservative) / f64::from(self.runs),
                self.width / known,
            );
        }

        fn share_within(&self) -> f64 {
            f64::from(self.within) / f64::from((self.runs - self.unknown).max(1))
        }
    }

    const RUNS: u32 = 200;
    const PERIODS: [u32; 3] = [24, 72, 336];
    const EDGES: [u32; 3] = [5, 20, 100];

    #[test]
    fn with_equal_rates_the_interval_holds_what_comes() {
        for (period, edges, mean) in PERIODS.iter().flat_map(|period| {
            EDGES.iter().flat_map(move |edges| [0.3, 1.0, 3.0, 10.0].map(|mean| (*period, *edges, mean)))
        }) {
            let (mut chance, mut outcome) = (Chance(1), Outcome::default());
            for _ in 0..RUNS {
                let probability = f64::min(1.0, mean / f64::from(period));
                let edges: Vec<_> = (0..edges).map(|_| chance.hours(2 * period, probability)).collect();
                outcome.look(period, &edges);
            }
            let regime = format!("equal, {period} h, {edges} edges, {mean} each");
            outcome.print(&regime);
            assert!(outcome.share_within() >= 0.9, "{regime}: {outcome:?}");
            assert!(mean < 3.0 || outcome.unknown * 5 < outcome.runs, "{regime}: something is said: {outcome:?}");
        }
    }

    #[test]
    fn with_lognormal_rates_the_interval_holds_what_comes() {
        for (period, edges, mu) in PERIODS
            .iter()
            .flat_map(|period| EDGES.iter().flat_map(move |edges| [-2.0, 0.0, 2.0].map(|mu| (*period, *edges, mu))))
        {
            let (mut chance, mut outcome) = (Chance(2), Outcome::default());
            for _ in 0..RUNS {
                let mut edge = |_| {
                    let rate = f64::exp(mu + 2.0 * chance.normal());
                    chance.hours(2 * period, 1.0 - f64::exp(-rate / f64::from(period)))
                };
                let edges: Vec<_> = (0..edges).map(&mut edge).collect();
                outcome.look(period, &edges);
            }
            let regime = format!("lognormal, {period} h, {edges} edges, mu {mu}");
            outcome.print(&regime);
            assert!(outcome.share_within() >= 0.9, "{regime}: {outcome:?}");
            assert!(mu < 0.0 || outcome.unknown * 5 < outcome.runs, "{regime}: something is said: {outcome:?}");
        }
    }

    #[test]
    fn of_what_is_periodic_or_bursty_too_much_is_never_said() {
        for (period, edges, burst) in [72, 336, 744]
            .iter()
            .flat_map(|period| [10, 40].iter().flat_map(move |edges| [2, 6, 24].map(|burst| (*period, *edges, burst))))
        {
            let (mut chance, mut outcome) = (Chance(3), Outcome::default());
            for _ in 0..RUNS {
                let mut edge = |_| -> RoaringBitmap {
                    if chance.uniform() < 0.3 {
                        let every = [24, 168][chance.below(2) as usize];
                        let phase = chance.below(every);
                        return (0..2 * period).filter(|hour| hour % every == phase).collect();
                    }
                    let start = chance.below(2 * period + burst);
                    (start.saturating_sub(burst)..start.min(2 * period)).collect()
                };
                let edges: Vec<_> = (0..edges).map(&mut edge).collect();
                outcome.look(period, &edges);
            }
            let regime = format!("periodic and bursty, {period} h, {edges} edges, {burst} h");
            outcome.print(&regime);
            assert!(outcome.conservative * 10 >= outcome.runs * 9, "{regime}: {outcome:?}");
        }
    }

    #[test]
    fn chao2_is_what_was_published() {
        // Worked by hand from the formulas: 20 bins, 30 edges seen, 9 once, 6 twice.
        let (unseen, variance) = chao2(30.0, 9.0, 6.0, 20.0);
        assert!((unseen - 0.95 * 81.0 / 12.0).abs() < 1e-9);
        let ratio: f64 = 1.5;
        let expected = 6.0 * (0.475 * ratio.powi(2) + 0.9025 * ratio.powi(3) + 0.225_625 * ratio.powi(4));
        assert!((variance - expected).abs() < 1e-9);
        assert_eq!(chao2(3.0, 0.0, 0.0, 20.0).0, 0.0, "nothing speaks for more");
    }

    #[test]
    fn too_little_is_unknown_and_what_is_always_there_is_complete() {
        let hours = |end: u32| (0..end).collect::<RoaringBitmap>();
        assert_eq!(Completeness::of(&hours(11), &[hours(11)]).unknown(), Some("observed for 11 of at least 12 hours"));
        assert_eq!(Completeness::of(&hours(48), &[]).unknown(), Some("nothing was seen"));
        let said = Completeness::of(&hours(168), &[hours(168), hours(168)]);
        let estimate = said.known().expect("known");
        assert_eq!((estimate.coverage, estimate.unseen, estimate.bins, estimate.bin_hours), (1.0, 0.0, 168, 1));
        assert!(estimate.coverage_interval.0 > 0.98, "{estimate:?}");
        assert_eq!(said.told(), "100.0 % complete (99.1–100.0 %)");
    }

    #[test]
    fn a_wild_clock_costs_nothing() {
        let mut hours: RoaringBitmap = (0..100).collect();
        hours.insert(u32::MAX);
        assert!(Completeness::of(&hours, &[hours.clone()]).known().is_some_and(|estimate| estimate.bins == 101));
        hours.insert_range(0..=u32::MAX);
        assert!(Completeness::of(&hours, &[]).unknown().is_some_and(|reason| reason.contains("clocks are wrong")));
    }

    #[test]
    fn what_is_not_observable_is_no_bin() {
        let observable: RoaringBitmap = (0..400).filter(|hour| hour % 100 < 50).collect();
        let said = Completeness::of(&observable, &[[0, 30, 110, 245, 349].into_iter().collect()]);
        assert_eq!(said.known().map_or(0, |estimate| estimate.bins), 200, "{said:?}");
    }
}
