//! From sockets to acknowledged.

use std::{
    cell::Cell,
    net::SocketAddr,
    rc::Rc,
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
    let (sent, _sockets) =
        LocalSet::new().run_until(drive_ingest(sockets, setup.payload, Until::Over(setup.load()))).await?;
    wait_until_applied(edge, sent).await?;
    let (elapsed, cpu) = (started.elapsed(), server.cpu()?.saturating_sub(before));
    server.stop()?;
    Ok([sent as f64 / elapsed.as_secs_f64(), sent as f64 / cpu.as_secs_f64()])
}

/// How long sockets send.
#[derive(Clone, Copy)]
pub(crate) enum Until {
    Over(Duration),
    /// So many messages, or a few more.
    Sent(u64),
}

/// Gives the sockets back: closing would race with the messages still in their buffers.
pub(crate) async fn drive_ingest(
    sockets: Vec<Socket>,
    payload: usize,
    until: Until,
) -> anyhow::Result<(u64, Vec<Socket>)> {
    const BURST: u64 = 32;
    let (started, sent) = (Instant::now(), Rc::new(Cell::new(0)));
    let mut tasks = JoinSet::new();
    for mut socket in sockets {
        let sent = sent.clone();
        tasks.spawn_local(async move {
            let mut out = Vec::new();
            (0..BURST).for_each(|_| client::frame(&mut out, 0, payload));
            while match until {
                Until::Over(time) => started.elapsed() < time,
                Until::Sent(messages) => sent.get() < messages,
            } {
                sent.set(sent.get() + BURST);
                socket.write(&out).await?;
                tokio::task::yield_now().await;
            }
            anyhow::Ok(socket)
        });
    }
    let mut sockets = Vec::new();
    while let Some(task) = tasks.join_next().await {
        sockets.push(task??);
    }
    Ok((sent.get(), sockets))
}

/// Until the edge has read `sent` messages, of all it ever read, and none is in flight to the log.
pub(crate) async fn wait_until_applied(edge: SocketAddr, sent: u64) -> anyhow::Result<()> {
    let started = Instant::now();
    loop {
        let [received, in_flight] = counts(edge).await?;
        if received >= sent as f64 && in_flight == 0.0 {
            return Ok(());
        }
        ensure!(started.elapsed() < Duration::from_secs(120), "{received} of {sent} messages arrived within 2 minutes");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Messages that the edge ever read.
pub(crate) async fn received(edge: SocketAddr) -> anyhow::Result<u64> {
    let [received, _] = counts(edge).await?;
    Ok(received as u64)
}

/// Messages read, and bytes in flight to the log.
async fn counts(edge: SocketAddr) -> anyhow::Result<[f64; 2]> {
    // an edge keeps no connection alive
    let (_, body) = Http::connect(edge).await?.request("GET", "/metrics", &[]).await?;
    let text = String::from_utf8_lossy(&body).into_owned();
    let sum = |name: &str| {
        let values = text
            .lines()
            .filter(|line| line.starts_with(name))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        values.sum::<f64>()
    };
    Ok([sum("trunkline_edge_messages_received_total"), sum("trunkline_edge_uplink_inflight_bytes")])
}
