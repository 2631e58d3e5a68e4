//! The edge's health and metrics listener: `/healthz` (the process), `/readyz` (new connections can be served), `/metrics`.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use metrics_exporter_prometheus::PrometheusHandle;

use crate::link::Status;

/// Histograms are folded so often; unfolded samples are kept in memory.
const UPKEEP_PERIOD: Duration = Duration::from_secs(5);

/// What health is made of.
#[derive(Debug)]
pub(crate) struct Health {
    accepting: AtomicBool,
    link: Arc<Status>,
    partitions: usize,
}

impl Health {
    pub(crate) fn new(link: Arc<Status>, partitions: usize) -> Self {
        Self { accepting: AtomicBool::new(true), link, partitions }
    }

    /// The edge drains: load balancers are to look elsewhere.
    pub(crate) fn drain(&self) {
        self.accepting.store(false, Ordering::Relaxed);
    }

    fn ready(&self) -> Result<(), String> {
        if !self.accepting.load(Ordering::Relaxed) {
            return Err("draining\n".to_owned());
        }
        match self.link.attached_partitions() {
            attached if attached >= self.partitions => Ok(()),
            attached => Err(format!("{attached} of {} partitions attached\n", self.partitions)),
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
    health: Arc<Health>,
    prometheus: PrometheusHandle,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
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
        served = axum::serve(listener, router) => served,
        () = fold => Ok(()),
    }
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
