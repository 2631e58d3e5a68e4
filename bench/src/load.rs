//! Open loops: messages leave when they are due, whatever became of those before.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use hdrhistogram::Histogram;
use tokio::{task::JoinSet, time::Instant};

use crate::{
    client::{self, Socket},
    scenarios::histogram,
};

/// Of the runtime's timer: what is late by less waited for no one.
const TICK: Duration = Duration::from_millis(2);

/// Frames of a write, as a busy client's would leave.
const BURST: u64 = 8;

/// When `n` messages of so many a second are due.
pub(crate) fn due(n: u64, rate: f64) -> Duration {
    Duration::from_secs_f64(n as f64 / rate)
}

/// The stamp of a message that was due at `due`: now, or then if it is late by more than a tick.
pub(crate) fn stamp(due: Instant) -> u64 {
    let late = due.elapsed();
    client::now().saturating_sub(if late > TICK { late.as_nanos() as u64 } else { 0 })
}

/// `rate` messages a second over all sockets for `time`, each echoed; latency counts from when one was due.
pub(crate) async fn echo(
    sockets: Vec<Socket>,
    rate: f64,
    payload: usize,
    time: Duration,
) -> anyhow::Result<(Histogram<u64>, Vec<Socket>)> {
    let latencies = Rc::new(RefCell::new(histogram()?));
    let (begun, count) = (Instant::now(), sockets.len() as u64);
    let mut tasks = JoinSet::new();
    for (number, mut socket) in (0..).zip(sockets) {
        let latencies = latencies.clone();
        tasks.spawn_local(async move {
            let (mut next, mut in_flight, mut out) = (number, 0_u64, Vec::new());
            loop {
                let at = begun + due(next, rate);
                let is_over = at >= begun + time;
                if is_over && in_flight == 0 {
                    return anyhow::Ok(socket);
                }
                let read = socket.read(|stamp| {
                    in_flight -= 1;
                    let latency = client::now().saturating_sub(u64::from_be_bytes(stamp));
                    latencies.borrow_mut().saturating_record(latency);
                });
                tokio::select! {
                    read = read => read?,
                    () = tokio::time::sleep_until(at), if !is_over => {
                        out.clear();
                        client::frame(&mut out, stamp(at), payload);
                        socket.write(&out).await?;
                        in_flight += 1;
                        next += count;
                    }
                }
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

/// `rate` messages a second that nobody answers, over the sockets in turn, counted in `sent`; until it is dropped. What the edge
/// does not read in time holds up what comes after.
pub(crate) async fn ingest(
    mut sockets: Vec<Socket>,
    rate: f64,
    payload: usize,
    sent: Rc<Cell<u64>>,
) -> anyhow::Result<std::convert::Infallible> {
    let begun = Instant::now();
    let (mut done, mut turn, mut out) = (0_u64, 0, Vec::new());
    loop {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let owed = ((begun.elapsed().as_secs_f64() * rate) as u64).saturating_sub(done);
        for burst in (0..owed).step_by(BURST as usize).map(|first| BURST.min(owed - first)) {
            out.clear();
            (0..burst).for_each(|_| client::frame(&mut out, 0, payload));
            let count = sockets.len().max(1);
            let Some(socket) = sockets.get_mut(turn % count) else { anyhow::bail!("no sockets") };
            socket.write(&out).await?;
            sent.set(sent.get() + burst);
            turn += 1;
        }
        done += owed;
    }
}
