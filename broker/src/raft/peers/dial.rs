//! A connection to one peer, dialed again whenever it ends, and the hello that both ends judge each other by.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::time::timeout;
use trunkline_proto::{
    PartitionId,
    peer::{PEER_VERSION, Stream},
    v1::peer as pb,
};

use super::{Connected, Dialer, Own, PRIORITY_HIGH, Peer, open};
use crate::{
    quic::{Identity, Role},
    raft::{
        frames::{self, WireError},
        wire,
    },
    store::DiskId,
};

/// From the first packet to the peer's hello.
pub(super) const DIAL_TIMEOUT: Duration = Duration::from_secs(3);
/// After a connection has ended or did not come about; doubled up to the second.
const REDIAL: Duration = Duration::from_millis(100);
const REDIAL_MAX: Duration = Duration::from_secs(1);
/// Longest hello and status.
pub(in crate::raft) const HELLO_BYTES_MAX: usize = 64 << 10;

/// This broker's hello to another one.
pub(in crate::raft) fn hello(own: &Own, to: u64) -> pb::Hello {
    pb::Hello {
        version: PEER_VERSION,
        cluster: own.cluster.clone(),
        node: own.node,
        disk: Bytes::copy_from_slice(&own.disk.0),
        partition_count: u32::from(own.partitions.get()),
        link: own.advertised.link.clone(),
        grpc: own.advertised.grpc.clone(),
        http: own.advertised.http.clone(),
        process: own.process,
        known: own.witness.about(to),
        retired: own.witness.retired(),
        closed: own.witness.closed().unwrap_or_default().to_owned(),
    }
}

/// Whether a hello is that of broker `id` of the same cluster, and knows of nothing that this broker has lost; gives its disk.
pub(in crate::raft) async fn check_hello(own: &Own, hello: &pb::Hello, id: u64) -> Result<DiskId, WireError> {
    let refused = |reason: String| Err(WireError::Refused(reason));
    if hello.version != PEER_VERSION {
        return refused(format!("peer protocol {}, this broker speaks {PEER_VERSION}", hello.version));
    }
    if hello.node != id {
        return refused(format!("it says that it is broker {}, its certificate that of broker {id}", hello.node));
    }
    if hello.cluster != own.cluster {
        return refused(format!("it is of cluster {:?}, this is {:?}", hello.cluster, own.cluster));
    }
    if hello.partition_count != u32::from(own.partitions.get()) {
        return refused(format!(
            "it has {} partitions, this cluster has {}",
            hello.partition_count,
            own.partitions.get()
        ));
    }
    let disk = wire::disk(&hello.disk)?;
    own.witness.check(own, hello).await?;
    Ok(disk)
}

/// What is said of a broker that is back after the cluster was recovered without it.
pub(in crate::raft) fn retired(id: u64, disk: DiskId) -> WireError {
    WireError::Refused(format!(
        "the cluster was recovered without disk {disk} of broker {id}: stop it, delete its data folder, start it, `trunkline cluster add {id} \
         --link ADDRESS`"
    ))
}

/// Keeps the connection to one peer up.
pub(super) async fn keep(own: Own, dialer: Dialer, peer: Arc<Peer>) {
    let mut pause = REDIAL;
    let mut said = None;
    loop {
        let address = peer.links.lock().current();
        let dialed = timeout(DIAL_TIMEOUT, dial(&own, &dialer, peer.id, &address)).await;
        match dialed.map_err(|_| WireError::Slow).flatten() {
            Ok(connected) => {
                tracing::info!(peer = peer.id, %address, disk = %connected.disk, "broker reached");
                if !connected.hello.closed.is_empty() {
                    tracing::error!(peer = peer.id, reason = %connected.hello.closed, "this broker takes no part any more");
                }
                peer.links.lock().add(&connected.hello.link);
                hold(&peer, connected).await;
                (pause, said) = (REDIAL, None);
            }
            Err(error) => {
                let reason = error.to_string();
                if said.as_ref() != Some(&reason) {
                    tracing::warn!(peer = peer.id, %address, %reason, "broker not reached; trying on");
                    said = Some(reason);
                }
                peer.links.lock().rotate();
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(REDIAL_MAX);
    }
}

/// While a connection is up.
async fn hold(peer: &Peer, connected: Connected) {
    let connection = connected.connection.clone();
    *peer.seen.lock() = Some(Arc::clone(&connected.hello));
    peer.connected.send_replace(Some(connected));
    let elsewhere = async {
        loop {
            peer.elsewhere.notified().await;
            if peer.links.lock().known.len() > 1 {
                return;
            }
        }
    };
    let reason = tokio::select! {
        reason = connection.closed() => reason.to_string(),
        () = elsewhere => {
            peer.links.lock().rotate();
            "another of its addresses is tried".to_owned()
        }
    };
    peer.connected.send_replace(None);
    connection.close(0u32.into(), b"redial");
    tracing::warn!(peer = peer.id, %reason, "broker lost");
}

pub(super) async fn dial(own: &Own, dialer: &Dialer, id: u64, link: &str) -> Result<Connected, WireError> {
    let address = resolve(link, dialer.endpoint.local_addr().ok()).await?;
    let name = Identity { role: Role::Broker, name: id.to_string() }.dns_name();
    // the certificate is checked for that name: nobody else answers as this broker
    let connecting = dialer.endpoint.connect_with(dialer.config.clone(), address, &name);
    let connection = connecting.map_err(|error| WireError::Stream(error.to_string()))?.await?;
    let request = frames::encode(&frames::opening(Stream::Hello, PartitionId(0)), &hello(own, id));
    let exchange = async {
        let (mut sender, mut receiver) = open(&connection, PRIORITY_HIGH, DIAL_TIMEOUT).await?;
        sender.send(request).await?;
        sender.finish();
        let answer = receiver.answer().await?.ok_or(WireError::Cut)?;
        if answer.len() > HELLO_BYTES_MAX {
            return Err(frames::too_long("a hello", answer.len(), HELLO_BYTES_MAX));
        }
        let hello: pb::Hello = frames::decode(answer)?;
        let disk = check_hello(own, &hello, id).await?;
        if own.witness.is_retired(disk) {
            return Err(retired(id, disk));
        }
        // it answers only once it has compared
        own.witness.accepted(id, disk, hello.process);
        Ok((hello, disk))
    };
    match exchange.await {
        Ok((hello, disk)) => Ok(Connected { connection, disk, hello: Arc::new(hello), since: Instant::now() }),
        Err(error) => {
            connection.close(1u32.into(), error.to_string().as_bytes());
            Err(error)
        }
    }
}

/// An address of the family that the endpoint is bound to, if there is one.
async fn resolve(link: &str, bound: Option<SocketAddr>) -> Result<SocketAddr, WireError> {
    let found = tokio::net::lookup_host(link).await;
    let found: Vec<_> = found.map_err(|error| WireError::Stream(format!("{link}: {error}")))?.collect();
    let same = |address: &&SocketAddr| bound.is_none_or(|bound| bound.is_ipv4() == address.is_ipv4());
    let address = found.iter().find(same).or(found.first());
    address.copied().ok_or_else(|| WireError::Stream(format!("{link} has no address")))
}
