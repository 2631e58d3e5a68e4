//! Reading partitions' states for answers: from this broker's replicas, once they are as new as the question; in slices, so that
//! nobody holds a state's lock for longer than it takes to look at some thousand connections.

use std::collections::BinaryHeap;

use trunkline_proto::{ConnectionId, PartitionId};

use super::problem::Problem;
use crate::node::{Node, PartitionHandle};

/// Connections looked at under one lock.
const SLICE: usize = 2048;

/// A partition whose state here holds everything that was acknowledged before the call.
pub(super) async fn current(node: &Node, id: PartitionId) -> Result<&PartitionHandle, Problem> {
    node.current([id]).await?;
    node.partition(id).ok_or_else(|| Problem::unavailable(format!("partition {id} is not here")))
}

/// Ids of up to `limit` open connections after `after`, by partition and id, of the APIs that are wanted.
pub(super) async fn connections(
    node: &Node,
    is_wanted: impl Fn(&str) -> bool,
    after: Option<ConnectionId>,
    limit: usize,
) -> Result<Vec<ConnectionId>, Problem> {
    let first = after.map_or(PartitionId(0), |id| id.partition(node.partition_count()));
    let mut found = Vec::new();
    for id in node.partition_count().iter().skip(usize::from(first.0)) {
        let partition = current(node, id).await?;
        let mut after = after.filter(|_| id == first);
        while found.len() < limit {
            let (mut seen, mut last) = (0, after);
            {
                let state = partition.state.read();
                for connection in state.connections_after(after).take(SLICE) {
                    seen += 1;
                    last = Some(connection.id);
                    if is_wanted(connection.api) {
                        found.push(connection.id);
                        if found.len() == limit {
                            break;
                        }
                    }
                }
            }
            after = last;
            if seen < SLICE {
                break;
            }
            tokio::task::yield_now().await;
        }
        if found.len() == limit {
            break;
        }
    }
    Ok(found)
}

/// Members of a channel: how many there are, and the `limit` smallest ids after `after`.
pub(super) async fn members(
    node: &Node,
    channel: &str,
    after: Option<ConnectionId>,
    limit: usize,
) -> Result<(usize, Vec<ConnectionId>), Problem> {
    let partition = current(node, node.partition_count().of_name(channel)).await?;
    let state = partition.state.read();
    let (mut count, mut smallest) = (0, BinaryHeap::with_capacity(limit.min(1024) + 1));
    for id in state.channel_members(channel) {
        count += 1;
        if after.is_none_or(|after| id > after) {
            smallest.push(id);
            if smallest.len() > limit {
                smallest.pop();
            }
        }
    }
    Ok((count, smallest.into_sorted_vec()))
}
