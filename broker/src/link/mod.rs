//! The edge link: QUIC with mutual TLS, one connection an edge, a control stream and one stream a partition.
//!
//! Steps 4 (`inbound.rs`) and 17 (`outbound.rs`) of the walk; `sessions.rs` knows who is there, `watch.rs` closes what the lost left.

mod frames;
pub mod grace;
mod inbound;
mod outbound;
mod pause;
pub mod sequencer;
mod session;
pub mod sessions;
mod stream;
#[cfg(test)]
pub(crate) mod tests;
mod view;
mod watch;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;
use trunkline_proto::{
    PartitionId, Record,
    v1::{self, link as pb},
};

use crate::{
    core::expand,
    node::{Node, PartitionHandle, Role},
    quic::Handler,
    submit::UnloggedSink,
};
pub use sessions::Sessions;
pub use watch::watch;

/// What the link is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This broker.
    pub broker: u64,
    /// The cluster's name; edges refuse another.
    pub cluster: String,
    /// Silence after which an edge is lost.
    pub grace: Duration,
    /// Edges linked at once.
    pub edges_max: usize,
    /// Bytes of one edge's batches for one partition on their way through the log.
    pub in_flight_bytes: u32,
}

/// The link of one broker.
#[derive(Debug)]
pub struct Link {
    /// The broker's partitions.
    pub node: Node,
    /// As configured.
    pub settings: Settings,
    /// Who is there.
    pub sessions: Arc<Sessions>,
    /// Ends everything, politely.
    pub shutdown: CancellationToken,
}

/// Serves edges' connections.
pub fn handler(link: Arc<Link>) -> Handler {
    Arc::new(move |accepted| Box::pin(session::serve(Arc::clone(&link), accepted)))
}

impl Link {
    /// Who leads which partition, as edges are told.
    fn leaders(&self) -> Vec<pb::Leader> {
        let leaders = self.node.leaders().into_iter();
        leaders
            .map(|(partition, broker, address)| pb::Leader {
                partition: u32::from(partition.0),
                broker,
                address: address.unwrap_or_default(),
            })
            .collect()
    }

    /// Where every other broker's link listens: an edge that knows only one would be lost with it.
    fn brokers(&self) -> Vec<pb::BrokerLink> {
        let others = self.node.peers().members().into_iter().filter(|member| member.id != self.settings.broker);
        others.map(|member| pb::BrokerLink { broker: member.id, address: member.link }).collect()
    }

    /// Where a broker's link listens; empty if nobody knows.
    fn address_of(&self, broker: u64) -> String {
        self.node.peers().member(broker).map(|member| member.link).unwrap_or_default()
    }

    fn leads(&self, id: PartitionId) -> Option<&PartitionHandle> {
        self.node.partition(id).filter(|partition| matches!(*partition.role.borrow(), Role::Leader { .. }))
    }

    /// Sends a `Published` record that skips the log to the edges with members. At most once: an edge whose queue is full misses it,
    /// and nothing is sent where this broker does not lead the partition.
    pub fn publish_unlogged(&self, record: &Record) {
        let Ok(publish) = record.decode::<v1::Published>() else { return };
        let owner = expand::owner_of_publish(self.node.partition_count(), &publish);
        let Some(partition) = self.leads(owner) else { return };
        let wanting = view::wanting(&partition.state.read(), &publish);
        let wants = |edge: &str| wanting.as_ref().is_none_or(|edges| edges.contains(edge));
        self.sessions.publish_unlogged(owner, record, wants);
    }

    /// By edge, how many records its slowest cursor has to go.
    pub fn lags(&self) -> BTreeMap<String, u64> {
        watch::lags(self)
    }
}

impl UnloggedSink for Link {
    fn publish(&self, record: Record) {
        self.publish_unlogged(&record);
    }
}
