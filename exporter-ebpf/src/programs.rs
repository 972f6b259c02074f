//! The programs, by what they watch: TCP connections as they begin and fail (`sock_ops`), end (`close`) and go on (`open`),
//! sockets that are older than the run (`adopt`), UDP (`udp`), and cgroups (`cgroup`). Beside them, what the loader asks: which programs the machine has (`list`), and
//! which network is the node's own (`node`).

mod adopt;
mod cgroup;
mod close;
mod list;
mod node;
mod open;
mod sock_ops;
mod udp;
