//! Nothing is lost without a count: seen = exported + filtered + lost, whatever is full or stopped.

use std::{thread, time::Duration};

use schemas::{flow::FlowRecord, health::HealthRecord};
use testdata::{
    lab::{Lab, PodId},
    pod::Exchange,
    recording::Recording,
};

use crate::{
    harness::Ran,
    support::{balance, executable, lab, let_connections_end, pod, rows},
};

tests![
    an_agent_that_is_stopped_for_half_a_minute_loses_nothing,
    a_burst_is_told_exactly,
    what_finds_everything_full_is_counted,
];

const CALL: Exchange = Exchange::new(10, 20);

/// Records while a client dials so often; with the agent stopped meanwhile, if that is wanted, for so long.
fn record(lab: &mut Lab, ends: (PodId, PodId), arguments: &[&str], times: u32, stopped: Option<Duration>) -> Sums {
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("capture");
    let recording = Recording::start(executable(), lab, &output, arguments).expect("the exporter records");
    let to = (lab.ipv4(ends.1), 7001);
    match stopped {
        None => lab.dial(ends.0, to, times, CALL).expect("the server answers"),
        Some(duration) => recording
            .pause(|| {
                let until = std::time::Instant::now() + duration;
                lab.dial(ends.0, to, times, CALL).expect("the server answers");
                // For how long it is stopped is what is tested.
                thread::sleep(until.saturating_duration_since(std::time::Instant::now()));
            })
            .expect("it goes on"),
    }
    let_connections_end(lab, &[ends.0, ends.1]);
    recording.stop().expect("the exporter ends well");
    balance(&output);
    let flows = rows::<FlowRecord>(&output);
    let health = rows::<HealthRecord>(&output);
    let sum = |pick: fn(&HealthRecord) -> i64| health.iter().map(pick).sum::<i64>();
    Sums {
        seen: sum(|row| row.seen),
        exported: sum(|row| row.exported),
        lost_ring: sum(|row| row.lost_ring),
        lost_map: sum(|row| row.lost_map),
        ring_full: sum(|row| row.ring_full),
        edges: flows
            .iter()
            .map(|row| (row.observer.to_string(), row.destination_port))
            .collect::<std::collections::BTreeSet<_>>()
            .len(),
        connections: flows.iter().map(|row| row.connections).sum(),
        closed: flows.iter().map(|row| row.closed).sum(),
        bytes_sent: flows.iter().filter_map(|row| row.bytes_sent).sum(),
        bytes_received: flows.iter().filter_map(|row| row.bytes_received).sum(),
    }
}

#[derive(Debug)]
struct Sums {
    seen: i64,
    exported: i64,
    lost_ring: i64,
    lost_map: i64,
    ring_full: i64,
    edges: usize,
    connections: i64,
    closed: i64,
    bytes_sent: i64,
    bytes_received: i64,
}

impl Sums {
    /// Both ends of so many connections, to the byte.
    fn assert_exact(&self, times: u32) {
        let ends = 2 * i64::from(times);
        assert_eq!((self.seen, self.exported, self.edges), (ends, ends, 2), "{self:?}");
        assert_eq!((self.connections, self.closed), (ends, ends), "{self:?}");
        assert_eq!((self.bytes_sent, self.bytes_received), (10 * ends, 20 * ends), "{self:?}");
    }
}

fn ends(lab: &mut Lab) -> (PodId, PodId) {
    let ends = (pod(lab, "client"), pod(lab, "server"));
    lab.listen(ends.1, 7001, CALL).expect("the port is free");
    ends
}

fn an_agent_that_is_stopped_for_half_a_minute_loses_nothing() -> Ran {
    let mut lab = lab()?;
    let ends = ends(&mut lab);
    for window in ["5s", "0"] {
        let stopped = Duration::from_secs(if window == "0" { 1 } else { 30 });
        // 12,000 events of 120 bytes are more than the smallest ring buffer holds.
        let sums = record(&mut lab, ends, &["--window", window, "--ring-size-mib", "1"], 6_000, Some(stopped));
        sums.assert_exact(6_000);
        assert!(sums.ring_full > 1_000, "the ring buffer was full: {sums:?}");
        assert_eq!((sums.lost_ring, sums.lost_map), (0, 0), "{sums:?}");
    }
    Ok(())
}

fn a_burst_is_told_exactly() -> Ran {
    let mut lab = lab()?;
    let ends = ends(&mut lab);
    for window in ["1s", "0"] {
        record(&mut lab, ends, &["--window", window], 10_000, None).assert_exact(10_000);
    }
    Ok(())
}

fn what_finds_everything_full_is_counted() -> Ran {
    let mut lab = lab()?;
    let ends = ends(&mut lab);
    // Room for one edge where there are two, and for a few connections where there are more.
    let arguments = ["--ring-size-mib", "1", "--kernel-edges", "1"];
    let sums = record(&mut lab, ends, &arguments, 6_000, Some(Duration::from_secs(1)));
    assert!(sums.lost_ring > 100, "one of the two edges found no room: {sums:?}");
    assert_eq!(sums.seen, sums.exported + sums.lost_ring, "{sums:?}");
    // Twenty connections are open at both ends, where eight are remembered.
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("capture");
    let recording =
        Recording::start(executable(), &lab, &output, &["--max-connections", "8"]).expect("the exporter records");
    for _ in 0..20 {
        lab.hold(ends.0, (lab.ipv4(ends.1), 7001), CALL).expect("the server answers");
    }
    recording.stop().expect("the exporter ends well");
    balance(&output);
    let health = rows::<HealthRecord>(&output);
    let (seen, lost): (i64, i64) =
        (health.iter().map(|row| row.seen).sum(), health.iter().map(|row| row.lost_map).sum());
    assert_eq!((seen, lost), (40, 32));
    Ok(())
}
