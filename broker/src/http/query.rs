//! Reading partitions' states for answers, in slices: nobody holds a state's lock for longer than it takes to look at some
//! thousand connections.

use std::collections::BinaryHeap;

use trunkline_proto::{ConnectionId, PartitionId};

use super::problem::Problem;
use crate::node::{Node, PartitionHandle, Role};

/// Connections looked at under one lock.
const SLICE: usize = 2048;

/// A partition whose state here is the newest there is, because this broker leads it.
pub(super) fn led(node: &Node, id: PartitionId) -> Result<&PartitionHandle, Problem> {
    let partition = node.partition(id).ok_or_else(|| Problem::unavailable(format!("partition {id} is not here")))?;
    match *partition.role.borrow() {
        Role::Leader { .. } => Ok(partition),
        Role::Follower { .. } => Err(Problem::unavailable(format!("partition {id} has no leader here"))),
        Role::Closed => Err(Problem::unavailable(format!("partition {id} is closed"))),
    }
}

/// Ids of up to `limit` open connections after `after`, by partition and id; with an API only its own.
pub(super) async fn connections(
    node: &Node,
    api: &str,
    after: Option<ConnectionId>,
    limit: usize,
) -> Result<Vec<ConnectionId>, Problem> {
    let first = after.map_or(PartitionId(0), |id| id.partition(node.partition_count()));
    let mut found = Vec::new();
    for id in node.partition_count().iter().skip(usize::from(first.0)) {
        let partition = led(node, id)?;
        let mut after = after.filter(|_| id == first);
        while found.len() < limit {
            let (mut seen, mut last) = (0, after);
            {
                let state = partition.state.read();
                for connection in state.connections_after(after).take(SLICE) {
                    seen += 1;
                    last = Some(connection.id);
                    if api.is_empty() || connection.api == api {
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
pub(super) fn members(
    node: &Node,
    channel: &str,
    after: Option<ConnectionId>,
    limit: usize,
) -> Result<(usize, Vec<ConnectionId>), Problem> {
    let partition = led(node, node.partition_count().of_name(channel))?;
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
