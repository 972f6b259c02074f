//! Who began a UDP conversation: whoever sent first between two pairs of address and port.

use std::{collections::HashMap, net::IpAddr};

use schemas::table::TimestampMs;

use super::Role;

/// Two ends of UDP, as one of them sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Conversation {
    pub(super) netns_cookie: u64,
    pub(super) local: (IpAddr, u16),
    pub(super) remote: (IpAddr, u16),
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
    young: HashMap<Conversation, (Role, TimestampMs)>,
    old: HashMap<Conversation, (Role, TimestampMs)>,
}

impl Conversations {
    /// Remembers at most `limit`, and at least half as many.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit: limit.max(2), young: HashMap::new(), old: HashMap::new() }
    }

    /// Datagrams passed in a window; `first` is what the local end is if it is a new conversation.
    pub(super) fn see(&mut self, conversation: Conversation, first: Role, window: TimestampMs) -> Seen {
        let known = self.young.get(&conversation).copied().or_else(|| self.old.remove(&conversation));
        let (role, last_window) = known.unwrap_or((first, TimestampMs(i64::MIN)));
        if self.young.len() >= self.limit / 2 && !self.young.contains_key(&conversation) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(conversation, (role, window.max(last_window)));
        Seen { role, is_new_in_window: window > last_window }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation(port: u16) -> Conversation {
        let address = IpAddr::from([10, 0, 0, 1]);
        Conversation { netns_cookie: 1, local: (address, port), remote: (address, 53) }
    }

    #[test]
    fn the_first_datagram_decides_and_each_window_counts_once() {
        let mut conversations = Conversations::new(8);
        let mut see = |role, window| conversations.see(conversation(1), role, TimestampMs(window));
        assert_eq!(see(Role::Client, 0), Seen { role: Role::Client, is_new_in_window: true });
        assert_eq!(see(Role::Server, 0), Seen { role: Role::Client, is_new_in_window: false });
        assert_eq!(see(Role::Server, 60_000), Seen { role: Role::Client, is_new_in_window: true });
        assert_eq!(see(Role::Server, 0), Seen { role: Role::Client, is_new_in_window: false });
    }

    #[test]
    fn what_is_in_use_stays_and_the_rest_is_bounded() {
        let mut conversations = Conversations::new(8);
        for port in 1..1000 {
            conversations.see(conversation(port), Role::Client, TimestampMs(0));
            let used = conversations.see(conversation(0), Role::Client, TimestampMs(0));
            assert_eq!(used.is_new_in_window, port == 1, "port {port}");
            assert!(conversations.young.len() + conversations.old.len() <= 8);
        }
    }
}
