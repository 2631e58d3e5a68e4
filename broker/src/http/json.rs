//! Connections and records as JSON: the shape `trunkline state --json` and `trunkline tail --json` print (SURFACE: the binary).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp as Instant;
use serde_json::{Map, Value, json};
use trunkline_proto::{
    Offset, PartitionId, Record, RecordKind, Timestamp,
    close::cause_name,
    v1::{self, MessageKind},
};

use crate::core::{ConnectionView, Phase};

/// RFC 3339 in UTC with microseconds.
pub fn time(time: Timestamp) -> String {
    let instant = i64::try_from(time.0).ok().and_then(|micros| Instant::from_microsecond(micros).ok());
    // beyond the year 9999 there is no RFC 3339
    instant.map_or_else(|| format!("{}us", time.0), |instant| format!("{instant:.6}"))
}

/// The time an RFC 3339 text says.
pub fn parse_time(text: &str) -> Option<Timestamp> {
    let instant: Instant = text.parse().ok()?;
    u64::try_from(instant.as_microsecond()).ok().map(Timestamp)
}

/// A phase as tools show it.
pub fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Pending => "pending",
        Phase::Open => "open",
        Phase::Closing => "closing",
    }
}

/// One open connection.
pub fn connection(connection: &ConnectionView<'_>) -> Value {
    let attributes: Map<String, Value> =
        connection.attributes.iter().map(|(key, value)| (key.to_string(), Value::from(&**value))).collect();
    let channels: Vec<&str> = connection.channels.iter().map(|channel| &**channel).collect();
    json!({
        "connection": connection.id.to_string(),
        "api": connection.api,
        "edge": connection.edge,
        "opened_at": time(connection.opened_at),
        "offset": connection.opened.to_string(),
        "phase": phase(connection.phase),
        "subprotocol": connection.subprotocol,
        "attributes": attributes,
        "channels": channels,
        "peer": connection.peer,
        "principal": connection.principal,
    })
}

/// One record of the log.
pub fn record(partition: PartitionId, offset: Offset, stamped: Timestamp, record: &Record) -> Value {
    let mut fields = Map::new();
    fields.insert("partition".to_owned(), partition.0.into());
    fields.insert("offset".to_owned(), offset.to_string().into());
    fields.insert("time".to_owned(), time(stamped).into());
    fields.insert("kind".to_owned(), record.kind.name().into());
    if !record.connection.is_none() {
        fields.insert("connection".to_owned(), record.connection.to_string().into());
    }
    if !record.api().is_empty() {
        fields.insert("api".to_owned(), record.api().into());
    }
    if let Some(body) = body(record) {
        fields.extend(body.into_iter().filter(|(_, value)| !is_empty(value)));
    }
    Value::Object(fields)
}

/// Fields that say nothing are left out; `text` and `base64` always say something.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

fn named(value: Value) -> Option<Map<String, Value>> {
    match value {
        Value::Object(fields) => Some(fields),
        _ => None,
    }
}

/// A name, or nothing.
fn some(name: &str) -> Option<&str> {
    Some(name).filter(|name| !name.is_empty())
}

fn body(record: &Record) -> Option<Map<String, Value>> {
    named(match record.kind {
        RecordKind::ConnectionOpened => opened(&record.decode().ok()?),
        RecordKind::MessageReceived => {
            let body: v1::MessageReceived = record.decode().ok()?;
            payload(body.kind(), &body.payload)
        }
        RecordKind::Pushed => {
            let body: v1::Pushed = record.decode().ok()?;
            payload(body.kind(), &body.payload)
        }
        RecordKind::Published => published(&record.decode().ok()?),
        RecordKind::ConnectionClosed => {
            let body: v1::ConnectionClosed = record.decode().ok()?;
            json!({ "code": body.code, "reason": body.reason, "cause": cause_name(body.cause()) })
        }
        RecordKind::CloseRequested => {
            let body: v1::CloseRequested = record.decode().ok()?;
            json!({ "code": body.code, "reason": body.reason })
        }
        RecordKind::ConnectionAccepted => {
            let body: v1::ConnectionAccepted = record.decode().ok()?;
            json!({
                "subprotocol": some(&body.subprotocol),
                "headers": headers(&body.headers),
                "attributes": body.attributes,
                "channels": body.channels,
            })
        }
        RecordKind::ConnectionRejected => {
            let body: v1::ConnectionRejected = record.decode().ok()?;
            let mut fields = json!({ "status": body.status });
            fields[payload_key(&body.body)] = payload_value(&body.body);
            fields
        }
        RecordKind::ChannelJoined => {
            let body: v1::ChannelJoined = record.decode().ok()?;
            json!({ "channel": body.channel, "edge": some(&body.edge) })
        }
        RecordKind::ChannelLeft => json!({ "channel": record.decode::<v1::ChannelLeft>().ok()?.channel }),
        RecordKind::AttributesSet => {
            let body: v1::AttributesSet = record.decode().ok()?;
            json!({ "attributes": body.set, "removed": body.removed })
        }
        _ => return bookkeeping(record),
    })
}

fn bookkeeping(record: &Record) -> Option<Map<String, Value>> {
    let shown = |offset: u64| Offset(offset).to_string();
    named(match record.kind {
        RecordKind::HandlerCommitted => committed(&record.decode().ok()?),
        RecordKind::HandlerAssigned => {
            let body: v1::HandlerAssigned = record.decode().ok()?;
            json!({
                "group": body.group,
                "member": some(&body.member),
                "epoch": body.epoch,
                "apis": body.apis,
                "through": shown(body.through),
            })
        }
        RecordKind::GroupReset => {
            let body: v1::GroupReset = record.decode().ok()?;
            json!({ "group": body.group, "through": shown(body.through) })
        }
        RecordKind::EdgeAttached => {
            let body: v1::EdgeAttached = record.decode().ok()?;
            json!({ "edge": body.edge, "incarnation": body.incarnation })
        }
        RecordKind::EdgeLost => {
            let body: v1::EdgeLost = record.decode().ok()?;
            json!({ "edge": body.edge, "incarnation": body.incarnation })
        }
        RecordKind::Forwarded => {
            let body: v1::Forwarded = record.decode().ok()?;
            json!({ "target": body.target, "through": shown(body.through) })
        }
        RecordKind::Trimmed => json!({ "through": shown(record.decode::<v1::Trimmed>().ok()?.through) }),
        RecordKind::ApplyVersion => json!({ "version": record.decode::<v1::ApplyVersion>().ok()?.version }),
        _ => return None,
    })
}

fn opened(body: &v1::ConnectionOpened) -> Value {
    json!({
        "edge": body.edge,
        "incarnation": body.incarnation,
        "peer": some(&body.peer),
        "path": some(&body.path),
        "query": some(&body.query),
        "headers": headers(&body.headers),
        "parameters": headers(&body.parameters),
        "subprotocols": body.subprotocols,
        "subprotocol": some(&body.subprotocol),
        "principal": some(&body.principal),
        "channels": body.channels,
        "group": some(&body.handler_group),
    })
}

fn published(body: &v1::Published) -> Value {
    let except = body.except.iter().filter_map(|id| trunkline_proto::ConnectionId::from_slice(id).ok());
    let mut fields = payload(body.kind(), &body.payload);
    fields["channel"] = some(&body.channel).into();
    fields["except"] = except.map(|id| id.to_string()).collect::<Vec<_>>().into();
    fields
}

fn committed(body: &v1::HandlerCommitted) -> Value {
    use v1::outcome::Verdict;
    let outcomes = body.outcomes.iter().map(|outcome| {
        let verdict = match &outcome.verdict {
            Some(Verdict::Acknowledged(_)) => "acknowledged",
            Some(Verdict::Refused(refused)) if refused.released => "released",
            Some(Verdict::Refused(_)) => "refused",
            Some(Verdict::Parked(_)) => "parked",
            None => "unknown",
        };
        json!({ "offset": Offset(outcome.offset).to_string(), "verdict": verdict })
    });
    json!({
        "group": body.group,
        "member": body.member,
        "epoch": body.epoch,
        "through": Offset(body.through).to_string(),
        "outcomes": outcomes.collect::<Vec<_>>(),
        "commands": body.commands,
    })
}

/// Names and values; a name that comes twice keeps its last value.
fn headers(headers: &[v1::Header]) -> Value {
    headers.iter().map(|header| (header.name.clone(), Value::from(header.value.as_str()))).collect::<Map<_, _>>().into()
}

/// A payload under `text` if it was sent as text, else under `base64`.
fn payload(kind: MessageKind, bytes: &[u8]) -> Value {
    match (kind, std::str::from_utf8(bytes)) {
        (MessageKind::Text, Ok(text)) => json!({ "text": text }),
        _ => json!({ "base64": STANDARD.encode(bytes) }),
    }
}

fn payload_key(bytes: &[u8]) -> &'static str {
    if std::str::from_utf8(bytes).is_ok() { "text" } else { "base64" }
}

fn payload_value(bytes: &[u8]) -> Value {
    std::str::from_utf8(bytes).map_or_else(|_| STANDARD.encode(bytes).into(), Value::from)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use trunkline_proto::{ConnectionId, LogIndex};

    use super::*;

    fn shown(kind: RecordKind, api: &str, body: &impl prost::Message) -> Value {
        let made = Record::new(kind, ConnectionId([1; 16]), api, body);
        record(PartitionId(3), Offset::new(LogIndex(7), 2), Timestamp(1_700_000_000_000_001), &made)
    }

    #[test]
    fn a_message_is_text_or_base64() {
        let text = v1::MessageReceived { kind: MessageKind::Text.into(), payload: Bytes::from_static(b"hi") };
        assert_eq!(
            shown(RecordKind::MessageReceived, "chat", &text),
            json!({
                "partition": 3, "offset": "7.2", "time": "2023-11-14T22:13:20.000001Z", "kind": "message_received",
                "connection": "AQEBAQEBAQEBAQEBAQEBAQ", "api": "chat", "text": "hi",
            })
        );
        let binary = v1::MessageReceived { kind: MessageKind::Binary.into(), payload: Bytes::from_static(&[0, 255]) };
        assert_eq!(shown(RecordKind::MessageReceived, "chat", &binary)["base64"], "AP8=");
        let empty = v1::MessageReceived { kind: MessageKind::Text.into(), payload: Bytes::new() };
        assert_eq!(shown(RecordKind::MessageReceived, "chat", &empty)["text"], "");
    }

    #[test]
    fn every_kind_shows_and_damaged_bodies_show_their_header() {
        for kind in RecordKind::ALL {
            let empty = Record::new(kind, ConnectionId::NONE, "", &v1::Acknowledged {});
            let shown = record(PartitionId(0), Offset::ZERO, Timestamp(0), &empty);
            assert_eq!(shown["kind"], kind.name());
            assert_eq!(shown["time"], "1970-01-01T00:00:00.000000Z");
        }
        let damaged = shown(RecordKind::ConnectionClosed, "", &v1::Header { name: "x".into(), value: "y".into() });
        assert_eq!(damaged["kind"], "connection_closed");
    }

    #[test]
    fn closes_and_commits_say_why_and_what() {
        let closed = v1::ConnectionClosed { code: 1006, reason: String::new(), cause: v1::CloseCause::EdgeLost.into() };
        let shown_closed = shown(RecordKind::ConnectionClosed, "chat", &closed);
        assert_eq!((&shown_closed["code"], &shown_closed["cause"]), (&json!(1006), &json!("edge_lost")));
        let outcome = v1::Outcome {
            offset: Offset::new(LogIndex(5), 1).0,
            verdict: Some(v1::outcome::Verdict::Refused(v1::Refused { delay_ms: 1, released: true })),
        };
        let commit = v1::HandlerCommitted { group: "g".into(), outcomes: vec![outcome], ..Default::default() };
        let shown_commit = shown(RecordKind::HandlerCommitted, "", &commit);
        assert_eq!(shown_commit["outcomes"], json!([{ "offset": "5.1", "verdict": "released" }]));
    }

    #[test]
    fn times_round_trip() {
        let stamp = Timestamp(1_700_000_000_123_456);
        assert_eq!(parse_time(&time(stamp)), Some(stamp));
        assert_eq!(parse_time("2023-11-14T23:13:20+01:00"), Some(Timestamp(1_700_000_000_000_000)));
        assert_eq!(parse_time("yesterday"), None);
        assert_eq!(parse_time("1960-01-01T00:00:00Z"), None, "before the epoch there is no log");
        assert_eq!(time(Timestamp(u64::MAX)), format!("{}us", u64::MAX));
    }
}
