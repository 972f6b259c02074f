//! Words that columns have, as types. A column itself holds text: who reads may meet a word of a later version.

use std::{borrow::Cow, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// Not one of the words of a vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is none of {0}")]
pub struct UnknownWord(&'static str);

/// Defines a vocabulary: an enum whose variants are words, ordered as the words are.
macro_rules! vocabulary {
    ($(#[$about:meta])+ $name:ident { $($(#[$meaning:meta])+ $variant:ident = $word:literal,)+ }) => {
        $(#[$about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$meaning])+ #[serde(rename = $word)] $variant,)+
        }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The word.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl FromStr for $name {
            type Err = UnknownWord;

            fn from_str(text: &str) -> Result<Self, UnknownWord> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(UnknownWord(concat!($($word, " "),+))),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl From<$name> for Arc<str> {
            fn from(word: $name) -> Self {
                word.as_str().into()
            }
        }

        impl PartialEq<$name> for str {
            fn eq(&self, word: &$name) -> bool {
                self == word.as_str()
            }
        }
    };
}

vocabulary! {
    /// What an object of the inventory is.
    ObjectKind {
        /// Backends of a Service.
        EndpointSlice = "EndpointSlice",
        /// A namespace.
        Namespace = "Namespace",
        /// A node.
        Node = "Node",
        /// The addresses of a node's own interfaces, such as bridges and tunnels, which Kubernetes does not know; named after
        /// the node.
        NodeInterfaces = "NodeInterfaces",
        /// A pod.
        Pod = "Pod",
        /// A PodDisruptionBudget: its selector tells by what its author knows pods.
        PodDisruptionBudget = "PodDisruptionBudget",
        /// A Service.
        Service = "Service",
        /// A range that Service addresses are taken from.
        ServiceCidr = "ServiceCIDR",
        /// What pods are of, or what owns that: the kind is named in `workload_kind`.
        Workload = "Workload",
    }
}

vocabulary! {
    /// What a row of the inventory says of an object.
    InventoryEvent {
        /// It is gone.
        Delete = "delete",
        /// It is there, told with all others of its writer at the same `observed_at`.
        Snapshot = "snapshot",
        /// It is there, or has changed.
        Upsert = "upsert",
    }
}

vocabulary! {
    /// What a writer of the inventory knows.
    Scope {
        /// Every pod, node and Service of the cluster: an address that is none of theirs is outside.
        Cluster = "cluster",
        /// A part: a node's pods, or what it may read.
        Part = "part",
    }
}

vocabulary! {
    /// What an end of a flow is.
    #[derive(Default)]
    EndKind {
        /// An address outside of the cluster.
        External = "external",
        /// A node, or a pod in its network that can't be told from it.
        Node = "node",
        /// A pod.
        Pod = "pod",
        /// A Service, of which it is not known what stood behind it.
        Service = "service",
        /// It is not known what.
        #[default]
        Unknown = "unknown",
    }
}

vocabulary! {
    /// What carries connections.
    Transport {
        /// Stream Control Transmission Protocol.
        Sctp = "sctp",
        /// Transmission Control Protocol.
        Tcp = "tcp",
        /// User Datagram Protocol.
        Udp = "udp",
    }
}

impl Transport {
    /// As objects of Kubernetes have it: `TCP`.
    pub const fn protocol(self) -> &'static str {
        match self {
            Self::Sctp => "SCTP",
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }

    /// By the name that objects of Kubernetes have for it; `None` for others.
    pub fn of_protocol(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|transport| name.eq_ignore_ascii_case(transport.protocol()))
    }
}

/// A word of a column: of the vocabulary `T`, or one that this version does not know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "Arc<str>", into = "Arc<str>", bound = "T: Copy + FromStr + Into<Arc<str>>")]
pub enum Word<T> {
    /// Of the vocabulary.
    Known(T),
    /// Another one.
    Other(Arc<str>),
}

impl<T: Copy> Word<T> {
    /// The word, if this version knows it.
    pub const fn known(&self) -> Option<T> {
        match self {
            Self::Known(word) => Some(*word),
            Self::Other(_) => None,
        }
    }
}

impl Word<Transport> {
    /// As objects of Kubernetes have it: `TCP`.
    pub fn protocol(&self) -> Cow<'static, str> {
        match self {
            Self::Known(transport) => transport.protocol().into(),
            Self::Other(other) => other.to_uppercase().into(),
        }
    }
}

impl<T: FromStr> From<Arc<str>> for Word<T> {
    fn from(text: Arc<str>) -> Self {
        text.parse().map_or(Self::Other(text), Self::Known)
    }
}

impl<T: Into<Self>> From<Word<T>> for Arc<str> {
    fn from(word: Word<T>) -> Self {
        match word {
            Word::Known(word) => word.into(),
            Word::Other(other) => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_and_written_and_ordered_as_texts() {
        for kind in ObjectKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(*kind));
            assert_eq!(serde_json::to_string(kind).expect("JSON"), format!("\"{kind}\""));
        }
        assert!(ObjectKind::ALL.is_sorted_by_key(|kind| kind.as_str()));
        assert!(*"upsert" == InventoryEvent::Upsert && *"Upsert" != InventoryEvent::Upsert);
        for text in ["tcp", "quic"] {
            let word = Word::<Transport>::from(Arc::from(text));
            assert_eq!(word.known(), text.parse().ok());
            assert_eq!(word.protocol(), text.to_uppercase());
            let json = serde_json::to_string(&word).expect("JSON");
            assert_eq!(json, format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<Word<Transport>>(&json).expect("JSON"), word);
        }
        assert_eq!("pods".parse::<EndKind>(), Err(UnknownWord("external node pod service unknown ")));
    }
}
