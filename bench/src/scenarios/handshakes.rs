//! Connections that come and go: each is upgraded once its record is committed, and each close is a record too.

use std::{
    cell::Cell,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::task::{JoinSet, LocalSet};

use super::Setup;
use crate::{
    client::Socket,
    report::{Report, rows},
};

/// Connections being opened at a time.
const OPENING: usize = 100;
/// Most in a run: each leaves a port that stays taken for a while.
const HANDSHAKES_MAX: usize = 20_000;

/// Opens and closes, [`OPENING`] at a time.
pub(crate) async fn handshakes(setup: &Setup, report: &mut Report) -> anyhow::Result<()> {
    report.scenario(format!("handshakes, at a time: {OPENING}, each opened, committed and closed"));
    let mut measured = rows::<2>();
    for _ in 0..setup.repeat {
        for subject in setup.subjects() {
            let folder = setup.folder()?;
            let server = setup.start(subject, folder.path())?;
            let ws = server.address("ws")?;
            LocalSet::new().run_until(drive(ws, OPENING, setup.load())).await?;
            let (before, started) = (server.cpu()?, Instant::now());
            let opened = LocalSet::new().run_until(drive(ws, HANDSHAKES_MAX, setup.load())).await?;
            let (elapsed, cpu) = (started.elapsed(), server.cpu()?.saturating_sub(before));
            server.stop()?;
            let values = [opened as f64 / elapsed.as_secs_f64(), opened as f64 / cpu.as_secs_f64()];
            measured.iter_mut().zip(values).for_each(|(runs, value)| runs.push(subject, value));
        }
    }
    report.add_all(["handshakes/s", "handshakes per server CPU-second"], measured, ["", "≥ 10000"]);
    Ok(())
}

async fn drive(ws: SocketAddr, count: usize, time: Duration) -> anyhow::Result<usize> {
    let deadline = Instant::now() + time;
    let left = Rc::new(Cell::new(count));
    let mut opening = JoinSet::new();
    for _ in 0..OPENING {
        let left = left.clone();
        opening.spawn_local(async move {
            while left.get() > 0 && Instant::now() < deadline {
                left.set(left.get() - 1);
                drop(Socket::connect(ws, "/ingest").await?);
            }
            anyhow::Ok(())
        });
    }
    while let Some(task) = opening.join_next().await {
        task??;
    }
    Ok(count - left.get())
}
