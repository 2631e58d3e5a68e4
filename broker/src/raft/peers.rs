//! The other brokers: a connection to each, kept up, and who is there. Everything that goes from one broker to another goes through
//! here.

mod calls;
mod dial;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, RwLock};
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use trunkline_proto::{PartitionCount, peer::MEMBERS_MAX, v1::peer as pb};

pub use self::calls::{CallError, CallKind};
pub(super) use self::calls::{open, unary};
use self::dial::{DIAL_TIMEOUT, dial, keep};
pub(super) use self::dial::{HELLO_BYTES_MAX, check_hello, hello, retired};
use super::{
    frames::WireError,
    pace::{Pace, Paid},
    types::Member,
    witness::Witness,
};
use crate::store::DiskId;

/// Most brokers that a connection is kept to: the members, those being replaced, and founders.
pub(super) const PEERS_MAX: usize = 16;
const _: () = assert!(PEERS_MAX >= 3 * MEMBERS_MAX);
/// Addresses of one broker that are tried in turn.
const LINKS_MAX: usize = 4;
/// Longest address: a host name has 253 bytes.
pub(super) const LINK_BYTES_MAX: usize = 512;
/// Votes, heartbeats and calls go before entries, entries before snapshots.
pub(super) const PRIORITY_HIGH: i32 = 10;
pub(super) const PRIORITY_APPEND: i32 = 0;
pub(super) const PRIORITY_LOW: i32 = -10;

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
    /// Of what brokers have acknowledged.
    pub witness: Arc<Witness>,
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
    /// The disk that was found in place of a member's, when, and whether that was said aloud: once is enough.
    doubt: Mutex<Option<Doubt>>,
    /// The connection leads to another disk than a member's: it may be to the process before, or at another of its addresses.
    elsewhere: Notify,
    /// What it was sent while it was far behind.
    pub(super) paid: Paid,
    /// When somebody wanted a connection to it last.
    wanted: Mutex<Instant>,
    /// Ends the task that keeps the connection.
    stop: CancellationToken,
}

/// A connection led to a disk that a group does not know.
#[derive(Clone, Copy, Debug)]
struct Doubt {
    disk: DiskId,
    since: Instant,
    is_said: bool,
}

/// Where a broker may be: as configured, as a group's membership says, as it says itself. Whoever answers must show its certificate.
#[derive(Debug)]
struct Links {
    known: Vec<String>,
    current: usize,
}

impl Links {
    fn add(&mut self, link: &str) {
        if link.is_empty() || link.len() > LINK_BYTES_MAX || self.known.iter().any(|known| known == link) {
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
    pace: Arc<Pace>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// The other brokers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Peers {
    inner: Arc<Inner>,
}

impl Peers {
    /// Nobody yet. Without a dialer nobody is ever reached. `catchup_rate`: bytes per second to a peer far behind; 0: any.
    pub fn new(own: Own, dialer: Option<Dialer>, catchup_rate: u64) -> Self {
        let inner = Inner {
            own,
            dialer,
            table: RwLock::default(),
            pace: Arc::new(Pace::new(catchup_rate)),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Who this broker is.
    pub fn own(&self) -> &Own {
        &self.inner.own
    }

    /// How fast those far behind are caught up.
    pub(super) fn pace(&self) -> &Arc<Pace> {
        &self.inner.pace
    }

    /// Keeps a connection to a broker, and looks for it at this address too, until it is [forgotten](Self::forget).
    pub fn ensure(&self, id: u64, link: &str) {
        if id == self.inner.own.node || link.is_empty() || link.len() > LINK_BYTES_MAX {
            return;
        }
        if let Some(peer) = self.inner.table.read().get(&id) {
            *peer.wanted.lock() = Instant::now();
            return peer.links.lock().add(link);
        }
        let mut table = self.inner.table.write();
        if table.contains_key(&id) || self.inner.stop.is_cancelled() {
            return;
        }
        if table.len() >= PEERS_MAX {
            tracing::warn!(peer = id, "no connection is kept to this broker: there are {PEERS_MAX} others already");
            return;
        }
        let peer = Arc::new(Peer {
            id,
            links: Mutex::new(Links { known: vec![link.to_owned()], current: 0 }),
            connected: watch::Sender::new(None),
            seen: Mutex::default(),
            doubt: Mutex::default(),
            elsewhere: Notify::new(),
            paid: Paid::default(),
            wanted: Mutex::new(Instant::now()),
            stop: self.inner.stop.child_token(),
        });
        table.insert(id, Arc::clone(&peer));
        if let Some(dialer) = self.inner.dialer.clone() {
            let stop = peer.stop.clone();
            let keep = keep(self.inner.own.clone(), dialer, peer);
            self.inner.tasks.spawn(async move { stop.run_until_cancelled(keep).await });
        }
    }

    /// Ends the connections to brokers that nobody has wanted one to for so long: those that were removed, or never added.
    pub fn forget(&self, unwanted: Duration) {
        let mut forgotten = Vec::new();
        self.inner.table.write().retain(|_, peer| {
            let is_kept = peer.wanted.lock().elapsed() < unwanted;
            if !is_kept {
                forgotten.push(Arc::clone(peer));
            }
            is_kept
        });
        for peer in forgotten {
            tracing::info!(peer = peer.id, "broker forgotten: it is no member");
            peer.stop.cancel();
            peer.disconnect("no member");
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
        let connected = connected.map_err(|error| {
            format!(
                "broker {id} is not reached at {link} (does it run, is that its link, and its number {id}?): {error}"
            )
        })?;
        connected.connection.close(0u32.into(), b"only asked");
        match connected.hello.closed.as_str() {
            "" => Ok(connected.disk),
            reason => {
                Err(format!("broker {id} is closed: {reason}. Stop it, delete its data folder and start it first"))
            }
        }
    }

    /// The connection to a member of a group, if it is up and leads to the disk the group knows.
    pub(super) fn connected(&self, id: u64, member: &Member) -> Result<(Connected, Arc<Peer>), String> {
        let peer = self.peer(id).ok_or_else(|| format!("broker {id} is not known"))?;
        let connected = peer.connected.borrow().clone();
        let connected =
            connected.ok_or_else(|| format!("broker {id} is not reached at {}", peer.links.lock().current()))?;
        if member.disk != DiskId::UNKNOWN && member.disk != connected.disk {
            return Err(peer.doubts(&connected, member));
        }
        Ok((connected, peer))
    }

    /// Why a member is not spoken to.
    #[cfg(test)]
    pub(crate) fn objection(&self, id: u64, member: &Member) -> Option<String> {
        self.connected(id, member).err()
    }

    /// The disk behind the connection to a broker, if one is up.
    pub fn disk(&self, node: u64) -> Option<DiskId> {
        let peer = self.peer(node)?;
        let connected = peer.connected.borrow();
        connected.as_ref().map(|connected| connected.disk)
    }

    /// The process behind the connection to a broker, if one is up.
    pub(super) fn process(&self, node: u64) -> Option<u64> {
        let peer = self.peer(node)?;
        let connected = peer.connected.borrow();
        connected.as_ref().map(|connected| connected.hello.process)
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
        peers.iter().for_each(|peer| peer.disconnect("shutdown"));
        self.inner.own.witness.release();
    }

    /// Ends with the peers: whoever serves their connections does too.
    pub(super) fn stop(&self) -> &CancellationToken {
        &self.inner.stop
    }
}

impl Peer {
    fn disconnect(&self, reason: &str) {
        if let Some(connected) = self.connected.send_replace(None) {
            connected.connection.close(0u32.into(), reason.as_bytes());
        }
    }

    /// The connection leads to another disk than the member's. It may be to a process that is gone, which shows only when it has been
    /// silent for long enough: a broker that was wiped and added again since is no stranger. So it is connected anew, once, before anybody
    /// is told to do something.
    fn doubts(&self, connected: &Connected, member: &Member) -> String {
        let id = self.id;
        let mut doubt = self.doubt.lock();
        match doubt.as_mut().filter(|doubt| doubt.disk == connected.disk) {
            Some(doubt) if connected.since > doubt.since => {
                let reason = format!(
                    "broker {id} has another disk ({}) than the one that is a member ({}): it may have lost what it acknowledged, and \
                     neither votes nor acknowledges. Run `trunkline cluster remove {id}`, then `trunkline cluster add {id} --link {}`",
                    connected.disk, member.disk, member.link,
                );
                if !std::mem::replace(&mut doubt.is_said, true) {
                    tracing::error!("{reason}");
                }
                // it may be at another of its addresses
                self.elsewhere.notify_one();
                reason
            }
            known => {
                if known.is_none() {
                    *doubt = Some(Doubt { disk: connected.disk, since: Instant::now(), is_said: false });
                    connected.connection.close(0u32.into(), b"another disk");
                }
                format!(
                    "the connection to broker {id} leads to another disk ({}) than the member's ({}): if it was wiped and added again, \
                     that is its process from before. It is connected anew, which takes a few seconds at most",
                    connected.disk, member.disk,
                )
            }
        }
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_table_has_a_bound_and_what_is_forgotten_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        let node = crate::testing::node(&dir).await;
        let peers = node.peers();
        (1..100).for_each(|id| peers.ensure(id, "somewhere:1"));
        assert_eq!(peers.members().len(), 1 + PEERS_MAX, "itself and as many others as there may be");
        assert_eq!(peers.member(99), None);
        let kept = peers.peer(2).unwrap();
        peers.forget(Duration::from_secs(3600));
        assert_eq!(peers.members().len(), 1 + PEERS_MAX);
        assert!(!kept.stop.is_cancelled());
        peers.forget(Duration::ZERO);
        assert_eq!(peers.members().len(), 1, "nobody wants the others");
        assert!(kept.stop.is_cancelled(), "and nobody dials them");
        peers.ensure(99, "somewhere:1");
        assert!(peers.member(99).is_some());
    }

    #[tokio::test]
    async fn a_broker_is_looked_for_at_a_few_addresses_of_sound_length() {
        let dir = tempfile::tempdir().unwrap();
        let node = crate::testing::node(&dir).await;
        let peers = node.peers();
        peers.ensure(2, &"x".repeat(LINK_BYTES_MAX + 1));
        assert_eq!(peers.member(2), None);
        (0..100).for_each(|n| peers.ensure(2, &format!("somewhere:{n}")));
        peers.ensure(2, &"x".repeat(LINK_BYTES_MAX + 1));
        let peer = peers.peer(2).unwrap();
        let known = peer.links.lock().known.clone();
        assert_eq!(known.len(), LINKS_MAX);
        assert!(known.contains(&"somewhere:0".to_owned()) && known.contains(&"somewhere:99".to_owned()), "{known:?}");
    }
}
