//! Three replicas on one machine beside one, in turns, under the same load.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::task::LocalSet;
use trunkline_proto::PartitionCount;

use super::{Setup, echo::drive_echo, ingest, milliseconds};
use crate::{
    client,
    cluster::{Cluster, Shape},
    load,
    report::{Report, Runs, Subject, rows},
};

/// Loads three brokers and one in turns; the columns of the floor show the one.
pub(crate) async fn cluster(setup: &Setup, partitions: PartitionCount, report: &mut Report) -> anyhow::Result<()> {
    let connections = setup.connections;
    let (mut full, mut paced, mut lone, mut ingested) = (rows::<7>(), rows::<7>(), rows::<3>(), rows::<3>());
    let mut rates = Runs::default();
    for _ in 0..setup.repeat {
        let mut rate = 0.0;
        for (subject, replicas) in [(Subject::Trunkline, 3), (Subject::Floor, 1)] {
            let folder = setup.folder()?;
            let shape = Shape { replicas, partitions, catchup_rate: None };
            let cluster = Cluster::start(setup, folder.path(), shape).await?;
            let push = |rows: &mut [Runs], values: &[f64]| {
                rows.iter_mut().zip(values).for_each(|(runs, value)| runs.push(subject, *value));
            };
            let values = echo(setup, &cluster, Pace::Full).await.context("echo")?;
            if subject == Subject::Trunkline {
                rate = values[0] / 2.0;
                rates.push(subject, rate);
            }
            push(&mut full, &values);
            push(&mut paced, &echo(setup, &cluster, Pace::PerSecond(rate)).await.context("echo at a rate")?);
            push(&mut lone, &echo(setup, &cluster, Pace::Lone).await.context("lone echo")?[4..]);
            push(&mut ingested, &ingested_by(setup, &cluster).await.context("ingest")?);
            cluster.kill()?;
        }
    }
    let beside = format!("three replicas beside one (floor), {} partitions", partitions.get());
    let names = [
        "messages/s",
        "CPU µs/message, brokers",
        "CPU µs/message, edge",
        "CPU µs/message, handler",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
    ];
    report.scenario(format!("cluster, {beside}: echo, connections: {connections}, in flight on each: 1"));
    report.add_all(names, full, [""; 7]);
    let rate = rates.median();
    report.scenario(format!("cluster, {beside}: echo, connections: {connections}, about {rate:.0} messages/s"));
    report.add_all(names, paced, [""; 7]);
    report.scenario(format!("cluster, {beside}: echo, one at a time"));
    report.add_all(["p50 ms", "p99 ms", "p99.9 ms"], lone, [""; 3]);
    report.scenario(format!("cluster, {beside}: ingest, connections: {connections}"));
    report.add_all(["events/s acknowledged", "CPU µs/event, brokers", "CPU µs/event, edge"], ingested, [""; 3]);
    Ok(())
}

#[derive(Clone, Copy)]
enum Pace {
    /// One in flight on each connection.
    Full,
    PerSecond(f64),
    /// One in flight on one connection.
    Lone,
}

/// Messages a second, processor time each of brokers, edge and handler, and percentiles.
async fn echo(setup: &Setup, cluster: &Cluster, pace: Pace) -> anyhow::Result<[f64; 7]> {
    let connections = if matches!(pace, Pace::Lone) { 1 } else { setup.connections };
    let ws = cluster.edge.address("ws")?;
    let drive = |sockets, time| async move {
        match pace {
            Pace::Full | Pace::Lone => drive_echo(sockets, 1, setup.payload, time).await,
            Pace::PerSecond(rate) => load::echo(sockets, rate, setup.payload, time).await,
        }
    };
    let local = LocalSet::new();
    let sockets = local.run_until(client::connect_many(ws, "/echo", connections)).await?;
    let (_, sockets) = local.run_until(drive(sockets, Duration::from_secs(1))).await?;
    let (before, started) = (cluster.cpu()?, Instant::now());
    let (latencies, _sockets) = local.run_until(drive(sockets, setup.load())).await?;
    let (elapsed, after) = (started.elapsed(), cluster.cpu()?);
    let count = latencies.len() as f64;
    let [brokers, edge, handler] = microseconds_each(before, after, count);
    let at = |quantile| milliseconds(&latencies, quantile);
    Ok([count / elapsed.as_secs_f64(), brokers, edge, handler, at(0.5), at(0.99), at(0.999)])
}

/// Events a second, and processor time each of brokers and edge.
async fn ingested_by(setup: &Setup, cluster: &Cluster) -> anyhow::Result<[f64; 3]> {
    let local = LocalSet::new();
    let sockets = client::connect_many(cluster.edge.address("ws")?, "/ingest", setup.connections);
    let sockets = local.run_until(sockets).await?;
    let http = cluster.edge.address("edge-http")?;
    let received = ingest::received(http).await?;
    let (before, started) = (cluster.cpu()?, Instant::now());
    let (sent, _sockets) =
        local.run_until(ingest::drive_ingest(sockets, setup.payload, ingest::Until::Over(setup.load()))).await?;
    ingest::wait_until_applied(http, received + sent).await?;
    let (elapsed, after) = (started.elapsed(), cluster.cpu()?);
    let [brokers, edge, _] = microseconds_each(before, after, sent as f64);
    Ok([sent as f64 / elapsed.as_secs_f64(), brokers, edge])
}

fn microseconds_each(before: [Duration; 3], after: [Duration; 3], count: f64) -> [f64; 3] {
    let mut each = [0.0; 3];
    for ((each, before), after) in each.iter_mut().zip(before).zip(after) {
        *each = after.saturating_sub(before).as_secs_f64() * 1e6 / count;
    }
    each
}
