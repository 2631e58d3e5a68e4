//! The other brokers: a connection to each, kept up, and who is there. Everything that goes from one broker to another goes through
//! here.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use trunkline_proto::{
    PartitionCount, PartitionId,
    peer::{PEER_VERSION, Stream},
    v1::peer as pb,
};

use super::{
    frames::{self, Receiver, Sender, WireError},
    pace::Pace,
    types::Member,
    wire,
};
use crate::{
    quic::{Identity, Role},
    store::DiskId,
};

/// From the first packet to the peer's hello.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);
/// Addresses of one broker that are tried in turn.
const LINKS_MAX: usize = 4;
/// After a connection has ended or did not come about; doubled up to the second.
const REDIAL: Duration = Duration::from_millis(100);
const REDIAL_MAX: Duration = Duration::from_secs(1);
/// Longest hello and status.
pub(super) const HELLO_BYTES_MAX: usize = 64 << 10;
/// Votes, heartbeats and calls go before entries, entries before snapshots.
pub(super) const PRIORITY_HIGH: i32 = 10;
pub(super) const PRIORITY_APPEND: i32 = 0;
pub(super) const PRIORITY_LOW: i32 = -10;

/// What a call is about: which of the upper layers answers it. The numbers are on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum CallKind {
    /// Commands for a partition that the other broker leads.
    Submit = 1,
    /// A forward for a partition that the other broker leads.
    Forward = 2,
    /// Membership, leadership, and what a broker says of itself.
    Admin = 3,
    /// How far the log of a partition goes that the other broker leads.
    ReadIndex = 4,
    /// Moves a handler group in a partition that the other broker leads.
    Reset = 5,
    /// Takes dead letters out of a handler group in a partition that the other broker leads.
    Release = 6,
}

impl CallKind {
    pub(super) fn from_u8(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Submit,
            2 => Self::Forward,
            3 => Self::Admin,
            4 => Self::ReadIndex,
            5 => Self::Reset,
            6 => Self::Release,
            _ => return None,
        })
    }
}

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// It never left this broker: nothing happened.
    #[error("broker not reached: {0}")]
    NotSent(String),
    /// It may have happened.
    #[error("no answer from the broker: {0}")]
    Unknown(String),
}

/// A broker, as seen from here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemberView {
    /// Its number.
    pub id: u64,
    /// Where its link listens.
    pub link: String,
    /// Where its gRPC listens, as it says; empty if it was never reached.
    pub grpc: String,
    /// Where its HTTP listens, as it says.
    pub http: String,
    /// Whether a connection to it is up.
    pub reachable: bool,
    /// Since when.
    pub since: Option<Instant>,
}

/// Addresses that this broker tells others.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Advertised {
    /// Of its link: `host:port`.
    pub link: String,
    /// Of its gRPC.
    pub grpc: String,
    /// Of its HTTP.
    pub http: String,
}

/// Who this broker is.
#[derive(Clone, Debug)]
pub struct Own {
    /// The cluster's name.
    pub cluster: String,
    /// Its number.
    pub node: u64,
    /// Its data folder.
    pub disk: DiskId,
    /// Of the cluster.
    pub partitions: PartitionCount,
    /// As told to others.
    pub advertised: Advertised,
    /// Random, of this process.
    pub process: u64,
}

/// What peers are dialed with.
#[derive(Clone, Debug)]
pub struct Dialer {
    /// The endpoint that also listens.
    pub endpoint: quinn::Endpoint,
    /// Shows this broker's certificate.
    pub config: quinn::ClientConfig,
}

/// A connection that is up, after its hello.
#[derive(Clone, Debug)]
pub(super) struct Connected {
    pub(super) connection: quinn::Connection,
    pub(super) disk: DiskId,
    hello: Arc<pb::Hello>,
    since: Instant,
}

#[derive(Debug)]
pub(super) struct Peer {
    id: u64,
    links: Mutex<Links>,
    connected: watch::Sender<Option<Connected>>,
    /// What it said last, for who asks while it is away.
    seen: Mutex<Option<Arc<pb::Hello>>>,
    /// The disk id that was complained about: once is enough.
    complained: Mutex<Option<DiskId>>,
    /// The connection leads to another disk than a member's: it may be at another of its addresses.
    elsewhere: Notify,
    /// Bounds what a peer far behind is sent.
    pub(super) pace: Pace,
}

/// Where a broker may be: as configured, as a group's membership says, as it says itself. Whoever answers must show its certificate.
#[derive(Debug)]
struct Links {
    known: Vec<String>,
    current: usize,
}

impl Links {
    fn add(&mut self, link: &str) {
        if self.known.iter().any(|known| known == link) {
            return;
        }
        if self.known.len() >= LINKS_MAX {
            let oldest = usize::from(self.current == 0);
            self.known.remove(oldest);
            self.current = self.current.saturating_sub(usize::from(oldest < self.current));
        }
        self.known.push(link.to_owned());
    }

    fn current(&self) -> String {
        self.known.get(self.current).cloned().unwrap_or_default()
    }

    fn rotate(&mut self) {
        self.current = (self.current + 1) % self.known.len().max(1);
    }
}

#[derive(Debug)]
struct Inner {
    own: Own,
    dialer: Option<Dialer>,
    table: RwLock<BTreeMap<u64, Arc<Peer>>>,
    catchup_rate: Option<u64>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// The other brokers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Peers {
    inner: Arc<Inner>,
}

impl Peers {
    /// Nobody yet. Without a dialer nobody is ever reached. `catchup_rate`: bytes per second to a peer far behind.
    pub fn new(own: Own, dialer: Option<Dialer>, catchup_rate: Option<u64>) -> Self {
        let inner = Inner {
            own,
            dialer,
            table: RwLock::default(),
            catchup_rate,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Who this broker is.
    pub fn own(&self) -> &Own {
        &self.inner.own
    }

    /// Keeps a connection to a broker from now on, and looks for it at this address too.
    pub fn ensure(&self, id: u64, link: &str) {
        if id == self.inner.own.node || link.is_empty() {
            return;
        }
        if let Some(peer) = self.inner.table.read().get(&id) {
            return peer.links.lock().add(link);
        }
        let mut table = self.inner.table.write();
        if table.contains_key(&id) || self.inner.stop.is_cancelled() {
            return;
        }
        let peer = Arc::new(Peer {
            id,
            links: Mutex::new(Links { known: vec![link.to_owned()], current: 0 }),
            connected: watch::Sender::new(None),
            seen: Mutex::default(),
            complained: Mutex::default(),
            elsewhere: Notify::new(),
            pace: Pace::new(self.inner.catchup_rate),
        });
        table.insert(id, Arc::clone(&peer));
        if let Some(dialer) = self.inner.dialer.clone() {
            let keep = keep(self.inner.own.clone(), dialer, peer);
            let stop = self.inner.stop.clone();
            self.inner.tasks.spawn(async move { stop.run_until_cancelled(keep).await });
        }
    }

    /// A broker that has said hello under another process number has restarted: what is connected to the one before it is dead, and
    /// waiting until that shows would keep it from its leaders.
    pub(super) fn greeted(&self, id: u64, process: u64) {
        let Some(peer) = self.peer(id) else { return };
        let connected = peer.connected.borrow();
        if let Some(connected) = connected.as_ref().filter(|connected| connected.hello.process != process) {
            connected.connection.close(0u32.into(), b"restarted");
        }
    }

    pub(super) fn peer(&self, id: u64) -> Option<Arc<Peer>> {
        self.inner.table.read().get(&id).cloned()
    }

    /// This broker and every one it knows, by id.
    pub fn members(&self) -> Vec<MemberView> {
        let own = &self.inner.own;
        let mut members = vec![MemberView {
            id: own.node,
            link: own.advertised.link.clone(),
            grpc: own.advertised.grpc.clone(),
            http: own.advertised.http.clone(),
            reachable: true,
            since: None,
        }];
        members.extend(self.inner.table.read().values().map(|peer| peer.view()));
        members.sort_by_key(|member| member.id);
        members
    }

    /// One broker.
    pub fn member(&self, id: u64) -> Option<MemberView> {
        self.members().into_iter().find(|member| member.id == id)
    }

    /// The data folder of the broker that answers at an address.
    pub async fn disk_at(&self, id: u64, link: &str) -> Result<DiskId, String> {
        let dialer = self.inner.dialer.as_ref().ok_or("this broker has no way to others")?;
        let dialed = timeout(DIAL_TIMEOUT, dial(&self.inner.own, dialer, id, link)).await;
        let connected = dialed.map_err(|_| WireError::Slow).flatten();
        let connected = connected.map_err(|error| format!("broker {id} is not reached at {link}: {error}"))?;
        connected.connection.close(0u32.into(), b"only asked");
        Ok(connected.disk)
    }

    /// The connection to a member of a group, if it is up and leads to the disk the group knows.
    pub(super) fn connected(&self, id: u64, member: &Member) -> Result<(Connected, Arc<Peer>), String> {
        let peer = self.peer(id).ok_or_else(|| format!("broker {id} is not known"))?;
        let connected = peer.connected.borrow().clone();
        let connected =
            connected.ok_or_else(|| format!("broker {id} is not reached at {}", peer.links.lock().current()))?;
        if member.disk != DiskId::UNKNOWN && member.disk != connected.disk {
            let reason = format!(
                "broker {id} has another disk ({}) than the one that is a member ({}): it may have lost what it acknowledged, and \
                 neither votes nor acknowledges. Run `trunkline cluster remove {id}`, then `trunkline cluster add {id} --link {}`",
                connected.disk, member.disk, member.link,
            );
            if peer.complained.lock().replace(connected.disk) != Some(connected.disk) {
                tracing::error!("{reason}");
            }
            peer.elsewhere.notify_one();
            return Err(reason);
        }
        Ok((connected, peer))
    }

    /// Asks another broker's upper layers.
    pub async fn call(&self, node: u64, kind: CallKind, body: Bytes, patience: Duration) -> Result<Bytes, CallError> {
        let connection = self.connection(node).map_err(CallError::NotSent)?;
        let (mut sender, mut receiver) =
            open(&connection, PRIORITY_HIGH, patience).await.map_err(|error| CallError::NotSent(error.to_string()))?;
        let request = frames::encode_raw(&frames::opening(Stream::Call, PartitionId(0)), &[&[kind as u8], &body]);
        let exchange = async {
            sender.send(request).await?;
            sender.finish();
            receiver.answer().await?.ok_or(WireError::Cut)
        };
        match timeout(patience, exchange).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(CallError::Unknown(error.to_string())),
            Err(_) => Err(CallError::Unknown(format!("within {patience:?}"))),
        }
    }

    /// What another broker knows of the cluster.
    pub async fn status(&self, node: u64, patience: Duration) -> Result<pb::Status, String> {
        let connection = self.connection(node)?;
        let request = frames::encode(&frames::opening(Stream::Status, PartitionId(0)), &pb::StatusRequest {});
        let answer = unary(&connection, request, patience).await.map_err(|error| error.to_string())?;
        frames::decode(answer).map_err(|error| error.to_string())
    }

    /// The disk behind the connection to a broker, if one is up.
    pub fn disk(&self, node: u64) -> Option<DiskId> {
        let peer = self.peer(node)?;
        let connected = peer.connected.borrow();
        connected.as_ref().map(|connected| connected.disk)
    }

    fn connection(&self, node: u64) -> Result<quinn::Connection, String> {
        let peer = self.peer(node).ok_or_else(|| format!("broker {node} is not known"))?;
        let connected = peer.connected.borrow();
        let connection = connected.as_ref().map(|connected| connected.connection.clone());
        connection.ok_or_else(|| format!("broker {node} is not reached at {}", peer.links.lock().current()))
    }

    /// Ends every connection. Later calls do nothing.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        let peers: Vec<_> = self.inner.table.read().values().cloned().collect();
        for peer in peers {
            if let Some(connected) = peer.connected.send_replace(None) {
                connected.connection.close(0u32.into(), b"shutdown");
            }
        }
    }

    /// Ends with the peers: whoever serves their connections does too.
    pub(super) fn stop(&self) -> &CancellationToken {
        &self.inner.stop
    }
}

impl Peer {
    fn view(&self) -> MemberView {
        let connected = self.connected.borrow();
        let seen = self.seen.lock().clone().unwrap_or_default();
        MemberView {
            id: self.id,
            link: self.links.lock().current(),
            grpc: seen.grpc.clone(),
            http: seen.http.clone(),
            reachable: connected.is_some(),
            since: connected.as_ref().map(|connected| connected.since),
        }
    }
}

/// This broker's hello.
pub(super) fn hello(own: &Own) -> pb::Hello {
    pb::Hello {
        version: PEER_VERSION,
        cluster: own.cluster.clone(),
        node: own.node,
        disk: Bytes::copy_from_slice(&own.disk.0),
        partition_count: u32::from(own.partitions.get()),
        link: own.advertised.link.clone(),
        grpc: own.advertised.grpc.clone(),
        http: own.advertised.http.clone(),
        process: own.process,
    }
}

/// Whether a hello is that of broker `id` of the same cluster; gives its disk.
pub(super) fn check_hello(own: &Own, hello: &pb::Hello, id: u64) -> Result<DiskId, WireError> {
    let refused = |reason: String| Err(WireError::Refused(reason));
    if hello.version != PEER_VERSION {
        return refused(format!("peer protocol {}, this broker speaks {PEER_VERSION}", hello.version));
    }
    if hello.node != id {
        return refused(format!("it says that it is broker {}, its certificate that of broker {id}", hello.node));
    }
    if hello.cluster != own.cluster {
        return refused(format!("it is of cluster {:?}, this is {:?}", hello.cluster, own.cluster));
    }
    if hello.partition_count != u32::from(own.partitions.get()) {
        return refused(format!(
            "it has {} partitions, this cluster has {}",
            hello.partition_count,
            own.partitions.get()
        ));
    }
    wire::disk(&hello.disk)
}

/// Opens a stream.
pub(super) async fn open(
    connection: &quinn::Connection,
    priority: i32,
    patience: Duration,
) -> Result<(Sender, Receiver), WireError> {
    let (send, receive) = timeout(patience, connection.open_bi()).await.map_err(|_| WireError::Slow)??;
    Ok((Sender::new(send, priority), Receiver::new(receive)))
}

/// One request and its answer on a stream of their own.
pub(super) async fn unary(
    connection: &quinn::Connection,
    request: Bytes,
    patience: Duration,
) -> Result<Bytes, WireError> {
    let exchange = async {
        let (mut sender, mut receiver) = open(connection, PRIORITY_HIGH, patience).await?;
        sender.send(request).await?;
        sender.finish();
        receiver.answer().await?.ok_or(WireError::Cut)
    };
    timeout(patience, exchange).await.map_err(|_| WireError::Slow)?
}

/// Keeps the connection to one peer up.
async fn keep(own: Own, dialer: Dialer, peer: Arc<Peer>) {
    let mut pause = REDIAL;
    let mut said = None;
    loop {
        let address = peer.links.lock().current();
        let dialed = timeout(DIAL_TIMEOUT, dial(&own, &dialer, peer.id, &address)).await;
        match dialed.map_err(|_| WireError::Slow).flatten() {
            Ok(connected) => {
                tracing::info!(peer = peer.id, %address, disk = %connected.disk, "broker reached");
                peer.links.lock().add(&connected.hello.link);
                hold(&peer, connected).await;
                (pause, said) = (REDIAL, None);
            }
            Err(error) => {
                let reason = error.to_string();
                if said.as_ref() != Some(&reason) {
                    tracing::warn!(peer = peer.id, %address, %reason, "broker not reached; trying on");
                    said = Some(reason);
                }
                peer.links.lock().rotate();
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(REDIAL_MAX);
    }
}

/// While a connection is up.
async fn hold(peer: &Peer, connected: Connected) {
    let connection = connected.connection.clone();
    *peer.seen.lock() = Some(Arc::clone(&connected.hello));
    peer.connected.send_replace(Some(connected));
    let elsewhere = async {
        loop {
            peer.elsewhere.notified().await;
            if peer.links.lock().known.len() > 1 {
                return;
            }
        }
    };
    let reason = tokio::select! {
        reason = connection.closed() => reason.to_string(),
        () = elsewhere => {
            peer.links.lock().rotate();
            "another of its addresses is tried".to_owned()
        }
    };
    peer.connected.send_replace(None);
    connection.close(0u32.into(), b"redial");
    tracing::warn!(peer = peer.id, %reason, "broker lost");
}

async fn dial(own: &Own, dialer: &Dialer, id: u64, link: &str) -> Result<Connected, WireError> {
    let address = resolve(link, dialer.endpoint.local_addr().ok()).await?;
    let name = Identity { role: Role::Broker, name: id.to_string() }.dns_name();
    // the certificate is checked for that name: nobody else answers as this broker
    let connecting = dialer.endpoint.connect_with(dialer.config.clone(), address, &name);
    let connection = connecting.map_err(|error| WireError::Stream(error.to_string()))?.await?;
    let request = frames::encode(&frames::opening(Stream::Hello, PartitionId(0)), &hello(own));
    let exchange = async {
        let (mut sender, mut receiver) = open(&connection, PRIORITY_HIGH, DIAL_TIMEOUT).await?;
        sender.send(request).await?;
        sender.finish();
        let answer = receiver.answer().await?.ok_or(WireError::Cut)?;
        if answer.len() > HELLO_BYTES_MAX {
            return Err(WireError::Limit { bytes: answer.len(), limit: HELLO_BYTES_MAX });
        }
        let hello: pb::Hello = frames::decode(answer)?;
        let disk = check_hello(own, &hello, id)?;
        Ok((hello, disk))
    };
    match exchange.await {
        Ok((hello, disk)) => Ok(Connected { connection, disk, hello: Arc::new(hello), since: Instant::now() }),
        Err(error) => {
            connection.close(1u32.into(), error.to_string().as_bytes());
            Err(error)
        }
    }
}

/// An address of the family that the endpoint is bound to, if there is one.
async fn resolve(link: &str, bound: Option<SocketAddr>) -> Result<SocketAddr, WireError> {
    let found = tokio::net::lookup_host(link).await;
    let found: Vec<_> = found.map_err(|error| WireError::Stream(format!("{link}: {error}")))?.collect();
    let same = |address: &&SocketAddr| bound.is_none_or(|bound| bound.is_ipv4() == address.is_ipv4());
    let address = found.iter().find(same).or(found.first());
    address.copied().ok_or_else(|| WireError::Stream(format!("{link} has no address")))
}
