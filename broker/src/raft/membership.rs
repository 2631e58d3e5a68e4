//! Who is in a group: forming it, adding and removing members, moving leadership.

use std::collections::{BTreeMap, BTreeSet};

use openraft::{
    ChangeMembers, Instant as _,
    errors::{ClientWriteError, InitializeError, RaftError},
    type_config::async_runtime::watch::WatchReceiver as _,
};
use trunkline_proto::peer::MEMBERS_MAX;

use super::{
    Group,
    group::UNHEARD,
    peers::LINK_BYTES_MAX,
    types::{Member, Types},
};

/// A group's members.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Membership {
    /// Those that vote. While it changes: those of both sides.
    pub voters: BTreeSet<u64>,
    /// Voters and learners.
    pub members: BTreeMap<u64, Member>,
}

impl Membership {
    /// Those that get the log and do not vote.
    pub fn learners(&self) -> impl Iterator<Item = u64> {
        self.members.keys().copied().filter(|id| !self.voters.contains(id))
    }
}

/// Why a membership or a leadership was not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Nothing happened: ask the leader.
    #[error("not the leader of this partition, try broker {leader:?}")]
    NotLeader {
        /// Who, if known.
        leader: Option<u64>,
    },
    /// It cannot be so, or not now.
    #[error("{0}")]
    Refused(String),
    /// A learner lacks that many entries still.
    #[error("it lacks {0} entries still")]
    Behind(u64),
    /// The group has stopped.
    #[error("the partition's group has stopped: {0}")]
    Stopped(String),
}

fn change_error(error: RaftError<Types, ClientWriteError<Types>>) -> ChangeError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
            ChangeError::NotLeader { leader: forward.leader_id }
        }
        RaftError::APIError(error) => ChangeError::Refused(error.to_string()),
        RaftError::Fatal(error) => ChangeError::Stopped(error.to_string()),
    }
}

impl Group {
    /// Who is in it, as far as this broker's log goes.
    pub fn membership(&self) -> Membership {
        let metrics = self.raft().server_metrics();
        let stored = metrics.borrow_watched().membership_config.clone();
        let membership = stored.membership();
        Membership {
            voters: membership.voter_ids().collect(),
            members: membership.nodes().map(|(id, member)| (*id, member.clone())).collect(),
        }
    }

    /// A member of it.
    pub fn member(&self, id: u64) -> Option<Member> {
        let metrics = self.raft().server_metrics();
        let stored = metrics.borrow_watched().membership_config.clone();
        stored.membership().get_node(&id).cloned()
    }

    /// Whether it has members at all.
    pub fn is_formed(&self) -> bool {
        let metrics = self.raft().server_metrics();
        let stored = metrics.borrow_watched().membership_config.clone();
        stored.membership().nodes().next().is_some()
    }

    /// Forms it. Only one broker of a cluster may, and only when none has.
    pub async fn form(&self, founders: BTreeMap<u64, Member>) -> Result<(), ChangeError> {
        match self.raft().initialize(founders).await {
            // somebody was faster: it is formed, which is what was wanted
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(RaftError::APIError(error)) => Err(ChangeError::Refused(error.to_string())),
            Err(RaftError::Fatal(error)) => Err(ChangeError::Stopped(error.to_string())),
        }
    }

    /// Has the leader, this broker, send its log to a broker that does not vote yet. The same again changes nothing.
    pub async fn add_learner(&self, id: u64, member: Member) -> Result<(), ChangeError> {
        match self.member(id) {
            Some(known) if known.disk == member.disk => return Ok(()),
            Some(known) => {
                return Err(ChangeError::Refused(format!(
                    "broker {id} is a member with disk {}, this one has {}: remove it first",
                    known.disk, member.disk
                )));
            }
            None => {}
        }
        let members = self.membership().members.len();
        if members >= MEMBERS_MAX {
            return Err(ChangeError::Refused(format!("there are {members} members; at most {MEMBERS_MAX} may be")));
        }
        if member.link.is_empty() || member.link.len() > LINK_BYTES_MAX {
            return Err(ChangeError::Refused(format!("an address has 1 to {LINK_BYTES_MAX} bytes")));
        }
        self.raft().add_learner(id, member, false).await.map(drop).map_err(change_error)
    }

    /// Entries a member lacks, as its leader sees it; `None` where this broker does not lead, or knows nothing yet.
    pub fn lag(&self, id: u64) -> Option<u64> {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        let matched = metrics.replication.as_ref()?.get(&id)?.as_ref()?.index;
        Some(metrics.last_log_index.unwrap_or_default().saturating_sub(matched))
    }

    /// Whether a member has answered its leader, this broker, lately.
    pub fn hears(&self, id: u64) -> bool {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        let heard = metrics.heartbeat.as_ref().and_then(|heard| heard.get(&id).copied().flatten());
        heard.is_some_and(|at| at.elapsed() < UNHEARD)
    }

    /// Makes a learner a voter, once it has caught up to within `lag_max`.
    pub async fn promote(&self, id: u64, lag_max: u64) -> Result<(), ChangeError> {
        if self.membership().voters.contains(&id) {
            return Ok(());
        }
        match self.lag(id) {
            Some(lag) if lag <= lag_max => {}
            Some(lag) => return Err(ChangeError::Behind(lag)),
            None => return Err(ChangeError::Behind(u64::MAX)),
        }
        let change = ChangeMembers::AddVoterIds(BTreeSet::from([id]));
        self.raft().change_membership(change, true).await.map(drop).map_err(change_error)
    }

    /// Takes a member out. Others must be able to go on without it.
    pub async fn remove(&self, id: u64) -> Result<(), ChangeError> {
        let membership = self.membership();
        if !membership.members.contains_key(&id) {
            return Ok(());
        }
        let change = match membership.voters.contains(&id) {
            true if membership.voters.len() == 1 => {
                return Err(ChangeError::Refused(format!("broker {id} is the partition's only voter")));
            }
            true => ChangeMembers::RemoveVoters(BTreeSet::from([id])),
            false => ChangeMembers::RemoveNodes(BTreeSet::from([id])),
        };
        self.raft().change_membership(change, false).await.map(drop).map_err(change_error)
    }

    /// Rewrites what the group knows of a member: its address, never its disk.
    pub async fn rename(&self, id: u64, member: Member) -> Result<(), ChangeError> {
        let change = ChangeMembers::SetNodes(BTreeMap::from([(id, member)]));
        self.raft().change_membership(change, true).await.map(drop).map_err(change_error)
    }

    /// Asks a voter to take over. It does once it has all there is; whether it did, roles tell.
    pub async fn transfer(&self, to: u64) -> Result<(), ChangeError> {
        if !self.membership().voters.contains(&to) {
            return Err(ChangeError::Refused(format!("broker {to} has no vote in partition {}", self.partition())));
        }
        self.raft().trigger().transfer_leader(to).await.map_err(|error| ChangeError::Stopped(error.to_string()))
    }
}
