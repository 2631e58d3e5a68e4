//! `trunkline functions`: the bridge to HTTP functions as a process of its own, with a listener for health and metrics where one is
//! configured.

use std::{fs, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{Router, http::StatusCode, routing::get};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use trunkline_broker::{
    config::TlsConfig,
    http, metrics,
    tcp::{Doors, Limits},
};
use trunkline_functions::Brokers;
use trunkline_quic::{TlsError, files::Watched, listener::Certificate};

use crate::{
    args::FunctionsArgs,
    config::{self, BridgeConfig, FunctionsRole},
    exit::Failure,
    roles::{self, Shutdown},
};

/// How long a broker may take to say that it is there.
const READY_TIMEOUT: Duration = Duration::from_secs(2);
/// So often the files of its certificate are looked at.
const LOOK_PERIOD: Duration = Duration::from_secs(2);

/// Runs until told to stop. Ready is when it begins to look for brokers: that they are away is no reason not to be.
pub(crate) fn run(args: &FunctionsArgs) -> Result<(), Failure> {
    let role = FunctionsRole::load(args, &config::environment())?;
    if roles::answered(&args.file, &role, || brokers(&role.functions).map(drop))? {
        return Ok(());
    }
    let apis = config::function_settings(&role.apis)?;
    let bridge = role.functions;
    let member = match bridge.member.as_str() {
        "" => format!("functions-{:016x}", rand::random::<u64>()),
        member => member.to_owned(),
    };
    let brokers = brokers(&bridge)?;
    let tls = bridge.tls.as_ref().map(Tls::load).transpose()?;
    roles::runtime()?.block_on(async {
        let shutdown = Shutdown::install()?;
        let stop = CancellationToken::new();
        let served = match bridge.http {
            Some(address) => Some(tokio::spawn(serve(bind(address).await?, tls, &brokers, stop.clone())?)),
            None => None,
        };
        let running = trunkline_functions::run_until(&brokers, &member, apis, shutdown.requested());
        roles::ready();
        let ended = running.await.context("functions");
        stop.cancel();
        if let Some(served) = served {
            // it ends within its own drain
            let _ = served.await;
        }
        Ok(ended?)
    })
}

fn brokers(bridge: &BridgeConfig) -> Result<Brokers, Failure> {
    let ca_pem = match &bridge.ca {
        Some(path) => {
            Some(fs::read(path).map_err(|error| Failure::usage(format!("functions.ca: {}: {error}", path.display())))?)
        }
        None => None,
    };
    Ok(Brokers { addresses: bridge.brokers.clone(), token: bridge.token.clone(), ca_pem })
}

async fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    roles::announce("functions-http", listener.local_addr().context("functions-http")?)?;
    Ok(listener)
}

/// `/healthz` (the process), `/readyz` (a broker answers), `/metrics`.
fn serve(
    listener: TcpListener,
    tls: Option<Tls>,
    brokers: &Brokers,
    stop: CancellationToken,
) -> Result<impl Future<Output = ()> + Send + 'static, Failure> {
    let recorder = metrics::install().context("metrics")?;
    let client = brokers.client().timeout(READY_TIMEOUT).build().map_err(Failure::usage)?;
    let readiness = move || {
        let client = client.clone();
        async move {
            match tokio::time::timeout(READY_TIMEOUT, client.describe()).await {
                Ok(Ok(_)) => (StatusCode::OK, "ready\n".to_owned()),
                Ok(Err(error)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
                Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "no broker answers\n".to_owned()),
            }
        }
    };
    let rendered = recorder.clone();
    let router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readiness))
        .route("/metrics", get(move || std::future::ready(rendered.render())));
    let acceptor = tls.as_ref().map(|tls| tls.acceptor.clone());
    Ok(async move {
        let kept = async {
            if let Some(tls) = tls {
                tls.keep(stop.clone()).await;
            }
        };
        tokio::join!(
            http::serve(listener, acceptor, Doors::new("functions", Limits::default()), router, stop.clone()),
            metrics::upkeep(recorder, stop.clone()),
            kept
        );
    })
}

/// Certificate and key of the listener.
struct Tls {
    certificate: Arc<Certificate>,
    watched: Watched,
    acceptor: TlsAcceptor,
}

impl Tls {
    fn load(config: &TlsConfig) -> Result<Self, Failure> {
        // before they are read: a change in between is noticed
        let watched = Watched::new(vec![config.cert.clone(), config.key.clone()]);
        let wrong = |error: TlsError| Failure::usage(format!("functions.tls: {error}"));
        let certificate = Arc::new(Certificate::load(&config.cert, &config.key).map_err(wrong)?);
        let server = certificate.server_config(&[b"http/1.1"]).map_err(wrong)?;
        Ok(Self { certificate, watched, acceptor: TlsAcceptor::from(Arc::new(server)) })
    }

    /// Reads the files again when they have changed, until `stop`.
    async fn keep(mut self, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(LOOK_PERIOD)).await.is_some() {
            if self.watched.have_changed() {
                match self.certificate.reload() {
                    Ok(()) => tracing::info!("the listener's certificate is read again"),
                    Err(error) => tracing::error!(%error, "the listener's certificate has changed and cannot be used"),
                }
            }
        }
    }
}
