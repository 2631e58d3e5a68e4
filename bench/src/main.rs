//! Load generator: starts the real binary, drives it over real sockets, and prints what it cost.
//!
//! Every figure comes with the machine, the commit and the settings; runs are repeated and medians quoted, because two
//! identical runs differ by up to 25 % on a shared machine.
#![allow(clippy::print_stdout)] // printing is what it is for

mod client;
mod report;
mod scenarios;
mod server;

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// What can be measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Scenario {
    /// Echo through the log and a handler: messages/s and latency, fsync on.
    Echo,
    /// From sockets to acknowledged: events/s.
    Ingest,
    /// One publish to many: deliveries/s, beside a floor that keeps nothing.
    Fanout,
    /// Bytes per idle connection, edge and broker apart.
    Idle,
    /// Reading the log back into state: events/s.
    Replay,
}

/// Benchmarks of one Trunkline node, on real processes.
#[derive(Parser, Debug)]
#[command(name = "trunkline-bench")]
struct Arguments {
    /// What to measure; everything when absent.
    scenarios: Vec<Scenario>,
    /// The binary under test; by default the one beside this program.
    #[arg(long, env = "TRUNKLINE_BIN")]
    binary: Option<PathBuf>,
    /// Seconds of load per run.
    #[arg(long, default_value_t = 5)]
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
    /// Where the data folders go: measure on the disk you mean.
    #[arg(long)]
    data: Option<PathBuf>,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let binary = match &arguments.binary {
        Some(binary) => binary.clone(),
        None => std::env::current_exe()?.with_file_name("trunkline"),
    };
    anyhow::ensure!(binary.exists(), "{} is not built: run `make bench`, or name it with --binary", binary.display());
    raise_file_limit();
    let setup = scenarios::Setup {
        binary,
        data: arguments.data.clone(),
        seconds: arguments.seconds,
        repeat: arguments.repeat.max(1),
        payload: arguments.payload.max(16),
        connections: arguments.connections,
    };
    let mut report = report::Report::new(arguments.json, &setup);
    let wanted = |scenario| arguments.scenarios.is_empty() || arguments.scenarios.contains(&scenario);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        if wanted(Scenario::Echo) {
            scenarios::echo(&setup, &mut report).await?;
        }
        if wanted(Scenario::Ingest) {
            scenarios::ingest(&setup, &mut report).await?;
        }
        if wanted(Scenario::Fanout) {
            for subscribers in &arguments.subscribers {
                scenarios::fanout(&setup, *subscribers, &mut report).await?;
            }
        }
        if wanted(Scenario::Idle) {
            scenarios::idle(&setup, arguments.idle, &mut report).await?;
        }
        if wanted(Scenario::Replay) {
            scenarios::replay(&setup, &mut report).await?;
        }
        anyhow::Ok(())
    })?;
    report.finish();
    Ok(())
}

/// As many sockets as the hard limit allows.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // best effort: where it fails, connecting says that files ran out
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
