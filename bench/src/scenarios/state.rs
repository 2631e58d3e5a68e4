//! States without sockets: many connections over several partitions, the log read back, and restarts.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use trunkline_broker::core::Partition;
use trunkline_proto::{LogIndex, PartitionCount, PartitionId};

use super::{
    Setup,
    idle::{ONE_PARTITION, start_broker},
};
use crate::{
    client::Http,
    fill::{self, Contents, Filled},
    report::{Report, Runs, Subject},
    server::resident,
};

/// How long a broker may take to start.
const PATIENCE: Duration = Duration::from_secs(300);

/// Connections spread over partitions, in a program that holds nothing but their states: memory, and how fast they are applied,
/// encoded as a snapshot is, and decoded. Then as logs and snapshots on disk, and a broker that starts from them.
pub(crate) async fn state(
    setup: &Setup,
    connections: u64,
    partitions: PartitionCount,
    report: &mut Report,
) -> anyhow::Result<()> {
    report.scenario(format!("states alone, one thread, connections: {connections}, partitions: {}", partitions.get()));
    let names = [
        "bytes/connection in memory",
        "events/s applied",
        "encoding snapshots, s",
        "decoding snapshots, s",
        "bytes/connection in a snapshot",
    ];
    let mut measured = crate::report::rows::<5>();
    for _ in 0..setup.repeat {
        let output = std::process::Command::new(std::env::current_exe()?)
            .args(["--child", "spread", "--simulated", &connections.to_string()])
            .args(["--partitions", &partitions.get().to_string()])
            .output()?;
        ensure!(output.status.success(), "spread: {}", String::from_utf8_lossy(&output.stderr));
        let values: [f64; 5] = serde_json::from_slice(&output.stdout).context("odd output of the child")?;
        measured.iter_mut().zip(values).for_each(|(runs, value)| runs.push(Subject::Trunkline, value));
    }
    report.add_all(names, measured, ["≤ 250", "", "", "", ""]);
    restart(setup, connections, partitions, report).await
}

/// The child process of [`state`]: prints the figures as a list.
pub(crate) fn spread_child(connections: u64, partitions: PartitionCount) -> anyhow::Result<()> {
    let contents = Contents { connections, partitions, channels: 0, messages: 0, payload: 0 };
    let before = resident(std::process::id())?;
    let (mut states, mut applying) = (Vec::new(), Duration::ZERO);
    for id in partitions.iter() {
        let (state, took) = fill::state(contents, id)?;
        states.push(state);
        applying += took;
    }
    let memory = resident(std::process::id())?.saturating_sub(before);
    let (mut encoding, mut decoding, mut bytes) = (Duration::ZERO, Duration::ZERO, 0);
    for state in &states {
        let started = Instant::now();
        let encoded = state.encode();
        encoding += started.elapsed();
        bytes += encoded.len();
        let started = Instant::now();
        let decoded = Partition::decode(&encoded)?;
        decoding += started.elapsed();
        ensure!(Filled::of(&decoded) == Filled::of(state), "a snapshot holds another state");
    }
    let count = states.iter().map(Partition::connection_count).sum::<usize>() as f64;
    ensure!(count == connections as f64, "connections are missing");
    let figures = [
        memory as f64 / count,
        count / applying.as_secs_f64(),
        encoding.as_secs_f64(),
        decoding.as_secs_f64(),
        bytes as f64 / count,
    ];
    println!("{}", serde_json::to_string(&figures)?);
    Ok(())
}

/// How fast a log of `messages` messages of `connections` connections, picked at random, is read back, checked and applied: by
/// the code that makes snapshots, and by a broker that starts without one.
pub(crate) async fn replay(setup: &Setup, connections: u64, messages: u64, report: &mut Report) -> anyhow::Result<()> {
    report.scenario(format!("replay, connections: {connections}, messages: {messages}"));
    let folder = setup.folder()?;
    let data = folder.path().join("data");
    let payload = setup.payload;
    let contents = Contents { connections, partitions: ONE_PARTITION, channels: 0, messages, payload };
    let started = Instant::now();
    let filled = fill::fill(&data, contents).await?;
    let events = (connections + messages) as f64;
    report.add("events/s appended, no link", &Runs::of(vec![events / started.elapsed().as_secs_f64()]), "≥ 500000");
    let (mut rates, mut starts) = (Vec::new(), Vec::new());
    for _ in 0..setup.repeat {
        let started = Instant::now();
        let last = filled.first().map_or(LogIndex(0), |filled| filled.last);
        let state = fill::replay(&data, ONE_PARTITION, PartitionId(0), last)?;
        rates.push(events / started.elapsed().as_secs_f64());
        // every record's bytes and verdict are in the digest
        ensure!([Filled::of(&state)] == *filled, "the replay came to another state");
    }
    report.add("events/s from disk into a state", &Runs::of(rates), "≥ 1000000");
    for _ in 0..setup.repeat {
        let copy = setup.folder()?;
        copy_folder(&data, &copy.path().join("data"))?;
        starts.push(events / restarted(setup, copy.path(), contents).await?.whole);
    }
    report.add("events/s by a broker that starts", &Runs::of(starts), "≥ 1000000");
    Ok(())
}

/// From the process's start until a broker is ready and shows every connection, with snapshots and without.
pub(crate) async fn restart(
    setup: &Setup,
    connections: u64,
    partitions: PartitionCount,
    report: &mut Report,
) -> anyhow::Result<()> {
    report.scenario(format!("restart of a broker, connections: {connections}, partitions: {}", partitions.get()));
    let folder = setup.folder()?;
    let data = folder.path().join("data");
    let contents = Contents { connections, partitions, channels: 0, messages: 0, payload: 0 };
    let started = Instant::now();
    let filled = fill::fill(&data, contents).await?;
    let appended = connections as f64 / started.elapsed().as_secs_f64();
    report.add("events/s appended, no link", &Runs::of(vec![appended]), "");
    let empty = setup.folder()?;
    let empty = restarted(setup, empty.path(), Contents { connections: 0, ..contents }).await?.resident;
    for (with, target) in [("log alone", ""), ("snapshots", "≤ 5 at 1000000")] {
        if with != "log alone" {
            let started = Instant::now();
            fill::snapshot(&data, partitions, &filled)?;
            report.add("making snapshots from the log, s", &Runs::of(vec![started.elapsed().as_secs_f64()]), "");
        }
        let (mut ready, mut whole, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..setup.repeat {
            let copy = setup.folder()?;
            copy_folder(&data, &copy.path().join("data"))?;
            let restarted = restarted(setup, copy.path(), contents).await?;
            ready.push(restarted.ready);
            whole.push(restarted.whole);
            bytes.push(restarted.resident.saturating_sub(empty) as f64 / connections as f64);
        }
        report.add(&format!("{with}, ready, s"), &Runs::of(ready), target);
        report.add(&format!("{with}, all connections, s"), &Runs::of(whole), "");
        report.add(&format!("{with}, broker bytes/connection"), &Runs::of(bytes), "");
    }
    Ok(())
}

struct Restarted {
    /// Seconds until the broker says that it is ready.
    ready: f64,
    /// Seconds until it shows all connections.
    whole: f64,
    /// Its memory then, in bytes.
    resident: u64,
}

async fn restarted(setup: &Setup, folder: &Path, contents: Contents) -> anyhow::Result<Restarted> {
    let started = Instant::now();
    let broker = start_broker(setup, folder, "64MiB", contents.partitions)?;
    let ready = started.elapsed().as_secs_f64();
    let mut http = Http::connect(broker.address("http")?).await?;
    loop {
        let (status, body) = http.request("GET", "/v1/cluster?local=true", &[]).await?;
        ensure!(status == 200, "/v1/cluster answered {status}");
        let cluster: serde_json::Value = serde_json::from_slice(&body)?;
        let rows = cluster["partitions"].as_array().into_iter().flatten();
        if rows.filter_map(|row| row["connections"].as_u64()).sum::<u64>() == contents.connections {
            break;
        }
        ensure!(started.elapsed() < PATIENCE, "the broker shows other connections: {cluster}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let whole = started.elapsed().as_secs_f64();
    let resident = broker.resident()?;
    broker.kill()?;
    Ok(Restarted { ready, whole, resident })
}

fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for file in std::fs::read_dir(from)? {
        let file = file?;
        let target = to.join(file.file_name());
        if file.file_type()?.is_dir() {
            copy_folder(&file.path(), &target)?;
        } else {
            std::fs::copy(file.path(), target)?;
        }
    }
    Ok(())
}
