//! An edge put together: listeners, shards, link, health; and its drain.

mod drain;
mod keep;
mod shards;
#[cfg(test)]
mod tests;

use std::{
    convert::Infallible,
    fmt, io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::{Duration, Instant},
};

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::task::JoinError;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use trunkline_quic::{TlsError, files::Watched};

use self::{
    drain::{DRAIN_TIMEOUT, Drain},
    keep::{Keeper, WatchedCertificate},
    shards::{Event, Threads},
};
use crate::{
    accept,
    api::Api,
    auth,
    config::{ApiConfig, ConfigError, DRAIN_SECONDS_MAX, EdgeConfig},
    downlink::Downlink,
    http::{self, Health},
    inbox,
    link::{LinkError, OpenError, Settings, Status},
    metrics, uplink,
};

/// So often the time of pauses that last is counted.
const PAUSE_COUNT_PERIOD: Duration = Duration::from_secs(1);

/// Bound sockets: tests bind port 0, and an address in use is known before anything starts.
#[derive(Debug)]
pub struct Listeners {
    /// One per shard, sharing an address.
    ws: Vec<TcpListener>,
    http: TcpListener,
    ws_address: SocketAddr,
    http_address: SocketAddr,
}

impl Listeners {
    /// Where WebSockets are accepted.
    pub fn ws_address(&self) -> SocketAddr {
        self.ws_address
    }

    /// Where health and metrics are.
    pub fn http_address(&self) -> SocketAddr {
        self.http_address
    }
}

/// Why a listener cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error("{what} {address}: {error}")]
pub struct BindError {
    /// Which listener.
    pub what: &'static str,
    /// Where it was to be.
    pub address: SocketAddr,
    /// What the system says.
    pub error: io::Error,
}

/// Binds the edge's listeners.
pub fn bind(config: &EdgeConfig) -> Result<Listeners, BindError> {
    let wrong = |what, address| move |error| BindError { what, address, error };
    let ws = accept::bind(config.ws, config.shards.get()).map_err(wrong("ws", config.ws))?;
    let http = TcpListener::bind(config.http).map_err(wrong("http", config.http))?;
    let ws_address = ws.first().map_or(Ok(config.ws), TcpListener::local_addr).map_err(wrong("ws", config.ws))?;
    let http_address = http.local_addr().map_err(wrong("http", config.http))?;
    Ok(Listeners { ws, http, ws_address, http_address })
}

/// Why an edge ended, other than by a drain that left nothing behind.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Wrong configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Certificate or key of the listeners.
    #[error("edge.tls: {0}")]
    Tls(#[from] TlsError),
    /// The PKI folder or the link's socket.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Replaced, or linked to another cluster.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A thread or its runtime could not be started, or the health listener failed.
    #[error("{what}: {error}")]
    System {
        /// Doing what.
        what: &'static str,
        /// What the system says.
        error: io::Error,
    },
    /// A shard's thread ended by itself: a bug. Its sockets are gone, so the whole process goes.
    #[error("shard {shard} has died")]
    ShardDied {
        /// Which.
        shard: usize,
    },
    /// The drain's time was over. The brokers will write the close records of what was left.
    #[error("drained for {DRAIN_SECONDS_MAX} s, and {left} left behind")]
    NotFlushed {
        /// What.
        left: Left,
    },
}

/// What a drain left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// Open connections.
    pub connections: u64,
    /// Bytes of records that no broker has acknowledged.
    pub bytes: usize,
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} connections and {} bytes of unacknowledged records were", self.connections, self.bytes)
    }
}

/// Reads the files that a configuration names beside those of `pki`, as [`run`] will: certificate, keys, tokens.
///
/// # Errors
/// All that is not there, or not what it has to be. A secret in the configuration itself is judged too.
pub fn check_files(config: &EdgeConfig, apis: &[ApiConfig]) -> Result<(), ServeError> {
    config.tls.as_ref().map(WatchedCertificate::load).transpose()?;
    let problems: Vec<_> = apis.iter().filter_map(|api| auth::load(api).err()).collect();
    if problems.is_empty() { Ok(()) } else { Err(ConfigError { problems }.into()) }
}

/// Runs an edge until `shutdown`, then drains it. Health and metrics answer from the start. Brokers are asked for an incarnation
/// and every partition is attached, however long that takes; then sockets are accepted and `ready` is called. Must run inside a
/// tokio runtime, which serves health and metrics; sockets and link have threads of their own.
pub async fn run(
    config: EdgeConfig,
    apis: Vec<ApiConfig>,
    listeners: Listeners,
    prometheus: PrometheusHandle,
    ready: impl FnOnce(),
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    config.validate(&apis)?;
    let certificate = config.tls.as_ref().map(WatchedCertificate::load).transpose()?;
    let tls = certificate.as_ref().map(WatchedCertificate::server_config).transpose()?.map(Arc::new);
    metrics::describe();
    let watched = apis.iter().map(|api| Watched::new(api.auth.files())).collect();
    let mut sources = Vec::new();
    let loaded =
        apis.into_iter().map(|api| Api::load_beside(api, &mut sources).map(Arc::new)).collect::<Result<_, _>>();
    let apis: Arc<[Arc<Api>]> = loaded.map_err(|problem| ConfigError { problems: vec![problem] })?;
    let (handles, inboxes): (Vec<_>, Vec<_>) = (0..listeners.ws.len()).map(|_| inbox::inbox()).unzip();
    let downlink = Downlink::new(handles);
    let settings = Settings {
        edge: config.name.clone(),
        brokers: config.brokers.clone(),
        pki: config.pki.clone(),
        apis: Arc::clone(&apis),
    };
    let stop = CancellationToken::new();
    // whatever ends this function, also being dropped, ends the threads
    let _stop_guard = stop.clone().drop_guard();
    let mut threads = Threads::new(&config, tls.clone(), &apis, listeners.ws, inboxes);
    let mut shutdown = std::pin::pin!(shutdown);
    let status = Arc::new(Status::new());
    let health = Arc::new(Health::new(Arc::clone(&status)));
    let http = http::serve(listeners.http, tls, Arc::clone(&health), prometheus);
    let keeper = Keeper::new(&apis, sources, watched, certificate, downlink.clone());
    let mut http = AbortOnDropHandle::new(tokio::spawn(http));
    let _keeper = AbortOnDropHandle::new(tokio::spawn(keeper.run()));
    let link = threads.start_first(settings, status, config.uplink_bytes.as_usize(), downlink.clone(), stop.clone())?;
    let uplink = tokio::select! {
        linked = link => linked.map_err(|_| ServeError::ShardDied { shard: 0 })??,
        served = &mut http => return Err(no_health(served)),
        () = &mut shutdown => return Ok(()),
    };
    threads.start_others(&uplink)?;
    tracing::info!(edge = %config.name, ws = %listeners.ws_address, incarnation = uplink.incarnation(), "edge accepts");
    ready();
    let failed = tokio::select! {
        () = &mut shutdown => None,
        event = threads.event() => Some(match event {
            Event::LinkEnded(error) => ServeError::Link(error),
            Event::ShardDied(shard) => ServeError::ShardDied { shard },
        }),
        served = &mut http => Some(no_health(served)),
        never = count_pauses(&uplink) => match never {},
    };
    health.drain();
    let drain = Drain {
        apis: &apis,
        downlink: &downlink,
        uplink: &uplink,
        window: config.drain_window.get(),
        timeout: DRAIN_TIMEOUT,
    };
    match failed {
        None => drain.run(threads, stop).await.map_err(|left| ServeError::NotFlushed { left }),
        // sockets and link are sound: an orderly end
        Some(error @ ServeError::System { .. }) => {
            let _ = drain.run(threads, stop).await;
            Err(error)
        }
        Some(error) => {
            drain.abandon(threads, stop).await;
            Err(error)
        }
    }
}

/// A pause shows in the metrics while it lasts: one that does not end is the one to be warned of.
async fn count_pauses(uplink: &uplink::Handle) -> Infallible {
    let mut ticks = tokio::time::interval(PAUSE_COUNT_PERIOD);
    loop {
        ticks.tick().await;
        uplink.count_pauses(Instant::now());
    }
}

/// The health listener ended, which it does not do by itself.
fn no_health(served: Result<io::Result<()>, JoinError>) -> ServeError {
    let error = served.map_err(io::Error::other).and_then(|served| served).err();
    ServeError::System { what: "health listener", error: error.unwrap_or(io::ErrorKind::Other.into()) }
}
