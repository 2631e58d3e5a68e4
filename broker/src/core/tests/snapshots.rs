use super::{
    super::{Partition, SnapshotError},
    log::Log,
    *,
};

/// A state with something of everything.
fn rich() -> Log {
    let mut log = Log::of(0, 2);
    log.leader(&[attached("e1", 0, "n"), groups::assigned("g", 1, 0, 0)]);
    log.edge(&[opened(id(1), "g", &["a", "b", "c", "d"]), opened(id(2), "", &["a", "b"]), message(id(2))]);
    log.one(keyed("k", 0), &[attributes(id(1), &[("k", "v")], &[]), pushed(id_in(1, 1)), pushed(id(2))]);
    let joins = [super::super::expand::joined(id_in(1, 7), if owner("a") == 0 { "a" } else { "b" }, "e9")];
    log.one(forward(1, 77, 0), &joins);
    let open = trunkline_proto::Offset::new(trunkline_proto::LogIndex(2), 2).0;
    let parked = v1::outcome::Verdict::Parked(v1::Parked { reason: "no".into(), record: "r".into(), attempt: 5 });
    let base = log.state.group("g").unwrap().through.0;
    let holes = [(open - 2, 1), (open - 1, 3)];
    log.put(&[groups::commit("g", 1, base, open, &[(open, parked)], &holes, &[])]);
    log.leader(&[lost("e1", 1)]);
    log
}

fn owner(channel: &str) -> u16 {
    trunkline_proto::PartitionCount::new(2).unwrap().of_name(channel).0
}

#[test]
fn what_is_encoded_decodes_to_itself() {
    let log = rich();
    let bytes = log.state.encode();
    let decoded = Partition::decode(&bytes).unwrap();
    decoded.check().unwrap();
    assert_eq!(decoded.encode(), bytes);
    assert_eq!(decoded.state_digest(), log.state.state_digest());
    let group = decoded.group("g").unwrap();
    assert_eq!((group.hole_count(), group.parked_count(), group.lag), (2, 1, 2));
    assert!(decoded.outbox_len() > 0 && decoded.channel_count() > 0 && decoded.obligations(9).len() == 2);
    assert_eq!(decoded.connection(&id(1)), log.state.connection(&id(1)));
}

#[test]
fn replay_gives_the_same_state_and_the_same_refusals() {
    let log = rich();
    assert_eq!(log.replayed(), log.state);
    let mut replica = Partition::new(log.state.id(), log.state.partition_count());
    let mut again = Partition::new(log.state.id(), log.state.partition_count());
    for (index, entry) in &log.entries {
        assert_eq!(replica.apply(*index, entry).refused, again.apply(*index, entry).refused);
    }
}

#[test]
fn damage_anywhere_is_noticed() {
    let bytes = rich().state.encode();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        assert!(Partition::decode(&damaged).is_err(), "byte {at}");
        assert!(Partition::decode(&bytes[..at]).is_err(), "cut at {at}");
    }
}

#[test]
fn damage_behind_a_right_checksum_never_panics() {
    let bytes = rich().state.encode();
    let content = bytes.len() - 8;
    for at in 6..content {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            let checksum = xxhash_rust::xxh3::xxh3_64(&damaged[..content]);
            damaged[content..].copy_from_slice(&checksum.to_le_bytes());
            // it may be another valid state; it must not be the end of the process
            let _ = Partition::decode(&damaged).map(|state| state.check());
        }
    }
}

#[test]
fn another_version_is_named() {
    let mut bytes = rich().state.encode();
    bytes[4] = 9;
    assert_eq!(Partition::decode(&bytes), Err(SnapshotError::Version(9)));
    assert_eq!(Partition::decode(b"something else entirely"), Err(SnapshotError::Magic));
}

#[test]
fn an_empty_state_has_golden_bytes() {
    let state = Log::new().state;
    let hex: String = state.encode().iter().map(|byte| format!("{byte:02x}")).collect();
    let golden = concat!(
        "544b4c53",
        "0200",
        "0000",
        "0100", // magic, version, partition 0 of 1
        "0000000000000000",
        "0000000000000000",
        "0000000000000000", // applied, time, digest
        "0000000000000000",
        "0000000000000000",
        "0000000000000000", // bytes of log, those trimmed, milestones
        "01000000",
        "0000000000000000", // apply version, trimmed
        "0000000000000000",
        "0010000000000000",
        "0000000000000000",
        "0000000000000000", // apis, and their samples
        "0000000000000000",
        "0000000000000000",
        "0000000000000000",
        "0000000000000000", // registrars, edges, connections, channels
        "0000000000000000",
        "0000000000000000",
        "0000000000000000",
        "0000000000000000", // groups, outbox, watermarks, keys
        "64393776619ed31a",
    );
    assert_eq!(hex, golden);
}

#[test]
fn snapshots_of_version_1_are_read() {
    let state = rich().state;
    let old = crate::testing::as_version_1(&state, &[id(1), id(2)]);
    let digest = format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&old));
    assert_eq!((old.len(), digest.as_str()), (1037, "f99cca848200bceb"), "what version 1 wrote");
    let decoded = Partition::decode(&old).unwrap();
    decoded.check().unwrap();
    let view = decoded.connection(&id(2)).unwrap();
    assert_eq!((view.last_active, view.peer), (view.opened_at, state.connection(&id(2)).unwrap().peer));
}

/// As above for all that an empty state does not show: a failure means that old snapshots would be read wrongly.
#[test]
fn a_rich_state_has_a_golden_digest() {
    let state = rich().state;
    assert_eq!((state.encode().len(), format!("{:016x}", state.state_digest())), (1045, "e8350dad6bb38e88".into()));
}

#[test]
fn the_digest_tells_logs_apart() {
    let (mut one, mut other) = (Log::with_connection(&[]), Log::with_connection(&[]));
    assert_eq!(one.state.digest(), other.state.digest());
    one.edge(&[message(id(1))]);
    other.edge(&[message(id(2))]);
    assert_ne!(one.state.digest(), other.state.digest());
}
