//! `flowscribe` from outside: captures in, policies, query results and remarks out.

mod agents;
mod cli;
mod connectivity;
mod input;
mod observers;
mod one_sided;
mod oracle;
mod programs;
mod regenerate;
mod replayed;
mod rules;
mod shapes;
mod sql;
mod support;
mod tight;
mod undirected;
mod unknown_ends;
mod withheld;
