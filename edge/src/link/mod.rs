//! The link to the brokers: QUIC with mutual TLS, one connection a broker, a control stream and one stream a partition.
//! Steps 3 and 18 of the walk meet their brokers here: the uplink's batches go up, the downlink's deliveries come down.
//!
//! An **incarnation** is granted when the edge starts and lives until a broker says that it is lost. Brokers that are away end
//! nothing: sockets stay open, records wait in the uplink, and the link tries again forever.
//!
//! An incarnation is **open** once each of its partitions has been attached. A first stream begins where its partition stands,
//! so what was applied before it is not delivered: a connection taken earlier might never hear that it is in a channel. Hence
//! no socket is served, and no record taken, before that. A stream that comes back later begins where the last one ended (the
//! offset its feed has seen): the broker reads what was missed from its log, and sockets go on meanwhile.

mod backoff;
mod directory;
mod endpoint;
#[cfg(test)]
pub(crate) mod fake;
mod frames;
mod grant;
mod partition;
mod session;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    fmt, io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::watch, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use trunkline_proto::{
    PartitionId,
    link::ALPN,
    v1::{CloseCause, link as pb},
};
use trunkline_quic::{Identity, Pki, TlsError};

pub use self::grant::Granted;
use self::{
    backoff::Backoff,
    directory::Directory,
    partition::Context,
    session::{Session, SessionError, Welcome},
};
use crate::{
    api::Api,
    config::BrokerAddress,
    downlink::{Downlink, Feed},
    metrics::LinkMetrics,
    uplink,
};

/// How long the shards may take to begin closing the sockets of a lost incarnation before a new one begins. They usually do it at once.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// What the link is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The edge's name, that of its certificate.
    pub edge: String,
    /// Brokers to ask first.
    pub brokers: Vec<BrokerAddress>,
    /// Folder with `ca.pem`, `edge-NAME.pem` and `edge-NAME.key`.
    pub pki: PathBuf,
    /// The front doors: brokers are told their handler groups and bounds.
    pub apis: Arc<[Arc<Api>]>,
}

/// Why there can be no link.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The PKI folder.
    #[error("edge's certificate: {0}")]
    Tls(#[from] TlsError),
    /// The UDP socket.
    #[error("link's socket: {0}")]
    Socket(#[from] io::Error),
}

/// Why the link ended for good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// Another process runs under this edge's name. Every socket has been told to close.
    #[error("another process runs under this edge's name and has replaced this one")]
    Replaced,
    /// The brokers are those of another cluster now, or of one made anew.
    #[error("brokers are of cluster {found}, and this edge has begun with {known}")]
    Cluster {
        /// What this edge began with.
        known: String,
        /// What they are now.
        found: String,
    },
}

/// What becomes of an incarnation.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    /// Every socket is to close, and the next incarnation begins.
    Lost(String),
    /// The process is to end.
    Replaced,
    /// Not this cluster's brokers any more.
    Cluster { found: String },
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(reason) => write!(f, "incarnation is lost: {reason}"),
            Self::Replaced => f.write_str("replaced by another process"),
            Self::Cluster { found } => write!(f, "brokers are of cluster {found}"),
        }
    }
}

/// How much of the link is up. Shared with the health endpoint.
pub struct Status {
    /// Of the cluster; 0 until an incarnation has been granted.
    partitions: AtomicUsize,
    attached: AtomicUsize,
    /// An incarnation has been open.
    opened: watch::Sender<bool>,
    metrics: LinkMetrics,
}

impl Status {
    /// Nothing of it is up. Call after the recorder of metrics is installed.
    pub(crate) fn new() -> Self {
        Self {
            partitions: AtomicUsize::new(0),
            attached: AtomicUsize::new(0),
            opened: watch::Sender::new(false),
            metrics: LinkMetrics::new(),
        }
    }

    /// Partitions of the cluster; 0 until a broker has granted an incarnation.
    pub fn partitions(&self) -> usize {
        self.partitions.load(Ordering::Relaxed)
    }

    /// Partitions whose stream is attached.
    pub fn attached_partitions(&self) -> usize {
        self.attached.load(Ordering::Relaxed)
    }

    /// Waits until an incarnation is open: each of its partitions has been attached. Cancel safe.
    pub(crate) async fn opened(&self) {
        // never closed: this holds the sender
        let _ = self.opened.subscribe().wait_for(|opened| *opened).await;
    }

    /// One more, until the guard is dropped.
    fn attached(&self) -> AttachedGuard<'_> {
        self.attached.fetch_add(1, Ordering::Relaxed);
        self.metrics.partitions.increment(1.0);
        AttachedGuard(self)
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Status").field("attached", &self.attached).finish_non_exhaustive()
    }
}

struct AttachedGuard<'a>(&'a Status);

impl Drop for AttachedGuard<'_> {
    fn drop(&mut self) {
        self.0.attached.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.partitions.decrement(1.0);
    }
}

/// The link, not running yet.
pub struct Link {
    settings: Settings,
    endpoint: quinn::Endpoint,
    directory: Arc<Directory>,
    status: Arc<Status>,
}

impl Link {
    /// A link of these settings, which says in `status` how much of it is up. Must be called inside the runtime that will run it.
    pub(crate) fn open(settings: Settings, status: Arc<Status>) -> Result<Self, OpenError> {
        let pki = Pki::load(&settings.pki, &Identity::edge(&settings.edge))?;
        let endpoint = endpoint::client(pki.client_config(ALPN)?)?;
        let directory = Arc::new(Directory::new(&settings.brokers));
        Ok(Self { settings, endpoint, directory, status })
    }

    /// Asks the brokers, forever, until one grants an incarnation. Cancel safe: asking anew with another nonce only skips a number.
    pub async fn grant(&self) -> Result<Granted, LinkError> {
        let granted = grant::ask(&self.endpoint, &self.directory, &self.settings.edge).await?;
        self.status.partitions.store(granted.partition_count().get().into(), Ordering::Relaxed);
        Ok(granted)
    }

    /// Runs the link, one incarnation after the other, until `stop`. `Err`: this process must end; its sockets have been told to
    /// close.
    pub async fn run(
        self,
        granted: Granted,
        uplink: uplink::Handle,
        downlink: Downlink,
        stop: CancellationToken,
    ) -> Result<(), LinkError> {
        let ended = tokio::select! {
            error = self.incarnations(granted, &uplink, &downlink) => Err(error),
            () = stop.cancelled() => Ok(()),
        };
        trunkline_quic::endpoint::close(&self.endpoint, "edge ends").await;
        ended
    }

    /// Until one ends for good.
    async fn incarnations(&self, mut granted: Granted, uplink: &uplink::Handle, downlink: &Downlink) -> LinkError {
        let known = cluster_name(&granted.welcome);
        loop {
            let fate = self.incarnation(granted, uplink, downlink).await;
            tracing::warn!(incarnation = uplink.incarnation(), %fate, "closing every socket");
            // what these connections said and is not in the log never will be: their records end where the log ends
            uplink.fence();
            let closing = close_sockets(downlink);
            match fate {
                Fate::Lost(_) => self.status.metrics.incarnations_lost.increment(1),
                Fate::Replaced => {
                    closing.await;
                    return LinkError::Replaced;
                }
                Fate::Cluster { found } => {
                    closing.await;
                    return LinkError::Cluster { known, found };
                }
            }
            // asked for beside that: until it is open nothing is appended
            let next;
            (next, ()) = tokio::join!(self.grant(), closing);
            granted = match next {
                Ok(granted) => granted,
                Err(error) => return error,
            };
            let found = cluster_name(&granted.welcome);
            if found != known {
                return LinkError::Cluster { known, found };
            }
            uplink.restart(granted.incarnation());
        }
    }

    /// One incarnation, from its grant to its fate.
    async fn incarnation(&self, granted: Granted, uplink: &uplink::Handle, downlink: &Downlink) -> Fate {
        let Granted { nonce, welcome, broker, session } = granted;
        let context = Arc::new(Context {
            edge: self.settings.edge.clone(),
            incarnation: welcome.incarnation,
            apis: self.settings.apis.iter().map(|api| attach_api(api)).collect(),
            uplink: uplink.clone(),
            directory: Arc::clone(&self.directory),
            status: Arc::clone(&self.status),
            unattached: Mutex::new(welcome.count.iter().collect()),
        });
        let mut tasks = JoinSet::new();
        for partition in welcome.count.iter() {
            let feed = Feed::new(partition, downlink.clone());
            tasks.spawn(partition::run(Arc::clone(&context), feed, partition));
        }
        let (mut first, mut served) = (Some(session), BTreeSet::new());
        loop {
            for id in self.directory.brokers().into_iter().filter(|id| served.insert(*id)) {
                let first = if id == broker { first.take() } else { None };
                let keeper = Keeper {
                    endpoint: self.endpoint.clone(),
                    directory: Arc::clone(&self.directory),
                    status: Arc::clone(&self.status),
                    hello: grant::hello(&self.settings.edge, &nonce, welcome.incarnation),
                    cluster: cluster_name(&welcome),
                    broker: id,
                };
                tasks.spawn(keeper.run(first));
            }
            tokio::select! {
                () = self.directory.learnt() => {}
                fate = tasks.join_next() => match fate {
                    Some(Ok(fate)) => return fate,
                    // a task that panicked cannot be gone on without
                    Some(Err(error)) => return Fate::Lost(error.to_string()),
                    None => return Fate::Lost("no task is left".to_owned()),
                },
            }
        }
    }
}

/// Closes every socket without a record: the brokers write those of a lost incarnation. This is over when no shard lets one of them
/// append any more, so that no late record of theirs is taken for one of the next incarnation; their close handshakes may take longer.
async fn close_sockets(downlink: &Downlink) {
    let closed = downlink.close_all(CloseCause::EdgeLost, Duration::ZERO, false);
    if tokio::time::timeout(CLOSE_TIMEOUT, closed).await.is_err() {
        tracing::warn!("a shard is slow to close the sockets of a lost incarnation");
    }
}

/// Cluster and number of partitions together: both are fixed when a cluster is made.
fn cluster_name(welcome: &Welcome) -> String {
    format!("{:?} of {} partitions", welcome.cluster, welcome.count.get())
}

fn attach_api(api: &Api) -> pb::Api {
    let handler_group = api.config.handler_group().to_owned();
    pb::Api { name: api.config.name.clone(), handler_group, max_handler_lag: api.config.max_handler_lag }
}

fn learn(directory: &Directory, from: u64, welcome: &session::Welcome) {
    for broker in &welcome.brokers {
        directory.learn(broker.broker, &broker.address);
    }
    for leader in &welcome.leaders {
        if let Ok(partition) = u16::try_from(leader.partition) {
            let address = if leader.broker == from { "" } else { leader.address.as_str() };
            directory.note_leader(PartitionId(partition), leader.broker, address);
        }
    }
}

/// Keeps the session with one broker.
struct Keeper {
    endpoint: quinn::Endpoint,
    directory: Arc<Directory>,
    status: Arc<Status>,
    hello: pb::Hello,
    cluster: String,
    broker: u64,
}

impl Keeper {
    async fn run(self, first: Option<Session>) -> Fate {
        let (mut backoff, mut session, mut warned, mut failures) = (Backoff::new(), first, false, 0_usize);
        loop {
            let opened = match session.take() {
                Some(session) => Ok(session),
                None => self.open(failures).await,
            };
            let ended = match opened {
                Ok(mut session) => {
                    let began = Instant::now();
                    let ended = match self.serve(&mut session).await {
                        Ok(ended) => ended,
                        Err(fate) => return fate,
                    };
                    backoff.lasted(began.elapsed());
                    warned = false;
                    ended
                }
                Err(error) => {
                    // at its next address, then
                    failures = failures.wrapping_add(1);
                    error
                }
            };
            if let Some(fate) = fate_of(&ended) {
                return fate;
            }
            if warned {
                tracing::debug!(broker = self.broker, error = %ended, "broker is not reached");
            } else {
                tracing::warn!(broker = self.broker, error = %ended, "no session with this broker; trying again");
            }
            warned = true;
            backoff.wait().await;
        }
    }

    async fn open(&self, failures: usize) -> Result<Session, SessionError> {
        let unknown = || SessionError::Protocol("a broker was forgotten");
        let (address, turn) = self.directory.address(self.broker, failures).ok_or_else(unknown)?;
        session::open(&self.endpoint, &address, turn, self.hello.clone()).await
    }

    async fn serve(&self, session: &mut Session) -> Result<SessionError, Fate> {
        let found = cluster_name(&session.welcome);
        if found != self.cluster {
            return Err(Fate::Cluster { found });
        }
        self.status.metrics.connects.increment(1);
        learn(&self.directory, self.broker, &session.welcome);
        self.directory.set_connection(self.broker, Some(session.connection.clone()));
        let _offline = Offline(self);
        Ok(session.run().await)
    }
}

/// Takes the connection out of the directory, whatever ends the session.
struct Offline<'a>(&'a Keeper);

impl Drop for Offline<'_> {
    fn drop(&mut self) {
        self.0.directory.set_connection(self.0.broker, None);
    }
}

fn fate_of(ended: &SessionError) -> Option<Fate> {
    let SessionError::Goodbye(goodbye) = ended else { return None };
    match goodbye.reason() {
        pb::Reason::Lost => Some(Fate::Lost(ended.to_string())),
        pb::Reason::Replaced => Some(Fate::Replaced),
        _ => None,
    }
}
