//! Memory of idle connections: edge, broker, and what the broker's state alone takes.

use std::path::Path;

use anyhow::{Context as _, ensure};
use tokio::task::LocalSet;
use trunkline_proto::{PartitionCount, PartitionId};

use super::Setup;
use crate::{
    client,
    fill::{self, Contents},
    report::{Report, Runs, Subject},
    server::{Server, resident},
};

pub(crate) const ONE_PARTITION: PartitionCount = PartitionCount::new(1).unwrap();
/// Connections before the first look: what is allocated once is not a connection's.
const WARM: usize = 100;

/// Resident memory of edge and broker, each a process of its own, before and after `count` connections; the state's by a
/// program that holds nothing else.
pub(crate) async fn idle(setup: &Setup, count: usize, report: &mut Report) -> anyhow::Result<()> {
    report.scenario(format!("idle, connections: {count}, broker and edge apart"));
    let (mut edges, mut totals, mut small_tails) = (Runs::default(), Vec::new(), Vec::new());
    let (mut states, mut rests, mut records) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..setup.repeat {
        let [edge, total, record] = apart(setup, count, "64MiB").await?;
        let [_, small_tail, _] = apart(setup, count, "1MiB").await?;
        let state = state_bytes("state", count)?;
        edges.push(Subject::Trunkline, edge);
        edges.push(Subject::Floor, floor(setup, count).await?);
        totals.push(total);
        small_tails.push((total - small_tail).max(0.0));
        states.push(state);
        rests.push((small_tail.min(total) - state).max(0.0));
        records.push(record);
    }
    report.add("edge, bytes/connection", &edges, "≤ 2000");
    report.add("broker, bytes/connection", &Runs::of(totals), "");
    report.add("  of it state (measured alone)", &Runs::of(states), "≤ 250");
    report.add("  of it tail (at most 64 MiB)", &Runs::of(small_tails), "");
    report.add("  of it memtables, link, caches", &Runs::of(rests), "");
    report.add("  its record in the log, bytes", &Runs::of(records), "");
    Ok(())
}

/// The state's bytes per connection, at this number of them.
pub(crate) fn memory(setup: &Setup, count: usize, report: &mut Report) -> anyhow::Result<()> {
    report.scenario(format!("state in memory, connections: {count}, random ids, a peer address, 1000 channels"));
    for (child, name) in [("state", "bytes/connection"), ("state-in-channels", "bytes/connection in a channel")] {
        let bytes = (0..setup.repeat).map(|_| state_bytes(child, count)).collect::<anyhow::Result<_>>()?;
        report.add(name, &Runs::of(bytes), if child == "state" { "≤ 250" } else { "" });
    }
    Ok(())
}

/// Bytes per connection of edge and broker, and of what a connection leaves in the log.
async fn apart(setup: &Setup, count: usize, tail: &str) -> anyhow::Result<[f64; 3]> {
    let folder = setup.folder()?;
    let broker = start_broker(setup, folder.path(), tail, ONE_PARTITION)?;
    let edge = start_edge(setup, folder.path(), &broker)?;
    let warm = LocalSet::new().run_until(client::connect_many(edge.address("ws")?, "/idle", WARM)).await?;
    let before = (edge.resident()?, broker.resident()?);
    let sockets = LocalSet::new().run_until(client::connect_many(edge.address("ws")?, "/idle", count)).await?;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let edge_bytes = edge.resident()?.saturating_sub(before.0) as f64 / count as f64;
    let broker_bytes = broker.resident()?.saturating_sub(before.1) as f64 / count as f64;
    // killed, so that the log holds no closes
    broker.kill()?;
    drop((warm, sockets));
    edge.kill()?;
    let data = folder.path().join("data").to_string_lossy().into_owned();
    let verify = std::process::Command::new(&setup.binary).args(["verify", &data, "--json"]).output()?;
    ensure!(verify.status.success(), "trunkline verify: {}", String::from_utf8_lossy(&verify.stderr));
    let report: serde_json::Value = serde_json::from_slice(&verify.stdout).context("trunkline verify --json")?;
    let bytes = report["bytes"].as_f64().context("no bytes")?;
    Ok([edge_bytes, broker_bytes, bytes / (count + WARM) as f64])
}

async fn floor(setup: &Setup, count: usize) -> anyhow::Result<f64> {
    let folder = setup.folder()?;
    let server = setup.start(Subject::Floor, folder.path())?;
    let warm = LocalSet::new().run_until(client::connect_many(server.address("ws")?, "/idle", WARM)).await?;
    let before = server.resident()?;
    let sockets = LocalSet::new().run_until(client::connect_many(server.address("ws")?, "/idle", count)).await?;
    let bytes = server.resident()?.saturating_sub(before);
    drop((warm, sockets));
    server.stop()?;
    Ok(bytes as f64 / count as f64)
}

/// A broker alone, in `folder/data`, for which an edge that is away is never lost.
pub(crate) fn start_broker(
    setup: &Setup,
    folder: &Path,
    tail: &str,
    partitions: PartitionCount,
) -> anyhow::Result<Server> {
    let pki = folder.join("pki").to_string_lossy().into_owned();
    let certs = std::process::Command::new(&setup.binary)
        .args(["certs", "--dir", &pki, "--broker", "1", "--edge", "bench"])
        .output()
        .context("trunkline certs")?;
    ensure!(certs.status.success(), "trunkline certs: {}", String::from_utf8_lossy(&certs.stderr));
    let config = folder.join("broker.toml");
    std::fs::write(
        &config,
        format!(
            "[broker]\ndata = {:?}\npki = {pki:?}\ngrpc = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\nlink = \"127.0.0.1:0\"\n\
             partitions = {}\ntail_bytes = {tail:?}\nedge_grace = \"1h\"\n",
            folder.join("data").to_string_lossy(),
            partitions.get(),
        ),
    )?;
    Server::start(&setup.binary, &["broker", "--config", &config.to_string_lossy()])
}

fn start_edge(setup: &Setup, folder: &Path, broker: &Server) -> anyhow::Result<Server> {
    let pki = folder.join("pki").to_string_lossy().into_owned();
    let config = folder.join("edge.toml");
    std::fs::write(
        &config,
        format!(
            "[edge]\nname = \"bench\"\npki = {pki:?}\nws = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\nbrokers = [\"1@{}\"]\n\n\
             [[api]]\nname = \"idle\"\npath = \"/idle\"\nregistration = \"accept\"\n",
            broker.address("link")?
        ),
    )?;
    Server::start(&setup.binary, &["edge", "--config", &config.to_string_lossy()])
}

fn state_bytes(child: &str, count: usize) -> anyhow::Result<f64> {
    let output = std::process::Command::new(std::env::current_exe()?)
        .args(["--child", child, "--idle", &count.to_string()])
        .output()?;
    ensure!(output.status.success(), "{child}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?)
}

/// The child process of [`state_bytes`]: prints what a connection takes.
pub(crate) fn state_child(count: usize, channels: u64) -> anyhow::Result<()> {
    let contents = |connections| Contents { connections, partitions: ONE_PARTITION, channels, messages: 0, payload: 0 };
    let (warm, _) = fill::state(contents(WARM as u64), PartitionId(0))?;
    let before = resident(std::process::id())?;
    let (state, _) = fill::state(contents(count as u64), PartitionId(0))?;
    println!("{}", resident(std::process::id())?.saturating_sub(before) as f64 / count as f64);
    ensure!((state.connection_count(), warm.connection_count()) == (count, WARM), "connections are missing");
    Ok(())
}
