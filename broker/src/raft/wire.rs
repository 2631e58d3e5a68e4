//! openraft's requests and answers as the messages of `peer.proto`, and back. What comes from a peer is checked here: openraft takes
//! requests at their word, and a group that panicked over one would be down.

use openraft::{
    EntryPayload, Membership,
    entry::RaftEntry,
    raft::{
        AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderError, TransferLeaderRequest,
        TransferLeaderResponse, VoteRequest, VoteResponse,
    },
    vote::RaftLeaderId,
};
use trunkline_proto::{LogIndex, PartitionId, v1::peer as pb};

use super::{
    frames::WireError,
    peers::PEERS_MAX,
    types::{self, CommittedLeader, Entry, LogId, Member, Types, Vote},
};
use crate::store::{DiskId, Manifest, record};

/// Terms of a peer above this are refused: one is added at each election, and the last number would be the last election. At one a
/// second it is reached after nine million years.
const TERM_MAX: u64 = (1 << 48) - 1;

/// Largest state of a partition that is taken from a peer: the receiver holds its bytes in memory, once, while it checks and installs
/// it, and receives one at a time.
pub(super) const SNAPSHOT_BYTES_MAX: u64 = 16 << 30;

fn invalid(what: impl Into<String>) -> WireError {
    WireError::Invalid(what.into())
}

pub(super) fn log_id(id: &LogId) -> pb::LogId {
    pb::LogId { term: id.committed_leader_id().term, index: id.index }
}

fn check_term(term: u64) -> Result<(), WireError> {
    match term <= TERM_MAX {
        true => Ok(()),
        false => Err(invalid(format!("term {term}; at most {TERM_MAX} is taken"))),
    }
}

/// Whatever is computed from a log id that passes stays within its number, and within an offset.
fn check_log_id(id: LogId) -> Result<LogId, WireError> {
    check_term(id.committed_leader_id().term)?;
    match LogIndex(id.index) <= LogIndex::MAX {
        true => Ok(id),
        false => Err(invalid(format!("log index {}; at most {} is taken", id.index, LogIndex::MAX))),
    }
}

fn from_log_id(id: pb::LogId) -> Result<LogId, WireError> {
    check_log_id(LogId::new(CommittedLeader::new(id.term), id.index))
}

/// Somebody votes, and everybody in it can be kept a connection to.
fn check_membership(membership: &Membership<u64, Member>) -> Result<(), WireError> {
    let (configs, nodes) = (membership.get_joint_config(), membership.nodes().count());
    match !configs.is_empty() && nodes <= PEERS_MAX {
        true => Ok(()),
        false => Err(invalid(format!(
            "a membership of {nodes} brokers in {} configurations; at most {PEERS_MAX} in at least one are taken",
            configs.len()
        ))),
    }
}

fn from_optional(id: Option<pb::LogId>) -> Result<Option<LogId>, WireError> {
    id.map(from_log_id).transpose()
}

pub(super) fn vote(vote: &Vote) -> pb::Vote {
    pb::Vote { term: vote.leader_id.term, node: vote.leader_id.voted_for, committed: vote.committed }
}

pub(super) fn from_vote(vote: Option<pb::Vote>) -> Result<Vote, WireError> {
    let vote = vote.ok_or_else(|| invalid("a vote is missing"))?;
    check_term(vote.term)?;
    Ok(Vote {
        leader_id: openraft::impls::leader_id_std::LeaderId::new(vote.term, vote.node),
        committed: vote.committed,
    })
}

/// The vote of who leads: it is `from` itself, and a majority has granted it.
fn leader_vote(found: Option<pb::Vote>, from: u64) -> Result<Vote, WireError> {
    let vote = from_vote(found)?;
    match vote.committed && vote.leader_id.voted_for == from {
        true => Ok(vote),
        false => Err(invalid(format!("vote {vote} is not that of a leader at broker {from}"))),
    }
}

pub(super) fn append(partition: PartitionId, request: &AppendEntriesRequest<Types>) -> pb::Append {
    let entries = request.entries.iter().map(|entry| pb::Entry {
        index: entry.index(),
        stored: record::encode_entry(partition, &types::to_stored_entry(entry)).into(),
    });
    pb::Append {
        vote: Some(vote(&request.vote)),
        previous: request.prev_log_id.as_ref().map(log_id),
        commit: request.leader_commit.as_ref().map(log_id),
        entries: entries.collect(),
    }
}

/// Checks every checksum, and that the entries follow each other and what is before them.
pub(super) fn from_append(
    partition: PartitionId,
    from: u64,
    request: pb::Append,
) -> Result<AppendEntriesRequest<Types>, WireError> {
    let vote = leader_vote(request.vote, from)?;
    let (prev_log_id, leader_commit) = (from_optional(request.previous)?, from_optional(request.commit)?);
    let mut last = prev_log_id;
    let mut entries: Vec<Entry> = Vec::with_capacity(request.entries.len());
    for entry in request.entries {
        let index = LogIndex(entry.index);
        let damaged = |reason: String| invalid(format!("partition {partition} index {index}: {reason}"));
        let stored =
            record::decode_entry(partition, index, &entry.stored).map_err(|error| damaged(error.to_string()))?;
        let entry = types::from_stored_entry(&stored).map_err(|error| damaged(error.to_string()))?;
        let id = check_log_id(entry.log_id())?;
        if let EntryPayload::Membership(membership) = &entry.payload {
            check_membership(membership)?;
        }
        let follows = last.map_or(id.index == 0, |last| id.index == last.index + 1 && id > last);
        if !follows || id.committed_leader_id().term > vote.leader_id.term {
            return Err(damaged(format!("entry {id} does not follow {last:?} under vote {vote}")));
        }
        last = Some(id);
        entries.push(entry);
    }
    Ok(AppendEntriesRequest { vote, prev_log_id, entries, leader_commit })
}

pub(super) fn appended(result: &StreamAppendResult<Types>) -> pb::Appended {
    use pb::appended::Result as Wire;
    let result = match result {
        Ok(last) => Wire::Matched(pb::Matched { last: last.as_ref().map(log_id) }),
        Err(StreamAppendError::Conflict(at)) => Wire::Conflict(log_id(at)),
        Err(StreamAppendError::HigherVote(higher)) => Wire::Higher(vote(higher)),
    };
    pb::Appended { result: Some(result) }
}

/// What an append came to. Nobody can have matched more than what was `sent`, nor conflict with anything but what it `followed`.
pub(super) fn from_appended(
    answer: pb::Appended,
    followed: Option<LogId>,
    sent: Option<LogId>,
) -> Result<StreamAppendResult<Types>, WireError> {
    use pb::appended::Result as Wire;
    match answer.result.ok_or_else(|| invalid("an append's answer is empty"))? {
        Wire::Matched(matched) => match from_optional(matched.last)? {
            // of a lower term and yet further would be another log
            last if last <= sent && last.map(|last| last.index) <= sent.map(|sent| sent.index) => Ok(Ok(last)),
            last => Err(invalid(format!("matched {last:?}, but only {sent:?} was sent"))),
        },
        Wire::Conflict(at) => match from_log_id(at)? {
            at if followed == Some(at) => Ok(Err(StreamAppendError::Conflict(at))),
            at => Err(invalid(format!("conflict at {at}, but what was sent follows {followed:?}"))),
        },
        Wire::Higher(higher) => Ok(Err(StreamAppendError::HigherVote(from_vote(Some(higher))?))),
    }
}

pub(super) fn vote_request(request: &VoteRequest<Types>) -> pb::VoteRequest {
    pb::VoteRequest {
        vote: Some(vote(&request.vote)),
        last: request.last_log_id.as_ref().map(log_id),
        leadership_transfer: request.leadership_transfer,
    }
}

pub(super) fn from_vote_request(request: pb::VoteRequest, from: u64) -> Result<VoteRequest<Types>, WireError> {
    let vote = from_vote(request.vote)?;
    if vote.leader_id.voted_for != from {
        return Err(invalid(format!("broker {from} asks for a vote for broker {}", vote.leader_id.voted_for)));
    }
    let mut decoded = VoteRequest::new(vote, from_optional(request.last)?);
    decoded.leadership_transfer = request.leadership_transfer;
    Ok(decoded)
}

pub(super) fn vote_response(response: &VoteResponse<Types>) -> pb::VoteResponse {
    pb::VoteResponse {
        vote: Some(vote(&response.vote)),
        granted: response.vote_granted,
        last: response.last_log_id.as_ref().map(log_id),
    }
}

pub(super) fn from_vote_response(response: pb::VoteResponse) -> Result<VoteResponse<Types>, WireError> {
    Ok(VoteResponse::new(from_vote(response.vote)?, from_optional(response.last)?, response.granted))
}

pub(super) fn transfer(request: &TransferLeaderRequest<Types>) -> pb::TransferLeader {
    pb::TransferLeader {
        from: Some(vote(request.from_leader())),
        to: *request.to_node_id(),
        last: request.last_log_id().map(log_id),
    }
}

pub(super) fn from_transfer(request: pb::TransferLeader, from: u64) -> Result<TransferLeaderRequest<Types>, WireError> {
    Ok(TransferLeaderRequest::new(leader_vote(request.from, from)?, request.to, from_optional(request.last)?))
}

pub(super) fn transferred(response: &TransferLeaderResponse<Types>) -> pb::TransferLeaderResponse {
    let refused = response.as_ref().err().map(ToString::to_string).unwrap_or_default();
    match response {
        Ok(()) => pb::TransferLeaderResponse::default(),
        Err(TransferLeaderError::VoteChanged { actual, .. }) => {
            pb::TransferLeaderResponse { refused, actual_vote: Some(vote(actual)), ..Default::default() }
        }
        Err(TransferLeaderError::LogNotFlushed { expected, actual }) => pb::TransferLeaderResponse {
            refused,
            expected_log: expected.as_ref().map(log_id),
            actual_log: actual.as_ref().map(log_id),
            ..Default::default()
        },
    }
}

pub(super) fn from_transferred(
    response: pb::TransferLeaderResponse,
    expected: Vote,
) -> Result<TransferLeaderResponse<Types>, WireError> {
    Ok(match (response.refused.is_empty(), response.actual_vote) {
        (true, _) => Ok(()),
        (false, actual @ Some(_)) => Err(TransferLeaderError::VoteChanged { expected, actual: from_vote(actual)? }),
        (false, None) => Err(TransferLeaderError::LogNotFlushed {
            expected: from_optional(response.expected_log)?,
            actual: from_optional(response.actual_log)?,
        }),
    })
}

pub(super) fn snapshot_head(sender: &Vote, manifest: &Manifest) -> pb::SnapshotHead {
    pb::SnapshotHead { vote: Some(vote(sender)), manifest: manifest.encode().into() }
}

pub(super) fn from_snapshot_head(head: &pb::SnapshotHead, from: u64) -> Result<(Vote, Manifest), WireError> {
    let manifest =
        Manifest::decode(&head.manifest).map_err(|error| invalid(format!("a snapshot's manifest: {error}")))?;
    check_log_id(types::from_stored(&manifest.last))?;
    let members = types::from_stored_members(&manifest.membership);
    let members = members.map_err(|error| invalid(format!("a snapshot's manifest: {error}")))?;
    members.log_id().map(check_log_id).transpose()?;
    check_membership(members.membership())?;
    if manifest.bytes > SNAPSHOT_BYTES_MAX {
        return Err(WireError::Limit { what: "a snapshot", bytes: manifest.bytes, limit: SNAPSHOT_BYTES_MAX });
    }
    Ok((leader_vote(head.vote, from)?, manifest))
}

/// A disk id of the wire.
pub(super) fn disk(bytes: &[u8]) -> Result<DiskId, WireError> {
    bytes.try_into().map(DiskId).map_err(|_| invalid(format!("a disk id of {} bytes", bytes.len())))
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
