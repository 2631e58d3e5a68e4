//! A broker: its listeners, everything behind them, and an orderly end.

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
    config::{BrokerConfig, ConfigError, RetentionConfig, WhenFull},
    controls, forward, grpc,
    handlers::Registry,
    http::{self, App, Pages},
    link::{self, Link, Sessions},
    metrics,
    node::{Advertised, Dialer, Founder, Node, NodeConfig},
    quic::{self, Handlers, endpoint, tls},
    raft::SnapshotEvery,
    retention,
    store::OpenError,
    submit::Submitter,
};

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
    Tls(#[from] tls::TlsError),
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
    /// Called once, when every partition has a leader. Listeners accept before that.
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
        link: endpoint::bind(config.link).map_err(failed("link", config.link))?,
    })
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
    let identity = tls::Identity { role: tls::Role::Broker, name: config.node_id.to_string() };
    let pki = tls::Pki::load(&config.pki, &identity)?;
    let (server, client) = (tls::server_config(&pki)?, endpoint::client_config(tls::peer_client_config(&pki)?));
    let addresses = listeners.addresses()?;
    let endpoint = endpoint::endpoint(listeners.link, server, config.partition_count()?)?;
    let dialer = Dialer { endpoint: endpoint.clone(), config: client };
    let node = Node::open(node_config(&config, addresses, dialer)?).await?;
    let stop = CancellationToken::new();
    let broker = Broker { node: node.clone(), stop: stop.clone(), tasks: JoinSet::new(), registry: None };
    let bound = Bound { grpc: listeners.grpc, http: listeners.http, endpoint: endpoint.clone(), addresses };
    let served = broker.serve(config, bound, recorder, extras, shutdown).await;
    // whatever has happened: nothing may hold the database when the process ends
    stop.cancel();
    if tokio::time::timeout(DRAIN, node.shutdown()).await.is_err() {
        tracing::error!("the database did not close in time");
    }
    endpoint::close(&endpoint).await;
    served
}

/// What a broker listens with.
struct Bound {
    grpc: TcpListener,
    http: TcpListener,
    endpoint: quinn::Endpoint,
    addresses: Addresses,
}

fn advertised(config: &BrokerConfig, addresses: Addresses) -> Advertised {
    let told = |configured: &Option<String>, bound: SocketAddr| configured.clone().unwrap_or_else(|| bound.to_string());
    // what the other brokers' configs say of this one
    let member = config.members.iter().find(|member| member.id == config.node_id).map(|member| member.link.clone());
    Advertised {
        link: config.link_advertised.clone().or(member).unwrap_or_else(|| addresses.link.to_string()),
        grpc: told(&config.grpc_advertised, addresses.grpc),
        http: told(&config.http_advertised, addresses.http),
    }
}

fn node_config(config: &BrokerConfig, addresses: Addresses, dialer: Dialer) -> Result<NodeConfig, ConfigError> {
    let founders = config.members.iter().map(|member| Founder { id: member.id, link: member.link.clone() });
    Ok(NodeConfig {
        founders: founders.collect(),
        advertised: advertised(config, addresses),
        dialer: Some(dialer),
        catchup_rate: config.replication.catchup_rate.get(),
        dir: config.data.clone(),
        node_id: config.node_id,
        cluster: config.cluster.clone(),
        partitions: config.partition_count()?,
        tail_bytes: config.tail_bytes.as_usize(),
        snapshot_every: SnapshotEvery {
            entries: config.snapshots.log_entries,
            bytes: config.snapshots.log_bytes.get(),
        },
        retained_max: config.retention.bytes_max.get(),
        disk_reserve: config.disk_reserve.get(),
    })
}

fn retention_settings(config: &RetentionConfig) -> retention::Settings {
    let limits = retention::Limits {
        time: config.time.get(),
        bytes: config.bytes.get(),
        bytes_max: config.bytes_max.get(),
        drop_unsettled: config.when_full == WhenFull::DropOldest,
        group_expiry: config.group_expiry.get(),
    };
    retention::Settings { limits, check_every: config.check_every.get() }
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
            match (node.wait_ready().await, extras.ready) {
                (Ok(()), Some(ready)) => ready(),
                (Ok(()), None) => {}
                // the others are served, and readiness says what is not
                (Err(reason), _) if node.serves_any() => tracing::error!("not ready: {reason}"),
                (Err(reason), _) => return Err(ServeError::NotReady(reason)),
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
        let advertised = advertised(config, bound.addresses);
        let link = Arc::new(Link {
            node: node.clone(),
            settings: link_settings(config),
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
        let services =
            grpc::Services::new(node.clone(), registry.clone(), submitter.clone(), about, streams, stop.clone());
        let settings = http::Settings {
            broker: config.node_id,
            cluster: config.cluster.clone(),
            grpc: advertised.grpc,
            link: advertised.link,
            submit_timeout: config.limits.submit_timeout.get(),
            body_limit: config.limits.http_body.get(),
            concurrency: config.limits.http_concurrency,
            compat: http::Compat::new(config),
        };
        let app = App::new(link.clone(), registry.clone(), Arc::new(submitter), recorder.clone(), pages, settings);
        let keeping = retention_settings(&config.retention);
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
        self.spawn("http", http::serve(bound.http, app.router(), stop.clone()));
        let lease = config.handler_lease.get();
        self.tasks
            .spawn(async move { ("grpc", grpc::serve(bound.grpc, services, lease, stop).await.map_err(Into::into)) });
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

fn link_settings(config: &BrokerConfig) -> link::Settings {
    link::Settings {
        broker: config.node_id,
        cluster: config.cluster.clone(),
        grace: config.edge_grace.get(),
        edges_max: config.limits.edges,
        in_flight_bytes: u32::try_from(config.limits.edge_inflight.get()).unwrap_or(u32::MAX),
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
            let mut stream = TcpStream::connect(self.addresses.http).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
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
