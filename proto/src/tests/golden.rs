//! Bytes that reach disk or decide placement. A failure here means old data would be read wrongly: add a version, never edit.

use crate::{
    Batch, ConnectionId, EntryBuilder, Offset, PartitionCount, PartitionId, Record, RecordKind, Source, Timestamp, v1,
};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn message() -> Record {
    let body = v1::MessageReceived { kind: v1::MessageKind::Text as i32, payload: "hi".into() };
    Record::new(RecordKind::MessageReceived, ConnectionId([7; 16]), "echo", &body)
}

#[test]
fn record() {
    assert_eq!(
        hex(message().bytes()),
        concat!("1c000000", "02", "07070707070707070707070707070707", "04", "6563686f", "0801", "12026869")
    );
}

#[test]
fn entry() {
    let source = Source::Edge(v1::EdgeSource { edge: "e1".into(), incarnation: 3, sequence: 9 });
    let mut entry = EntryBuilder::new(Timestamp(0x0102_0304), 0);
    assert_eq!(entry.push(&Batch::new(source, &[message()])), 0);
    assert_eq!(
        hex(&entry.finish()),
        concat!(
            "01",
            "0403020100000000",
            "0100",
            "01",
            "0800",
            "0a02653110031809",
            "0100",
            "20000000",
            "1c000000",
            "02",
            "07070707070707070707070707070707",
            "04",
            "6563686f",
            "0801",
            "12026869"
        )
    );
}

#[test]
fn record_kinds_keep_their_numbers() {
    let numbers: Vec<u8> = RecordKind::ALL.iter().map(|kind| *kind as u8).collect();
    assert_eq!(numbers, [1, 2, 3, 16, 17, 18, 19, 20, 21, 22, 23, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41]);
}

#[test]
fn placement() {
    let eight = PartitionCount::new(8).unwrap();
    let mut id = ConnectionId([0; 16]);
    id.0[..2].copy_from_slice(&[0x01, 0x05]);
    assert_eq!(id.partition(eight), PartitionId(0x0105 % 8));
    assert_eq!(eight.of_name("chat"), PartitionId(0));
    assert_eq!(eight.of_name("news"), PartitionId(4));
    assert_eq!(PartitionCount::new(1).unwrap().of_name("chat"), PartitionId(0));
}

#[test]
fn text_forms() {
    assert_eq!(ConnectionId([0xff; 16]).to_string(), "_____________________w");
    assert_eq!("_____________________w".parse(), Ok(ConnectionId([0xff; 16])));
    assert_eq!(Offset(1042 << 16 | 3).to_string(), "1042.3");
    assert_eq!("1042.3".parse(), Ok(Offset(1042 << 16 | 3)));
    for bad in ["", "1", "1.", "1.65536", "-1.0", "281474976710656.0", "1.2.3"] {
        assert!(bad.parse::<Offset>().is_err(), "{bad}");
    }
}
