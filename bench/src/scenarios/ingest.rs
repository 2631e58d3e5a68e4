//! From sockets to acknowledged.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::ensure;
use tokio::task::{JoinSet, LocalSet};

use super::Setup;
use crate::{
    client::{self, Http, Socket},
    report::{Report, Subject, rows},
};

/// Sockets send as fast as the edge lets them; the clock stops when the last message is applied. The floor only counts them.
pub(crate) async fn ingest(setup: &Setup, report: &mut Report) -> anyhow::Result<()> {
    report.scenario(format!("ingest, connections: {}", setup.connections));
    let mut measured = rows::<2>();
    for _ in 0..setup.repeat {
        for subject in setup.subjects() {
            let values = run(setup, subject).await?;
            measured.iter_mut().zip(values).for_each(|(runs, value)| runs.push(subject, value));
        }
    }
    report.add_all(["events/s acknowledged", "events per server CPU-second"], measured, ["", "≥ 170000"]);
    Ok(())
}

async fn run(setup: &Setup, subject: Subject) -> anyhow::Result<[f64; 2]> {
    let folder = setup.folder()?;
    let server = setup.start(subject, folder.path())?;
    let edge = server.address("edge-http")?;
    let sockets =
        LocalSet::new().run_until(client::connect_many(server.address("ws")?, "/ingest", setup.connections)).await?;
    let (before, started) = (server.cpu()?, Instant::now());
    let (sent, _sockets) = LocalSet::new().run_until(drive_ingest(sockets, setup.payload, setup.load())).await?;
    wait_until_applied(edge, sent).await?;
    let (elapsed, cpu) = (started.elapsed(), server.cpu()?.saturating_sub(before));
    server.stop()?;
    Ok([sent as f64 / elapsed.as_secs_f64(), sent as f64 / cpu.as_secs_f64()])
}

/// Gives the sockets back: closing would race with the messages still in their buffers.
async fn drive_ingest(sockets: Vec<Socket>, payload: usize, time: Duration) -> anyhow::Result<(u64, Vec<Socket>)> {
    const BURST: u64 = 32;
    let deadline = Instant::now() + time;
    let mut tasks = JoinSet::new();
    for mut socket in sockets {
        tasks.spawn_local(async move {
            let (mut sent, mut out) = (0, Vec::new());
            (0..BURST).for_each(|_| client::frame(&mut out, 0, payload));
            while Instant::now() < deadline {
                socket.write(&out).await?;
                sent += BURST;
                tokio::task::yield_now().await;
            }
            anyhow::Ok((sent, socket))
        });
    }
    let (mut sent, mut sockets) = (0, Vec::new());
    while let Some(task) = tasks.join_next().await {
        let (messages, socket) = task??;
        sent += messages;
        sockets.push(socket);
    }
    Ok((sent, sockets))
}

/// Until the edge has read `sent` messages and none is in flight to the log.
async fn wait_until_applied(edge: SocketAddr, sent: u64) -> anyhow::Result<()> {
    let mut http = Http::connect(edge).await?;
    let started = Instant::now();
    loop {
        let (_, body) = http.request("GET", "/metrics", &[]).await?;
        let text = String::from_utf8_lossy(&body).into_owned();
        let sum = |name: &str| {
            let values = text
                .lines()
                .filter(|line| line.starts_with(name))
                .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
            values.sum::<f64>()
        };
        let received = sum("trunkline_edge_messages_received_total");
        if received >= sent as f64 && sum("trunkline_edge_uplink_inflight_bytes") == 0.0 {
            return Ok(());
        }
        ensure!(started.elapsed() < Duration::from_secs(120), "{received} of {sent} messages arrived within 2 minutes");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
