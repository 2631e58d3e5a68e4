//! Batches for tests of the log, and a node that holds some.

use trunkline_proto::{Batch, ConnectionId, PartitionCount, PartitionId, Record, RecordKind, Source, v1};

use crate::{
    core::Partition,
    node::{Node, NodeConfig, PartitionHandle},
};

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

/// A node of one partition in `dir`, ready.
pub(crate) async fn node(dir: &tempfile::TempDir) -> Node {
    let node = Node::open(NodeConfig::new(dir.path(), "test", count(1))).await.unwrap();
    node.wait_ready().await.unwrap();
    node
}

/// A node of one partition whose log holds an edge, two events of a connection of its, and at the end an entry without records: it
/// was opened twice, and a term's first entry has none.
pub(crate) async fn reopened(dir: &tempfile::TempDir) -> (Node, PartitionHandle) {
    let first = node(dir).await;
    let append = first.partition(PartitionId(0)).unwrap().append.clone();
    append.append(attach(0)).await.unwrap();
    append.append(edge(1, &[opened(connection(0, 1)), message(connection(0, 1), b"x")])).await.unwrap();
    drop(append);
    first.shutdown().await;
    let node = node(dir).await;
    let partition = node.partition(PartitionId(0)).unwrap().clone();
    (node, partition)
}

/// A state as version 1 of snapshots had it: without the four bytes after each connection's phase.
pub(crate) fn as_version_1(state: &Partition, connections: &[ConnectionId]) -> Vec<u8> {
    let mut bytes = state.encode();
    bytes.truncate(bytes.len() - 8);
    bytes[4] = 1;
    for id in connections {
        // the edges before name none
        let at = bytes.windows(16).position(|window| window == id.0).unwrap() + 16;
        let active = at + 8 + 8 + 8 + 4 + 2 + 2 + 1;
        bytes.drain(active..active + 4);
    }
    let checksum = xxhash_rust::xxh3::xxh3_64(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}
