//! Brokers in one process, for tests that start, stop and cut them off.

use std::{
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use tokio::time::{Instant, timeout};
use trunkline_proto::{Batch, LogIndex, Record};

use super::{super::*, deaf};
use crate::{
    core::Verdict,
    link::tests::support::{Authority, PATIENCE},
    quic::{self, Handlers, Identity, Pki, endpoint, tls},
    testing::{attach, connection, count, edge, message, opened},
};

pub(crate) const PARTITIONS: u16 = 2;

pub(crate) struct Cluster {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) authority: Authority,
    founders: Vec<Founder>,
    pub(crate) brokers: Vec<Option<Broker>>,
}

pub(crate) struct Broker {
    pub(crate) node: Node,
    pub(super) endpoint: quinn::Endpoint,
    deaf: Arc<AtomicBool>,
    accepting: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
}

/// What answers other brokers where nothing runs above the node.
struct NodeOnly(Node);

impl Calls for NodeOnly {
    fn call(
        &self,
        _: u64,
        kind: CallKind,
        body: bytes::Bytes,
    ) -> Pin<Box<dyn Future<Output = bytes::Bytes> + Send + '_>> {
        match kind {
            CallKind::ReadIndex => Box::pin(self.0.answer_read_index(body)),
            _ => Box::pin(self.0.answer_admin(body, || async { bytes::Bytes::new() })),
        }
    }
}

impl Cluster {
    /// Three brokers, none started. Their ports are taken for a moment to learn free ones.
    pub(crate) fn new() -> Self {
        let sockets: Vec<_> = (0..3).map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let founders = (1..).zip(&sockets);
        let founders = founders.map(|(id, socket)| Founder { id, link: socket.local_addr().unwrap().to_string() });
        let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
        for id in 1..=5 {
            authority.write_broker(folder.path(), id);
        }
        Self { folder, authority, founders: founders.collect(), brokers: (0..5).map(|_| None).collect() }
    }

    pub(crate) async fn formed() -> Self {
        let mut cluster = Self::new();
        for id in 1..=3 {
            cluster.start(id).await;
        }
        cluster.ready(&[1, 2, 3]).await;
        cluster
    }

    pub(crate) fn data(&self, id: u64) -> PathBuf {
        self.folder.path().join(format!("data-{id}"))
    }

    pub(crate) fn address(&self, id: u64) -> SocketAddr {
        self.founders[id as usize - 1].link.parse().unwrap()
    }

    pub(crate) async fn start(&mut self, id: u64) {
        let address = self.founders.iter().find(|founder| founder.id == id).map(|founder| founder.link.clone());
        let address = address.unwrap_or_else(|| "127.0.0.1:0".to_owned());
        let pki = Pki::load(self.folder.path(), &Identity::broker(id)).unwrap();
        // the one before it lets go of its socket a moment after it is closed
        let socket = eventually(|| quic::bind(address.parse().unwrap()).ok()).await;
        let address = socket.local_addr().unwrap();
        let (endpoint, deaf) = listen(socket, &pki);
        let config = endpoint::client_config(tls::peer_client_config(&pki).unwrap());
        let node = Node::open(NodeConfig {
            node_id: id,
            founders: self.founders.clone(),
            advertised: Advertised {
                link: address.to_string(),
                grpc: format!("grpc-{id}"),
                http: format!("http-{id}"),
            },
            dialer: Some(Dialer { endpoint: endpoint.clone(), config }),
            // a byte: what a test pretends decides
            disk_reserve: 1,
            trim_patience: Duration::from_secs(2),
            ..NodeConfig::new(self.data(id), "test", count(PARTITIONS))
        });
        let node = node.await.unwrap();
        node.set_calls(Arc::new(NodeOnly(node.clone())));
        let peer = node.clone();
        let handlers = Handlers {
            edges: Arc::new(|accepted| Box::pin(async move { drop(accepted) })),
            peers: Arc::new(move |accepted| {
                let node = peer.clone();
                Box::pin(async move { node.serve_peer(accepted).await })
            }),
            edges_max: 1,
        };
        let accepting = CancellationToken::new();
        let serving = tokio::spawn(quic::serve(endpoint.clone(), handlers, accepting.clone()));
        self.brokers[id as usize - 1] = Some(Broker { node, endpoint, deaf, accepting, serving });
    }

    pub(crate) async fn stop(&mut self, id: u64) {
        let broker = self.brokers[id as usize - 1].take().unwrap();
        broker.accepting.cancel();
        timeout(PATIENCE, broker.node.shutdown()).await.unwrap();
        timeout(PATIENCE, broker.serving).await.unwrap().unwrap();
        quic::close(&broker.endpoint, "shutdown").await;
    }

    pub(crate) async fn stop_all(mut self) -> Self {
        for id in 1..=5 {
            if self.brokers[id as usize - 1].is_some() {
                self.stop(id).await;
            }
        }
        self
    }

    /// From now on, until it is taken back, a broker is heard and hears nothing.
    pub(crate) fn deafen(&self, id: u64, deaf: bool) {
        self.brokers[id as usize - 1].as_ref().unwrap().deaf.store(deaf, std::sync::atomic::Ordering::SeqCst);
    }

    pub(crate) fn node(&self, id: u64) -> &Node {
        &self.brokers[id as usize - 1].as_ref().unwrap().node
    }

    pub(crate) async fn ready(&self, ids: &[u64]) {
        for id in ids {
            let ready = timeout(PATIENCE, self.node(*id).wait_ready()).await;
            ready.unwrap_or_else(|_| panic!("broker {id}: {:?}", self.node(*id).readiness())).unwrap();
        }
    }

    /// The broker that leads a partition now.
    pub(crate) fn leader(&self, partition: u16) -> Option<u64> {
        let leads = |broker: &Broker| matches!(*handle(&broker.node, partition).role.borrow(), Role::Leader { .. });
        (1..).zip(&self.brokers).find(|(_, broker)| broker.as_ref().is_some_and(leads)).map(|(id, _)| id)
    }

    /// Appends a record at whoever leads; until it is applied.
    pub(crate) async fn append(&self, partition: u16, batch: impl Fn() -> Batch) -> Verdict {
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < PATIENCE, "nobody takes it");
            if let Some(leader) = self.leader(partition)
                && let Ok(appended) = handle(self.node(leader), partition).append.append(batch()).await
            {
                return appended.verdict(0);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Attaches the edge and opens its connection in each partition.
    pub(crate) async fn open_connections(&self) {
        for partition in 0..PARTITIONS {
            self.append(partition, || attach(partition)).await;
            let verdict = self.append(partition, || edge(1, &[opened(connection(partition, 1))])).await;
            assert_eq!(verdict, Verdict::Applied);
        }
    }

    /// Says it; once, whatever happens: a repeat is refused, and counts as said.
    pub(crate) async fn say(&self, partition: u16, sequence: u64) {
        let record: Record = message(connection(partition, 1), format!("{sequence}").as_bytes());
        self.append(partition, || edge(sequence, std::slice::from_ref(&record))).await;
    }

    /// Waits until these brokers have applied the same, and gives its digests.
    pub(crate) async fn same_everywhere(&self, ids: &[u64]) -> Vec<u64> {
        let states = |id: u64| -> Vec<(LogIndex, u64, u64)> {
            let state = |partition| {
                let state = handle(self.node(id), partition).state.read();
                (state.applied(), state.digest(), state.state_digest())
            };
            (0..PARTITIONS).map(state).collect()
        };
        let states = eventually(|| {
            let first = states(ids[0]);
            ids.iter().all(|id| states(*id) == first).then_some(first)
        });
        states.await.into_iter().map(|(_, digest, _)| digest).collect()
    }
}

/// As a broker does, on a socket that can be made deaf.
fn listen(socket: std::net::UdpSocket, pki: &Pki) -> (quinn::Endpoint, Arc<AtomicBool>) {
    use quinn::Runtime as _;
    let (runtime, deaf) = (Arc::new(quinn::TokioRuntime), Arc::new(AtomicBool::new(false)));
    let ears = deaf::Ears { socket: runtime.wrap_udp_socket(socket).unwrap(), deaf: Arc::clone(&deaf) };
    let config = endpoint::server_config(tls::server_config(pki).unwrap(), count(PARTITIONS));
    let (settings, ears) = (quinn::EndpointConfig::default(), Arc::new(ears));
    (quinn::Endpoint::new_with_abstract_socket(settings, Some(config), ears, runtime).unwrap(), deaf)
}

pub(crate) fn handle(node: &Node, partition: u16) -> &PartitionHandle {
    node.partition(PartitionId(partition)).unwrap()
}

/// Waits for a condition.
pub(crate) async fn eventually<T>(mut condition: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(begun.elapsed() < PATIENCE, "it does not come");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) async fn records(node: &Node, partition: u16) -> usize {
    let (mut records, mut after) = (0, LogIndex(0));
    let (applied, begun) = (handle(node, partition).tail.applied(), Instant::now());
    // what the others hold is applied before it is on a broker's own disk
    while after < applied {
        assert!(begun.elapsed() < PATIENCE, "{after} of {applied} is on disk");
        let read = node.read_log(PartitionId(partition), after, 1 << 20).await.unwrap();
        records += read.entries.iter().map(|entry| entry.records().count()).sum::<usize>();
        if read.through == after {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        after = read.through;
    }
    records
}
