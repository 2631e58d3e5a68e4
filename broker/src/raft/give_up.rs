//! Leaving a group whose disk can no longer be trusted: if this broker leads it, another one is asked to take over at once, in place of
//! being missed for an election timeout. openraft's own transfer is of no use here: its core has stopped, or is about to.

use std::time::Duration;

use openraft::{raft::TransferLeaderRequest, type_config::async_runtime::watch::WatchReceiver as _};
use tokio::{task::JoinSet, time::timeout};
use trunkline_proto::peer::Stream as Kind;

use super::{Group, Peers, frames, peers, wire};

/// How long the others may take to hear of it; they would notice by themselves soon after.
const PATIENCE: Duration = Duration::from_millis(1000);

impl Group {
    /// Hands leadership on as well as can be and stops the group. Nothing is read or written for that.
    pub async fn give_up(&self, to: Option<u64>, peers: &Peers) {
        if let Some(to) = to {
            // whoever does not hear it denies its vote for as long as its lease on this leader lasts
            if timeout(PATIENCE, self.abdicate(to, peers)).await.is_err() {
                tracing::warn!(partition = %self.partition(), to, "not every broker was told that this one leads no more");
            }
        }
        self.shutdown().await;
    }

    /// Tells every voter that `to` is to lead.
    async fn abdicate(&self, to: u64, peers: &Peers) {
        let (own, partition) = (peers.own().node, self.partition());
        let vote = self.raft().server_metrics().borrow_watched().vote;
        if vote.leader_id.voted_for != own || !vote.committed {
            return;
        }
        // whether it has all there is, the others' votes decide
        let request = wire::transfer(&TransferLeaderRequest::new(vote, to, None));
        let membership = self.membership();
        let mut telling = JoinSet::new();
        // the next leader last: it asks for the votes of those that were told
        let others = membership.voters.iter().filter(|id| **id != own && **id != to);
        for id in others.chain([&to]) {
            let Some(Ok((connected, _))) = membership.members.get(id).map(|member| peers.connected(*id, member)) else {
                continue;
            };
            let request = frames::encode(&frames::opening(Kind::TransferLeader, partition), &request);
            let id = *id;
            let told = async move { (id, peers::unary(&connected.connection, request, PATIENCE).await) };
            if id == to {
                while telling.join_next().await.is_some() {}
            }
            telling.spawn(told);
        }
        while let Some(told) = telling.join_next().await {
            if let Ok((id, Err(error))) = told {
                tracing::warn!(%partition, id, %error, "a broker was not told that this one leads no more");
            }
        }
    }
}
