//! Who began a UDP conversation: whoever sent first between two pairs of address and port.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use schemas::table::TimestampMs;

use super::Role;

/// Two ends of UDP, as one of them sees them. Which local address it is does not matter: a server may receive on a socket
/// of all addresses and answer on another one of the same port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Conversation {
    pub(super) netns_cookie: u64,
    pub(super) local_port: u16,
    pub(super) remote: (IpAddr, u16),
}

/// The first datagram of a conversation that is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct First {
    /// What it makes of the local end, if none was there before it.
    pub(super) role: Role,
    /// Whether the application chose the local port.
    pub(super) port_is_chosen: bool,
    /// Whether the socket may be older than the run.
    pub(super) is_older: bool,
}

/// What is known of a conversation when datagrams of it pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// What the local end is, decided by the first datagram.
    pub(super) role: Role,
    /// Whether it was not seen in this window before.
    pub(super) is_new_in_window: bool,
}

/// The conversations of late, in two generations: when the younger one is full, the older one is forgotten, so that
/// what is in use stays and memory is bounded.
#[derive(Debug)]
pub(super) struct Conversations {
    limit: usize,
    /// When the run began.
    began: TimestampMs,
    /// When some were forgotten last.
    forgot: Option<TimestampMs>,
    /// Network namespaces and ports on which something was received first: all, once there are too many.
    serving: HashSet<(u64, u16)>,
    /// Local ports from which a port of somebody was asked, and when last; in two generations.
    asked: [HashMap<Asked, TimestampMs>; 2],
    young: HashMap<Conversation, (Role, TimestampMs)>,
    old: HashMap<Conversation, (Role, TimestampMs)>,
}

/// A network namespace, a port of it, and the port of somebody else that was asked from there.
type Asked = (u64, u16, u16);

impl Conversations {
    /// Remembers at most `limit`, and at least half as many.
    pub(super) fn new(limit: usize, began: TimestampMs) -> Self {
        let (serving, young, old) = (HashSet::new(), HashMap::new(), HashMap::new());
        Self { limit: limit.max(2), began, forgot: None, serving, asked: Default::default(), young, old }
    }

    /// Datagrams passed in a window, from `time` on.
    pub(super) fn see(
        &mut self,
        conversation: Conversation,
        first: First,
        time: TimestampMs,
        window: TimestampMs,
    ) -> Seen {
        let known = self.young.get(&conversation).copied().or_else(|| self.old.remove(&conversation));
        let (role, last_window) =
            known.unwrap_or_else(|| (self.begun_by(conversation, first, time), TimestampMs(i64::MIN)));
        if self.young.len() >= self.limit / 2 && !self.young.contains_key(&conversation) {
            let forgotten = std::mem::replace(&mut self.old, std::mem::take(&mut self.young));
            if !forgotten.is_empty() {
                self.forgot = Some(time);
            }
        }
        if role == Role::Client {
            self.remember_asked(conversation, time);
        }
        if role == Role::Server && self.serving.len() < self.limit {
            self.serving.insert((conversation.netns_cookie, conversation.local_port));
        }
        self.young.insert(conversation, (role, window.max(last_window)));
        Seen { role, is_new_in_window: window > last_window }
    }

    fn remember_asked(&mut self, conversation: Conversation, time: TimestampMs) {
        let Conversation { netns_cookie, local_port, remote: (_, port) } = conversation;
        // Peers ask each other from the same port.
        if local_port != port {
            if self.asked[0].len() >= self.limit / 2 {
                self.asked.swap(0, 1);
                self.asked[0].clear();
            }
            self.asked[0].insert((netns_cookie, local_port, port), time);
        }
    }

    /// When the port of somebody was last asked from the same port as in a conversation.
    fn last_asked(&self, conversation: Conversation) -> Option<TimestampMs> {
        let Conversation { netns_cookie, local_port, remote: (_, port) } = conversation;
        self.asked.iter().filter_map(|asked| asked.get(&(netns_cookie, local_port, port)).copied()).max()
    }

    /// What the local end of a new conversation is. What is sent from a port that others may know can be an answer: to
    /// what came before the run, or to what is forgotten. Not after as long as nothing passed as a firewall takes for the
    /// end of a conversation.
    fn begun_by(&self, conversation: Conversation, first: First, time: TimestampMs) -> Role {
        let First { role, port_is_chosen, is_older } = first;
        let is_soon_after = |then: TimestampMs| time.0 - then.0 < REMEMBERED_MS;
        // Where a program of the cgroup puts one of several addresses in the place of that which was asked, as Cilium's
        // load balancing of sockets does, the one that answers is another one, on the same port.
        // From a known port to one that needs no privilege, the other may as well have begun.
        if role != Role::Client && self.last_asked(conversation).is_some_and(is_soon_after) {
            let is_served = conversation.remote.1 < FIRST_UNPRIVILEGED;
            return if port_is_chosen && !is_served { Role::Unknown } else { Role::Client };
        }
        if role != Role::Client || !port_is_chosen {
            return role;
        }
        let serves = || {
            let socket = (conversation.netns_cookie, conversation.local_port);
            self.serving.len() >= self.limit || self.serving.contains(&socket)
        };
        let may_be_an_answer = is_older && is_soon_after(self.began)
            || self.forgot.is_some_and(|forgot| is_soon_after(forgot) && serves());
        if may_be_an_answer { Role::Unknown } else { role }
    }
}

/// For how long Linux remembers a conversation in which nothing passes, in milliseconds: the longest default of
/// `nf_conntrack_udp_timeout_stream`, 180 s before Linux 4.20 and 120 s since. After that, whoever sends begins it.
const REMEMBERED_MS: i64 = 180_000;

/// The first port that everybody may serve (`ip_unprivileged_port_start`).
const FIRST_UNPRIVILEGED: u16 = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation(port: u16) -> Conversation {
        Conversation { netns_cookie: 1, local_port: port, remote: (IpAddr::from([10, 0, 0, 1]), 53) }
    }

    /// The first datagram on a port that the kernel chose, or the application.
    const fn first(role: Role, port_is_chosen: bool) -> First {
        First { role, port_is_chosen, is_older: false }
    }

    #[test]
    fn the_first_datagram_decides_and_each_window_counts_once() {
        let mut conversations = Conversations::new(8, TimestampMs(0));
        let mut see = |role, window| {
            conversations.see(conversation(1), first(role, false), TimestampMs(window), TimestampMs(window))
        };
        assert_eq!(see(Role::Client, 0), Seen { role: Role::Client, is_new_in_window: true });
        assert_eq!(see(Role::Server, 0), Seen { role: Role::Client, is_new_in_window: false });
        assert_eq!(see(Role::Server, 60_000), Seen { role: Role::Client, is_new_in_window: true });
        assert_eq!(see(Role::Server, 0), Seen { role: Role::Client, is_new_in_window: false });
    }

    #[test]
    fn an_answer_from_another_address_on_the_port_that_was_asked_is_an_answer() {
        let mut conversations = Conversations::new(8, TimestampMs(0));
        let mut see = |local_port, remote: ([u8; 4], u16), role, second: i64| {
            let remote = (IpAddr::from(remote.0), remote.1);
            let (time, conversation) =
                (TimestampMs(second * 1000), Conversation { netns_cookie: 1, local_port, remote });
            conversations.see(conversation, first(role, true), time, time).role
        };
        assert_eq!(see(5999, ([10, 96, 0, 10], 53), Role::Client, 1), Role::Client);
        assert_eq!(see(5999, ([10, 0, 0, 7], 53), Role::Server, 1), Role::Client, "a backend of the Service");
        assert_eq!(see(5999, ([10, 0, 0, 8], 40_000), Role::Server, 1), Role::Server, "nobody asked that port");
        assert_eq!(see(6000, ([10, 0, 0, 7], 53), Role::Server, 1), Role::Server, "nobody asked from that port");
        assert_eq!(see(5999, ([10, 0, 0, 9], 53), Role::Server, 1000), Role::Server, "long after");
        assert_eq!(see(5060, ([10, 0, 0, 1], 5080), Role::Client, 2), Role::Client);
        assert_eq!(see(5060, ([10, 0, 0, 2], 5080), Role::Server, 2), Role::Unknown, "either may begin");
        assert_eq!(see(7946, ([10, 0, 0, 1], 7946), Role::Client, 2), Role::Client);
        assert_eq!(see(7946, ([10, 0, 0, 2], 7946), Role::Server, 2), Role::Server, "a peer begins");
    }

    #[test]
    fn what_is_in_use_stays_and_the_rest_is_bounded() {
        let mut conversations = Conversations::new(8, TimestampMs(0));
        let mut see = |port| {
            let (first, now) = (first(Role::Client, false), TimestampMs(0));
            (
                conversations.see(conversation(port), first, now, now),
                conversations.young.len() + conversations.old.len(),
            )
        };
        for port in 1..1000 {
            see(port);
            let (used, remembered) = see(0);
            assert_eq!(used.is_new_in_window, port == 1, "port {port}");
            assert!(remembered <= 8);
        }
    }

    #[test]
    fn what_a_known_port_sends_first_is_a_question_unless_it_may_be_an_answer() {
        let mut conversations = Conversations::new(8, TimestampMs(0));
        let mut see = |port, first, second: i64| {
            let time = TimestampMs(second * 1000);
            conversations.see(conversation(port), first, time, time).role
        };
        let sent = first(Role::Client, true);
        assert_eq!(see(1, First { is_older: true, ..sent }, 1), Role::Unknown, "it may have been asked before the run");
        assert_eq!(see(2, sent, 1), Role::Client, "nobody can have asked a younger socket");
        assert_eq!(see(3, First { is_older: true, ..sent }, 200), Role::Client, "a firewall has forgotten who asked");
        assert_eq!(
            see(4, First { is_older: true, ..first(Role::Client, false) }, 1),
            Role::Client,
            "the kernel's choice"
        );
        // A server that is asked a lot forgets; a client that is not asked at all has nothing to forget.
        let asked_by = |client| Conversation { remote: (IpAddr::from([10, 0, 0, client]), 4000), ..conversation(100) };
        let mut see = |conversation, first, second: i64| {
            let time = TimestampMs(second * 1000);
            conversations.see(conversation, first, time, time).role
        };
        for client in 1..20 {
            see(asked_by(client), first(Role::Server, true), 300);
        }
        assert_eq!(see(asked_by(30), sent, 301), Role::Unknown);
        assert_eq!(see(asked_by(31), sent, 600), Role::Client);
        assert_eq!(see(conversation(5), sent, 301), Role::Client);
    }
}
