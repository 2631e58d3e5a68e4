//! One publish to many.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use hdrhistogram::Histogram;
use tokio::{
    sync::Semaphore,
    task::{JoinSet, LocalSet},
};

use super::{Setup, histogram, milliseconds};
use crate::{
    client::{self, Http, Socket},
    report::{Report, Subject, rows},
};

/// Connections that publish in the open loop: how many publishes may be on their way at once.
const PUBLISHERS: usize = 64;
/// How long deliveries may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// When the next publish goes out.
#[derive(Clone, Copy)]
enum Pace {
    /// When all subscribers have one of the so many before it.
    InFlight(usize),
    /// So many a second, whatever becomes of them.
    PerSecond(f64),
}

/// One channel with `subscribers` members: one and eight publishes at a time, then half of what the gateway came to with one at
/// a time, whatever becomes of the publishes before: the same rate for all that take turns.
pub(crate) async fn fanout(setup: &Setup, subscribers: usize, report: &mut Report) -> anyhow::Result<()> {
    let mut capacity = 0.0;
    for in_flight in [1, 8] {
        report.scenario(format!("fan-out, subscribers: {subscribers}, publishes in flight: {in_flight}"));
        let measured = measure(setup, subscribers, Pace::InFlight(in_flight)).await?;
        if in_flight == 1 {
            capacity = measured[0].median();
        }
        let names = ["deliveries/s", "deliveries per server CPU-second", "publish to receive, p50 ms", "p99 ms"];
        let target = if in_flight == 1 { "≥ 0.95 peer" } else { "≥ 1.0 peer" };
        report.add_all(names, measured, ["", target, "", ""]);
    }
    let rate = capacity / 2.0 / subscribers as f64;
    report.scenario(format!("fan-out, subscribers: {subscribers}, open loop, publishes/s: {rate:.0}"));
    let measured = measure(setup, subscribers, Pace::PerSecond(rate)).await?;
    let names = ["deliveries/s", "deliveries per server CPU-second", "due to receive, p50 ms", "p99 ms"];
    report.add_all(names, measured, ["", "", "", "≤ 1.5 peer+sync"]);
    Ok(())
}

async fn measure(setup: &Setup, subscribers: usize, pace: Pace) -> anyhow::Result<[crate::report::Runs; 4]> {
    let mut measured = rows::<4>();
    for _ in 0..setup.repeat {
        for subject in setup.subjects() {
            let values = run(setup, subject, subscribers, pace).await?;
            measured.iter_mut().zip(values).for_each(|(runs, value)| runs.push(subject, value));
        }
    }
    Ok(measured)
}

async fn run(setup: &Setup, subject: Subject, subscribers: usize, pace: Pace) -> anyhow::Result<[f64; 4]> {
    let folder = setup.folder()?;
    let server = setup.start(subject, folder.path())?;
    let sockets = LocalSet::new().run_until(client::connect_many(server.address("ws")?, "/news", subscribers)).await?;
    let before = server.cpu()?;
    let run = LocalSet::new().run_until(drive(sockets, server.address("http")?, pace, setup)).await?;
    let cpu = server.cpu()?.saturating_sub(before);
    server.stop()?;
    Ok([
        run.deliveries as f64 / run.elapsed.as_secs_f64(),
        run.deliveries as f64 / cpu.as_secs_f64(),
        milliseconds(&run.latencies, 0.5),
        milliseconds(&run.latencies, 0.99),
    ])
}

struct Fanout {
    deliveries: u64,
    elapsed: Duration,
    latencies: Histogram<u64>,
}

/// What has arrived.
struct Arrivals {
    members: u64,
    deliveries: Cell<u64>,
    latencies: RefCell<Histogram<u64>>,
    /// Some publish may have reached all members.
    progress: tokio::sync::Notify,
}

impl Arrivals {
    fn count(&self, stamp: [u8; 8]) {
        self.deliveries.set(self.deliveries.get() + 1);
        self.latencies.borrow_mut().saturating_record(client::now().saturating_sub(u64::from_be_bytes(stamp)));
        if self.deliveries.get().is_multiple_of(self.members) {
            self.progress.notify_waiters();
        }
    }

    async fn reach(&self, deliveries: u64) -> anyhow::Result<()> {
        let since = Instant::now();
        while self.deliveries.get() < deliveries {
            ensure!(since.elapsed() < PATIENCE, "deliveries are missing");
            // a wake-up may come between the check and the wait: look again soon
            let _ = tokio::time::timeout(Duration::from_millis(100), self.progress.notified()).await;
        }
        Ok(())
    }
}

async fn drive(sockets: Vec<Socket>, http: SocketAddr, pace: Pace, setup: &Setup) -> anyhow::Result<Fanout> {
    let arrivals = Rc::new(Arrivals {
        members: sockets.len() as u64,
        deliveries: Cell::new(0),
        latencies: RefCell::new(histogram()?),
        progress: tokio::sync::Notify::new(),
    });
    let mut readers = JoinSet::new();
    for mut socket in sockets {
        let arrivals = arrivals.clone();
        readers.spawn_local(async move {
            loop {
                if let Err(error) = socket.read(|stamp| arrivals.count(stamp)).await {
                    return error;
                }
            }
        });
    }
    let started = Instant::now();
    let published = match pace {
        Pace::InFlight(publishes) => publish_closed(&arrivals, http, publishes, setup).await?,
        Pace::PerSecond(rate) => publish_open(http, rate, setup).await?,
    };
    while arrivals.deliveries.get() < published * arrivals.members {
        ensure!(started.elapsed() < setup.load() + PATIENCE, "deliveries are missing");
        if let Some(ended) = readers.try_join_next() {
            return Err(ended?.context("a subscriber was closed"));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let elapsed = started.elapsed();
    let latencies = arrivals.latencies.borrow().clone();
    Ok(Fanout { deliveries: arrivals.deliveries.get(), elapsed, latencies })
}

/// Each publisher waits until every subscriber has its publish (or as many others).
async fn publish_closed(
    arrivals: &Rc<Arrivals>,
    http: SocketAddr,
    in_flight: usize,
    setup: &Setup,
) -> anyhow::Result<u64> {
    let deadline = Instant::now() + setup.load();
    let published = Rc::new(Cell::new(0_u64));
    let mut publishers = JoinSet::new();
    for _ in 0..in_flight {
        let (arrivals, published, payload) = (arrivals.clone(), published.clone(), setup.payload);
        publishers.spawn_local(async move {
            let mut http = Http::connect(http).await?;
            while Instant::now() < deadline {
                published.set(published.get() + 1);
                let goal = (published.get().saturating_sub(in_flight as u64 - 1)) * arrivals.members;
                publish(&mut http, client::now(), payload).await?;
                arrivals.reach(goal).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(publisher) = publishers.join_next().await {
        publisher??;
    }
    Ok(published.get())
}

/// Latency counts from when a publish was due, so that one that holds up those behind it counts for them too.
async fn publish_open(http: SocketAddr, rate: f64, setup: &Setup) -> anyhow::Result<u64> {
    let free = Rc::new(RefCell::new(Vec::new()));
    for _ in 0..PUBLISHERS {
        let connection = Http::connect(http).await?;
        free.borrow_mut().push(connection);
    }
    let slots = std::sync::Arc::new(Semaphore::new(PUBLISHERS));
    let (start, begun) = (client::now(), tokio::time::Instant::now());
    let publishes = (rate * setup.load().as_secs_f64()).ceil().max(1.0) as u64;
    let mut sending = JoinSet::new();
    for n in 0..publishes {
        let due = Duration::from_secs_f64(n as f64 / rate);
        tokio::time::sleep_until(begun + due).await;
        let slot = slots.clone().acquire_owned().await?;
        let mut http = free.borrow_mut().pop().context("no free connection")?;
        let (free, payload) = (free.clone(), setup.payload);
        sending.spawn_local(async move {
            publish(&mut http, start + due.as_nanos() as u64, payload).await?;
            free.borrow_mut().push(http);
            drop(slot);
            anyhow::Ok(())
        });
    }
    while let Some(sent) = sending.join_next().await {
        sent??;
    }
    Ok(publishes)
}

async fn publish(http: &mut Http, stamp: u64, payload: usize) -> anyhow::Result<()> {
    let mut body = vec![b'x'; payload];
    body[..8].copy_from_slice(&stamp.to_be_bytes());
    let (status, answer) = http.request("POST", "/v1/channels/news/messages", &body).await?;
    ensure!(status == 200, "publish answered {status}: {}", String::from_utf8_lossy(&answer));
    Ok(())
}
