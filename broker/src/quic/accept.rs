//! Accepts connections within bounds, finishes their handshakes, and hands them on by what they are for.

use std::{pin::Pin, sync::Arc, time::Duration};

use ::metrics::counter;
use quinn::VarInt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use trunkline_quic::{Identity, IdentityError};

use super::tls::{self, Purpose};
use crate::metrics::link as names;

/// Handshakes under way above which an address must prove that it is the sender's.
const HANDSHAKES_UNPROVEN: usize = 64;
/// Handshakes under way above which new ones are refused.
pub(super) const HANDSHAKES_MAX: usize = 256;
/// A handshake must end within this.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// What edges' sessions may take to end once told to.
const DRAIN: Duration = Duration::from_secs(6);

/// A connection whose handshake is done.
#[derive(Debug)]
pub struct Accepted {
    /// The connection.
    pub connection: quinn::Connection,
    /// Who is at the other end, by its certificate.
    pub identity: Identity,
    /// Its place among the handshakes, to be given back once it has said hello.
    pub permit: OwnedSemaphorePermit,
}

/// Serves a connection to its end.
pub type Handler = Arc<dyn Fn(Accepted) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// Who serves what.
pub struct Handlers {
    /// Edges' links.
    pub edges: Handler,
    /// Other brokers. Their handler ends them by itself: Raft goes on while edges are told to leave.
    pub peers: Handler,
    /// Links at once.
    pub edges_max: usize,
}

impl std::fmt::Debug for Handlers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handlers").field("edges_max", &self.edges_max).finish_non_exhaustive()
    }
}

/// Why a connection never began.
#[derive(Debug, thiserror::Error)]
enum RefusedError {
    #[error("handshake: {0}")]
    Handshake(#[from] quinn::ConnectionError),
    #[error("handshake took too long")]
    Slow,
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("no protocol was agreed on")]
    Protocol,
}

/// Accepts until shutdown, then waits a little for edges' sessions to end. The endpoint stays open.
pub async fn serve(endpoint: quinn::Endpoint, handlers: Handlers, shutdown: CancellationToken) {
    let handlers = Arc::new(handlers);
    let edges = TaskTracker::new();
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            () = shutdown.cancelled() => break,
        };
        let Some(incoming) = incoming else { break };
        accept(&handlers, incoming, &handshakes, &edges);
    }
    // nobody new; those that are here are being told
    endpoint.set_server_config(None);
    edges.close();
    let _ = timeout(DRAIN, edges.wait()).await;
}

fn accept(handlers: &Arc<Handlers>, incoming: quinn::Incoming, handshakes: &Arc<Semaphore>, edges: &TaskTracker) {
    let busy = || counter!(names::LINK_REFUSED_TOTAL, "reason" => "busy").increment(1);
    if edges.len() >= handlers.edges_max + HANDSHAKES_MAX {
        busy();
        return incoming.refuse();
    }
    let under_way = HANDSHAKES_MAX - handshakes.available_permits();
    if under_way >= HANDSHAKES_UNPROVEN && !incoming.remote_address_validated() && incoming.may_retry() {
        // cannot fail: it may be retried
        let _ = incoming.retry();
        return;
    }
    let Ok(permit) = handshakes.clone().try_acquire_owned() else {
        busy();
        return incoming.refuse();
    };
    // its certificate or transport parameters are broken: nothing was promised yet
    let Ok(connecting) = incoming.accept() else {
        counter!(names::LINK_REFUSED_TOTAL, "reason" => "handshake").increment(1);
        return;
    };
    let (handlers, tracked) = (Arc::clone(handlers), edges.clone());
    tokio::spawn(async move {
        match handshake(connecting, permit).await {
            Ok((accepted, Purpose::Link)) => drop(tracked.spawn((handlers.edges)(accepted))),
            Ok((accepted, Purpose::Peer)) => (handlers.peers)(accepted).await,
            Err(refused) => {
                let reason = if matches!(refused, RefusedError::Identity(_)) { "identity" } else { "handshake" };
                counter!(names::LINK_REFUSED_TOTAL, "reason" => reason).increment(1);
                tracing::debug!(%refused, "connection refused");
            }
        }
    });
}

async fn handshake(
    connecting: quinn::Connecting,
    permit: OwnedSemaphorePermit,
) -> Result<(Accepted, Purpose), RefusedError> {
    let connection = timeout(HANDSHAKE_TIMEOUT, connecting).await.map_err(|_| RefusedError::Slow)??;
    let known = Identity::of_peer(&connection)
        .map_err(RefusedError::from)
        .and_then(|identity| Ok((identity, tls::purpose(&connection).ok_or(RefusedError::Protocol)?)));
    match known {
        Ok((identity, purpose)) => Ok((Accepted { connection, identity, permit }, purpose)),
        Err(refused) => {
            connection.close(VarInt::from_u32(1), refused.to_string().as_bytes());
            Err(refused)
        }
    }
}
