//! What the link asks of a partition's state, each under a lock held for microseconds.

use std::collections::BTreeSet;

use trunkline_proto::{Offset, v1};

use super::grace::Incarnation;
use crate::core::{EdgeIndex, Partition};

/// An edge as a partition knows it, taken out from under the lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct EdgeView {
    /// Its number here.
    pub(super) index: EdgeIndex,
    /// Its newest incarnation.
    pub(super) incarnation: u64,
    /// Whether that one is lost.
    pub(super) lost: bool,
    /// The last batch of that incarnation that is applied.
    pub(super) last_sequence: u64,
    /// Where it attached: no earlier delivery concerns it.
    pub(super) attached: Offset,
}

/// The edge of that name, if it has ever attached.
pub(super) fn edge(state: &Partition, name: &str) -> Option<EdgeView> {
    let (index, edge) = (state.edge_index(name)?, state.edge(name)?);
    (edge.incarnation > 0).then_some(EdgeView {
        index,
        incarnation: edge.incarnation,
        lost: edge.lost,
        last_sequence: edge.last_sequence,
        attached: edge.attached_offset,
    })
}

/// Every incarnation that is not lost.
pub(super) fn live_edges(state: &Partition) -> Vec<Incarnation> {
    let live = state.edges().filter(|(_, edge)| edge.incarnation > 0 && !edge.lost);
    live.map(|(_, edge)| Incarnation { edge: edge.name.to_owned(), number: edge.incarnation }).collect()
}

/// Events the group is behind; `None`: no such group.
pub(super) fn group_lag(state: &Partition, group: &str) -> Option<u64> {
    state.group(group).map(|group| group.lag)
}

/// The edges with members of a publish's channel; `None`, all of them, for an API-wide publish.
pub(super) fn wanting(state: &Partition, publish: &v1::Published) -> Option<BTreeSet<String>> {
    if publish.channel.is_empty() {
        return None;
    }
    let edges: BTreeSet<EdgeIndex> = state.channel_edges(&publish.channel).collect();
    Some(edges.into_iter().map(|edge| state.edge_name(edge).to_owned()).collect())
}
