//! The types openraft works with, and their stored forms.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    sync::Arc,
};

use bytes::Bytes;
use openraft::{
    EntryPayload, Membership, StoredMembership,
    impls::leader_id_std,
    type_config::alias::{CommittedLeaderIdOf, LogIdOf, StoredMembershipOf, VoteOf},
    vote::RaftLeaderId,
};
use trunkline_proto::LogIndex;

use crate::{
    core::AppliedEntry,
    store::{DiskId, Payload, StoredEntry, StoredLogId, StoredVote},
};

openraft::declare_raft_types!(
    /// One partition's group: entries are bytes, what apply made of them comes back shared.
    pub Types:
        D = EntryBytes,
        R = Response,
        NodeId = u64,
        Node = Member,
        Term = u64,
        LeaderId = leader_id_std::LeaderId<u64, u64>,
);

/// Position in the Raft log.
pub type LogId = LogIdOf<Types>;
/// Raft's vote.
pub type Vote = VoteOf<Types>;
/// Raft's entry.
pub type Entry = openraft::type_config::alias::EntryOf<Types>;
/// A membership and where it stands.
pub type Members = StoredMembershipOf<Types>;
/// Names a leader by its term alone: a term has one leader.
pub type CommittedLeader = CommittedLeaderIdOf<Types>;

/// A broker in a group's membership.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Member {
    /// Where its link listens, as others reach it: `host:port`.
    pub link: String,
    /// Its data folder. Under another one it is another voter, until it is removed and added again.
    pub disk: DiskId,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (disk {})", self.link, self.disk)
    }
}

/// A `trunkline_proto::Entry` as bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct EntryBytes(pub Bytes);

impl fmt::Debug for EntryBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for EntryBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "entry of {} bytes", self.0.len())
    }
}

/// What apply made of an entry; nothing for blank and membership entries.
#[derive(Clone, Debug)]
pub struct Response(pub Option<Arc<AppliedEntry>>);

/// A log id as stored.
pub fn to_stored(id: &LogId) -> StoredLogId {
    StoredLogId { term: id.committed_leader_id().term, index: LogIndex(id.index) }
}

/// A stored log id.
pub fn from_stored(id: &StoredLogId) -> LogId {
    LogId::new(CommittedLeader::new(id.term), id.index.0)
}

/// A vote as stored.
pub fn to_stored_vote(vote: &Vote) -> StoredVote {
    StoredVote { term: vote.leader_id.term, node: vote.leader_id.voted_for, committed: vote.committed }
}

/// A stored vote.
pub fn from_stored_vote(vote: &StoredVote) -> Vote {
    Vote { leader_id: leader_id_std::LeaderId::new(vote.term, vote.node), committed: vote.committed }
}

/// An entry as stored.
pub fn to_stored_entry(entry: &Entry) -> StoredEntry {
    let payload = match &entry.payload {
        EntryPayload::Blank => Payload::Blank,
        EntryPayload::Normal(bytes) => Payload::Entry(bytes.0.clone()),
        EntryPayload::Membership(members) => Payload::Membership(encode_membership(members).into()),
    };
    StoredEntry { id: to_stored(&entry.log_id), payload }
}

/// A stored entry.
pub fn from_stored_entry(entry: &StoredEntry) -> io::Result<Entry> {
    let payload = match &entry.payload {
        Payload::Blank => EntryPayload::Blank,
        Payload::Entry(bytes) => EntryPayload::Normal(EntryBytes(bytes.clone())),
        Payload::Membership(bytes) => EntryPayload::Membership(decode_membership(bytes)?),
    };
    Ok(Entry { log_id: from_stored(&entry.id), payload })
}

const MEMBERSHIP_VERSION: u8 = 2;
/// Without disk ids; still read.
const MEMBERSHIP_VERSION_1: u8 = 1;

/// `u8 version, u16 LE configs, per config u16 LE ids and u64 LE each; u16 LE nodes, per node u64 LE id, u16 LE bytes, address,
/// 16 bytes disk id`.
pub fn encode_membership(members: &Membership<u64, Member>) -> Vec<u8> {
    let mut bytes = vec![MEMBERSHIP_VERSION];
    // clusters have a handful of brokers: every count is far below u16::MAX
    bytes.extend_from_slice(&(members.get_joint_config().len() as u16).to_le_bytes());
    for config in members.get_joint_config() {
        bytes.extend_from_slice(&(config.len() as u16).to_le_bytes());
        config.iter().for_each(|id| bytes.extend_from_slice(&id.to_le_bytes()));
    }
    bytes.extend_from_slice(&(members.nodes().count() as u16).to_le_bytes());
    for (id, node) in members.nodes() {
        bytes.extend_from_slice(&id.to_le_bytes());
        // far shorter (peers.rs); were it not, it would have to read back still
        let length = node.link.floor_char_boundary(usize::from(u16::MAX));
        let address = node.link.as_bytes().get(..length).unwrap_or_default();
        bytes.extend_from_slice(&(address.len() as u16).to_le_bytes());
        bytes.extend_from_slice(address);
        bytes.extend_from_slice(&node.disk.0);
    }
    bytes
}

/// Reads back [`encode_membership`].
pub fn decode_membership(bytes: &[u8]) -> io::Result<Membership<u64, Member>> {
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "a stored membership does not decode");
    let mut rest = bytes;
    let mut take = |length: usize| {
        let (taken, left) = rest.split_at_checked(length).ok_or_else(damaged)?;
        rest = left;
        Ok::<_, io::Error>(taken)
    };
    let u16_of = |bytes: &[u8]| bytes.try_into().map(u16::from_le_bytes).map_err(|_| damaged());
    let u64_of = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).map_err(|_| damaged());
    let has_disks = match take(1)? {
        [MEMBERSHIP_VERSION] => true,
        [MEMBERSHIP_VERSION_1] => false,
        _ => return Err(damaged()),
    };
    let mut configs = Vec::new();
    for _ in 0..u16_of(take(2)?)? {
        let mut config = BTreeSet::new();
        for _ in 0..u16_of(take(2)?)? {
            config.insert(u64_of(take(8)?)?);
        }
        configs.push(config);
    }
    let mut nodes = BTreeMap::new();
    for _ in 0..u16_of(take(2)?)? {
        let id = u64_of(take(8)?)?;
        let length = u16_of(take(2)?)?;
        let address = std::str::from_utf8(take(usize::from(length))?).map_err(|_| damaged())?;
        let disk = match has_disks {
            true => DiskId(take(16)?.try_into().map_err(|_| damaged())?),
            false => DiskId::UNKNOWN,
        };
        nodes.insert(id, Member { link: address.to_owned(), disk });
    }
    match configs.is_empty() && nodes.is_empty() {
        true => Ok(Membership::default()),
        false => Membership::new(configs, nodes).map_err(|_| damaged()),
    }
}

/// The stored membership in which this broker is alone.
pub fn encode_alone(id: u64, member: Member) -> Vec<u8> {
    // one voter, who is among the members
    let alone = Membership::new(vec![BTreeSet::from([id])], BTreeMap::from([(id, member)]));
    encode_membership(&alone.unwrap_or_default())
}

/// Who is in a stored membership, whether they vote or not.
pub fn decode_members(bytes: &[u8]) -> io::Result<BTreeMap<u64, Member>> {
    Ok(decode_membership(bytes)?.nodes().map(|(id, member)| (*id, member.clone())).collect())
}

/// A membership and its place, as kept in snapshot manifests.
pub fn to_stored_members(members: &Members) -> (Option<StoredLogId>, Vec<u8>) {
    (members.log_id().as_ref().map(to_stored), encode_membership(members.membership()))
}

/// Reads back [`to_stored_members`].
pub fn from_stored_members(stored: &(Option<StoredLogId>, Vec<u8>)) -> io::Result<Members> {
    Ok(StoredMembership::new(stored.0.as_ref().map(from_stored), decode_membership(&stored.1)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(disks: bool) -> Membership<u64, Member> {
        let nodes = [(1, "a:1"), (2, "b:2"), (5, "")].map(|(id, link)| {
            let disk = if disks { DiskId([id as u8; 16]) } else { DiskId::UNKNOWN };
            (id, Member { link: link.to_owned(), disk })
        });
        let configs = vec![BTreeSet::from([1, 2]), BTreeSet::from([1])];
        Membership::new(configs, BTreeMap::from(nodes)).unwrap()
    }

    #[test]
    fn memberships_keep_their_bytes_and_read_back() {
        let members = members(true);
        let bytes = encode_membership(&members);
        let golden = b"\x02\x02\0\x02\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x01\0\x01\0\0\0\0\0\0\0\
            \x03\0\x01\0\0\0\0\0\0\0\x03\0a:1\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\
            \x02\0\0\0\0\0\0\0\x03\0b:2\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\
            \x05\0\0\0\0\0\0\0\0\0\x05\x05\x05\x05\x05\x05\x05\x05\x05\x05\x05\x05\x05\x05\x05\x05";
        assert_eq!(bytes, golden);
        assert_eq!(decode_membership(&bytes).unwrap(), members);
        for length in 0..bytes.len() {
            assert!(decode_membership(&bytes[..length]).is_err(), "cut at {length}");
        }
        let nobody = Membership::default();
        assert_eq!(decode_membership(&encode_membership(&nobody)).unwrap(), nobody);
    }

    #[test]
    fn memberships_without_disk_ids_are_still_read() {
        let golden = b"\x01\x02\0\x02\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x01\0\x01\0\0\0\0\0\0\0\
            \x03\0\x01\0\0\0\0\0\0\0\x03\0a:1\x02\0\0\0\0\0\0\0\x03\0b:2\x05\0\0\0\0\0\0\0\0\0";
        assert_eq!(decode_membership(golden).unwrap(), members(false));
    }
}
