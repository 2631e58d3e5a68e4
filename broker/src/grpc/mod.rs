//! The gRPC surface: services over the partitions of this broker, with every limit set that tonic leaves open.

#[cfg(test)]
mod access_tests;
pub mod cluster;
pub mod connections;
pub mod describe;
pub mod log;
mod services;
pub mod status;
#[cfg(test)]
mod strangers_tests;
#[cfg(test)]
mod tests;
mod until;

use std::{collections::BTreeMap, time::Duration};

use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{
    Server,
    server::{Connected, Router},
};
use tonic_health::server::HealthReporter;
use trunkline_proto::{DESCRIPTORS, PartitionId, limits, v1};

pub use cluster::About;
pub use services::Services;

use crate::{
    node::{Node, Role},
    tcp::{
        Doors,
        http2::{self, Http2},
    },
};

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
/// Bytes of one call's headers, uncompressed; a token and a deadline are far less.
const HEADER_LIST_BYTES: u32 = 16 << 10;
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
        .http2_max_header_list_size(HEADER_LIST_BYTES)
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

impl Connected for Http2 {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

/// Serves on `listener` until `shutdown`; streams end with it, calls under way are finished.
///
/// # Errors
/// The server failed for good.
pub async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    doors: Doors,
    services: Services,
    lease: Duration,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let (reporter, health) = tonic_health::server::health_reporter();
    let watch = watch_health(services.node().clone(), reporter, shutdown.clone());
    let (ready, incoming) = http2::ready();
    let accepting = http2::accept(listener, tls, doors, ready, shutdown.clone());
    let incoming = ReceiverStream::new(incoming);
    let serving = router(services, lease, health).serve_with_incoming_shutdown(incoming, shutdown.cancelled_owned());
    let (served, (), ()) = tokio::join!(serving, accepting, watch);
    served
}

/// Services whose health is the broker's: it serves while any partition is served here.
const SERVICES: [&str; 5] =
    ["", "trunkline.v1.Handlers", "trunkline.v1.Log", "trunkline.v1.Connections", "trunkline.v1.Cluster"];

/// The name that a partition's health is asked by.
fn partition_service(partition: PartitionId) -> String {
    format!("trunkline.v1.partition.{partition}")
}

/// What `grpc.health.v1` says of each name. One damaged partition takes nothing from the others: a client that was sent elsewhere for
/// it would lose what this broker leads.
fn health(node: &Node) -> Vec<(String, tonic_health::ServingStatus)> {
    let status = |serves| match serves {
        true => tonic_health::ServingStatus::Serving,
        false => tonic_health::ServingStatus::NotServing,
    };
    let broker = SERVICES.iter().map(|service| ((*service).to_owned(), status(node.serves_any())));
    let partitions = node.partition_count().iter().map(|id| {
        let role = node.partition(id).map(|partition| *partition.role.borrow());
        let is_led = matches!(role, Some(Role::Leader { .. } | Role::Follower { leader: Some(_) }));
        (partition_service(id), status(is_led))
    });
    broker.chain(partitions).collect()
}

/// Tells `grpc.health.v1` what this broker serves.
async fn watch_health(node: Node, reporter: HealthReporter, shutdown: CancellationToken) {
    let mut told = BTreeMap::new();
    loop {
        for (service, status) in health(&node) {
            // whoever watches is told of changes alone
            if told.insert(service.clone(), status) != Some(status) {
                reporter.set_service_status(service, status).await;
            }
        }
        if shutdown.run_until_cancelled(tokio::time::sleep(HEALTH_INTERVAL)).await.is_none() {
            return;
        }
    }
}
