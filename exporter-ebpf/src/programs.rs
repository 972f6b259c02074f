//! One module per hook.

mod cgroup;
mod close;
mod list;
mod node;
mod open;
mod sock_ops;
mod udp;
