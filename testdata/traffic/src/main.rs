//! Plays traffic that is known, and prepares the processes that take part.

mod client;
mod limits;
mod server;
mod service;
mod signals;

use std::{ffi::OsString, net::IpAddr, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Result, ensure};
use caps::Capability;
use clap::{Parser, Subcommand, ValueEnum};
use traffic::Plan;

use client::Addresses;

/// Traffic whose connections and bytes are known.
#[derive(Parser)]
#[command(name = "traffic")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve every line of every plan on all addresses, until killed.
    Serve {
        /// Directory of the scene's signals: `late` is there once the port of late connects may answer.
        #[arg(long, value_name = "DIR")]
        signals: PathBuf,
    },
    /// Play the lines of a plan, one after the other.
    Play {
        /// Which plan.
        plan: Which,
        /// Short connections, for `pods`.
        #[arg(long, value_name = "N", default_value_t = 400)]
        short: u32,
        #[command(flatten)]
        to: To,
        /// Seconds of the agent's windows: no UDP socket is used in two of them.
        #[arg(long, value_name = "SECONDS", default_value_t = 5)]
        window: u64,
    },
    /// Make a connection that begins before the agent does, and say `open` when it is established.
    Hold {
        /// The port of its line.
        port: u16,
        /// Address of the server.
        to: IpAddr,
        /// Directory of the scene's signals: its second exchange is made when `again` is there, and it ends when
        /// `end` is there.
        #[arg(long, value_name = "DIR")]
        signals: PathBuf,
    },
    /// Be a service of an application: answer on ports, and call every `service:port` that a variable named …_ADDR has.
    Service {
        /// TCP ports to answer on.
        #[arg(long, value_name = "PORT,…", value_delimiter = ',')]
        listen: Vec<u16>,
        /// Seconds between two rounds of calls.
        #[arg(long, value_name = "SECONDS", default_value_t = 2)]
        pause: u64,
        /// Call each once, and go on sending on that connection.
        #[arg(long)]
        keep: bool,
    },
    /// Call services once, all at the same time, and say of each whether it answered: `passes` or `cut`, and its address.
    Call {
        /// Names or addresses, and ports.
        #[arg(value_name = "HOST:PORT", required = true)]
        to: Vec<String>,
        /// Fail if one of them does not answer.
        #[arg(long)]
        strict: bool,
    },
    /// Run a program that has no capabilities but these, and can't get others.
    Limit {
        /// Names, without CAP_.
        #[arg(long, value_name = "NAME,…", value_delimiter = ',', value_parser = limits::capability)]
        keep: Vec<Capability>,
        /// The program and its arguments.
        #[arg(trailing_var_arg = true, required = true)]
        program: Vec<OsString>,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Which {
    Pods,
    Node,
    Loopback,
}

#[derive(clap::Args)]
struct To {
    /// IPv4 address of the server.
    #[arg(long, value_name = "ADDRESS")]
    ipv4: IpAddr,
    /// IPv6 address of the server.
    #[arg(long, value_name = "ADDRESS")]
    ipv6: IpAddr,
    /// An address that nobody has.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0")]
    nobody: IpAddr,
}

fn main() -> ExitCode {
    match run(Args::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("traffic: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Serve { signals } => server::serve(&signals),
        Command::Play { plan, short, to: To { ipv4, ipv6, nobody }, window } => {
            let plan = match plan {
                Which::Pods => Plan::Pods { short },
                Which::Node => Plan::Node,
                Which::Loopback => Plan::Loopback,
            };
            client::play(plan, Addresses { ipv4, ipv6, nobody }, window)
        }
        Command::Hold { port, to, signals } => client::hold(port, to, &signals),
        Command::Service { listen, pause, keep } => service::run(&listen, Duration::from_secs(pause), keep),
        Command::Call { to, strict } => {
            let cut = service::call_all(&to);
            ensure!(!strict || cut == 0, "{cut} of {} do not answer", to.len());
            Ok(())
        }
        Command::Limit { keep, program } => limits::run(&keep, &program),
    }
}
