//! The gRPC surface: services over the partitions of this broker, with every limit set that tonic leaves open.

pub mod cluster;
pub mod connections;
pub mod describe;
pub mod log;
mod services;
pub mod status;
#[cfg(test)]
mod tests;

use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::{
    Server,
    server::{Router, TcpIncoming},
};
use tonic_health::server::HealthReporter;
use trunkline_proto::{DESCRIPTORS, limits, v1};

pub use cluster::About;
pub use services::{Principal, Services};

use crate::node::Node;

/// Streams of one HTTP/2 connection. tonic's default is none, which takes hyper's own limit away.
const STREAMS_MAX: u32 = 200;
/// Streams that we reset because of the peer's errors before the connection ends (hyper's own default, which tonic drops:
/// RUSTSEC-2024-0003).
const LOCAL_RESETS_MAX: usize = 1024;
/// Streams that the peer resets before we have accepted them (rapid reset).
const PENDING_RESETS_MAX: usize = 20;
/// Unread bytes of one stream, and of one connection: eight slow streams stop nobody else's.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// How often health is looked at.
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);

/// The services behind limits, with health and reflection. A peer that answers no ping for `lease` is gone, and with it what a
/// member held.
pub fn router(
    services: Services,
    lease: Duration,
    health: tonic_health::pb::health_server::HealthServer<impl tonic_health::pb::health_server::Health>,
) -> Router {
    let sized = limits::FRAME_BYTES_MAX;
    let handlers = v1::handlers_server::HandlersServer::new(services.clone()).max_decoding_message_size(sized);
    let log = v1::log_server::LogServer::new(services.clone());
    let connections = v1::connections_server::ConnectionsServer::new(services.clone());
    let cluster = v1::cluster_server::ClusterServer::new(services);
    let described = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let router = Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_local_error_reset_streams(Some(LOCAL_RESETS_MAX))
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS_MAX))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(lease / 2))
        .http2_keepalive_timeout(Some(lease / 2))
        .add_service(handlers)
        .add_service(log)
        .add_service(connections)
        .add_service(cluster)
        .add_service(health);
    // both versions: tools in use still ask for the older one. Descriptors are ours and checked by a test: without them calls work as well
    let router = match described().build_v1() {
        Ok(reflection) => router.add_service(reflection),
        Err(_) => router,
    };
    match described().build_v1alpha() {
        Ok(reflection) => router.add_service(reflection),
        Err(_) => router,
    }
}

/// Serves on `listener` until `shutdown`; streams end with it, calls under way are finished.
///
/// # Errors
/// The listener failed for good.
pub async fn serve(
    listener: TcpListener,
    services: Services,
    lease: Duration,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let (reporter, health) = tonic_health::server::health_reporter();
    let watch = watch_health(services.node().clone(), reporter, shutdown.clone());
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let serving = router(services, lease, health).serve_with_incoming_shutdown(incoming, shutdown.cancelled_owned());
    let (served, ()) = tokio::join!(serving, watch);
    served
}

/// Tells `grpc.health.v1` whether the broker can commit.
async fn watch_health(node: Node, reporter: HealthReporter, shutdown: CancellationToken) {
    loop {
        let serving = match node.health() {
            Ok(()) => tonic_health::ServingStatus::Serving,
            Err(_) => tonic_health::ServingStatus::NotServing,
        };
        for service in
            ["", "trunkline.v1.Handlers", "trunkline.v1.Log", "trunkline.v1.Connections", "trunkline.v1.Cluster"]
        {
            reporter.set_service_status(service, serving).await;
        }
        if shutdown.run_until_cancelled(tokio::time::sleep(HEALTH_INTERVAL)).await.is_none() {
            return;
        }
    }
}
