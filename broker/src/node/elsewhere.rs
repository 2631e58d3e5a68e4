//! Who leads the partitions whose replica here is closed: no group tells this broker any more, so it asks the others. Commands and
//! forwards for them go there.

use std::{collections::BTreeMap, time::Duration};

use prost::Message as _;
use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
};
use trunkline_proto::{PartitionId, v1::peer as pb};

use super::{Node, PartitionHandle};
use crate::raft::{CallKind, Peers, Role};

/// How often the others are asked, while a partition is closed.
const INTERVAL: Duration = Duration::from_millis(500);
/// Closed partitions that are asked about at once.
const ASKING_MAX: usize = 16;
/// How long one may take to answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// Leaders by partition; those of closed ones alone.
pub(super) type Leaders = BTreeMap<PartitionId, u64>;

impl Node {
    /// The other broker that leads a partition, if one does as far as this broker knows.
    pub fn other_leader(&self, id: PartitionId) -> Option<u64> {
        match *self.partition(id)?.role.borrow() {
            Role::Leader { .. } => None,
            Role::Follower { leader } => leader,
            Role::Closed => self.inner.elsewhere.borrow().get(&id).copied(),
        }
    }

    /// As [`Node::other_leader`], of a partition that is closed here: waits until it is found, if there is anybody to ask.
    pub async fn find_leader(&self, id: PartitionId, patience: Duration) -> Option<u64> {
        if self.peers().members().len() > 1 {
            let mut elsewhere = self.inner.elsewhere.subscribe();
            // whatever comes of it is looked at next
            let _ = tokio::time::timeout(patience, elsewhere.wait_for(|leaders| leaders.contains_key(&id))).await;
        }
        self.other_leader(id)
    }
}

/// Runs until dropped.
pub(super) async fn run(peers: Peers, partitions: Vec<PartitionHandle>, found: watch::Sender<Leaders>) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        let closed = partitions.iter().filter(|partition| *partition.role.borrow() == Role::Closed);
        let closed: Vec<_> = closed.map(|partition| partition.id).collect();
        let mut asking = JoinSet::new();
        for id in &closed {
            if asking.len() >= ASKING_MAX {
                note(asking.join_next().await, &found);
            }
            asking.spawn(find(peers.clone(), *id, found.borrow().get(id).copied()));
        }
        // each is told as soon as it is known: one that nobody answers for holds up no other
        while let Some(answer) = asking.join_next().await {
            note(Some(answer), &found);
        }
    }
}

fn note(answer: Option<Result<(PartitionId, Option<u64>), JoinError>>, found: &watch::Sender<Leaders>) {
    // none of them is aborted, and a panic is reported where it happens
    let Some(Ok((id, leader))) = answer else { return };
    found.send_if_modified(|known| match leader {
        Some(leader) => known.insert(id, leader) != Some(leader),
        None => known.remove(&id).is_some(),
    });
}

/// Who leads a partition: the one that did, or whoever says so.
async fn find(peers: Peers, id: PartitionId, known: Option<u64>) -> (PartitionId, Option<u64>) {
    let leader = match known {
        Some(known) if leads(&peers, known, id).await => Some(known),
        _ => ask_all(&peers, id).await,
    };
    (id, leader)
}

async fn ask_all(peers: &Peers, id: PartitionId) -> Option<u64> {
    let own = peers.own().node;
    let mut asking = JoinSet::new();
    for member in peers.members().into_iter().filter(|member| member.reachable && member.id != own) {
        let peers = peers.clone();
        asking.spawn(async move { leads(&peers, member.id, id).await.then_some(member.id) });
    }
    while let Some(answer) = asking.join_next().await {
        // none of them is aborted, and a panic is reported where it happens
        if let Ok(Some(leader)) = answer {
            return Some(leader);
        }
    }
    None
}

/// Only a leader that a majority answers says how far the log goes.
async fn leads(peers: &Peers, broker: u64, id: PartitionId) -> bool {
    let request = pb::ReadIndexRequest { partition: u32::from(id.0) };
    let answer = peers.call(broker, CallKind::ReadIndex, request.encode_to_vec().into(), ASK_TIMEOUT).await;
    let answer = answer.ok().and_then(|answer| pb::ReadIndexResponse::decode(answer).ok());
    answer.is_some_and(|answer| answer.error.is_empty() && answer.index > 0)
}
