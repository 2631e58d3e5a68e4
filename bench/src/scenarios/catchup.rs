//! A broker that was away catches up while the others go on.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use hdrhistogram::Histogram;
use tokio::task::{JoinSet, LocalSet};
use trunkline_proto::PartitionCount;

use super::{Setup, histogram, ingest, milliseconds};
use crate::{
    client::{self, Http, Socket},
    cluster::{Cluster, Shape},
    load,
    report::{Report, Runs, Subject, rows},
};

const REPLICAS: u64 = 3;
/// The broker that is away: the last, so that partition 0 keeps its leader.
const AWAY: u64 = REPLICAS;
/// Connections that publish, each one at a time.
const PROBES: u64 = 12;
/// Publishes a second, over all of them.
const PROBE_RATE: f64 = 300.0;
/// How long edges send as fast as two brokers take it. What they take for a second is no capacity: the page cache and the memtables
/// do, and the disk gets it later.
const FLOOD: Duration = Duration::from_secs(10);
/// Events of it that are on their way at once, or twice as many. Without a bound sockets' buffers would take most of them.
const FLOOD_EVENTS: u64 = 200_000;
/// How long a broker may take to catch up.
const PATIENCE: Duration = Duration::from_secs(300);

/// What is measured.
#[derive(Clone, Copy)]
pub(crate) struct Away<'a> {
    pub(crate) partitions: PartitionCount,
    /// Events that are appended meanwhile, at least.
    pub(crate) events: u64,
    pub(crate) catchup_rate: Option<&'a str>,
}

/// Commit latency of publishes at the leaders, while edges send half of what two brokers can take: before a broker comes back,
/// while it catches up, and afterwards.
pub(crate) async fn catchup(setup: &Setup, away: Away<'_>, report: &mut Report) -> anyhow::Result<()> {
    let mut measured = Measured::default();
    for _ in 0..setup.repeat {
        LocalSet::new().run_until(run(setup, away, &mut measured)).await?;
    }
    report.scenario(format!(
        "catch-up of {} events, {} partitions, rate {}: commits meanwhile beside before (floor)",
        away.events,
        away.partitions.get(),
        away.catchup_rate.unwrap_or("by default"),
    ));
    let Measured { capacity, loads, starting, meanwhile, afterwards, back, missed, caught_up } = measured;
    report.add("events/s acknowledged, capacity", &capacity, "");
    report.add("events/s meanwhile", &loads, "half of it");
    let names = ["publish p50 ms, meanwhile", "publish p90 ms, meanwhile", "publish p99 ms, meanwhile"];
    report.add_all(names, meanwhile, ["x ≤ 1.33", "", "x ≤ 1.33"]);
    let names = ["publish p50 ms, afterwards", "publish p90 ms, afterwards", "publish p99 ms, afterwards"];
    report.add_all(names, afterwards, [""; 3]);
    let names = ["publish p50 ms, at its start", "publish p90 ms, at its start", "publish p99 ms, at its start"];
    report.add_all(names, starting, [""; 3]);
    report.add("its start, s", &back, "");
    let [seconds, rate] = caught_up;
    report.add("events it missed", &missed, &format!("≥ {}", away.events));
    report.add("caught up after, s", &seconds, "");
    report.add("events/s caught up", &rate, "");
    Ok(())
}

struct Measured {
    capacity: Runs,
    loads: Runs,
    starting: [Runs; 3],
    meanwhile: [Runs; 3],
    afterwards: [Runs; 3],
    back: Runs,
    missed: Runs,
    caught_up: [Runs; 2],
}

impl Default for Measured {
    fn default() -> Self {
        Self {
            capacity: Runs::default(),
            loads: Runs::default(),
            starting: rows(),
            meanwhile: rows(),
            afterwards: rows(),
            back: Runs::default(),
            missed: Runs::default(),
            caught_up: rows(),
        }
    }
}

async fn run(setup: &Setup, away: Away<'_>, measured: &mut Measured) -> anyhow::Result<()> {
    let folder = setup.folder()?;
    let shape = Shape { replicas: REPLICAS, partitions: away.partitions, catchup_rate: away.catchup_rate };
    let mut cluster = Cluster::start(setup, folder.path(), shape).await?;
    let (ws, http) = (cluster.edge.address("ws")?, cluster.edge.address("edge-http")?);
    let sockets = client::connect_many(ws, "/ingest", setup.connections).await?;
    cluster.stop_broker(AWAY)?;
    cluster.at_leaders().await?;
    let (capacity, sockets) = flood(sockets, setup.payload, http).await?;
    measured.capacity.push(Subject::Trunkline, capacity);
    cluster.start_broker(AWAY)?;
    caught_up(&cluster).await?;
    cluster.stop_broker(AWAY)?;
    cluster.at_leaders().await?;

    let sent = Rc::new(Cell::new(0));
    let mut load = JoinSet::new();
    load.spawn_local(load::ingest(sockets, capacity / 2.0, setup.payload, sent.clone()));
    // the first second warms the way up and is not counted
    probe(&cluster, away.partitions, setup, sleep(Duration::from_secs(1))).await?;
    let enough = async {
        sleep(2 * setup.load()).await?;
        while sent.get() < away.events {
            sleep(Duration::from_millis(10)).await?;
        }
        Ok(())
    };
    let (before, ()) = probe(&cluster, away.partitions, setup, enough).await?;

    let (begun, missed) = (Instant::now(), sent.get());
    cluster.start_broker(AWAY)?;
    let (starting, ()) = probe(&cluster, away.partitions, setup, answers(&cluster)).await?;
    let back = begun.elapsed();
    let (during, ()) = probe(&cluster, away.partitions, setup, caught_up(&cluster)).await?;
    let (took, lacked) = (begun.elapsed(), sent.get());
    measured.loads.push(Subject::Trunkline, (lacked - missed) as f64 / took.as_secs_f64());

    cluster.until_spread().await?;
    let (after, ()) = probe(&cluster, away.partitions, setup, sleep(2 * setup.load())).await?;
    if let Some(ended) = load.try_join_next() {
        ended??;
    }
    drop(load);
    cluster.kill()?;

    let windows =
        [(&mut measured.starting, &starting), (&mut measured.meanwhile, &during), (&mut measured.afterwards, &after)];
    for (rows, latencies) in windows {
        for (runs, quantile) in rows.iter_mut().zip([0.5, 0.9, 0.99]) {
            runs.push(Subject::Trunkline, milliseconds(latencies, quantile));
            runs.push(Subject::Floor, milliseconds(&before, quantile));
        }
    }
    measured.back.push(Subject::Trunkline, back.as_secs_f64());
    measured.missed.push(Subject::Trunkline, missed as f64);
    let [seconds, rate] = &mut measured.caught_up;
    seconds.push(Subject::Trunkline, took.as_secs_f64());
    rate.push(Subject::Trunkline, lacked as f64 / took.saturating_sub(back).as_secs_f64());
    Ok(())
}

/// Sends as fast as is taken for a while; events a second until the last one is applied.
async fn flood(mut sockets: Vec<Socket>, payload: usize, http: SocketAddr) -> anyhow::Result<(f64, Vec<Socket>)> {
    let (started, mut flooded) = (Instant::now(), 0);
    while started.elapsed() < FLOOD {
        let sent;
        (sent, sockets) = ingest::drive_ingest(sockets, payload, ingest::Until::Sent(FLOOD_EVENTS)).await?;
        while ingest::received(http).await? < flooded {
            sleep(Duration::from_millis(5)).await?;
        }
        flooded += sent;
    }
    ingest::wait_until_applied(http, flooded).await?;
    Ok((flooded as f64 / started.elapsed().as_secs_f64(), sockets))
}

async fn sleep(time: Duration) -> anyhow::Result<()> {
    tokio::time::sleep(time).await;
    Ok(())
}

/// Waits until the broker that was away answers, and so long that some publishes are timed.
async fn answers(cluster: &Cluster) -> anyhow::Result<()> {
    let begun = Instant::now();
    sleep(Duration::from_millis(250)).await?;
    while cluster.positions(AWAY).await?.is_none() {
        ensure!(begun.elapsed() < PATIENCE, "it has not answered within {PATIENCE:?}");
        sleep(Duration::from_millis(20)).await?;
    }
    Ok(())
}

/// Waits until the broker that was away has applied what the leaders had applied a moment ago.
async fn caught_up(cluster: &Cluster) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let target = cluster.at_leaders().await?;
        if let Some(own) = cluster.positions(AWAY).await?
            && target.iter().zip(&own).all(|(target, own)| own.applied >= target.applied)
        {
            return Ok(());
        }
        ensure!(begun.elapsed() < PATIENCE, "it has not caught up within {PATIENCE:?}");
    }
}

/// Publishes to every partition at its leader, some a second, until `over`; how long each took from when it was due until it was
/// answered, which is when it is committed and applied. Where the leader is another one meanwhile it is looked for.
async fn probe<T>(
    cluster: &Cluster,
    partitions: PartitionCount,
    setup: &Setup,
    over: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<(Histogram<u64>, T)> {
    let latencies = Rc::new(RefCell::new(histogram()?));
    let is_over = Rc::new(Cell::new(false));
    let mut ways = Vec::new();
    for (position, channel) in cluster.at_leaders().await?.iter().zip(cluster.channels(partitions)) {
        let leader = position.leader.unwrap_or_default();
        let brokers = (leader..leader + REPLICAS).map(|id| cluster.http((id - 1) % REPLICAS + 1));
        ways.push((brokers.collect::<Result<Vec<_>, _>>()?, channel));
    }
    let begun = tokio::time::Instant::now();
    let mut probes = JoinSet::new();
    for (n, (brokers, channel)) in (0..PROBES).zip(ways.into_iter().cycle()) {
        let (latencies, is_over, payload) = (latencies.clone(), is_over.clone(), setup.payload);
        probes.spawn_local(async move {
            let mut publisher =
                Publisher { brokers, connection: None, path: format!("/v1/channels/{channel}/messages") };
            let body = vec![b'x'; payload];
            for due in (0_u64..).map(|turn| begun + load::due(turn * PROBES + n, PROBE_RATE)) {
                tokio::time::sleep_until(due).await;
                if is_over.get() {
                    break;
                }
                let stamp = load::stamp(due);
                publisher.publish(&body).await?;
                latencies.borrow_mut().saturating_record(client::now().saturating_sub(stamp));
            }
            anyhow::Ok(())
        });
    }
    let outcome = over.await;
    is_over.set(true);
    while let Some(probe) = probes.join_next().await {
        probe??;
    }
    let latencies = latencies.borrow().clone();
    Ok((latencies, outcome?))
}

struct Publisher {
    /// The first one is tried first.
    brokers: Vec<SocketAddr>,
    connection: Option<Http>,
    path: String,
}

impl Publisher {
    async fn publish(&mut self, body: &[u8]) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let refused = match self.attempt(body).await {
                Ok((200, _)) => return Ok(()),
                Ok((503, answer)) => anyhow::anyhow!("{}", String::from_utf8_lossy(&answer)),
                Ok((status, answer)) => bail!("publish answered {status}: {}", String::from_utf8_lossy(&answer)),
                Err(error) => error,
            };
            ensure!(begun.elapsed() < PATIENCE, "no broker takes a publish: {refused}");
            self.connection = None;
            self.brokers.rotate_left(1);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn attempt(&mut self, body: &[u8]) -> anyhow::Result<(u16, Vec<u8>)> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => {
                let broker = self.brokers.first().context("no brokers")?;
                self.connection.insert(Http::connect(*broker).await?)
            }
        };
        connection.request("POST", &self.path, body).await
    }
}
