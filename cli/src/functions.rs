//! `trunkline functions`: the bridge to HTTP functions as a process of its own, with a listener for health and metrics where one is
//! configured.

use std::{fs, io, net::SocketAddr, time::Duration};

use anyhow::Context as _;
use axum::{Router, http::StatusCode, routing::get};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use trunkline_broker::{
    http, metrics,
    tcp::{Doors, Limits},
};
use trunkline_functions::Brokers;

use crate::{
    args::FunctionsArgs,
    config::{self, BridgeConfig, FunctionsRole},
    exit::Failure,
    roles::{self, Shutdown},
};

/// How long a broker may take to say that it is there.
const READY_TIMEOUT: Duration = Duration::from_secs(2);

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
    roles::runtime()?.block_on(async {
        let shutdown = Shutdown::install()?;
        let stop = CancellationToken::new();
        let served = match bridge.http {
            Some(address) => Some(tokio::spawn(serve(bind(address).await?, &brokers, stop.clone())?)),
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
    Ok(async move {
        tokio::join!(
            http::serve(listener, None, Doors::new("functions", Limits::default()), router, stop.clone()),
            metrics::upkeep(recorder, stop)
        );
    })
}

/// Beyond loopback it needs `insecure`: it has no TLS.
pub(crate) fn check_address(address: Option<SocketAddr>, insecure: bool) -> io::Result<()> {
    match address {
        Some(address) if !insecure && !address.ip().is_loopback() => {
            let problem = format!(
                "functions.http: {address} is not on loopback and there is no TLS; functions.insecure = true allows it"
            );
            Err(io::Error::other(problem))
        }
        _ => Ok(()),
    }
}
