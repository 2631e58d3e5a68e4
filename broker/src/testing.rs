//! Batches for tests of the log.

use trunkline_proto::{Batch, ConnectionId, PartitionCount, Record, RecordKind, Source, v1};

pub(crate) fn count(partitions: u16) -> PartitionCount {
    PartitionCount::new(partitions).unwrap()
}

/// Connection `n` of a cluster's `partition`.
pub(crate) fn connection(partition: u16, n: u32) -> ConnectionId {
    let mut id = [0; 16];
    id[..2].copy_from_slice(&partition.to_be_bytes());
    id[12..].copy_from_slice(&(n + 1).to_be_bytes());
    ConnectionId(id)
}

/// The leader's note that edge `e1` is attached as incarnation 1; partition 0 grants it.
pub(crate) fn attach(partition: u16) -> Batch {
    let incarnation = u64::from(partition != 0);
    let body = v1::EdgeAttached { edge: "e1".into(), incarnation, nonce: vec![7].into() };
    Batch::new(Source::Leader, &[Record::new(RecordKind::EdgeAttached, ConnectionId::NONE, "", &body)])
}

/// An edge's batch with that sequence.
pub(crate) fn edge(sequence: u64, records: &[Record]) -> Batch {
    Batch::new(Source::Edge(v1::EdgeSource { edge: "e1".into(), incarnation: 1, sequence }), records)
}

pub(crate) fn opened(id: ConnectionId) -> Record {
    let body = v1::ConnectionOpened { edge: "e1".into(), incarnation: 1, path: "/chat".into(), ..Default::default() };
    Record::new(RecordKind::ConnectionOpened, id, "chat", &body)
}

pub(crate) fn message(id: ConnectionId, payload: &[u8]) -> Record {
    let body =
        v1::MessageReceived { kind: v1::MessageKind::Text.into(), payload: bytes::Bytes::copy_from_slice(payload) };
    Record::new(RecordKind::MessageReceived, id, "chat", &body)
}
