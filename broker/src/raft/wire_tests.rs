//! What a hostile or damaged peer may send: it is refused, and nothing panics.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use openraft::EntryPayload;
use proptest::prelude::*;
use prost::Message;

use super::{super::frames, *};

const PARTITION: PartitionId = PartitionId(3);
const PEER: u64 = 2;

type Payload = openraft::type_config::alias::EntryPayloadOf<Types>;

fn a_vote(term: u64) -> pb::Vote {
    pb::Vote { term, node: PEER, committed: true }
}

fn an_entry(term: u64, index: u64, payload: Payload) -> pb::Entry {
    let entry = Entry { log_id: LogId::new(CommittedLeader::new(term), index), payload };
    let stored = record::encode_entry(PARTITION, &types::to_stored_entry(&entry)).into();
    pb::Entry { index, stored }
}

fn an_append(previous: Option<(u64, u64)>, entries: &[(u64, u64)]) -> pb::Append {
    pb::Append {
        vote: Some(a_vote(5)),
        previous: previous.map(|(term, index)| pb::LogId { term, index }),
        commit: None,
        entries: entries.iter().map(|(term, index)| an_entry(*term, *index, EntryPayload::Blank)).collect(),
    }
}

fn a_membership(brokers: u64) -> Membership<u64, Member> {
    let nodes: BTreeMap<u64, Member> = (1..=brokers).map(|id| (id, Member::default())).collect();
    Membership::new(vec![BTreeSet::from([1])], nodes).unwrap()
}

fn a_manifest(term: u64, index: u64, at: Option<(u64, u64)>, members: &Membership<u64, Member>) -> Manifest {
    let id = |(term, index)| crate::store::StoredLogId { term, index: LogIndex(index) };
    let membership = (at.map(id), types::encode_membership(members));
    Manifest { last: id((term, index)), membership, digest: 0, state_digest: 0, bytes: 1, crc: 0 }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, WireError>, because: &str) {
    match result {
        Err(WireError::Invalid(reason)) => assert!(reason.contains(because), "{reason}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn entries_that_follow_each_other_are_taken_up_to_the_last_index() {
    let last = LogIndex::MAX.0;
    let taken = from_append(PARTITION, PEER, an_append(Some((4, last - 2)), &[(4, last - 1), (5, last)])).unwrap();
    assert_eq!(taken.entries.len(), 2);
    let other = an_append(Some((4, 6)), &[(4, 8)]);
    refused(from_append(PARTITION, PEER, other), "does not follow");
}

#[test]
fn an_index_that_no_offset_has_room_for_is_refused() {
    for index in [LogIndex::MAX.0 + 1, u64::MAX - 1, u64::MAX] {
        refused(from_append(PARTITION, PEER, an_append(Some((4, index)), &[(5, 0)])), "log index");
        refused(from_append(PARTITION, PEER, an_append(Some((4, index - 1)), &[(5, index)])), "index");
        let commit = pb::Append { commit: Some(pb::LogId { term: 1, index }), ..an_append(None, &[]) };
        refused(from_append(PARTITION, PEER, commit), "log index");
        let matched = pb::Matched { last: Some(pb::LogId { term: 1, index }) };
        let sent = Some(LogId::new(CommittedLeader::new(5), 9));
        let answer = pb::Appended { result: Some(pb::appended::Result::Matched(matched)) };
        refused(from_appended(answer, None, sent), "log index");
        let last = Some(pb::LogId { term: 1, index });
        let asks = pb::VoteRequest { vote: Some(a_vote(5)), last, leadership_transfer: false };
        refused(from_vote_request(asks, PEER), "log index");
        let granted = pb::VoteResponse { vote: Some(a_vote(5)), granted: true, last };
        refused(from_vote_response(granted), "log index");
        refused(from_transfer(pb::TransferLeader { from: Some(a_vote(5)), to: 1, last }, PEER), "log index");
        for manifest in
            [a_manifest(1, index, None, &a_membership(3)), a_manifest(1, 9, Some((1, index)), &a_membership(3))]
        {
            let head = snapshot_head(&from_vote(Some(a_vote(5))).unwrap(), &manifest);
            refused(from_snapshot_head(&head, PEER), "index");
        }
    }
}

#[test]
fn a_term_after_which_there_would_be_no_election_is_refused() {
    for term in [TERM_MAX + 1, u64::MAX] {
        refused(from_vote(Some(a_vote(term))), "term");
        let append = pb::Append { vote: Some(a_vote(term)), ..an_append(None, &[]) };
        refused(from_append(PARTITION, PEER, append), "term");
        refused(from_append(PARTITION, PEER, an_append(Some((term, 1)), &[])), "term");
        refused(from_append(PARTITION, PEER, an_append(Some((1, 1)), &[(term, 2)])), "term");
        let higher = pb::Appended { result: Some(pb::appended::Result::Higher(a_vote(term))) };
        refused(from_appended(higher, None, None), "term");
    }
}

#[test]
fn nobody_has_matched_more_than_was_sent_under_whatever_term() {
    let sent = Some(LogId::new(CommittedLeader::new(5), 9));
    let answer = |term, index| {
        let matched = pb::Matched { last: Some(pb::LogId { term, index }) };
        from_appended(pb::Appended { result: Some(pb::appended::Result::Matched(matched)) }, None, sent)
    };
    assert!(matches!(answer(4, 9), Ok(Ok(Some(_)))));
    refused(answer(4, 10), "only");
    refused(answer(6, 9), "only");
}

#[test]
fn a_membership_of_more_brokers_than_are_kept_or_of_none_is_refused() {
    let append = |membership| {
        let entries = vec![an_entry(5, 0, EntryPayload::Membership(membership))];
        from_append(PARTITION, PEER, pb::Append { entries, ..an_append(None, &[]) })
    };
    assert!(append(a_membership(PEERS_MAX as u64)).is_ok());
    refused(append(a_membership(PEERS_MAX as u64 + 1)), "membership");
    refused(append(Membership::default()), "membership");
    let vote = from_vote(Some(a_vote(5))).unwrap();
    let head = |members| snapshot_head(&vote, &a_manifest(1, 9, Some((1, 1)), &members));
    assert!(from_snapshot_head(&head(a_membership(3)), PEER).is_ok());
    refused(from_snapshot_head(&head(Membership::default()), PEER), "membership");
}

#[test]
fn a_snapshot_that_is_too_large_is_refused_with_its_numbers() {
    let vote = from_vote(Some(a_vote(5))).unwrap();
    let head = |bytes| snapshot_head(&vote, &Manifest { bytes, ..a_manifest(1, 9, Some((1, 1)), &a_membership(3)) });
    assert!(from_snapshot_head(&head(16 << 30), PEER).is_ok());
    let refused = from_snapshot_head(&head((16 << 30) + 1), PEER).unwrap_err();
    assert_eq!(refused.to_string(), "a snapshot of 17179869185 bytes; at most 17179869184 are taken");
}

/// Numbers that matter, and any.
fn number() -> impl Strategy<Value = u64> {
    let edge = LogIndex::MAX.0;
    prop_oneof![0..5_u64, edge - 1..edge + 3, u64::MAX - 2..=u64::MAX, any::<u64>()]
}

fn ids() -> impl Strategy<Value = pb::LogId> {
    (number(), number()).prop_map(|(term, index)| pb::LogId { term, index })
}

fn votes() -> impl Strategy<Value = pb::Vote> {
    (number(), prop_oneof![Just(PEER), any::<u64>()], any::<bool>()).prop_map(|(term, node, committed)| pb::Vote {
        term,
        node,
        committed,
    })
}

fn sound(id: LogId) {
    assert!(LogIndex(id.index) <= LogIndex::MAX && id.committed_leader_id().term <= TERM_MAX);
}

fn decode_all(bytes: &Bytes) {
    fn decoded<M: Message + Default, T>(bytes: &Bytes, from: impl FnOnce(M) -> Result<T, WireError>) {
        let _ = frames::decode::<M>(bytes.clone()).and_then(from);
    }
    decoded(bytes, |append| from_append(PARTITION, PEER, append));
    decoded(bytes, |answer| from_appended(answer, None, None));
    decoded(bytes, |request| from_vote_request(request, PEER));
    decoded(bytes, from_vote_response);
    decoded(bytes, |request| from_transfer(request, PEER));
    decoded(bytes, |answer| from_transferred(answer, Vote::new(1, PEER)));
    decoded(bytes, |head: pb::SnapshotHead| from_snapshot_head(&head, PEER));
    let _ = Manifest::decode(bytes);
    let _ = types::decode_membership(bytes);
    let _ = record::decode_entry(PARTITION, LogIndex(1), bytes);
}

proptest! {
    #[test]
    fn whatever_bytes_come_nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        decode_all(&bytes.into());
    }

    #[test]
    fn what_is_taken_of_an_append_is_within_its_bounds(
        vote in votes(),
        previous in proptest::option::of(ids()),
        commit in proptest::option::of(ids()),
        entries in proptest::collection::vec(ids(), 0..4),
        flipped in proptest::option::of(any::<proptest::sample::Index>()),
    ) {
        let entries = entries.iter().map(|id| an_entry(id.term, id.index, EntryPayload::Blank)).collect();
        let mut bytes = pb::Append { vote: Some(vote), previous, commit, entries }.encode_to_vec();
        if let (Some(flipped), false) = (flipped, bytes.is_empty()) {
            let at = flipped.index(bytes.len());
            bytes[at] ^= 0x40;
        }
        let bytes = Bytes::from(bytes);
        decode_all(&bytes);
        let taken = frames::decode(bytes).and_then(|append| from_append(PARTITION, PEER, append));
        if let Ok(taken) = taken {
            taken.prev_log_id.into_iter().chain(taken.leader_commit).for_each(sound);
            taken.entries.iter().for_each(|entry| sound(entry.log_id));
        }
    }

    #[test]
    fn what_is_taken_of_an_answer_is_within_what_was_sent(
        last in proptest::option::of(ids()),
        sent in (0..4_u64, 0..9_u64),
    ) {
        let sent = LogId::new(CommittedLeader::new(sent.0), sent.1);
        let answer = pb::Appended { result: Some(pb::appended::Result::Matched(pb::Matched { last })) };
        if let Ok(Ok(Some(matched))) = from_appended(answer, None, Some(sent)) {
            prop_assert!(matched <= sent && matched.index <= sent.index);
        }
    }
}
