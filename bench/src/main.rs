//! Load generator: starts the real binary, drives it over real sockets, and prints what it cost.
//!
//! Every figure comes with the machine, the commit and the settings, and where it can be with a floor or a peer that took turns
//! with it; runs are repeated and medians quoted, because two identical runs differ by up to 25 % on a shared machine.
//! docs/performance.md says how to read them.
#![allow(clippy::print_stdout)] // printing is what it is for

mod client;
mod cluster;
mod fill;
mod floor;
mod handler;
mod load;
mod report;
mod scenarios;
mod server;

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use trunkline_proto::PartitionCount;

use crate::{report::Report, scenarios::Setup};

/// What can be measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Scenario {
    /// Append and sync: what the disk takes, by a plain file and by RocksDB.
    Disk,
    /// Echo through the log and a handler: messages/s and latency, fsync on.
    Echo,
    /// Messages to an HTTP function and its answers back, beside calling it directly: requests/s and added latency.
    Functions,
    /// From sockets to acknowledged: events/s.
    Ingest,
    /// One publish to many: deliveries/s at capacity, and latency at half of it.
    Fanout,
    /// Connections opened and closed, each a record: handshakes/s.
    Handshakes,
    /// Bytes per idle connection: edge, broker, and of that the state.
    Idle,
    /// Bytes per connection of a large state.
    Memory,
    /// Reading the log back into state: events/s.
    Replay,
    /// A broker's start with many connections in its state: seconds.
    Restart,
    /// States of very many connections over several partitions: bytes, apply rate, snapshots, restart.
    State,
    /// Three replicas beside one: events/s, messages/s, latency, processor time.
    Cluster,
    /// Commits while a broker that was away catches up.
    Catchup,
}

/// What this program does as its own child.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Child {
    Floor,
    Function,
    State,
    StateInChannels,
    Spread,
    Handler,
}

/// Benchmarks of Trunkline, on real processes.
#[derive(Parser, Debug)]
#[command(name = "trunkline-bench")]
struct Arguments {
    /// What to measure; everything when absent.
    scenarios: Vec<Scenario>,
    /// The binary under test; by default the one beside this program.
    #[arg(long, env = "TRUNKLINE_BIN")]
    binary: Option<PathBuf>,
    /// Seconds of load per run.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Runs of each figure; the median is shown.
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// Bytes of a message.
    #[arg(long, default_value_t = 128)]
    payload: usize,
    /// Connections that echo and ingest.
    #[arg(long, default_value_t = 500)]
    connections: usize,
    /// Subscriber counts of the fan-out.
    #[arg(long, value_delimiter = ',', default_values_t = [1000, 10_000])]
    subscribers: Vec<usize>,
    /// Idle connections.
    #[arg(long, default_value_t = 10_000)]
    idle: usize,
    /// Connections in the state that is replayed and restarted; the targets name 1,000,000.
    #[arg(long, default_value_t = 100_000)]
    state: u64,
    /// Messages in the log that is replayed.
    #[arg(long, default_value_t = 3_000_000)]
    messages: u64,
    /// Connections of `state`; the targets name 10,000,000.
    #[arg(long, default_value_t = 1_000_000)]
    simulated: u64,
    /// Partitions of `state`.
    #[arg(long, default_value_t = 8)]
    partitions: u16,
    /// Partitions of `cluster` and `catchup`.
    #[arg(long, default_value_t = 3)]
    cluster_partitions: u16,
    /// Events appended while a broker is away.
    #[arg(long, default_value_t = 1_000_000)]
    away: u64,
    /// Bound on what a broker that was away is sent a second (`broker.replication.catchup_rate`), if not the default.
    #[arg(long, value_name = "SIZE")]
    catchup_rate: Option<String>,
    /// A command that serves what the floor does, to compare with too: "python bench/peers/uws.py".
    #[arg(long, value_name = "COMMAND")]
    peer: Option<String>,
    #[arg(long, hide = true)]
    child: Option<Child>,
    #[arg(long, hide = true, value_delimiter = ',')]
    brokers: Vec<String>,
    /// Where the data folders go: measure on the disk you mean.
    #[arg(long)]
    data: Option<PathBuf>,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    raise_file_limit();
    // stamps count from here
    client::now();
    if let Some(child) = arguments.child {
        return run_child(child, &arguments);
    }
    let binary = match &arguments.binary {
        Some(binary) => binary.clone(),
        None => std::env::current_exe()?.with_file_name("trunkline"),
    };
    anyhow::ensure!(binary.exists(), "{} is not built: run `make bench`, or name it with --binary", binary.display());
    let setup = Setup {
        binary,
        data: arguments.data.clone(),
        seconds: arguments.seconds,
        repeat: arguments.repeat.max(1),
        payload: arguments.payload.max(16),
        connections: arguments.connections,
        peer: arguments.peer.iter().flat_map(|peer| peer.split_whitespace()).map(str::to_owned).collect(),
    };
    let mut report = Report::new(arguments.json, &setup);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(&arguments, &setup, &mut report))?;
    report.finish();
    Ok(())
}

async fn run(arguments: &Arguments, setup: &Setup, report: &mut Report) -> anyhow::Result<()> {
    let wanted = |scenario| arguments.scenarios.is_empty() || arguments.scenarios.contains(&scenario);
    if wanted(Scenario::Disk) {
        scenarios::disk::disk(setup, report)?;
    }
    if wanted(Scenario::Echo) {
        scenarios::echo::echo(setup, report).await?;
    }
    if wanted(Scenario::Functions) {
        scenarios::functions::functions(setup, report).await?;
    }
    if wanted(Scenario::Ingest) {
        scenarios::ingest::ingest(setup, report).await?;
    }
    if wanted(Scenario::Fanout) {
        for subscribers in &arguments.subscribers {
            scenarios::fanout::fanout(setup, *subscribers, report).await?;
        }
    }
    if wanted(Scenario::Handshakes) {
        scenarios::handshakes::handshakes(setup, report).await?;
    }
    if wanted(Scenario::Idle) {
        scenarios::idle::idle(setup, arguments.idle, report).await?;
    }
    if wanted(Scenario::Memory) {
        scenarios::idle::memory(setup, usize::try_from(arguments.state)?, report)?;
    }
    if wanted(Scenario::Replay) {
        scenarios::state::replay(setup, arguments.state, arguments.messages, report).await?;
    }
    if wanted(Scenario::Restart) {
        scenarios::state::restart(setup, arguments.state, scenarios::idle::ONE_PARTITION, report).await?;
    }
    if wanted(Scenario::State) {
        scenarios::state::state(setup, arguments.simulated, count(arguments.partitions)?, report).await?;
    }
    if wanted(Scenario::Cluster) {
        scenarios::cluster::cluster(setup, count(arguments.cluster_partitions)?, report).await?;
    }
    if wanted(Scenario::Catchup) {
        let partitions = count(arguments.cluster_partitions)?;
        let catchup_rate = arguments.catchup_rate.as_deref();
        let away = scenarios::catchup::Away { partitions, events: arguments.away, catchup_rate };
        scenarios::catchup::catchup(setup, away, report).await?;
    }
    Ok(())
}

fn count(partitions: u16) -> anyhow::Result<PartitionCount> {
    PartitionCount::new(partitions).with_context(|| format!("{partitions} is no number of partitions"))
}

fn run_child(child: Child, arguments: &Arguments) -> anyhow::Result<()> {
    match child {
        Child::Floor => tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(floor::serve()),
        Child::Function => {
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(scenarios::functions::serve())
        }
        Child::State => scenarios::idle::state_child(arguments.idle, 0),
        Child::StateInChannels => scenarios::idle::state_child(arguments.idle, 1000),
        Child::Spread => scenarios::state::spread_child(arguments.simulated, count(arguments.partitions)?),
        Child::Handler => {
            let brokers = arguments.brokers.clone();
            tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(handler::serve(brokers))
        }
    }
}

/// As many sockets as the hard limit allows.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // best effort: where it fails, connecting says that files ran out
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
