//! The bytes on disk. If one of these fails, the format has changed: raise its version and keep reading the old one.

use trunkline_proto::{LogIndex, Offset, PartitionId, v1};

use crate::{
    core::Refusal,
    store::{Payload, StoredEntry, StoredLogId, StoredVote, record, record::ValueError},
};

const P: PartitionId = PartitionId(3);

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn stored_values_keep_their_bytes() {
    let id = StoredLogId { term: 5, index: LogIndex(9) };
    let entry = |payload| StoredEntry { id, payload };
    let values = [
        record::encode_entry(P, &entry(Payload::Blank)),
        record::encode_entry(P, &entry(Payload::Entry(b"abc".as_slice().into()))),
        record::encode_entry(P, &entry(Payload::Membership(b"m".as_slice().into()))),
        record::encode_vote(P, &StoredVote { term: 5, node: 2, committed: true }),
        record::encode_log_id(P, &id),
        record::encode_refused(P, id.index, &every_refusal()),
        record::encode_chunk(P, id.index, 1, b"xyz"),
        record::encode_manifest(P, id.index, b"mm"),
        record::encode_closed(P, 4, &an_opening()),
    ];
    let golden = include_str!("golden.txt");
    let actual: String = values.iter().map(|value| hex(value) + "\n").collect();
    assert_eq!(actual, golden, "actual:\n{actual}");
}

fn an_opening() -> v1::Opening {
    let opened = v1::ConnectionOpened {
        peer: "10.0.2.14:51000".into(),
        principal: "ada".into(),
        attributes: [("tenant".to_owned(), "acme".to_owned())].into(),
        ..Default::default()
    };
    v1::Opening { offset: 77, time: 1_000, api: "chat".into(), opened: Some(opened), trimmed: true }
}

fn every_refusal() -> Vec<(u16, Refusal)> {
    let all = [
        Refusal::Gone,
        Refusal::OutOfSequence,
        Refusal::Fenced,
        Refusal::ConnectionExists,
        Refusal::StaleEpoch,
        Refusal::NotOpen,
        Refusal::NotPending,
        Refusal::Repeated { original: Offset(77), code: v1::Code::Gone },
        Refusal::KeyReused,
        Refusal::ForwardGap,
        Refusal::Limit,
        Refusal::Malformed,
        Refusal::WithBatch,
    ];
    (0..).step_by(2).zip(all).collect()
}

#[test]
fn stored_values_round_trip_and_belong_to_their_place() {
    let id = StoredLogId { term: 5, index: LogIndex(9) };
    for payload in [Payload::Blank, Payload::Entry(b"abc".as_slice().into()), Payload::Membership(vec![1; 9].into())] {
        let entry = StoredEntry { id, payload };
        let value = record::encode_entry(P, &entry).into();
        assert_eq!(record::decode_entry(P, id.index, &value).unwrap(), entry);
        assert!(record::decode_entry(PartitionId(4), id.index, &value).is_err(), "another partition's");
        assert!(record::decode_entry(P, LogIndex(10), &value).is_err(), "another index's");
    }
    let refused = every_refusal();
    let value = record::encode_refused(P, id.index, &refused);
    assert_eq!(record::decode_refused(P, id.index, &value).unwrap(), refused);
    let value = record::encode_closed(P, 4, &an_opening());
    assert_eq!(record::decode_closed(P, 4, &value).unwrap(), an_opening());
    assert!(record::decode_closed(P, 5, &value).is_err(), "another block's");
    let vote = StoredVote { term: 5, node: 2, committed: false };
    assert_eq!(record::decode_vote(P, &record::encode_vote(P, &vote)).unwrap(), vote);
    assert!(record::decode_log_id(P, &record::encode_vote(P, &vote)).is_err(), "a vote is no log id");
}

#[test]
fn an_index_that_no_offset_has_room_for_is_damage() {
    let at = |index| StoredLogId { term: 5, index: LogIndex(index) };
    for index in [LogIndex::MAX.0 + 1, u64::MAX] {
        let entry = StoredEntry { id: at(index), payload: Payload::Blank };
        let value = record::encode_entry(P, &entry).into();
        assert_eq!(record::decode_entry(P, LogIndex(index), &value), Err(ValueError::Index(index)));
        let value = record::encode_log_id(P, &at(index));
        assert_eq!(record::decode_log_id(P, &value), Err(ValueError::Index(index)));
    }
    let last = record::encode_log_id(P, &at(LogIndex::MAX.0));
    assert_eq!(record::decode_log_id(P, &last), Ok(at(LogIndex::MAX.0)));
}

#[test]
fn every_flipped_bit_of_a_value_is_found() {
    let entry =
        StoredEntry { id: StoredLogId { term: 5, index: LogIndex(9) }, payload: Payload::Entry(vec![7; 20].into()) };
    let value = record::encode_entry(P, &entry);
    for bit in 0..value.len() * 8 {
        let mut flipped = value.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(record::decode_entry(P, LogIndex(9), &flipped.into()).is_err(), "bit {bit}");
    }
    for length in 0..value.len() {
        assert!(record::decode_entry(P, LogIndex(9), &value[..length].to_vec().into()).is_err(), "cut at {length}");
    }
}
