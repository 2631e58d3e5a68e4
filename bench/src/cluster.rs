//! A cluster as it is run: brokers, an edge and a handler, each a process of its own.

use std::{
    net::{SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use trunkline_proto::PartitionCount;

use crate::{client::Http, scenarios::Setup, server::Server};

/// How long a cluster may take to form, or a leader to be found.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// What it consists of.
#[derive(Clone, Copy)]
pub(crate) struct Shape<'a> {
    pub(crate) replicas: u64,
    pub(crate) partitions: PartitionCount,
    /// `broker.replication.catchup_rate`, if not the default.
    pub(crate) catchup_rate: Option<&'a str>,
}

/// A cluster that runs. Its brokers keep their addresses over restarts.
pub(crate) struct Cluster {
    binary: PathBuf,
    brokers: Vec<Broker>,
    pub(crate) edge: Server,
    pub(crate) handler: Server,
}

struct Broker {
    config: String,
    http: SocketAddr,
    process: Option<Server>,
}

/// Where one partition stands, as a broker says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Position {
    pub(crate) leader: Option<u64>,
    /// Index of the last entry applied.
    pub(crate) applied: u64,
}

/// Addresses of a broker.
struct Ports {
    link: SocketAddr,
    grpc: SocketAddr,
    http: SocketAddr,
}

impl Cluster {
    /// Starts it in `folder` and waits until each partition is led by whom it should be.
    pub(crate) async fn start(setup: &Setup, folder: &Path, shape: Shape<'_>) -> anyhow::Result<Self> {
        let pki = certificates(setup, folder, shape.replicas)?;
        let ports = free_ports(shape.replicas)?;
        let mut brokers = Vec::new();
        for id in 1..=shape.replicas {
            let config = folder.join(format!("broker-{id}.toml"));
            std::fs::write(&config, broker_config(id, folder, &pki, &ports, shape))?;
            let config = config.to_string_lossy().into_owned();
            let process = Server::spawn(&setup.binary, &["broker", "--config", &config])?;
            brokers.push((config, process));
        }
        // each is ready once there is a leader, which takes most of them
        let mut started = Vec::new();
        for ((config, process), ports) in brokers.into_iter().zip(&ports) {
            started.push(Broker { config, http: ports.http, process: Some(process.ready()?) });
        }
        let edge = folder.join("edge.toml");
        std::fs::write(&edge, edge_config(&pki, &ports))?;
        let edge = Server::start(&setup.binary, &["edge", "--config", &edge.to_string_lossy()])?;
        let grpc = ports.iter().map(|ports| format!("http://{}", ports.grpc)).collect::<Vec<_>>().join(",");
        let handler = Server::start(&std::env::current_exe()?, &["--child", "handler", "--brokers", &grpc])?;
        let cluster = Self { binary: setup.binary.clone(), brokers: started, edge, handler };
        cluster.until_spread().await?;
        Ok(cluster)
    }

    fn broker(&self, id: u64) -> anyhow::Result<&Broker> {
        let index = id.checked_sub(1).and_then(|index| usize::try_from(index).ok());
        index.and_then(|index| self.brokers.get(index)).with_context(|| format!("no broker {id}"))
    }

    fn broker_mut(&mut self, id: u64) -> anyhow::Result<&mut Broker> {
        let index = id.checked_sub(1).and_then(|index| usize::try_from(index).ok());
        index.and_then(|index| self.brokers.get_mut(index)).with_context(|| format!("no broker {id}"))
    }

    /// Its HTTP.
    pub(crate) fn http(&self, id: u64) -> anyhow::Result<SocketAddr> {
        Ok(self.broker(id)?.http)
    }

    /// SIGTERM, and waits.
    pub(crate) fn stop_broker(&mut self, id: u64) -> anyhow::Result<()> {
        self.broker_mut(id)?.process.take().context("it does not run")?.stop()
    }

    /// Starts a broker that was stopped; waits for nothing.
    pub(crate) fn start_broker(&mut self, id: u64) -> anyhow::Result<()> {
        let binary = self.binary.clone();
        let broker = self.broker_mut(id)?;
        broker.process = Some(Server::spawn(&binary, &["broker", "--config", &broker.config])?);
        Ok(())
    }

    /// Processor time so far: all brokers, the edge, the handler.
    pub(crate) fn cpu(&self) -> anyhow::Result<[Duration; 3]> {
        let mut brokers = Duration::ZERO;
        for process in self.brokers.iter().filter_map(|broker| broker.process.as_ref()) {
            brokers += process.cpu()?;
        }
        Ok([brokers, self.edge.cpu()?, self.handler.cpu()?])
    }

    /// Every partition's position, as a broker says it of itself; `None` if it does not answer.
    pub(crate) async fn positions(&self, id: u64) -> anyhow::Result<Option<Vec<Position>>> {
        let Ok(mut http) = Http::connect(self.http(id)?).await else { return Ok(None) };
        let Ok((200, body)) = http.request("GET", "/v1/cluster?local=true", &[]).await else { return Ok(None) };
        let cluster: Value = serde_json::from_slice(&body)?;
        let rows = cluster["partitions"].as_array().context("no partitions")?;
        let position = |row: &Value| {
            let applied = row["applied"].as_str()?.split_once('.')?.0.parse().ok()?;
            Some(Position { leader: row["leader"].as_u64(), applied })
        };
        Ok(rows.iter().map(position).collect())
    }

    /// Every partition's position at its leader.
    pub(crate) async fn at_leaders(&self) -> anyhow::Result<Vec<Position>> {
        let begun = Instant::now();
        loop {
            let mut led: Vec<Option<Position>> = Vec::new();
            for id in (1..).zip(&self.brokers).filter(|(_, broker)| broker.process.is_some()).map(|(id, _)| id) {
                let positions = self.positions(id).await?.unwrap_or_default();
                led.resize(led.len().max(positions.len()), None);
                // each by its own word: another's may be old
                let own = led.iter_mut().zip(positions).filter(|(_, position)| position.leader == Some(id));
                own.for_each(|(led, position)| *led = Some(position));
            }
            if !led.is_empty()
                && let Some(led) = led.into_iter().collect()
            {
                return Ok(led);
            }
            ensure!(begun.elapsed() < PATIENCE, "a partition has no leader");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until leaders are spread evenly: they move once their brokers have been there for a while.
    pub(crate) async fn until_spread(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let leaders: Vec<_> = self.at_leaders().await?.iter().filter_map(|position| position.leader).collect();
            let count = self.brokers.len() as u64;
            if (0..).zip(&leaders).all(|(partition, leader)| partition % count + 1 == *leader) {
                return Ok(());
            }
            ensure!(begun.elapsed() < PATIENCE, "leaders are not spread: {leaders:?}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// A channel of each partition.
    pub(crate) fn channels(&self, partitions: PartitionCount) -> Vec<String> {
        let channel = |partition| {
            let mut names = (0..).map(|n| format!("probe-{n}"));
            names.find(|name| partitions.of_name(name) == partition).unwrap_or_default()
        };
        partitions.iter().map(channel).collect()
    }

    /// All at once: nothing is measured any more.
    pub(crate) fn kill(self) -> anyhow::Result<()> {
        for server in self.brokers.into_iter().filter_map(|broker| broker.process).chain([self.edge, self.handler]) {
            server.kill()?;
        }
        Ok(())
    }
}

fn certificates(setup: &Setup, folder: &Path, replicas: u64) -> anyhow::Result<String> {
    let pki = folder.join("pki").to_string_lossy().into_owned();
    let mut certs = Command::new(&setup.binary);
    certs.args(["certs", "--dir", &pki, "--edge", "bench"]);
    for id in 1..=replicas {
        certs.args(["--broker", &id.to_string()]);
    }
    let certs = certs.output().context("trunkline certs")?;
    if !certs.status.success() {
        bail!("trunkline certs: {}", String::from_utf8_lossy(&certs.stderr));
    }
    Ok(pki)
}

/// Ports that were free a moment ago: each broker's config names all links before one of them is bound.
fn free_ports(replicas: u64) -> anyhow::Result<Vec<Ports>> {
    let mut held = Vec::new();
    let mut ports = Vec::new();
    for _ in 0..replicas {
        let (link, grpc, http) =
            (UdpSocket::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
        ports.push(Ports { link: link.local_addr()?, grpc: grpc.local_addr()?, http: http.local_addr()? });
        held.push((link, grpc, http));
    }
    Ok(ports)
}

fn broker_config(id: u64, folder: &Path, pki: &str, ports: &[Ports], shape: Shape<'_>) -> String {
    let data = folder.join(format!("data-{id}"));
    let own = &ports[(id - 1) as usize];
    let mut config = format!(
        "[broker]\nnode_id = {id}\ndata = {:?}\npki = {pki:?}\npartitions = {}\ngrpc = \"{}\"\nhttp = \"{}\"\nlink = \"{}\"\n",
        data.to_string_lossy(),
        shape.partitions.get(),
        own.grpc,
        own.http,
        own.link,
    );
    if let Some(rate) = shape.catchup_rate {
        config += &format!("[broker.replication]\ncatchup_rate = {rate:?}\n");
    }
    if shape.replicas > 1 {
        for (id, ports) in (1..).zip(ports) {
            config += &format!("[[broker.members]]\nid = {id}\nlink = \"{}\"\n", ports.link);
        }
    }
    config
}

fn edge_config(pki: &str, ports: &[Ports]) -> String {
    let brokers: Vec<_> = (1..).zip(ports).map(|(id, ports)| format!("\"{id}@{}\"", ports.link)).collect();
    format!(
        "[edge]\nname = \"bench\"\npki = {pki:?}\nws = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\nbrokers = [{}]\n\n\
         [[api]]\nname = \"echo\"\npath = \"/echo\"\n\n\
         [[api]]\nname = \"ingest\"\npath = \"/ingest\"\nregistration = \"accept\"\n",
        brokers.join(", ")
    )
}
