//! The figures. Each run starts a fresh server on an empty folder, loads it, and stops it.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use hdrhistogram::Histogram;
use tokio::task::{JoinSet, LocalSet};

use crate::{
    client::{self, Http, Socket},
    report::Report,
    server::Server,
};

/// What every scenario shares.
pub(crate) struct Setup {
    pub(crate) binary: PathBuf,
    pub(crate) data: Option<PathBuf>,
    pub(crate) seconds: u64,
    pub(crate) repeat: usize,
    pub(crate) payload: usize,
    pub(crate) connections: usize,
}

impl Setup {
    fn folder(&self) -> anyhow::Result<tempfile::TempDir> {
        Ok(match &self.data {
            Some(folder) => tempfile::tempdir_in(folder)?,
            // the current folder, not /tmp: that may be memory, where a sync costs nothing
            None => tempfile::Builder::new().prefix(".bench-").tempdir_in(".")?,
        })
    }

    fn dev(&self, folder: &Path) -> anyhow::Result<Server> {
        let config = folder.join("bench.toml");
        std::fs::write(&config, "[[api]]\nname = \"ingest\"\npath = \"/ingest\"\nregistration = \"accept\"\n")?;
        let data = folder.join("data");
        let (config, data) = (config.to_string_lossy().into_owned(), data.to_string_lossy().into_owned());
        let mut arguments = vec!["dev", "--config", &config, "--data", &data];
        for listener in ["--ws", "--edge-http", "--grpc", "--http", "--link"] {
            arguments.extend([listener, "127.0.0.1:0"]);
        }
        Server::start(&self.binary, &arguments)
    }

    fn load(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

/// Latencies in nanoseconds, up to a minute.
fn histogram() -> anyhow::Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1_000, 60_000_000_000, 3)?)
}

fn milliseconds(latencies: &Histogram<u64>, quantile: f64) -> f64 {
    latencies.value_at_quantile(quantile) as f64 / 1e6
}

/// Echo at full load, and one at a time.
pub(crate) async fn echo(setup: &Setup, report: &mut Report) -> anyhow::Result<()> {
    for (connections, window) in [(setup.connections, 1), (setup.connections.min(100), 16), (1, 1)] {
        let mut columns = [const { Vec::new() }; 5];
        for _ in 0..setup.repeat {
            let folder = setup.folder()?;
            let server = setup.dev(folder.path())?;
            let sockets =
                LocalSet::new().run_until(client::connect_many(server.address("ws")?, "/echo", connections)).await?;
            // the first second warms the way up and is not counted
            let (_, sockets) =
                LocalSet::new().run_until(drive_echo(sockets, window, setup.payload, Duration::from_secs(1))).await?;
            let before = server.cpu()?;
            let started = Instant::now();
            let (latencies, _sockets) =
                LocalSet::new().run_until(drive_echo(sockets, window, setup.payload, setup.load())).await?;
            let (elapsed, cpu) = (started.elapsed(), server.cpu()?.saturating_sub(before));
            let values = [
                latencies.len() as f64 / elapsed.as_secs_f64(),
                latencies.len() as f64 / cpu.as_secs_f64(),
                milliseconds(&latencies, 0.5),
                milliseconds(&latencies, 0.99),
                milliseconds(&latencies, 0.999),
            ];
            columns.iter_mut().zip(values).for_each(|(column, value)| column.push(value));
            server.stop()?;
        }
        let scenario = format!("echo, {connections} connections, {window} in flight each");
        let targets = if connections == 1 { ["", "", "2 syncs + 0.3", "5", ""] } else { ["", "≥ 45000", "", "", ""] };
        let names = ["messages/s", "messages per server CPU-second", "p50 ms", "p99 ms", "p99.9 ms"];
        for ((name, column), target) in names.into_iter().zip(columns).zip(targets) {
            report.add(&scenario, name, column, target);
        }
    }
    Ok(())
}

/// Keeps `window` messages of each socket in flight for `time`; gives the latencies and the sockets back.
async fn drive_echo(
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

/// Sockets send as fast as the edge lets them; the clock stops when the last message is applied.
pub(crate) async fn ingest(setup: &Setup, report: &mut Report) -> anyhow::Result<()> {
    let (mut rates, mut per_cpu) = (Vec::new(), Vec::new());
    for _ in 0..setup.repeat {
        let folder = setup.folder()?;
        let server = setup.dev(folder.path())?;
        let edge = server.address("edge-http")?;
        let sockets = LocalSet::new()
            .run_until(client::connect_many(server.address("ws")?, "/ingest", setup.connections))
            .await?;
        let (before, started) = (server.cpu()?, Instant::now());
        let sent = LocalSet::new().run_until(drive_ingest(sockets, setup.payload, setup.load())).await?;
        wait_until_applied(edge, sent).await?;
        let (elapsed, cpu) = (started.elapsed(), server.cpu()?.saturating_sub(before));
        rates.push(sent as f64 / elapsed.as_secs_f64());
        per_cpu.push(sent as f64 / cpu.as_secs_f64());
        server.stop()?;
    }
    let scenario = format!("ingest, {} connections", setup.connections);
    report.add(&scenario, "events/s acknowledged", rates, "");
    report.add(&scenario, "events per server CPU-second", per_cpu, "≥ 170000");
    Ok(())
}

async fn drive_ingest(sockets: Vec<Socket>, payload: usize, time: Duration) -> anyhow::Result<u64> {
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
    // closing would race with the messages still in the sockets' buffers: they stay open until the process ends
    std::mem::forget(sockets);
    Ok(sent)
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

/// One channel with `subscribers` members; `in_flight` publishes at a time.
pub(crate) async fn fanout(setup: &Setup, subscribers: usize, report: &mut Report) -> anyhow::Result<()> {
    for in_flight in [1, 8] {
        let mut columns = [const { Vec::new() }; 5];
        for _ in 0..setup.repeat {
            let folder = setup.folder()?;
            let server = setup.dev(folder.path())?;
            let sockets =
                LocalSet::new().run_until(client::connect_many(server.address("ws")?, "/news", subscribers)).await?;
            let before = server.cpu()?;
            let run =
                LocalSet::new().run_until(drive_fanout(sockets, server.address("http")?, in_flight, setup)).await?;
            let cpu = server.cpu()?.saturating_sub(before);
            let values = [
                run.deliveries as f64 / run.elapsed.as_secs_f64(),
                run.deliveries as f64 / cpu.as_secs_f64(),
                cpu.as_secs_f64() * 1e6 / run.deliveries as f64,
                milliseconds(&run.latencies, 0.5),
                milliseconds(&run.latencies, 0.99),
            ];
            columns.iter_mut().zip(values).for_each(|(column, value)| column.push(value));
            server.stop()?;
        }
        let scenario = format!("fan-out to {subscribers}, {in_flight} in flight");
        let names = [
            "deliveries/s",
            "deliveries per server CPU-second",
            "server CPU µs per delivery",
            "publish → receive p50 ms",
            "p99 ms",
        ];
        let target = if in_flight == 1 { "≥ 140000 (0.95 × uWebSockets)" } else { "≥ 450000 (uWebSockets)" };
        for ((name, column), target) in names.into_iter().zip(columns).zip(["", target, "", "", ""]) {
            report.add(&scenario, name, column, target);
        }
    }
    Ok(())
}

struct Fanout {
    deliveries: u64,
    elapsed: Duration,
    latencies: Histogram<u64>,
}

/// Publishes through HTTP; a publish is over when every subscriber has it.
async fn drive_fanout(
    sockets: Vec<Socket>,
    http: SocketAddr,
    in_flight: usize,
    setup: &Setup,
) -> anyhow::Result<Fanout> {
    let members = sockets.len() as u64;
    let deliveries = Rc::new(Cell::new(0_u64));
    let latencies = Rc::new(RefCell::new(histogram()?));
    let arrived = Rc::new(tokio::sync::Notify::new());
    let mut readers = JoinSet::new();
    for mut socket in sockets {
        let (deliveries, latencies, arrived) = (deliveries.clone(), latencies.clone(), arrived.clone());
        readers.spawn_local(async move {
            loop {
                let read = socket.read(|stamp| {
                    deliveries.set(deliveries.get() + 1);
                    latencies.borrow_mut().saturating_record(client::now().saturating_sub(u64::from_be_bytes(stamp)));
                    if deliveries.get() % members == 0 {
                        arrived.notify_waiters();
                    }
                });
                if let Err(error) = read.await {
                    return error;
                }
            }
        });
    }
    let (started, deadline) = (Instant::now(), Instant::now() + setup.load());
    let published = Rc::new(Cell::new(0_u64));
    let mut publishers = JoinSet::new();
    for _ in 0..in_flight {
        let (deliveries, arrived, published, payload) =
            (deliveries.clone(), arrived.clone(), published.clone(), setup.payload);
        publishers.spawn_local(async move {
            let mut http = Http::connect(http).await?;
            let mut body = vec![b'x'; payload];
            while Instant::now() < deadline {
                body[..8].copy_from_slice(&client::now().to_be_bytes());
                published.set(published.get() + 1);
                let goal = (published.get().saturating_sub(in_flight as u64 - 1)) * members;
                let (status, answer) = http.request("POST", "/v1/channels/news/messages", &body).await?;
                ensure!(status == 200, "publish answered {status}: {}", String::from_utf8_lossy(&answer));
                while deliveries.get() < goal {
                    // a wake-up may come between the check and the wait: look again soon
                    let _ = tokio::time::timeout(Duration::from_millis(100), arrived.notified()).await;
                }
            }
            anyhow::Ok(())
        });
    }
    while let Some(publisher) = publishers.join_next().await {
        publisher??;
    }
    while deliveries.get() < published.get() * members {
        ensure!(started.elapsed() < setup.load() + Duration::from_secs(60), "deliveries are missing");
        if let Some(ended) = readers.try_join_next() {
            return Err(ended?.context("a subscriber was closed"));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let elapsed = started.elapsed();
    let latencies = latencies.borrow().clone();
    Ok(Fanout { deliveries: deliveries.get(), elapsed, latencies })
}

/// Resident memory of edge and broker, each a process of its own, before and after `count` connections.
pub(crate) async fn idle(setup: &Setup, count: usize, report: &mut Report) -> anyhow::Result<()> {
    let (mut edge_bytes, mut broker_bytes) = (Vec::new(), Vec::new());
    for _ in 0..setup.repeat {
        let folder = setup.folder()?;
        let (broker, edge) = start_apart(setup, folder.path())?;
        // a few connections first: what is allocated once is not a connection's
        let warm = LocalSet::new().run_until(client::connect_many(edge.address("ws")?, "/idle", 100)).await?;
        let before = (edge.resident()?, broker.resident()?);
        let sockets = LocalSet::new().run_until(client::connect_many(edge.address("ws")?, "/idle", count)).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        edge_bytes.push(edge.resident()?.saturating_sub(before.0) as f64 / count as f64);
        broker_bytes.push(broker.resident()?.saturating_sub(before.1) as f64 / count as f64);
        drop((warm, sockets));
        edge.stop()?;
        broker.stop()?;
    }
    let scenario = format!("idle, {count} connections, broker and edge apart");
    report.add(&scenario, "edge bytes per connection", edge_bytes, "≤ 2000");
    report.add(&scenario, "broker bytes per connection", broker_bytes, "≤ 250 + its records in the tail");
    Ok(())
}

fn start_apart(setup: &Setup, folder: &Path) -> anyhow::Result<(Server, Server)> {
    let pki = folder.join("pki").to_string_lossy().into_owned();
    let certs = std::process::Command::new(&setup.binary)
        .args(["certs", "--dir", &pki, "--broker", "1", "--edge", "bench"])
        .output()
        .context("trunkline certs")?;
    ensure!(certs.status.success(), "trunkline certs: {}", String::from_utf8_lossy(&certs.stderr));
    let broker_config = folder.join("broker.toml");
    std::fs::write(
        &broker_config,
        format!(
            "[broker]\ndata = {:?}\npki = {pki:?}\ngrpc = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\nlink = \"127.0.0.1:0\"\npartitions = 1\n",
            folder.join("data").to_string_lossy()
        ),
    )?;
    let broker = Server::start(&setup.binary, &["broker", "--config", &broker_config.to_string_lossy()])?;
    let edge_config = folder.join("edge.toml");
    std::fs::write(
        &edge_config,
        format!(
            "[edge]\nname = \"bench\"\npki = {pki:?}\nws = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\nbrokers = [\"1@{}\"]\n\n\
             [[api]]\nname = \"idle\"\npath = \"/idle\"\nregistration = \"accept\"\n",
            broker.address("link")?
        ),
    )?;
    let edge = Server::start(&setup.binary, &["edge", "--config", &edge_config.to_string_lossy()])?;
    Ok((broker, edge))
}

/// How fast a log of ingested messages is read back, checked and applied: `trunkline verify`.
pub(crate) async fn replay(setup: &Setup, report: &mut Report) -> anyhow::Result<()> {
    let folder = setup.folder()?;
    let server = setup.dev(folder.path())?;
    let edge = server.address("edge-http")?;
    let sockets =
        LocalSet::new().run_until(client::connect_many(server.address("ws")?, "/ingest", setup.connections)).await?;
    let sent = LocalSet::new()
        .run_until(drive_ingest(sockets, setup.payload, setup.load().max(Duration::from_secs(10))))
        .await?;
    wait_until_applied(edge, sent).await?;
    server.stop()?;
    let data = folder.path().join("data").to_string_lossy().into_owned();
    let mut rates = Vec::new();
    for _ in 0..setup.repeat {
        let started = Instant::now();
        let verify = std::process::Command::new(&setup.binary).args(["verify", &data, "--json"]).output()?;
        ensure!(verify.status.success(), "trunkline verify: {}", String::from_utf8_lossy(&verify.stderr));
        rates.push(sent as f64 / started.elapsed().as_secs_f64());
    }
    report.add(&format!("replay of {sent} events"), "events/s read, checked and applied", rates, "≥ 1000000");
    Ok(())
}
