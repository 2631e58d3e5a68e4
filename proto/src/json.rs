//! Records and connections as JSON, as the binary's `--json` and the HTTP API show them: the only place that knows the keys. Their
//! order is fixed, so that lines can be compared.

mod cluster;
mod hidden;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Value, json};

use crate::{
    ConnectionId, Offset, RecordError, RecordKind, Timestamp,
    close::cause_name,
    v1::{self, LoggedRecord, MessageKind},
};

pub use cluster::{Standing, cluster, digest};

/// An object whose keys keep their order.
#[derive(Debug, Default)]
pub struct Object(Vec<(&'static str, Value)>);

impl Object {
    /// Adds a key; whoever adds it twice has it twice.
    pub fn put(&mut self, key: &'static str, value: impl Into<Value>) -> &mut Self {
        self.0.push((key, value.into()));
        self
    }

    /// Adds a key unless its text is empty.
    pub fn put_text(&mut self, key: &'static str, text: String) -> &mut Self {
        if !text.is_empty() {
            self.put(key, text);
        }
        self
    }

    fn put_payload(&mut self, kind: MessageKind, payload: &[u8]) -> &mut Self {
        match std::str::from_utf8(payload) {
            Ok(text) if kind == MessageKind::Text => self.put("text", text),
            _ => self.put("base64", STANDARD.encode(payload)),
        }
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.iter().find(|(candidate, _)| *candidate == key).map(|(_, value)| value)
    }

    /// Keys and values in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Value)> {
        self.0.iter().map(|(key, value)| (*key, value))
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in &self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

/// A connection's id; empty if the bytes are none.
pub fn id(bytes: &[u8]) -> String {
    ConnectionId::from_slice(bytes).map(|id| id.to_string()).unwrap_or_default()
}

/// `index.position`.
pub fn offset(offset: u64) -> String {
    Offset(offset).to_string()
}

/// Microseconds since 1970 as RFC 3339, in UTC, always with microseconds.
pub fn time(micros: u64) -> String {
    match i64::try_from(micros).ok().and_then(|micros| jiff::Timestamp::from_microsecond(micros).ok()) {
        Some(time) => format!("{time:.6}"),
        // RFC 3339 ends with the year 9999
        None => format!("{micros}us"),
    }
}

/// The time an RFC 3339 text says.
pub fn parse_time(text: &str) -> Option<Timestamp> {
    let instant: jiff::Timestamp = text.parse().ok()?;
    u64::try_from(instant.as_microsecond()).ok().map(Timestamp)
}

/// One open connection.
pub fn connection(connection: &v1::Connection) -> Object {
    let mut object = Object::default();
    object.put("connection", id(&connection.connection)).put("api", connection.api.as_str());
    object.put("edge", connection.edge.as_str()).put("opened_at", time(connection.opened_at));
    object.put("last_active_at", time(connection.last_active_at));
    object.put("subprotocol", connection.subprotocol.as_str()).put("attributes", json!(connection.attributes));
    object.put("channels", connection.channels.clone());
    object.put("phase", phase(connection)).put("offset", offset(connection.opened_offset));
    object.put("peer", connection.peer.as_str()).put("principal", connection.principal.as_str());
    object
}

/// The name of a connection's phase.
pub fn phase(connection: &v1::Connection) -> String {
    connection.phase().as_str_name().trim_start_matches("CONNECTION_PHASE_").to_ascii_lowercase()
}

/// One record. With `raw` also where it comes from and why it was refused. A body that does not decode shows as `error`.
pub fn record(partition: u16, record: &LoggedRecord, raw: bool) -> Object {
    let kind = u8::try_from(record.kind).ok().and_then(RecordKind::from_u8);
    let mut object = Object::default();
    object.put("partition", partition).put("offset", offset(record.offset)).put("time", time(record.time));
    object.put("kind", kind.map_or_else(|| format!("kind_{}", record.kind), |kind| kind.name().to_owned()));
    if ConnectionId::from_slice(&record.connection).is_ok_and(|id| !id.is_none()) {
        object.put("connection", id(&record.connection));
    }
    object.put_text("api", record.api.clone());
    if let Some(kind) = kind
        && let Err(error) = body(&mut object, kind, record)
    {
        object.put("error", error.to_string());
    }
    object.0.retain(|(_, value)| !says_nothing(value));
    if record.forwarded {
        object.put("forwarded", true);
    }
    if raw {
        object.put_text("source", record.source.clone()).put_text("refused", record.refused.clone());
    }
    object
}

/// Empty lists and maps are left out of records; an empty text is a text.
fn says_nothing(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(serde_json::Map::is_empty)
}

fn decode<M: prost::Message + Default>(kind: RecordKind, record: &LoggedRecord) -> Result<M, RecordError> {
    let failed = |error: prost::DecodeError| RecordError::Body { kind: kind.name(), reason: error.to_string() };
    M::decode(record.body.clone()).map_err(failed)
}

fn body(object: &mut Object, kind: RecordKind, record: &LoggedRecord) -> Result<(), RecordError> {
    match kind {
        RecordKind::ConnectionOpened => opened(object, decode(kind, record)?),
        RecordKind::MessageReceived => {
            let message: v1::MessageReceived = decode(kind, record)?;
            object.put_payload(message.kind(), &message.payload);
        }
        RecordKind::ConnectionClosed => {
            let closed: v1::ConnectionClosed = decode(kind, record)?;
            let cause = cause_name(closed.cause());
            object.put("code", closed.code).put("reason", closed.reason).put("cause", cause);
        }
        RecordKind::ConnectionAccepted => accepted(object, decode(kind, record)?),
        RecordKind::ConnectionRejected => {
            let rejected: v1::ConnectionRejected = decode(kind, record)?;
            object.put("status", rejected.status).put_payload(MessageKind::Text, &rejected.body);
        }
        RecordKind::Pushed => {
            let pushed: v1::Pushed = decode(kind, record)?;
            object.put_payload(pushed.kind(), &pushed.payload);
        }
        RecordKind::Published => published(object, decode(kind, record)?),
        RecordKind::CloseRequested => {
            let close: v1::CloseRequested = decode(kind, record)?;
            object.put("code", close.code).put("reason", close.reason);
        }
        RecordKind::ChannelJoined => {
            let joined: v1::ChannelJoined = decode(kind, record)?;
            object.put("channel", joined.channel).put_text("edge", joined.edge);
        }
        RecordKind::ChannelLeft => {
            object.put("channel", decode::<v1::ChannelLeft>(kind, record)?.channel);
        }
        RecordKind::AttributesSet => {
            let attributes: v1::AttributesSet = decode(kind, record)?;
            object.put("attributes", json!(attributes.set)).put("removed", attributes.removed);
        }
        _ => bookkeeping(object, kind, record)?,
    }
    Ok(())
}

fn opened(object: &mut Object, opened: v1::ConnectionOpened) {
    object.put("edge", opened.edge).put("incarnation", opened.incarnation).put("peer", opened.peer);
    object.put("path", opened.path).put_text("query", hidden::query(&opened.query));
    object.put("headers", headers(&hidden::headers(opened.headers)));
    object.put("subprotocols", hidden::subprotocols(opened.subprotocols));
    object.put_text("subprotocol", opened.subprotocol).put_text("principal", opened.principal);
    object.put("channels", opened.channels).put_text("group", opened.handler_group);
    object.put("parameters", headers(&opened.parameters)).put("attributes", json!(opened.attributes));
}

fn accepted(object: &mut Object, accepted: v1::ConnectionAccepted) {
    object.put_text("subprotocol", accepted.subprotocol).put("headers", headers(&accepted.headers));
    object.put("attributes", json!(accepted.attributes)).put("channels", accepted.channels);
}

fn published(object: &mut Object, published: v1::Published) {
    let kind = published.kind();
    object.put_text("channel", published.channel);
    if object.get("api").is_none() {
        object.put_text("api", published.api);
    }
    object.put("except", published.except.iter().map(|except| id(except)).collect::<Vec<_>>());
    object.put_payload(kind, &published.payload);
}

/// Names and values; of a name that stands there twice the last.
fn headers(headers: &[v1::Header]) -> Value {
    headers
        .iter()
        .map(|header| (header.name.clone(), Value::from(header.value.as_str())))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn bookkeeping(object: &mut Object, kind: RecordKind, record: &LoggedRecord) -> Result<(), RecordError> {
    match kind {
        RecordKind::HandlerCommitted => {
            let committed: v1::HandlerCommitted = decode(kind, record)?;
            object.put("group", committed.group).put("member", committed.member).put("epoch", committed.epoch);
            object.put("base", offset(committed.base)).put("through", offset(committed.through));
            object.put("outcomes", committed.outcomes.iter().map(outcome).collect::<Vec<_>>());
            object.put("holes", holes(&committed.holes)).put("commands", committed.commands);
        }
        RecordKind::HandlerAssigned => {
            let assigned: v1::HandlerAssigned = decode(kind, record)?;
            object.put("group", assigned.group).put("member", assigned.member).put("epoch", assigned.epoch);
            object.put("apis", assigned.apis).put("kinds", kinds(&assigned.kinds));
            object.put("base", offset(assigned.base)).put("through", offset(assigned.through));
            object.put("holes", holes(&assigned.holes));
        }
        RecordKind::GroupReset => {
            let reset: v1::GroupReset = decode(kind, record)?;
            object.put("group", reset.group).put("through", offset(reset.through));
        }
        RecordKind::GroupDropped => {
            let dropped: v1::GroupDropped = decode(kind, record)?;
            object.put("group", dropped.group).put("epoch", dropped.epoch);
        }
        RecordKind::ParkedReleased => {
            let released: v1::ParkedReleased = decode(kind, record)?;
            let offsets: Vec<String> = released.offsets.into_iter().map(offset).collect();
            object.put("group", released.group).put("offsets", offsets).put("discard", released.discard);
        }
        RecordKind::EdgeAttached => {
            let attached: v1::EdgeAttached = decode(kind, record)?;
            object.put("edge", attached.edge).put("incarnation", attached.incarnation);
        }
        RecordKind::EdgeLost => {
            let lost: v1::EdgeLost = decode(kind, record)?;
            object.put("edge", lost.edge).put("incarnation", lost.incarnation);
        }
        RecordKind::Forwarded => {
            let forwarded: v1::Forwarded = decode(kind, record)?;
            object.put("target", forwarded.target).put("through", offset(forwarded.through));
        }
        RecordKind::Trimmed => {
            let trimmed: v1::Trimmed = decode(kind, record)?;
            object.put("through", offset(trimmed.through)).put("skipping", trimmed.skipping);
        }
        RecordKind::ApplyVersion => {
            object.put("version", decode::<v1::ApplyVersion>(kind, record)?.version);
        }
        _ => {}
    }
    Ok(())
}

fn outcome(outcome: &v1::Outcome) -> Value {
    use v1::outcome::Verdict;
    let offset = offset(outcome.offset);
    match &outcome.verdict {
        Some(Verdict::Acknowledged(_)) => json!({"offset": offset, "verdict": "acknowledged"}),
        Some(Verdict::Refused(refused)) if refused.released => json!({"offset": offset, "verdict": "released"}),
        Some(Verdict::Refused(refused)) => {
            json!({"offset": offset, "verdict": "refused", "delay_ms": refused.delay_ms})
        }
        Some(Verdict::Parked(parked)) => {
            json!({"offset": offset, "verdict": "parked", "reason": parked.reason, "attempt": parked.attempt})
        }
        None => json!({"offset": offset, "verdict": null}),
    }
}

fn holes(holes: &[v1::Hole]) -> Value {
    let hole = |hole: &v1::Hole| {
        let mut value = json!({"offset": offset(hole.offset), "attempt": hole.attempt});
        if hole.not_before > 0 {
            value["not_before"] = time(hole.not_before).into();
        }
        value
    };
    holes.iter().map(hole).collect()
}

fn kinds(kinds: &[u32]) -> Vec<String> {
    let name = |kind: &u32| match u8::try_from(*kind).ok().and_then(RecordKind::from_u8) {
        Some(kind) => kind.name().to_owned(),
        None => format!("kind_{kind}"),
    };
    kinds.iter().map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(kind: RecordKind, body: &impl prost::Message) -> LoggedRecord {
        LoggedRecord {
            offset: 7 << 16 | 1,
            time: 1_764_000_000_000_001,
            kind: kind as u32,
            connection: vec![0xff; 16].into(),
            api: "chat".into(),
            body: body.encode_to_vec().into(),
            source: "edge".into(),
            ..Default::default()
        }
    }

    fn line(kind: RecordKind, body: &impl prost::Message) -> String {
        serde_json::to_string(&record(2, &logged(kind, body), false)).unwrap()
    }

    const HEAD: &str = r#""offset":"7.1","time":"2025-11-24T16:00:00.000001Z""#;
    const WHO: &str = r#""connection":"_____________________w","api":"chat""#;

    #[test]
    fn events_and_commands() {
        let text = v1::MessageReceived { kind: 1, payload: "hi \"you\"".into() };
        let binary = v1::Pushed { kind: 2, payload: vec![0xff, 0].into() };
        let closed = v1::ConnectionClosed { code: 1006, reason: String::new(), cause: 13 };
        let published = v1::Published {
            channel: "room".into(),
            kind: 1,
            payload: "x".into(),
            except: vec![vec![0xff; 16].into()],
            ..Default::default()
        };
        let cases = [
            (line(RecordKind::MessageReceived, &text), "message_received", r#""text":"hi \"you\"""#),
            (line(RecordKind::Pushed, &binary), "pushed", r#""base64":"/wA=""#),
            (
                line(RecordKind::ConnectionClosed, &closed),
                "connection_closed",
                r#""code":1006,"reason":"","cause":"edge_lost""#,
            ),
            (
                line(RecordKind::Published, &published),
                "published",
                r#""channel":"room","except":["_____________________w"],"text":"x""#,
            ),
            (
                line(RecordKind::ChannelLeft, &v1::ChannelLeft { channel: "c".into() }),
                "channel_left",
                r#""channel":"c""#,
            ),
        ];
        for (line, kind, rest) in cases {
            assert_eq!(line, format!(r#"{{"partition":2,{HEAD},"kind":"{kind}",{WHO},{rest}}}"#));
        }
    }

    #[test]
    fn an_opened_connection() {
        let opened = v1::ConnectionOpened {
            edge: "e1".into(),
            incarnation: 3,
            peer: "127.0.0.1:5".into(),
            path: "/chat".into(),
            query: "access_token=HUSH".into(),
            subprotocols: vec!["bearer".into(), "HUSH".into()],
            headers: [("host", "h"), ("authorization", "Bearer x"), ("cookie", "a=1"), ("x-api-key", "k")]
                .map(|(name, value)| v1::Header { name: name.into(), value: value.into() })
                .into(),
            channels: vec!["lobby".into()],
            handler_group: "chat".into(),
            ..Default::default()
        };
        assert_eq!(
            line(RecordKind::ConnectionOpened, &opened),
            format!(
                r#"{{"partition":2,{HEAD},"kind":"connection_opened",{WHO},"edge":"e1","incarnation":3,"peer":"127.0.0.1:5","path":"/chat","query":"access_token=(not shown)","headers":{{"authorization":"(not shown)","cookie":"(not shown)","host":"h","x-api-key":"(not shown)"}},"subprotocols":["bearer","(not shown)"],"channels":["lobby"],"group":"chat"}}"#
            )
        );
    }

    #[test]
    fn a_commit() {
        let outcomes = vec![
            v1::Outcome { offset: 1 << 16, verdict: Some(v1::outcome::Verdict::Acknowledged(v1::Acknowledged {})) },
            v1::Outcome {
                offset: 2 << 16,
                verdict: Some(v1::outcome::Verdict::Refused(v1::Refused { delay_ms: 500, released: false })),
            },
        ];
        let committed = v1::HandlerCommitted {
            group: "g".into(),
            member: "m".into(),
            epoch: 4,
            through: 2 << 16,
            outcomes,
            holes: vec![v1::Hole { offset: 2 << 16, attempt: 2, not_before: 0 }],
            commands: 1,
            ..Default::default()
        };
        let mut logged = logged(RecordKind::HandlerCommitted, &committed);
        (logged.connection, logged.api) = (vec![0; 16].into(), String::new());
        logged.refused = "stale_epoch".into();
        assert_eq!(
            serde_json::to_string(&record(0, &logged, true)).unwrap(),
            format!(
                r#"{{"partition":0,{HEAD},"kind":"handler_committed","group":"g","member":"m","epoch":4,"base":"0.0","through":"2.0","outcomes":[{{"offset":"1.0","verdict":"acknowledged"}},{{"delay_ms":500,"offset":"2.0","verdict":"refused"}}],"holes":[{{"attempt":2,"offset":"2.0"}}],"commands":1,"source":"edge","refused":"stale_epoch"}}"#
            )
        );
    }

    #[test]
    fn what_does_not_decode_says_so() {
        let mut broken = logged(RecordKind::Pushed, &v1::Pushed::default());
        broken.body = vec![0xff].into();
        assert!(record(0, &broken, false).get("error").is_some());
        broken.kind = 200;
        assert_eq!(record(0, &broken, false).get("kind"), Some(&"kind_200".into()));
    }

    #[test]
    fn every_kind_shows() {
        for kind in RecordKind::ALL {
            let shown = record(0, &LoggedRecord { kind: kind as u32, ..Default::default() }, false);
            assert_eq!(shown.get("kind"), Some(&kind.name().into()));
            assert_eq!((shown.get("connection"), shown.get("error")), (None, None), "{shown:?}");
        }
    }

    #[test]
    fn texts_that_are_empty_are_texts() {
        let empty = v1::MessageReceived { kind: 1, payload: "".into() };
        let shown = record(0, &logged(RecordKind::MessageReceived, &empty), false);
        assert_eq!(shown.get("text"), Some(&"".into()));
    }

    #[test]
    fn times_have_microseconds_always() {
        assert_eq!(time(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(time(1_764_000_000_000_001), "2025-11-24T16:00:00.000001Z");
        assert_eq!(time(u64::MAX), format!("{}us", u64::MAX));
    }
    #[test]
    fn times_round_trip() {
        let stamp = Timestamp(1_700_000_000_123_456);
        assert_eq!(parse_time(&time(stamp.0)), Some(stamp));
        assert_eq!(parse_time("2023-11-14T23:13:20+01:00"), Some(Timestamp(1_700_000_000_000_000)));
        assert_eq!(parse_time("yesterday"), None);
        assert_eq!(parse_time("1960-01-01T00:00:00Z"), None, "before the epoch there is no log");
    }

    #[test]
    fn a_connection() {
        let found = v1::Connection {
            connection: vec![0xff; 16].into(),
            api: "chat".into(),
            edge: "e1".into(),
            opened_at: 0,
            last_active_at: 7_000_000,
            attributes: [("nickname".to_owned(), "ada".to_owned())].into(),
            channels: vec!["chat".into()],
            phase: 2,
            peer: "127.0.0.1:5".into(),
            ..Default::default()
        };
        assert_eq!(
            serde_json::to_string(&connection(&found)).unwrap(),
            r#"{"connection":"_____________________w","api":"chat","edge":"e1","opened_at":"1970-01-01T00:00:00.000000Z","last_active_at":"1970-01-01T00:00:07.000000Z","subprotocol":"","attributes":{"nickname":"ada"},"channels":["chat"],"phase":"open","offset":"0.0","peer":"127.0.0.1:5","principal":""}"#
        );
    }
}
