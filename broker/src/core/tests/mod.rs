//! Behaviour of the state machine, by topic; then properties over random logs.

mod channels;
mod commands;
mod connections;
mod edges;
mod forwarding;
mod groups;
mod idempotency;
mod log;
mod memory;
mod properties;
mod recorded;
mod snapshots;

use trunkline_proto::{ConnectionId, Record, RecordKind, Source, v1};

use super::{Refusal, Verdict};

/// The n-th connection of partition 0 (of any count).
fn id(n: u8) -> ConnectionId {
    id_in(0, n)
}

/// The n-th connection of a partition (of at least `partition + 1`).
fn id_in(partition: u8, n: u8) -> ConnectionId {
    let mut id = ConnectionId([n; 16]);
    id.0[..2].copy_from_slice(&[0, partition]);
    id
}

fn submit() -> Source {
    Source::Submit(v1::SubmitSource::default())
}

fn keyed(key: &str, first_command: u32) -> Source {
    Source::Submit(v1::SubmitSource { principal: "p".into(), key: key.into(), first_command })
}

fn forward(partition: u32, offset: u64, predecessor: u64) -> Source {
    Source::Forward(v1::ForwardSource { partition, offset, predecessor })
}

fn opened(id: ConnectionId, group: &str, channels: &[&str]) -> Record {
    let body = v1::ConnectionOpened {
        edge: "e1".into(),
        incarnation: 1,
        peer: "203.0.113.7:50000".into(),
        handler_group: group.into(),
        channels: channels.iter().map(|channel| (*channel).into()).collect(),
        ..Default::default()
    };
    Record::new(RecordKind::ConnectionOpened, id, "chat", &body)
}

fn message(id: ConnectionId) -> Record {
    let body = v1::MessageReceived { kind: 1, payload: "hello".into() };
    Record::new(RecordKind::MessageReceived, id, "chat", &body)
}

fn closed(id: ConnectionId) -> Record {
    let body = v1::ConnectionClosed { code: 1006, reason: String::new(), cause: 2 };
    Record::new(RecordKind::ConnectionClosed, id, "chat", &body)
}

fn accepted(id: ConnectionId, channels: &[&str]) -> Record {
    let channels = channels.iter().map(|channel| (*channel).into()).collect();
    let body = v1::ConnectionAccepted { subprotocol: "v2".into(), channels, ..Default::default() };
    Record::new(RecordKind::ConnectionAccepted, id, "chat", &body)
}

fn rejected(id: ConnectionId, status: u32) -> Record {
    Record::new(RecordKind::ConnectionRejected, id, "chat", &v1::ConnectionRejected { status, body: "no".into() })
}

fn pushed(id: ConnectionId) -> Record {
    Record::new(RecordKind::Pushed, id, "", &v1::Pushed { kind: 1, payload: "welcome".into() })
}

fn published(channel: &str) -> Record {
    let body = v1::Published { channel: channel.into(), kind: 1, payload: "news".into(), ..Default::default() };
    Record::new(RecordKind::Published, ConnectionId::NONE, "", &body)
}

fn close_requested(id: ConnectionId, code: u32) -> Record {
    Record::new(RecordKind::CloseRequested, id, "", &v1::CloseRequested { code, reason: "bye".into() })
}

fn joined(id: ConnectionId, channel: &str) -> Record {
    super::expand::joined(id, channel, "")
}

fn left(id: ConnectionId, channel: &str) -> Record {
    super::expand::left(id, channel)
}

fn attributes(id: ConnectionId, set: &[(&str, &str)], removed: &[&str]) -> Record {
    let set = set.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    let removed = removed.iter().map(|key| (*key).into()).collect();
    Record::new(RecordKind::AttributesSet, id, "", &v1::AttributesSet { set, removed })
}

fn of_leader(kind: RecordKind, body: &impl prost::Message) -> Record {
    Record::new(kind, ConnectionId::NONE, "", body)
}

fn attached(edge: &str, incarnation: u64, nonce: &str) -> Record {
    let nonce = bytes::Bytes::copy_from_slice(nonce.as_bytes());
    of_leader(RecordKind::EdgeAttached, &v1::EdgeAttached { edge: edge.into(), incarnation, nonce })
}

fn lost(edge: &str, incarnation: u64) -> Record {
    of_leader(RecordKind::EdgeLost, &v1::EdgeLost { edge: edge.into(), incarnation })
}

fn refused(refusal: Refusal) -> Verdict {
    Verdict::Refused(refusal)
}
