//! What operators change: who is a member, and who leads. Any broker takes the wish and asks the leader of each partition; every step may
//! be repeated, so that a wish that was cut short is made again.

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tokio::time::{Instant, sleep, timeout};
use trunkline_proto::{PartitionId, peer::MEMBERS_MAX, v1::peer as pb};

use super::{Node, balance::preferred};
use crate::{
    raft::{CallError, CallKind, ChangeError, Group, Member, Peers, Role},
    store::DiskId,
};

/// How long a partition may take to find a leader, and its leader a majority.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a broker may take to answer one question.
const ASK_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a broker may take to describe itself.
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Between attempts.
const RETRY: Duration = Duration::from_millis(250);
/// How long a member may take to answer its leader.
const HEARD_TIMEOUT: Duration = Duration::from_secs(3);
/// One that has been there for so long is heard by others too.
const SETTLED: Duration = Duration::from_secs(5);
/// Entries a learner may lack when it becomes a voter.
const PROMOTE_LAG_MAX: u64 = 256;

/// Why members or leaders are not as they should be. What was done stays done; the same wish again goes on from there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// The wish makes no sense, or cannot be granted now.
    #[error("{0}")]
    Refused(String),
    /// A partition has no leader, or its leader no majority.
    #[error("partition {partition}: {reason}")]
    Unavailable {
        /// Which.
        partition: PartitionId,
        /// Why.
        reason: String,
    },
    /// The new member is there and does not vote yet.
    #[error("broker {id} lacks {lag} entries of partition {partition} still: it is a learner. The same again waits on")]
    Behind {
        /// The new member.
        id: u64,
        /// Which.
        partition: PartitionId,
        /// Entries.
        lag: u64,
    },
}

type Ask = pb::admin_request::Ask;

impl Node {
    /// Makes a broker a member of every partition: it gets the log, and votes once it has caught up, within `patience`.
    ///
    /// # Errors
    /// It is not there, there are too many members, a partition has no leader, or it has not caught up.
    pub async fn add_member(&self, id: u64, link: &str, patience: Duration) -> Result<(), AdminError> {
        let deadline = Instant::now() + patience;
        let mut members = self.member_ids();
        members.insert(id);
        if id == 0 || members.len() > MEMBERS_MAX {
            let reason = format!("a cluster has at most {MEMBERS_MAX} members, numbered from 1: each holds everything");
            return Err(AdminError::Refused(reason));
        }
        let disk = match id == self.peers().own().node {
            true => self.peers().own().disk,
            false => self.peers().disk_at(id, link).await.map_err(AdminError::Refused)?,
        };
        self.peers().ensure(id, link);
        let add = pb::AddMember { id, link: link.to_owned(), disk: Bytes::copy_from_slice(&disk.0) };
        for partition in self.partition_count().iter() {
            self.ask(partition, Ask::Add(add.clone())).await?;
        }
        for partition in self.partition_count().iter() {
            loop {
                let answer = self.ask(partition, Ask::Promote(id)).await?;
                if answer.done {
                    break;
                }
                if Instant::now() >= deadline {
                    return Err(AdminError::Behind { id, partition, lag: answer.lag });
                }
                sleep(RETRY).await;
            }
        }
        tracing::info!(broker = id, link, "member added");
        Ok(())
    }

    /// Takes a broker out of every partition. One whose disk is gone may be added again.
    ///
    /// # Errors
    /// The others would be no majority, or a partition has no leader.
    pub async fn remove_member(&self, id: u64) -> Result<(), AdminError> {
        if !self.member_ids().contains(&id) {
            return Err(AdminError::Refused(format!("broker {id} is no member")));
        }
        for partition in self.partition_count().iter() {
            self.ask(partition, Ask::Remove(id)).await?;
        }
        tracing::info!(broker = id, "member removed");
        Ok(())
    }

    /// Has another broker lead a partition; waits until it does.
    ///
    /// # Errors
    /// It does not vote there, or did not take over in time.
    pub async fn transfer_leader(&self, partition: PartitionId, to: u64) -> Result<(), AdminError> {
        self.ask(partition, Ask::Transfer(to)).await?;
        let own = self.peers().own().node;
        let Some(handle) = self.partition(partition) else {
            return Err(AdminError::Refused(format!("there is no partition {partition}")));
        };
        let mut role = handle.role.clone();
        let leads = role.wait_for(|role| match role {
            Role::Leader { .. } => to == own,
            Role::Follower { leader } => *leader == Some(to),
            Role::Closed => false,
        });
        match timeout(CHANGE_TIMEOUT, leads).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(AdminError::Unavailable { partition, reason: format!("broker {to} did not take over in time") }),
        }
    }

    /// Gives every leadership away, before this broker stops; as far as somebody is there to take it.
    pub async fn hand_over(&self, patience: Duration) {
        let led: Vec<Group> = self.inner.partitions.iter().filter_map(|partition| self.led(partition.id)).collect();
        let mut moving = Vec::new();
        for group in led {
            let Some(to) = successor(&group, self.peers()) else { continue };
            match group.transfer(to).await {
                Ok(()) => moving.push(group.role()),
                Err(error) => tracing::warn!(partition = %group.partition(), %error, "leadership stays"),
            }
        }
        let moved = async {
            for mut role in moving {
                // a group that has stopped leads nothing
                let _ = role.wait_for(|role| !matches!(role, Role::Leader { .. })).await;
            }
        };
        if timeout(patience, moved).await.is_err() {
            tracing::warn!("not every leadership could be handed over in time");
        }
    }

    fn led(&self, id: PartitionId) -> Option<Group> {
        let group = self.group_of(id)?;
        matches!(*group.role().borrow(), Role::Leader { .. }).then_some(group)
    }

    /// Every member of any partition, as this broker knows it.
    fn member_ids(&self) -> std::collections::BTreeSet<u64> {
        let groups = self.partition_count().iter().filter_map(|id| self.group_of(id));
        groups.flat_map(|group| group.membership().members.into_keys()).collect()
    }

    /// What the other members say of themselves: an encoded `DescribeResponse` each, of those that answer.
    pub async fn describe_others(&self) -> Vec<(u64, Bytes)> {
        let request = pb::AdminRequest { partition: 0, ask: Some(Ask::Describe(true)) };
        let mut asking = tokio::task::JoinSet::new();
        let own = self.peers().own().node;
        for member in self.peers().members().into_iter().filter(|member| member.reachable && member.id != own) {
            let (peers, body) = (self.peers().clone(), Bytes::from(request.encode_to_vec()));
            asking.spawn(async move {
                let answer = peers.call(member.id, CallKind::Admin, body, DESCRIBE_TIMEOUT).await.ok()?;
                Some((member.id, pb::AdminResponse::decode(answer).ok()?.description))
            });
        }
        asking.join_all().await.into_iter().flatten().collect()
    }

    /// Asks a partition's leader until it has answered.
    async fn ask(&self, partition: PartitionId, ask: Ask) -> Result<pb::AdminResponse, AdminError> {
        let deadline = Instant::now() + CHANGE_TIMEOUT;
        loop {
            let answer = self.ask_once(partition, &ask).await;
            let reason = match answer {
                Ok(answer) if answer.not_leader => "it has no leader".to_owned(),
                Ok(answer) if answer.error.is_empty() => return Ok(answer),
                Ok(answer) => return Err(AdminError::Refused(format!("partition {partition}: {}", answer.error))),
                Err(reason) => reason,
            };
            if Instant::now() >= deadline {
                return Err(AdminError::Unavailable { partition, reason });
            }
            sleep(RETRY).await;
        }
    }

    async fn ask_once(&self, partition: PartitionId, ask: &Ask) -> Result<pb::AdminResponse, String> {
        let role = self.partition(partition).map(|handle| *handle.role.borrow());
        match role {
            Some(Role::Leader { .. }) | None => Ok(self.grant(partition, ask).await),
            Some(Role::Follower { leader: Some(leader) }) => self.ask_broker(leader, partition, ask).await,
            Some(Role::Follower { leader: None } | Role::Closed) => {
                // one that was removed, or is damaged here, hears no leader: the others may
                let own = self.peers().own().node;
                let others = self.peers().members().into_iter().filter(|member| member.reachable && member.id != own);
                let mut said = Ok(pb::AdminResponse { not_leader: true, ..Default::default() });
                for member in others {
                    match self.ask_broker(member.id, partition, ask).await {
                        Ok(answer) if answer.not_leader => {}
                        Ok(answer) => return Ok(answer),
                        // it may be another one that leads
                        Err(error) => said = Err(error),
                    }
                }
                said
            }
        }
    }

    async fn ask_broker(&self, id: u64, partition: PartitionId, ask: &Ask) -> Result<pb::AdminResponse, String> {
        let request = pb::AdminRequest { partition: u32::from(partition.0), ask: Some(ask.clone()) };
        let answer = self.peers().call(id, CallKind::Admin, request.encode_to_vec().into(), ASK_TIMEOUT).await;
        // each question may be asked twice
        let answer = answer.map_err(|error: CallError| error.to_string())?;
        pb::AdminResponse::decode(answer).map_err(|error| error.to_string())
    }

    /// Answers the call of another broker.
    pub async fn answer_admin<D: Future<Output = Bytes>>(&self, body: Bytes, describe: impl Fn() -> D) -> Bytes {
        let answer = match pb::AdminRequest::decode(body) {
            Ok(pb::AdminRequest { ask: Some(Ask::Describe(_)), .. }) => {
                pb::AdminResponse { done: true, description: describe().await, ..Default::default() }
            }
            Ok(pb::AdminRequest { partition, ask: Some(ask) }) => match u16::try_from(partition) {
                Ok(partition) => self.grant(PartitionId(partition), &ask).await,
                Err(error) => refused(error.to_string()),
            },
            Ok(_) => refused("nothing is asked".to_owned()),
            Err(error) => refused(error.to_string()),
        };
        answer.encode_to_vec().into()
    }

    /// Does it, if this broker leads the partition.
    async fn grant(&self, partition: PartitionId, ask: &Ask) -> pb::AdminResponse {
        let not_leader = pb::AdminResponse { not_leader: true, ..Default::default() };
        let Some(group) = self.led(partition) else { return not_leader };
        match timeout(CHANGE_TIMEOUT, self.change(&group, ask)).await {
            Ok(Ok(())) => pb::AdminResponse { done: true, ..Default::default() },
            Ok(Err(ChangeError::NotLeader { leader })) => {
                pb::AdminResponse { leader: leader.unwrap_or_default(), ..not_leader }
            }
            Ok(Err(ChangeError::Behind(lag))) => pb::AdminResponse { lag, ..Default::default() },
            Ok(Err(error)) => refused(error.to_string()),
            Err(_) => refused("no majority of its members answers; it may still come about".to_owned()),
        }
    }

    async fn change(&self, group: &Group, ask: &Ask) -> Result<(), ChangeError> {
        match ask {
            Ask::Add(add) => {
                let disk = add.disk[..].try_into().map(DiskId);
                let disk = disk.map_err(|_| ChangeError::Refused("a disk id has 16 bytes".to_owned()))?;
                self.peers().ensure(add.id, &add.link);
                group.add_learner(add.id, Member { link: add.link.clone(), disk }).await
            }
            Ask::Promote(id) => group.promote(*id, PROMOTE_LAG_MAX).await,
            Ask::Remove(id) => self.remove(group, *id).await,
            Ask::Transfer(to) if *to == self.peers().own().node => Ok(()),
            Ask::Transfer(to) => match self.peers().member(*to) {
                Some(member) if !member.reachable => {
                    Err(ChangeError::Refused(format!("broker {to} is not reachable from the leader")))
                }
                _ if self.is_closed_at(*to, group.partition()).await => {
                    Err(ChangeError::Refused(format!("the replica of broker {to} is closed: it cannot lead")))
                }
                _ => group.transfer(*to).await,
            },
            Ask::Describe(_) => Ok(()),
        }
    }

    /// Whether another broker says that its replica is closed.
    async fn is_closed_at(&self, id: u64, partition: PartitionId) -> bool {
        let status = self.peers().status(id, DESCRIBE_TIMEOUT).await;
        status.is_ok_and(|status| status.closed.contains(&u32::from(partition.0)))
    }

    async fn remove(&self, group: &Group, id: u64) -> Result<(), ChangeError> {
        let own = self.peers().own().node;
        let mut voters = group.membership().voters;
        if voters.remove(&id) {
            // a change towards members that do not answer would never end. One that is within reach may be closed; and a leader that has
            // just begun has heard nobody yet
            let begun = Instant::now();
            let reachable = |id: u64| self.peers().member(id).is_some_and(|member| member.reachable);
            let answers = |id: u64| id == own || reachable(id) && group.hears(id);
            let count = || voters.iter().filter(|id| answers(**id)).count();
            let mut answering = count();
            while answering * 2 <= voters.len() && begun.elapsed() < HEARD_TIMEOUT {
                sleep(RETRY).await;
                answering = count();
            }
            if answering * 2 <= voters.len() {
                return Err(ChangeError::Refused(format!(
                    "without broker {id}, {answering} of {} voters answer: no majority would be left",
                    voters.len()
                )));
            }
        }
        if id == own
            && let Some(to) = successor(group, self.peers())
        {
            // whoever leads next does it
            group.transfer(to).await?;
            let mut role = group.role();
            let _ = role.wait_for(|role| !matches!(role, Role::Leader { .. })).await;
            return Err(ChangeError::NotLeader { leader: Some(to) });
        }
        group.remove(id).await
    }
}

/// The preferred leader if it is there, or another voter that lacks little; one that has just come may not be heard by others yet, and one
/// that does not answer may be closed.
pub(super) fn successor(group: &Group, peers: &Peers) -> Option<u64> {
    let membership = group.membership();
    let own = peers.own().node;
    let first = preferred(group.partition(), &membership);
    let rank = |id: u64| {
        let since = peers.member(id).filter(|member| member.reachable)?.since?;
        let lag = group.lag(id)?;
        let lag = if lag > PROMOTE_LAG_MAX { lag } else { 0 };
        Some((!group.hears(id), lag, since.elapsed() < SETTLED, Some(id) != first, id))
    };
    let others = membership.voters.iter().copied().filter(|id| *id != own);
    others.filter_map(rank).min().map(|(.., id)| id)
}

fn refused(error: String) -> pb::AdminResponse {
    pb::AdminResponse { error, ..Default::default() }
}
