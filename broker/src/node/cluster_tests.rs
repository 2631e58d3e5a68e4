//! Three brokers in one process: real QUIC over loopback, real stores.

mod damage;
mod deaf;
mod trimming;

use std::{
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use tokio::time::{Instant, timeout};
use trunkline_proto::{
    Batch, LogIndex, Offset, Record,
    peer::{PEER_ALPN, PEER_VERSION, Stream as Kind},
    v1::peer as pb,
};

use super::*;
use crate::{
    append::AppendError,
    core::Verdict,
    link::tests::support::{Authority, PATIENCE, Signed, client_config, client_endpoint},
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
    endpoint: quinn::Endpoint,
    deaf: Arc<AtomicBool>,
    accepting: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
}

/// What answers other brokers where nothing runs above the node.
struct AdminOnly(Node);

impl Calls for AdminOnly {
    fn call(&self, _: u64, _: CallKind, body: bytes::Bytes) -> Pin<Box<dyn Future<Output = bytes::Bytes> + Send + '_>> {
        Box::pin(self.0.answer_admin(body, || async { bytes::Bytes::new() }))
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
        node.set_calls(Arc::new(AdminOnly(node.clone())));
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

#[tokio::test]
async fn what_is_applied_is_on_every_broker() {
    let cluster = Cluster::formed().await;
    cluster.open_connections().await;
    for sequence in 2..=60 {
        for partition in 0..PARTITIONS {
            cluster.say(partition, sequence).await;
        }
    }
    cluster.same_everywhere(&[1, 2, 3]).await;
    for id in 1..=3 {
        for partition in 0..PARTITIONS {
            assert_eq!(records(cluster.node(id), partition).await, 61);
            assert_eq!(cluster.node(id).group(PartitionId(partition)).membership().voters, [1, 2, 3].into());
        }
        let members = cluster.node(id).peers().members();
        assert!(members.iter().all(|member| member.reachable), "{members:?}");
        assert_eq!(members.iter().map(|member| member.id).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(members[2].grpc, "grpc-3");
        assert_eq!(cluster.node(id).readiness(), Ok(()));
    }
    let follower = (1..=3).find(|id| cluster.leader(0) != Some(*id)).unwrap();
    let refused = handle(cluster.node(follower), 0).append.append(attach(0)).await.unwrap_err();
    assert_eq!(refused, AppendError::NotLeader { leader: cluster.leader(0) });
    let (_, leader, address) = cluster.node(follower).leaders().remove(0);
    assert_eq!((Some(leader), address), (cluster.leader(0), Some(cluster.address(leader).to_string())));
    cluster.stop_all().await;
}

#[tokio::test]
async fn another_leads_soon_after_a_leader_is_gone_and_the_old_one_catches_up() {
    let mut cluster = Cluster::formed().await;
    cluster.open_connections().await;
    for sequence in 2..=20 {
        cluster.say(0, sequence).await;
    }
    let gone = cluster.leader(0).unwrap();
    cluster.stop(gone).await;
    let begun = Instant::now();
    cluster.say(0, 21).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    for sequence in 22..=300 {
        cluster.say(0, sequence).await;
    }
    cluster.start(gone).await;
    cluster.ready(&[gone]).await;
    cluster.same_everywhere(&[1, 2, 3]).await;
    assert_eq!(records(cluster.node(gone), 0).await, 301);
    cluster.stop_all().await;
}

#[tokio::test]
async fn nothing_is_lost_when_all_restart() {
    let cluster = Cluster::formed().await;
    cluster.open_connections().await;
    for sequence in 2..=50 {
        cluster.say(1, sequence).await;
    }
    let before = cluster.same_everywhere(&[1, 2, 3]).await;
    let mut cluster = cluster.stop_all().await;
    for id in [3, 1, 2] {
        cluster.start(id).await;
    }
    cluster.ready(&[1, 2, 3]).await;
    assert_eq!(cluster.same_everywhere(&[1, 2, 3]).await, before);
    cluster.say(1, 51).await;
    cluster.same_everywhere(&[1, 2, 3]).await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_minority_refuses_and_leads_nothing() {
    let mut cluster = Cluster::formed().await;
    cluster.open_connections().await;
    let left = cluster.leader(0).unwrap();
    for id in (1..=3).filter(|id| *id != left) {
        cluster.stop(id).await;
    }
    let append = &handle(cluster.node(left), 0).append;
    let record = message(connection(0, 1), b"to nobody");
    // before it notices, what it takes stays unknown; it is never applied
    let early = timeout(Duration::from_millis(500), append.append(edge(2, std::slice::from_ref(&record)))).await;
    assert!(!matches!(early, Ok(Ok(_))), "{early:?}");
    let mut role = handle(cluster.node(left), 0).role.clone();
    timeout(PATIENCE, role.wait_for(|role| *role == Role::Follower { leader: None })).await.unwrap().unwrap();
    let refused = append.append(edge(2, &[record])).await.unwrap_err();
    assert_eq!(refused, AppendError::NotLeader { leader: None });
    assert!(cluster.node(left).readiness().unwrap_err().contains("no leader"));
    assert_eq!(records(cluster.node(left), 0).await, 2);
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_follower_that_hears_no_leader_names_none() {
    let mut cluster = Cluster::formed().await;
    cluster.open_connections().await;
    let leader = cluster.leader(0).unwrap();
    let left = leader % 3 + 1;
    assert_eq!(*handle(cluster.node(left), 0).role.borrow(), Role::Follower { leader: Some(leader) });
    for id in (1..=3).filter(|id| *id != left) {
        cluster.stop(id).await;
    }
    let mut role = handle(cluster.node(left), 0).role.clone();
    timeout(PATIENCE, role.wait_for(|role| *role == Role::Follower { leader: None })).await.unwrap().unwrap();
    assert!(cluster.node(left).readiness().is_err());
    // and so for every partition, each in its time
    eventually(|| cluster.node(left).leaders().is_empty().then_some(())).await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_wiped_broker_neither_votes_nor_acknowledges_and_says_so() {
    let mut cluster = Cluster::formed().await;
    cluster.open_connections().await;
    cluster.same_everywhere(&[1, 2, 3]).await;
    cluster.stop(3).await;
    std::fs::remove_dir_all(cluster.data(3)).unwrap();
    cluster.start(3).await;
    let reason =
        eventually(|| cluster.node(3).readiness().err().filter(|reason| reason.contains("another disk"))).await;
    assert!(reason.contains("cluster remove 3"), "{reason}");
    // a leader and its only sound follower: without the follower there is no majority, whatever the wiped one would say
    let other = (1..=2).find(|id| cluster.leader(0) != Some(*id)).unwrap();
    cluster.say(0, 2).await;
    let left = 3 - other;
    cluster.stop(other).await;
    let record = message(connection(0, 1), b"unheard");
    let append = &handle(cluster.node(left), 0).append;
    let taken = timeout(Duration::from_secs(5), append.append(edge(3, &[record]))).await;
    assert!(!matches!(taken, Ok(Ok(_))), "{taken:?}");
    assert!(!cluster.node(3).group(PartitionId(0)).is_formed());
    assert_eq!(records(cluster.node(3), 0).await, 0);
    cluster.start(other).await;
    cluster.ready(&[1, 2]).await;
    cluster.stop_all().await;
}

/// Dials a broker as another one would.
async fn dial(cluster: &Cluster, signed: &Signed, id: u64) -> (quinn::Connection, quinn::Endpoint) {
    let endpoint = client_endpoint();
    let config = client_config(&cluster.authority, Some(signed), PEER_ALPN);
    let name = format!("broker.{id}.trunkline.internal");
    let connecting = endpoint.connect_with(config, cluster.address(id), &name).unwrap();
    (timeout(PATIENCE, connecting).await.unwrap().unwrap(), endpoint)
}

fn hello(node: u64) -> Vec<u8> {
    use prost::Message as _;
    let hello = pb::Hello {
        version: PEER_VERSION,
        cluster: "test".into(),
        node,
        disk: vec![9; 16].into(),
        partition_count: PARTITIONS.into(),
        ..Default::default()
    };
    let body = hello.encode_to_vec();
    [&[Kind::Hello as u8, 0, 0], &(body.len() as u32).to_le_bytes()[..], &body].concat()
}

/// Sends bytes on a stream of their own; gives what is answered before it ends.
async fn exchange(connection: &quinn::Connection, bytes: &[u8]) -> Vec<u8> {
    let Ok((mut send, mut receive)) = connection.open_bi().await else { return Vec::new() };
    let _ = send.write_all(bytes).await;
    let _ = send.finish();
    timeout(PATIENCE, receive.read_to_end(1 << 20)).await.unwrap().unwrap_or_default()
}

#[tokio::test]
async fn only_a_broker_under_its_own_number_is_a_peer() {
    let mut cluster = Cluster::new();
    cluster.start(1).await;
    let edge = cluster.authority.sign("edge.e1.trunkline.internal");
    let (connection, _endpoint) = dial(&cluster, &edge, 1).await;
    let reason = timeout(PATIENCE, connection.closed()).await.unwrap().to_string();
    assert!(reason.contains("only brokers"), "{reason}");
    let broker = cluster.authority.sign("broker.2.trunkline.internal");
    let (connection, _endpoint) = dial(&cluster, &broker, 1).await;
    let answer = exchange(&connection, &hello(3)).await;
    assert!(String::from_utf8_lossy(&answer).contains("its certificate that of broker 2"), "{answer:?}");
    timeout(PATIENCE, connection.closed()).await.unwrap();
    let (connection, _endpoint) = dial(&cluster, &broker, 1).await;
    let answer = exchange(&connection, &hello(2)).await;
    assert_eq!(answer.first(), Some(&0), "{answer:?}");
    // and nobody gets anything before hello
    let (connection, _endpoint) = dial(&cluster, &broker, 1).await;
    let answer = exchange(&connection, &[Kind::Status as u8, 0, 0, 0, 0, 0, 0]).await;
    assert!(String::from_utf8_lossy(&answer).contains("before hello"), "{answer:?}");
    cluster.stop_all().await;
}

#[tokio::test]
async fn garbage_on_a_peers_stream_ends_that_stream_only() {
    let mut cluster = Cluster::formed().await;
    cluster.open_connections().await;
    cluster.stop(3).await;
    let broker = cluster.authority.sign("broker.4.trunkline.internal");
    let (connection, _endpoint) = dial(&cluster, &broker, 1).await;
    assert_eq!(exchange(&connection, &hello(4)).await.first(), Some(&0));
    let frame = |kind: u8, partition: u8, body: &[u8]| {
        [&[kind, partition, 0], &(body.len() as u32).to_le_bytes()[..], body].concat()
    };
    for kind in 0..=12 {
        for partition in [0, 1, 200] {
            for body in [&[][..], &[0xff; 40], &[0x0a, 0x02, 0x08, 0x01], &[3, 1, 2]] {
                exchange(&connection, &frame(kind, partition, body)).await;
            }
            // a declared length that never comes, and one that may not
            let answer = exchange(&connection, &[kind, partition, 0, 0xff, 0xff, 0xff, 0x7f]).await;
            assert_ne!(answer.first(), Some(&0), "kind {kind}: {answer:?}");
            exchange(&connection, &[kind, partition, 0, 9, 0, 0, 0, 1]).await;
        }
    }
    // an append of somebody who leads nothing: a vote that is another's, entries that do not follow
    let vote = |node, committed| pb::Vote { term: 1 << 40, node, committed };
    let entry = pb::Entry { index: 7, stored: vec![1; 30].into() };
    for append in [
        pb::Append { vote: Some(vote(1, true)), ..Default::default() },
        pb::Append { vote: Some(vote(4, false)), ..Default::default() },
        pb::Append { vote: Some(vote(4, true)), entries: vec![entry], ..Default::default() },
    ] {
        use prost::Message as _;
        let answer = exchange(&connection, &frame(Kind::Append as u8, 0, &append.encode_to_vec())).await;
        assert_eq!(answer.first(), Some(&1), "{append:?}: {answer:?}");
    }
    assert!(connection.close_reason().is_none(), "{:?}", connection.close_reason());
    cluster.say(0, 2).await;
    cluster.start(3).await;
    cluster.same_everywhere(&[1, 2, 3]).await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn members_come_and_go_and_leaders_move() {
    let mut cluster = Cluster::formed().await;
    cluster.open_connections().await;
    cluster.start(4).await;
    let reason =
        eventually(|| cluster.node(4).readiness().err().filter(|reason| reason.contains("cluster add 4"))).await;
    assert!(reason.starts_with("waiting to be added"), "{reason}");
    let link = cluster.brokers[3].as_ref().unwrap().endpoint.local_addr().unwrap().to_string();
    let nobody = cluster.node(1).add_member(5, "127.0.0.1:1", PATIENCE).await.unwrap_err();
    assert!(nobody.to_string().contains("broker 5 is not reached at 127.0.0.1:1"), "{nobody}");
    cluster.node(3).add_member(4, &link, PATIENCE).await.unwrap();
    cluster.ready(&[4]).await;
    for partition in 0..PARTITIONS {
        cluster.node(2).transfer_leader(PartitionId(partition), 4).await.unwrap();
        eventually(|| (cluster.leader(partition) == Some(4)).then_some(())).await;
        cluster.say(partition, 2).await;
    }
    let refused = cluster.node(2).transfer_leader(PartitionId(0), 5).await.unwrap_err();
    assert!(refused.to_string().contains("has no vote"), "{refused}");
    // the one that leads everything is taken out; others take over
    cluster.node(1).remove_member(4).await.unwrap();
    for partition in 0..PARTITIONS {
        cluster.say(partition, 3).await;
        assert_eq!(cluster.node(1).membership(PartitionId(partition)).members.len(), 3);
    }
    assert!(cluster.node(1).remove_member(4).await.unwrap_err().to_string().contains("no member"));
    eventually(|| cluster.node(4).readiness().err().filter(|reason| reason.contains("no leader"))).await;
    cluster.same_everywhere(&[1, 2, 3]).await;
    // nobody wants a connection to it any more; the members are wanted each second
    assert!(cluster.node(1).peers().member(4).is_some());
    eventually(|| {
        cluster.node(1).peers().forget(Duration::from_secs(3));
        cluster.node(1).peers().member(4).is_none().then_some(())
    })
    .await;
    let members = || cluster.node(1).peers().members();
    eventually(|| (members().len() == 3 && members().iter().all(|member| member.reachable)).then_some(())).await;
    // without a majority that answers nobody is taken out
    cluster.stop(3).await;
    let gone = |node: &Node| node.peers().member(3).is_some_and(|member| !member.reachable).then_some(());
    eventually(|| gone(cluster.node(1)).and(gone(cluster.node(2)))).await;
    let refused = cluster.node(1).remove_member(2).await.unwrap_err();
    assert!(refused.to_string().contains("no majority would be left"), "{refused}");
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_leader_whose_disk_is_full_makes_way_for_one_with_room() {
    let cluster = Cluster::formed().await;
    cluster.open_connections().await;
    cluster.same_everywhere(&[1, 2, 3]).await;
    let full = cluster.leader(0).unwrap();
    let (other, left) = (full % 3 + 1, (full + 1) % 3 + 1);
    // the last one has no room either
    for id in [full, other] {
        cluster.node(id).inner.space.pretend(0);
    }
    let begun = Instant::now();
    cluster.say(0, 2).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    for partition in 0..PARTITIONS {
        eventually(|| (cluster.leader(partition) == Some(left)).then_some(())).await;
    }
    assert!(cluster.node(full).readiness().unwrap_err().contains("broker.disk_reserve"));
    cluster.same_everywhere(&[1, 2, 3]).await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_broker_that_stops_in_order_leaves_no_partition_without_a_leader() {
    let mut cluster = Cluster::formed().await;
    cluster.open_connections().await;
    for partition in 0..PARTITIONS {
        cluster.node(1).transfer_leader(PartitionId(partition), 1).await.unwrap();
    }
    let begun = Instant::now();
    cluster.node(1).hand_over(PATIENCE).await;
    cluster.stop(1).await;
    for partition in 0..PARTITIONS {
        cluster.say(partition, 2).await;
    }
    assert!(begun.elapsed() < Duration::from_millis(1400), "no election had to be waited for: {:?}", begun.elapsed());
    cluster.stop_all().await;
}
