//! A load generator for any server of the Pusher protocol, and the floor to hold it against.
//!
//! `cargo bench --bench load -- fanout --addr 127.0.0.1:6001 --pid PID`; `docs/benchmarks.md` says how the
//! figures of this project are made. It runs on one thread, so that one core is enough for it, and signs
//! with the product's own code. Each run prints a JSON line (standard output) and a table (standard error).

#![expect(
    clippy::indexing_slicing,
    reason = "places are made here, and a meter that errs must stop"
)]

mod client;
mod crowd;
mod floor;
mod frames;
mod inflate;
mod meter;
mod plot;
mod publisher;
mod report;
mod scenario;
mod shapes;
mod streaming;
mod target;
mod usage;
mod wire;

use std::io;

use clap::{CommandFactory, Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use floor::Floor;
use scenario::churn::Churn;
use scenario::fan_out::FanOut;
use scenario::idle::Idle;
use scenario::presence::Presence;
use scenario::publish::Publish;
use scenario::sweep::{Draw, Sweep};
use scenario::whisper::Whisper;
use target::{Options, Target};

/// A load generator for servers of the Pusher protocol
#[derive(Parser, Debug)]
#[command(name = "load")]
struct Cli {
    #[command(flatten)]
    options: Options,
    /// What cargo adds
    #[arg(long, hide = true, global = true)]
    bench: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// The backend publishes to channels with subscribers
    #[command(name = "fanout")]
    FanOut(FanOut),
    /// Clients in rooms whisper to each other (client events)
    Whisper(Whisper),
    /// The backend publishes to channels that nobody subscribes to
    Publish(Publish),
    /// Connections that subscribe and stay quiet
    Idle(Idle),
    /// Members join one presence channel, and half of them leave
    Presence(Presence),
    /// Clients come and go
    Churn(Churn),
    /// Fan-out at one rate after the other, with a plot
    Sweep(Sweep),
    /// Plot what earlier sweeps printed
    Draw(Draw),
    /// Be the floor: the least a server can do
    Floor(Floor),
}

fn main() -> io::Result<()> {
    let Cli { options, command, .. } = Cli::parse();
    let Some(command) = command else {
        return Cli::command().print_help();
    };
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
    let target = Target::new(options);
    match command {
        Command::FanOut(fan_out) => fan_out.run(&target).map(drop),
        Command::Whisper(whisper) => whisper.run(&target),
        Command::Publish(publish) => publish.run(&target),
        Command::Idle(idle) => idle.run(&target),
        Command::Presence(presence) => presence.run(&target),
        Command::Churn(churn) => churn.run(&target),
        Command::Sweep(sweep) => sweep.run(&target),
        Command::Draw(draw) => draw.run(),
        Command::Floor(floor) => floor.run(),
    }
}
