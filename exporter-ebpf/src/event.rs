//! Handing over: events through the ring buffer, or summed per edge where it is full.

use aya_ebpf::bindings::{BPF_NOEXIST, BPF_RB_NO_WAKEUP};
use schemas::event::{
    EVENT_CLOSED, EVENT_FAILED, EdgeCounts, EdgeKey, FlowEvent, ROLE_CLIENT, ROLE_SERVER, RTT_BUCKETS, control,
    counter, rtt_bucket,
};

use crate::maps::{EDGES, EVENTS, add, control, count, field};

/// An event of nothing yet.
#[inline(always)]
pub(crate) const fn empty(kind: u8, transport: u8, time_ns: u64) -> FlowEvent {
    FlowEvent {
        time_ns,
        start_ns: 0,
        reported_ns: 0,
        netns_cookie: 0,
        cgroup_id: 0,
        bytes_sent: 0,
        bytes_received: 0,
        local_address: [0; 16],
        remote_address: [0; 16],
        netns_inode: 0,
        retransmits: 0,
        rtt_us: 0,
        error: 0,
        error_soft: 0,
        local_port: 0,
        remote_port: 0,
        kind,
        role: 0,
        transport,
        _pad: 0,
    }
}

/// Hands an event over.
#[inline(always)]
pub(crate) fn report(event: &FlowEvent) {
    if EVENTS.output(event, BPF_RB_NO_WAKEUP as u64).is_err() {
        sum(event);
    }
}

/// Adds an event to its edge: the ring buffer is full.
#[inline(always)]
fn sum(event: &FlowEvent) {
    count(counter::RING_FULL);
    let is_server = event.role == ROLE_SERVER;
    let is_client = event.role == ROLE_CLIENT;
    let is_failed = event.kind == EVENT_FAILED;
    let is_first = is_failed || (event.start_ns != 0 && event.reported_ns == 0);
    let key = EdgeKey {
        netns_cookie: event.netns_cookie,
        cgroup_id: event.cgroup_id,
        window: window(event.time_ns),
        local_address: event.local_address,
        remote_address: event.remote_address,
        epoch: control(control::EPOCH) as u32,
        local_port: if is_client { 0 } else { event.local_port },
        remote_port: if is_server { 0 } else { event.remote_port },
        error: if is_failed { event.error } else { 0 },
        error_soft: if is_failed { event.error_soft } else { 0 },
        kind: event.kind,
        role: event.role,
        transport: event.transport,
        start_known: (event.start_ns != 0) as u8,
    };
    // SAFETY: a new value, as in the rest of this function.
    let begin = |counts: *mut EdgeCounts| unsafe {
        (*counts).first_ns = event.time_ns;
        (*counts).netns_inode = event.netns_inode;
    };
    let Some(counts) = counts(&key, begin) else {
        return count(if is_first { counter::LOST_MAP } else { counter::LOST_CLOSED });
    };
    // SAFETY: a valid map value; every change is an atomic addition, or a store of a number that may be any of several.
    unsafe {
        (*counts).last_ns = event.time_ns;
        add(&raw mut (*counts).events, 1);
        if is_first && !is_failed {
            add(&raw mut (*counts).connections, 1);
        }
        add(&raw mut (*counts).bytes_sent, event.bytes_sent);
        add(&raw mut (*counts).bytes_received, event.bytes_received);
        if event.kind == EVENT_CLOSED {
            add(&raw mut (*counts).retransmits, event.retransmits.into());
            if event.start_ns != 0 {
                add(&raw mut (*counts).duration_ns, event.time_ns - event.start_ns);
            }
            if event.rtt_us < u32::MAX {
                // The mask says to the verifier what the function says already.
                let bucket = rtt_bucket(event.rtt_us) & (RTT_BUCKETS - 1);
                add((&raw mut (*counts).rtt).cast::<u64>().add(bucket), 1);
            }
        }
    }
}

/// Number of the window of a moment.
#[inline(always)]
pub(crate) fn window(time_ns: u64) -> u64 {
    match field!(SETTINGS.window_ns) {
        0 => 0,
        length => (time_ns + field!(SETTINGS.utc_offset_ns)) / length,
    }
}

/// The counts of an edge, made where there are none; `None` when there is no room.
#[inline(always)]
pub(crate) fn counts(key: &EdgeKey, begin: impl FnOnce(*mut EdgeCounts)) -> Option<*mut EdgeCounts> {
    if let Some(found) = EDGES.get_ptr_mut(key) {
        return Some(found);
    }
    let is_new = EDGES.insert(key, &NOTHING, BPF_NOEXIST as u64).is_ok();
    let counts = EDGES.get_ptr_mut(key)?;
    // Where another CPU was first, its entry is found.
    if is_new {
        begin(counts);
    }
    Some(counts)
}

/// What an edge begins with; a static, since the stack has no room for it. Its plain name, and that no function is left
/// but the programs, keeps the object free of names that depend on where it is built.
#[unsafe(no_mangle)]
static NOTHING: EdgeCounts = EdgeCounts {
    first_ns: 0,
    last_ns: 0,
    connections: 0,
    events: 0,
    bytes_sent: 0,
    bytes_received: 0,
    retransmits: 0,
    duration_ns: 0,
    rtt: [0; RTT_BUCKETS],
    netns_inode: 0,
    role: 0,
    has_bytes: 0,
    port_is_chosen: 0,
    is_older: 0,
};
