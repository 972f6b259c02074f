//! Views: queries over the tables, with a name and a meaning.

/// Name, meaning and query.
pub(super) const VIEWS: [(&str, &str, &str); 2] = [
    (
        "failed_attempts",
        "Edges on which nothing ever passed: who tried what, how often, and why it failed.",
        include_str!("failed_attempts.sql"),
    ),
    (
        "external_peers",
        "Edges with the outside of the cluster: the workload inside, the address outside.",
        include_str!("external_peers.sql"),
    ),
];
