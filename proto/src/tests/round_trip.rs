//! What is encoded decodes to itself, and no bytes make a decoder panic or allocate what they only declare.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use crate::{
    Batch, ConnectionId, Entry, EntryBuilder, Offset, Record, RecordKind, Source, Timestamp,
    link::{Deliveries, Delivery, Frame, UplinkBatch},
    record::{RecordRef, encode_message_received},
    v1,
};

fn record() -> impl Strategy<Value = Record> {
    (any::<[u8; 16]>(), "[a-z]{0,8}", proptest::collection::vec(any::<u8>(), 0..64)).prop_map(|(id, api, payload)| {
        let body = v1::MessageReceived { kind: 2, payload: payload.into() };
        Record::new(RecordKind::MessageReceived, ConnectionId(id), &api, &body)
    })
}

fn source() -> impl Strategy<Value = Source> {
    prop_oneof![
        ("[a-z]{1,8}", any::<u64>(), any::<u64>())
            .prop_map(|(edge, incarnation, sequence)| Source::Edge(v1::EdgeSource { edge, incarnation, sequence })),
        Just(Source::Commit),
        Just(Source::Leader),
        "[a-z]{0,8}".prop_map(|key| Source::Submit(v1::SubmitSource { key, ..Default::default() })),
        any::<(u64, u64)>().prop_map(|(offset, predecessor)| {
            Source::Forward(v1::ForwardSource { partition: 3, offset, predecessor })
        }),
    ]
}

proptest! {
    #[test]
    fn entry_round_trip(batches in proptest::collection::vec((source(), proptest::collection::vec(record(), 0..5)), 0..5)) {
        let batches: Vec<Batch> = batches.into_iter().map(|(source, records)| Batch::new(source, &records)).collect();
        let mut builder = EntryBuilder::new(Timestamp(5), 0);
        for batch in &batches {
            builder.push(batch);
        }
        prop_assert_eq!(Entry::parse(&builder.finish()).unwrap(), Entry { time: Timestamp(5), batches });
    }

    #[test]
    fn a_cut_entry_is_refused(records in proptest::collection::vec(record(), 1..5), cut in any::<prop::sample::Index>()) {
        let mut builder = EntryBuilder::new(Timestamp(5), 0);
        builder.push(&Batch::new(Source::Leader, &records));
        let bytes = builder.finish();
        prop_assert!(Entry::parse(&bytes.slice(..cut.index(bytes.len()))).is_err());
    }

    #[test]
    fn hostile_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let bytes = Bytes::from(bytes);
        let _ = Entry::parse(&bytes);
        let _ = Frame::decode(bytes.clone());
        let _ = RecordRef::first(&bytes);
    }

    #[test]
    fn frames_round_trip(records in proptest::collection::vec(record(), 0..5), number in any::<u64>()) {
        let deliveries = records.iter().map(|record| Delivery { offset: Offset(number), record: record.clone() }).collect();
        let frames = [
            Frame::Deliveries(Deliveries { applied_at: Timestamp(number), through: Offset(number), deliveries }),
            Frame::Batch(UplinkBatch { sequence: number, count: records.len() as u16, records: Batch::new(Source::Leader, &records).records }),
            Frame::Applied { sequence: number },
            Frame::Resend { last: number },
            Frame::Progress { offset: Offset(number) },
            Frame::Ping,
        ];
        for frame in frames {
            let bytes = frame.to_bytes();
            prop_assert_eq!(Frame::length(*bytes.first_chunk().unwrap()).unwrap(), bytes.len() - 4);
            prop_assert_eq!(Frame::decode(bytes.slice(4..)).unwrap(), frame);
        }
    }

    #[test]
    fn the_short_way_to_encode_a_message_gives_the_same_bytes(payload in proptest::collection::vec(any::<u8>(), 0..400)) {
        let id = ConnectionId([3; 16]);
        let mut short = BytesMut::new();
        encode_message_received(&mut short, id, "echo", v1::MessageKind::Binary, &payload);
        let body = v1::MessageReceived { kind: v1::MessageKind::Binary as i32, payload: payload.into() };
        let long = Record::new(RecordKind::MessageReceived, id, "echo", &body);
        prop_assert_eq!(&short[..], &long.bytes()[..]);
    }
}
