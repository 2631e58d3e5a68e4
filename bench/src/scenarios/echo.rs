//! Echo through the log and a handler.

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tokio::task::{JoinSet, LocalSet};

use super::{Setup, disk, histogram, milliseconds};
use crate::{
    client::{self, Socket},
    report::{Report, Runs, Subject, rows},
};

/// At full load, and one at a time.
pub(crate) async fn echo(setup: &Setup, report: &mut Report) -> anyhow::Result<()> {
    for (connections, window) in [(setup.connections, 1), (setup.connections.min(100), 16), (1, 1)] {
        report.scenario(format!("echo, connections: {connections}, in flight on each: {window}"));
        let (mut measured, mut syncs) = (rows::<5>(), Vec::new());
        for _ in 0..setup.repeat {
            if connections == 1 {
                syncs.push(disk::sync_milliseconds(setup)?);
            }
            for subject in setup.subjects() {
                let values = run(setup, subject, connections, window).await?;
                measured.iter_mut().zip(values).for_each(|(runs, value)| runs.push(subject, value));
            }
        }
        let names = ["messages/s", "messages per server CPU-second", "p50 ms", "p99 ms", "p99.9 ms"];
        if connections > 1 {
            report.add_all(names, measured, ["", "≥ 45000", "", "", ""]);
        } else {
            let sync = Runs::of(syncs);
            report.add("one sync of 160 bytes, p50 ms", &sync, "");
            let target = format!("≤ {:.2}", 2.0 * sync.median() + 0.3);
            report.add_all(names, measured, ["", "", &target, "≤ 5", ""]);
        }
    }
    Ok(())
}

async fn run(setup: &Setup, subject: Subject, connections: usize, window: usize) -> anyhow::Result<[f64; 5]> {
    let folder = setup.folder()?;
    let server = setup.start(subject, folder.path())?;
    let sockets = LocalSet::new().run_until(client::connect_many(server.address("ws")?, "/echo", connections)).await?;
    // the first second warms the way up and is not counted
    let warm = drive_echo(sockets, window, setup.payload, Duration::from_secs(1));
    let (_, sockets) = LocalSet::new().run_until(warm).await?;
    let (before, started) = (server.cpu()?, Instant::now());
    let (latencies, _sockets) =
        LocalSet::new().run_until(drive_echo(sockets, window, setup.payload, setup.load())).await?;
    let (elapsed, cpu) = (started.elapsed(), server.cpu()?.saturating_sub(before));
    server.stop()?;
    Ok([
        latencies.len() as f64 / elapsed.as_secs_f64(),
        latencies.len() as f64 / cpu.as_secs_f64(),
        milliseconds(&latencies, 0.5),
        milliseconds(&latencies, 0.99),
        milliseconds(&latencies, 0.999),
    ])
}

/// Keeps `window` messages of each socket in flight for `time`; gives the latencies and the sockets back.
pub(crate) async fn drive_echo(
    sockets: Vec<Socket>,
    window: usize,
    payload: usize,
    time: Duration,
) -> anyhow::Result<(Histogram<u64>, Vec<Socket>)> {
    let latencies = Rc::new(RefCell::new(histogram()?));
    let deadline = Instant::now() + time;
    let mut tasks = JoinSet::new();
    for mut socket in sockets {
        let latencies = latencies.clone();
        tasks.spawn_local(async move {
            let (mut in_flight, mut out) = (0, Vec::new());
            loop {
                out.clear();
                while in_flight < window && Instant::now() < deadline {
                    client::frame(&mut out, client::now(), payload);
                    in_flight += 1;
                }
                if in_flight == 0 {
                    return anyhow::Ok(socket);
                }
                socket.write(&out).await?;
                socket
                    .read(|stamp| {
                        in_flight -= 1;
                        latencies
                            .borrow_mut()
                            .saturating_record(client::now().saturating_sub(u64::from_be_bytes(stamp)));
                    })
                    .await?;
            }
        });
    }
    let mut back = Vec::new();
    while let Some(task) = tasks.join_next().await {
        back.push(task??);
    }
    let latencies = latencies.borrow().clone();
    Ok((latencies, back))
}
