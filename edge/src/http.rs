//! The edge's health and metrics listener: `/healthz` (the process), `/readyz` (new connections can be served), `/metrics`. It
//! answers from the start, also while no broker is to be had: that is when it is looked at.

use std::{
    convert::Infallible,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};

use crate::link::Status;

/// Histograms are folded so often; unfolded samples are kept in memory.
const UPKEEP_PERIOD: Duration = Duration::from_secs(5);
/// What [`serve`] is bound by.
const BOUNDS: Bounds = Bounds { connections: 64, timeout: Duration::from_secs(10) };
/// Bytes of a request's line and headers.
const HEADER_BYTES: usize = 16 << 10;
/// Pause after a failed accept: out of file descriptors, mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// Connections at once; more wait to be accepted.
    connections: usize,
    /// A connection is one request: its headers, and then its answer, must have gone through within this. So whoever says
    /// nothing, or reads nothing, keeps its place no longer.
    timeout: Duration,
}

/// What health is made of.
#[derive(Debug)]
pub(crate) struct Health {
    draining: AtomicBool,
    link: Arc<Status>,
}

impl Health {
    pub(crate) fn new(link: Arc<Status>) -> Self {
        Self { draining: AtomicBool::new(false), link }
    }

    /// The edge drains: load balancers are to look elsewhere.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    fn ready(&self) -> Result<(), String> {
        if self.draining.load(Ordering::Relaxed) {
            return Err("draining\n".to_owned());
        }
        let partitions = self.link.partitions();
        match self.link.attached_partitions() {
            _ if partitions == 0 => Err("no broker has granted this edge an incarnation yet\n".to_owned()),
            attached if attached >= partitions => Ok(()),
            attached => Err(format!("{attached} of {partitions} partitions attached\n")),
        }
    }
}

#[derive(Clone)]
struct Shared {
    health: Arc<Health>,
    prometheus: PrometheusHandle,
}

/// Serves until dropped.
pub(crate) async fn serve(
    listener: std::net::TcpListener,
    tls: Option<Arc<ServerConfig>>,
    health: Arc<Health>,
    prometheus: PrometheusHandle,
) -> io::Result<()> {
    serve_within(BOUNDS, listener, tls, health, prometheus).await
}

async fn serve_within(
    bounds: Bounds,
    listener: std::net::TcpListener,
    tls: Option<Arc<ServerConfig>>,
    health: Arc<Health>,
    prometheus: PrometheusHandle,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let upkeep = prometheus.clone();
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(Shared { health, prometheus });
    let fold = async {
        let mut ticks = tokio::time::interval(UPKEEP_PERIOD);
        loop {
            ticks.tick().await;
            upkeep.run_upkeep();
        }
    };
    tokio::select! {
        never = accept(listener, tls.map(TlsAcceptor::from), router, bounds) => match never {},
        () = fold => Ok(()),
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, router: Router, bounds: Bounds) -> Infallible {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < bounds.connections => match accepted {
                Ok((stream, _)) => drop(connections.spawn(timeout(bounds.timeout, answer(stream, tls.clone(), router.clone())))),
                Err(error) => {
                    tracing::warn!(%error, "health listener's accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One request. What a client breaks is the client's.
async fn answer(stream: TcpStream, tls: Option<TlsAcceptor>, router: Router) {
    match tls {
        None => answer_on(stream, router).await,
        Some(tls) => {
            if let Ok(stream) = tls.accept(stream).await {
                answer_on(stream, router).await;
            }
        }
    }
}

async fn answer_on(stream: impl AsyncRead + AsyncWrite + Unpin, router: Router) {
    let connection = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let _ = connection.await;
}

async fn readyz(State(shared): State<Shared>) -> (StatusCode, String) {
    match shared.health.ready() {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason),
    }
}

async fn metrics(State(shared): State<Shared>) -> ([(&'static str, &'static str); 1], String) {
    // the text format's own media type
    ([("content-type", "text/plain; version=0.0.4; charset=utf-8")], shared.prometheus.render())
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        time::Instant,
    };

    use super::*;
    use crate::link::fake::soon;

    /// Where it listens.
    fn start(bounds: Bounds) -> std::net::SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let health = Arc::new(Health::new(Arc::new(Status::new())));
        tokio::spawn(serve_within(bounds, listener, None, health, PrometheusBuilder::new().build_recorder().handle()));
        address
    }

    #[tokio::test]
    async fn half_a_request_does_not_keep_its_connection() {
        let address = start(Bounds { timeout: Duration::from_millis(50), ..BOUNDS });
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: ed").await.unwrap();
        let mut answer = Vec::new();
        soon("the end of it", stream.read_to_end(&mut answer)).await.unwrap();
        assert_eq!(answer, b"");
    }

    #[tokio::test]
    async fn silent_connections_delay_a_probe_and_do_not_stop_it() {
        let bounds = Bounds { connections: 3, timeout: Duration::from_millis(200) };
        let address = start(bounds);
        let began = Instant::now();
        let mut silent = Vec::new();
        for _ in 0..2 * bounds.connections {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut probe = TcpStream::connect(address).await.unwrap();
        probe.write_all(b"GET /healthz HTTP/1.1\r\nhost: edge\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        soon("an answer", probe.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(began.elapsed() >= 2 * bounds.timeout, "more than {} were served at once", bounds.connections);
    }
}
