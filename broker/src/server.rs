//! A broker: its listeners, everything behind them, and an orderly end.

mod reload;
mod settings;
mod tls;

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use prost::Message as _;
use tokio::{
    net::TcpListener,
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    calls::Answers,
    config::{BrokerConfig, ConfigError},
    controls, forward, grpc,
    handlers::Registry,
    http::{self, App, Pages},
    link::{self, Link, Sessions},
    metrics,
    node::{Advertised, Dialer, Node},
    quic::{self, Handlers, Identity, Pki, TlsError, endpoint, tls as quic_tls},
    retention,
    store::OpenError,
    submit::Submitter,
};

use reload::Live;

/// What a shutdown may take, from the signal to the closed database.
const DRAIN: Duration = Duration::from_secs(10);
/// What of it other brokers may take to lead.
const HAND_OVER: Duration = Duration::from_secs(2);
/// What of it is kept for the database.
const CLOSE: Duration = Duration::from_secs(3);

/// A broker's bound listeners.
#[derive(Debug)]
pub struct Listeners {
    /// gRPC.
    pub grpc: TcpListener,
    /// HTTP.
    pub http: TcpListener,
    /// Edges.
    pub link: UdpSocket,
}

/// Where the listeners are bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Addresses {
    /// gRPC.
    pub grpc: SocketAddr,
    /// HTTP.
    pub http: SocketAddr,
    /// Edges (UDP).
    pub link: SocketAddr,
}

impl Listeners {
    /// Where they are: ports that were 0 are known now.
    pub fn addresses(&self) -> io::Result<Addresses> {
        Ok(Addresses { grpc: self.grpc.local_addr()?, http: self.http.local_addr()?, link: self.link.local_addr()? })
    }
}

/// Why a broker does not serve, or does not any more.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The config is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An address is taken, or not ours.
    #[error("cannot listen for {listener} on {address}: {error}")]
    Listen {
        /// Which.
        listener: &'static str,
        /// As configured.
        address: SocketAddr,
        /// What the system says.
        error: io::Error,
    },
    /// The PKI folder.
    #[error("edge link: {0}")]
    Tls(#[from] TlsError),
    /// Certificate or key of gRPC and HTTP.
    #[error("broker.tls: {0}")]
    Certificate(TlsError),
    /// The data folder.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A partition does not come up.
    #[error("not ready: {0}")]
    NotReady(String),
    /// Metrics cannot be recorded.
    #[error(transparent)]
    Metrics(#[from] metrics::InstallError),
    /// A socket failed.
    #[error("socket: {0}")]
    Socket(#[from] io::Error),
    /// gRPC ended by itself.
    #[error("gRPC: {0}")]
    Grpc(#[from] tonic::transport::Error),
    /// A task panicked or ended without being told to: a bug.
    #[error("{0} ended unexpectedly")]
    Ended(&'static str),
}

/// What whoever starts a broker adds to it.
#[derive(Default)]
pub struct Extras {
    /// Static pages of the HTTP listener.
    pub pages: Pages,
    /// Called once, when every partition that is not closed has a leader. Listeners accept before that.
    pub ready: Option<Box<dyn FnOnce() + Send>>,
}

impl std::fmt::Debug for Extras {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Extras").field("pages", &self.pages).finish_non_exhaustive()
    }
}

/// Binds every listener of a config.
pub async fn bind(config: &BrokerConfig) -> Result<Listeners, ServeError> {
    let failed = |listener, address| move |error| ServeError::Listen { listener, address, error };
    Ok(Listeners {
        grpc: TcpListener::bind(config.grpc).await.map_err(failed("grpc", config.grpc))?,
        http: TcpListener::bind(config.http).await.map_err(failed("http", config.http))?,
        link: quic::bind(config.link).map_err(failed("link", config.link))?,
    })
}

/// Reads the files that a config names beside those of `pki`, as [`run`] will: certificate, tokens, secrets, keys.
///
/// # Errors
/// One is not there, or not what it has to be.
pub fn check_files(config: &BrokerConfig) -> Result<(), ServeError> {
    let tls = config.tls.as_ref().map(tls::load).transpose()?;
    Live::load(config, tls.as_ref()).map(drop)
}

/// Serves until `shutdown`, then drains: edges and handlers are told, what is under way is finished and answered, the log is
/// flushed and the database closed, all within 10 s.
///
/// # Errors
/// It cannot start, or a listener has failed for good. The database is closed then too.
pub async fn run(
    config: BrokerConfig,
    listeners: Listeners,
    extras: Extras,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    config.validate()?;
    controls::announce();
    let recorder = metrics::install()?;
    let tls = config.tls.as_ref().map(tls::load).transpose()?;
    let live = Live::load(&config, tls.as_ref())?;
    let pki = Pki::load(&config.pki, &Identity::broker(config.node_id))?;
    let (server, client) =
        (quic_tls::server_config(&pki)?, endpoint::client_config(quic_tls::peer_client_config(&pki)?));
    let addresses = listeners.addresses()?;
    let endpoint = endpoint::endpoint(listeners.link, server, config.partition_count()?)?;
    let dialer = Dialer { endpoint: endpoint.clone(), config: client };
    let node = Node::open(settings::node(&config, addresses, dialer)?).await?;
    let stop = CancellationToken::new();
    let broker = Broker { node: node.clone(), stop: stop.clone(), tasks: JoinSet::new(), registry: None };
    let bound = Bound { grpc: listeners.grpc, http: listeners.http, endpoint: endpoint.clone(), addresses, tls, live };
    let served = broker.serve(config, bound, recorder, extras, shutdown).await;
    // whatever has happened: nothing may hold the database when the process ends
    stop.cancel();
    if tokio::time::timeout(DRAIN, node.shutdown()).await.is_err() {
        tracing::error!("the database did not close in time");
    }
    quic::close(&endpoint, "shutdown").await;
    served
}

/// What a broker listens with.
struct Bound {
    grpc: TcpListener,
    http: TcpListener,
    endpoint: quinn::Endpoint,
    addresses: Addresses,
    tls: Option<tls::Tls>,
    live: Live,
}

/// A broker that runs.
struct Broker {
    node: Node,
    stop: CancellationToken,
    /// Each says its name when it ends, and why.
    tasks: JoinSet<(&'static str, Result<(), ServeError>)>,
    registry: Option<Arc<Registry>>,
}

impl Broker {
    async fn serve(
        mut self,
        config: BrokerConfig,
        bound: Bound,
        recorder: metrics::PrometheusHandle,
        extras: Extras,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), ServeError> {
        tokio::pin!(shutdown);
        // listeners first: other brokers are answered, and health is, before there are leaders
        self.start(&config, bound, recorder, extras.pages)?;
        let node = self.node.clone();
        let ready = async {
            if let Err(reason) = node.wait_ready().await {
                if !node.serves_any() {
                    return Err(ServeError::NotReady(reason));
                }
                // the others are served, and readiness goes on saying what is not
                tracing::error!("{reason}");
            }
            if let Some(ready) = extras.ready {
                ready();
            }
            std::future::pending::<Result<Infallible, ServeError>>().await
        };
        let ended = tokio::select! {
            ended = self.tasks.join_next() => Some(ended),
            refused = ready => Some(refused.err().map(|error| Ok(("", Err(error))))),
            () = &mut shutdown => None,
        };
        let outcome = match ended {
            None => Ok(()),
            Some(Some(Ok((_, Err(error))))) => Err(error),
            Some(Some(Ok((name, Ok(()))))) => Err(ServeError::Ended(name)),
            Some(Some(Err(_)) | None) => Err(ServeError::Ended("a task")),
        };
        self.drain().await;
        outcome
    }

    fn start(
        &mut self,
        config: &BrokerConfig,
        bound: Bound,
        recorder: metrics::PrometheusHandle,
        pages: Pages,
    ) -> Result<(), ServeError> {
        let (node, stop) = (self.node.clone(), self.stop.clone());
        let advertised = settings::advertised(config, bound.addresses);
        let link = Arc::new(Link {
            node: node.clone(),
            settings: settings::link(config),
            sessions: Arc::new(Sessions::default()),
            shutdown: stop.clone(),
        });
        let submitter = Submitter::new(node.clone(), link.clone());
        let about = self.about(config, &advertised, &link);
        self.node.set_calls(Arc::new(Answers {
            node: self.node.clone(),
            submitter: submitter.clone(),
            describe: {
                let (node, about) = (self.node.clone(), about.clone());
                Arc::new(move || {
                    let (node, about) = (node.clone(), about.clone());
                    Box::pin(async move { grpc::describe::own(&node, &about).await.encode_to_vec().into() })
                })
            },
        }));
        let registry = Registry::new(node.clone(), config.limits.handler_deadline.get(), stop.clone());
        let streams = config.limits.handler_streams;
        let (access, compat) = (bound.live.access.clone(), bound.live.compat.clone());
        self.spawn("files", bound.live.keep(stop.clone()));
        let services = grpc::Services::new(
            node.clone(),
            registry.clone(),
            submitter.clone(),
            about.clone(),
            access.clone(),
            streams,
            stop.clone(),
        );
        let settings = settings::http(config, access, compat);
        let app =
            App::new(node.clone(), about, registry.clone(), Arc::new(submitter), recorder.clone(), pages, settings);
        let keeping = settings::retention(&config.retention);
        self.spawn("retention", retention::run(node.clone(), registry.clone(), keeping, stop.clone()));
        self.registry = Some(registry);
        self.spawn("metrics", metrics::upkeep(recorder, stop.clone()));
        self.spawn("forwarder", {
            let stop = stop.clone();
            async move {
                forward::run(node, stop.clone()).await;
                // with one partition there is nothing to forward
                stop.cancelled().await;
            }
        });
        self.spawn("edge watch", link::watch(link.clone()));
        let peer = self.node.clone();
        let handlers = Handlers {
            edges: link::handler(link.clone()),
            peers: Arc::new(move |accepted| {
                let node = peer.clone();
                Box::pin(async move { node.serve_peer(accepted).await })
            }),
            edges_max: config.limits.edges,
        };
        self.spawn("edge link", quic::serve(bound.endpoint, handlers, stop.clone()));
        let (grpc_tls, http_tls) = bound.tls.map(|tls| (tls.grpc, tls.http)).unzip();
        let (grpc_doors, http_doors) = (settings::doors(config, "grpc"), settings::doors(config, "http"));
        self.spawn("http", http::serve(bound.http, http_tls, http_doors, app.router(), stop.clone()));
        let lease = config.handler_lease.get();
        self.tasks.spawn(async move {
            let served = grpc::serve(bound.grpc, grpc_tls, grpc_doors, services, lease, stop).await;
            ("grpc", served.map_err(Into::into))
        });
        Ok(())
    }

    fn about(&self, config: &BrokerConfig, advertised: &Advertised, link: &Arc<Link>) -> grpc::About {
        let link = link.clone();
        grpc::About {
            cluster: config.cluster.clone(),
            broker: config.node_id,
            grpc: advertised.grpc.clone(),
            link: advertised.link.clone(),
            edge_lag: Arc::new(move |edge| link.lags().get(edge).copied().unwrap_or_default()),
        }
    }

    fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(async move {
            task.await;
            (name, Ok(()))
        });
    }

    /// Tells everybody and waits for what is under way.
    async fn drain(mut self) {
        let deadline = Instant::now() + (DRAIN - CLOSE);
        // leaders first: edges and handlers are sent on to brokers that lead already
        self.node.hand_over(HAND_OVER).await;
        self.stop.cancel();
        if let Some(registry) = &self.registry {
            let _ = timeout_at(deadline, registry.drain()).await;
        }
        while let Ok(Some(ended)) = timeout_at(deadline, self.tasks.join_next()).await {
            if let Ok((name, Err(error))) = ended {
                tracing::warn!(name, %error, "ended with an error");
            }
        }
        if !self.tasks.is_empty() {
            tracing::warn!(tasks = self.tasks.len(), "did not end in time");
            self.tasks.shutdown().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
        sync::oneshot,
        time::timeout,
    };

    use super::*;
    use crate::link::tests::support::{Authority, PATIENCE};

    fn config(folder: &Path) -> BrokerConfig {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        BrokerConfig {
            data: folder.join("data"),
            pki: folder.to_owned(),
            partitions: 3,
            grpc: any,
            http: any,
            link: any,
            ..BrokerConfig::default()
        }
    }

    struct Running {
        addresses: Addresses,
        stop: oneshot::Sender<()>,
        task: tokio::task::JoinHandle<Result<(), ServeError>>,
    }

    /// Starts a broker and waits until it says that it is ready.
    async fn start(config: BrokerConfig) -> Running {
        let listeners = bind(&config).await.unwrap();
        let addresses = listeners.addresses().unwrap();
        let (ready, is_ready) = oneshot::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let extras = Extras { ready: Some(Box::new(move || ready.send(()).unwrap())), ..Extras::default() };
        let task = tokio::spawn(run(config, listeners, extras, async move {
            let _ = stopped.await;
        }));
        timeout(PATIENCE, is_ready).await.unwrap().unwrap();
        Running { addresses, stop, task }
    }

    impl Running {
        async fn get(&self, path: &str) -> String {
            self.get_with(path, "").await
        }

        async fn get_with(&self, path: &str, headers: &str) -> String {
            let mut stream = TcpStream::connect(self.addresses.http).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
            answer
        }

        async fn stop(self) {
            self.stop.send(()).unwrap();
            timeout(PATIENCE, self.task).await.unwrap().unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn serves_when_it_says_ready_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        Authority::new().write(folder.path());
        for _ in 0..2 {
            let broker = start(config(folder.path())).await;
            assert!(broker.get("/readyz").await.starts_with("HTTP/1.1 200"));
            assert!(broker.get("/v1/cluster").await.contains("\"partition_count\":3"));
            assert!(TcpStream::connect(broker.addresses.grpc).await.is_ok());
            // half a request holds nothing up
            let mut half = TcpStream::connect(broker.addresses.http).await.unwrap();
            half.write_all(b"GET /readyz HT").await.unwrap();
            let begun = Instant::now();
            // the second time shows that the folder is free again
            broker.stop().await;
            assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
        }
    }

    #[tokio::test]
    async fn who_may_come_is_read_again_and_a_broken_file_changes_nothing() {
        use std::fs;

        use trunkline_proto::token::TokenDigest;
        let folder = tempfile::tempdir().unwrap();
        Authority::new().write(folder.path());
        let path = folder.path().join("tokens.toml");
        let tokens = |name: &str| {
            let digest = TokenDigest::of(name);
            format!("[[tokens]]\nname = \"{name}\"\nsha256 = \"{digest}\"\nrole = \"read_only\"\n")
        };
        fs::write(&path, "tokens = 1").unwrap();
        let config = BrokerConfig { tokens_file: Some(path.clone()), ..config(folder.path()) };
        let listeners = bind(&config).await.unwrap();
        let error = run(config.clone(), listeners, Extras::default(), std::future::pending()).await.unwrap_err();
        assert!(error.to_string().contains("tokens.toml: line 1"), "{error}");
        fs::write(&path, tokens("one")).unwrap();
        let broker = start(config).await;
        let status = async |token: &str| {
            let answer = broker.get_with("/v1/cluster", &format!("authorization: Bearer {token}\r\n")).await;
            answer.get(9..12).unwrap().parse::<u16>().unwrap()
        };
        let until = async |token: &str, expected: u16| {
            let told = async {
                while status(token).await != expected {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            timeout(PATIENCE, told).await.unwrap_or_else(|_| panic!("{token} is not answered {expected}"));
        };
        assert_eq!((status("one").await, status("two").await), (200, 401));
        fs::write(&path, tokens("two")).unwrap();
        until("two", 200).await;
        assert_eq!(status("one").await, 401);
        let failed = || {
            let metrics = metrics::install().unwrap().render();
            metrics.lines().any(|line| line.starts_with(r#"trunkline_reloads_total{what="tokens",outcome="failed"}"#))
        };
        fs::write(&path, format!("{}[[tokens]]", tokens("three"))).unwrap();
        let told = async {
            while !failed() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, told).await.unwrap();
        assert_eq!((status("two").await, status("three").await), (200, 401));
        // none is said, and that is not the same as not to ask
        fs::write(&path, "tokens = []").unwrap();
        until("two", 401).await;
        broker.stop().await;
    }

    #[tokio::test]
    async fn a_broker_with_a_damaged_partition_is_ready_for_the_others_and_readiness_names_it() {
        use crate::store::marks::{self, Mark};
        let folder = tempfile::tempdir().unwrap();
        Authority::new().write(folder.path());
        start(config(folder.path())).await.stop().await;
        let (data, count) = (folder.path().join("data"), config(folder.path()).partition_count().unwrap());
        let mut marked = marks::read(&data, count).unwrap();
        marked[1] = Mark { end: marked[1].end + 1, ..marked[1] };
        marks::write(&data, &marked, true).unwrap();
        let broker = start(config(folder.path())).await;
        let answer = broker.get("/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("partition 1: "), "{answer}");
        assert!(broker.get("/v1/cluster").await.contains("acknowledged data is lost"));
        broker.stop().await;
    }

    #[tokio::test]
    async fn what_is_wrong_is_said_before_anything_is_served() {
        let folder = tempfile::tempdir().unwrap();
        let listeners = bind(&config(folder.path())).await.unwrap();
        let taken = listeners.addresses().unwrap();
        let error = bind(&BrokerConfig { http: taken.http, ..config(folder.path()) }).await.unwrap_err();
        assert!(error.to_string().contains(&taken.http.to_string()), "{error}");
        let error = bind(&BrokerConfig { link: taken.link, ..config(folder.path()) }).await.unwrap_err();
        assert!(matches!(error, ServeError::Listen { listener: "link", .. }), "{error}");
        let never = std::future::pending::<()>;
        let error = run(config(folder.path()), listeners, Extras::default(), never()).await.unwrap_err();
        assert!(error.to_string().contains("ca.pem"), "{error}");
        assert!(!folder.path().join("data").exists(), "no folder is made for a broker that cannot serve");
        Authority::new().write(folder.path());
        let broker = start(config(folder.path())).await;
        let listeners = bind(&config(folder.path())).await.unwrap();
        let error = run(config(folder.path()), listeners, Extras::default(), never()).await.unwrap_err();
        assert!(matches!(error, ServeError::Open(OpenError::Locked { .. })), "{error}");
        broker.stop().await;
        let other = BrokerConfig { partitions: 4, ..config(folder.path()) };
        let listeners = bind(&other).await.unwrap();
        let error = run(other, listeners, Extras::default(), never()).await.unwrap_err();
        assert!(matches!(error, ServeError::Open(OpenError::Identity { .. })), "{error}");
    }
}
