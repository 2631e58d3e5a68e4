//! What the link asks of a partition's state, each under a lock held for microseconds.

use trunkline_proto::{ConnectionId, Offset, Record};

use super::grace::Incarnation;
use crate::core::{EdgeIndex, Partition};

/// An edge as a partition knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EdgeView {
    /// Its number here.
    pub index: EdgeIndex,
    /// Its newest incarnation.
    pub incarnation: u64,
    /// Whether that one is lost.
    pub lost: bool,
    /// The last batch of that incarnation that is applied.
    pub last_sequence: u64,
    /// Where it attached: no earlier delivery concerns it.
    pub attached: Offset,
}

/// The edge of that name, if it has ever attached.
pub fn edge(state: &Partition, name: &str) -> Option<EdgeView> {
    unimplemented!()
}

/// Every incarnation that is not lost.
pub fn live_edges(state: &Partition) -> Vec<Incarnation> {
    unimplemented!()
}

/// Connections of lost or replaced incarnations that have no closed record yet, at most `max`, each with its API.
pub fn obligations(state: &Partition, max: usize) -> Vec<(ConnectionId, String)> {
    unimplemented!()
}

/// Events the group is behind on an API; `None`: no such group.
pub fn group_lag(state: &Partition, group: &str, api: &str) -> Option<u64> {
    unimplemented!()
}

/// The edges with members of a channel; `None`, all of them, for an API-wide publish.
pub fn wanting(state: &Partition, channel: &str) -> Option<Vec<String>> {
    unimplemented!()
}
