//! `flowscribe` from outside: captures in, policies, query results and remarks out.

mod agents;
mod cli;
mod connectivity;
mod containers;
mod corpus;
mod dynamic_ports;
mod input;
mod localities;
mod manifests;
mod observers;
mod one_sided;
mod oracle;
mod owners;
mod programs;
mod regenerate;
mod replayed;
mod rules;
mod runtimes;
mod shapes;
mod sql;
mod support;
mod tight;
mod undirected;
mod unknown_ends;
mod withheld;
mod worlds;
