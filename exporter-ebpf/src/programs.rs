//! One module per hook.

mod cgroup;
mod close;
mod open;
mod sock_ops;
mod udp;
