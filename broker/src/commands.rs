//! What a command from outside must look like, and the record it becomes. Every check here holds whatever the state is; what
//! depends on the state is decided when the record is applied.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use trunkline_proto::{CloseCode, ConnectionId, PartitionCount, PartitionId, Record, RecordKind, limits, v1};

use crate::access;

/// Most response headers of an accepted registration.
pub const HEADERS_MAX: usize = 32;
/// Most bytes of them, names and values together.
pub const HEADERS_BYTES_MAX: usize = 8 << 10;
/// Longest subprotocol name, in bytes.
pub const SUBPROTOCOL_BYTES_MAX: usize = 128;
/// Largest body of a rejected registration, in bytes.
pub const REJECT_BODY_BYTES_MAX: usize = 64 << 10;
const _: () = assert!(
    HEADERS_BYTES_MAX
        + REJECT_BODY_BYTES_MAX
        + limits::ATTRIBUTES_BYTES_MAX
        + limits::CHANNELS_PER_CONNECTION_MAX * limits::CHANNEL_BYTES_MAX
        < limits::RECORD_BYTES_MAX - limits::MESSAGE_BYTES_MAX
);

/// Headers an edge sets itself in its `101`: a handler may not.
const OWN_HEADERS: [&str; 8] = [
    "connection",
    "upgrade",
    "content-length",
    "transfer-encoding",
    "sec-websocket-accept",
    "sec-websocket-protocol",
    "sec-websocket-extensions",
    "sec-websocket-version",
];

/// Why a command is refused before it reaches the log. Caller error: the same command never succeeds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// No command is set, or one that is not for this call.
    #[error("{0}")]
    Invalid(String),
    /// Payload, attributes, headers or reason.
    #[error("{what} has {bytes} bytes; at most {limit} are allowed")]
    TooLarge {
        /// Which part.
        what: &'static str,
        /// As sent.
        bytes: usize,
        /// The bound.
        limit: usize,
    },
    /// An API or a channel that is not the caller's.
    #[error(transparent)]
    Denied(#[from] access::Denied),
}

impl CommandError {
    /// The code a client sees.
    pub fn code(&self) -> v1::Code {
        match self {
            Self::Invalid(_) => v1::Code::Invalid,
            Self::TooLarge { .. } => v1::Code::TooLarge,
            Self::Denied(_) => v1::Code::NotAuthorized,
        }
    }
}

/// A command ready for the log.
#[derive(Clone, PartialEq, Debug)]
pub struct Encoded {
    /// The record it becomes.
    pub record: Record,
    /// The partition that decides about it.
    pub target: PartitionId,
    /// Skip the log.
    pub unlogged: bool,
}

/// Who asks: decides which commands are possible.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Caller {
    /// A handler's commit: registration decisions are possible, unlogged publishes are not.
    Commit,
    /// Anybody else: the other way round.
    Submit,
}

/// The name of a command's kind as metrics and messages show it.
pub fn kind_name(command: &v1::Command) -> &'static str {
    use v1::command::Command as Body;
    match &command.command {
        Some(Body::Accept(_)) => "accept",
        Some(Body::Reject(_)) => "reject",
        Some(Body::Push(_)) => "push",
        Some(Body::Publish(_)) => "publish",
        Some(Body::Close(_)) => "close",
        Some(Body::Join(_)) => "join",
        Some(Body::Leave(_)) => "leave",
        Some(Body::Attributes(_)) => "attributes",
        None => "none",
    }
}

/// Checks a command and makes its record, which is bound to what `who` may command: which API a connection is of is known where the
/// record is applied.
pub fn encode(
    command: &v1::Command,
    caller: Caller,
    who: &access::Caller,
    count: PartitionCount,
) -> Result<Encoded, CommandError> {
    use v1::command::Command as Body;
    let Some(body) = &command.command else {
        return Err(invalid("no command is set, or one this version does not know"));
    };
    if let Body::Publish(publish) = body {
        return published(command, publish, caller, who, count);
    }
    if command.unlogged {
        return Err(invalid("only a publish can be unlogged"));
    }
    let connection = connection_of(&command.connection)?;
    let bound = who.bound();
    let record = match body {
        Body::Accept(_) | Body::Reject(_) if caller == Caller::Submit => {
            return Err(invalid("a registration is decided by a commit of the API's handler group"));
        }
        Body::Accept(accept) => {
            let accept = check_accept(accept)?;
            accept.channels.iter().try_for_each(|channel| who.may_use_channel(channel))?;
            make(RecordKind::ConnectionAccepted, connection, &bound, accept)
        }
        Body::Reject(reject) => make(RecordKind::ConnectionRejected, connection, &bound, check_reject(reject)?),
        Body::Push(push) => {
            check_payload(push.kind, &push.payload)?;
            make(RecordKind::Pushed, connection, &bound, push)
        }
        Body::Close(close) => make(RecordKind::CloseRequested, connection, &bound, &check_close(close)?),
        Body::Join(join) => {
            check_channel(&join.channel)?;
            who.may_use_channel(&join.channel)?;
            // the edge is the partition's to fill in
            let join = v1::ChannelJoined { channel: join.channel.clone(), edge: String::new() };
            make(RecordKind::ChannelJoined, connection, &bound, &join)
        }
        Body::Leave(leave) => {
            check_channel(&leave.channel)?;
            who.may_use_channel(&leave.channel)?;
            make(RecordKind::ChannelLeft, connection, &bound, leave)
        }
        Body::Attributes(attributes) => {
            make(RecordKind::AttributesSet, connection, &bound, check_attributes_set(attributes)?)
        }
        Body::Publish(_) => return Err(invalid("publish names no connection")),
    };
    Ok(Encoded { record, target: connection.partition(count), unlogged: false })
}

fn make(kind: RecordKind, connection: ConnectionId, api: &str, body: &impl Message) -> Record {
    Record::new(kind, connection, api, body)
}

fn invalid(message: impl Into<String>) -> CommandError {
    CommandError::Invalid(message.into())
}

fn within(what: &'static str, bytes: usize, limit: usize) -> Result<(), CommandError> {
    if bytes > limit { Err(CommandError::TooLarge { what, bytes, limit }) } else { Ok(()) }
}

fn connection_of(bytes: &[u8]) -> Result<ConnectionId, CommandError> {
    match ConnectionId::from_slice(bytes) {
        Ok(id) if !id.is_none() => Ok(id),
        Ok(_) => Err(invalid("the connection id is all zeros")),
        Err(_) => Err(invalid(format!("a connection id is 16 bytes; this one has {}", bytes.len()))),
    }
}

fn published(
    command: &v1::Command,
    publish: &v1::Published,
    caller: Caller,
    who: &access::Caller,
    count: PartitionCount,
) -> Result<Encoded, CommandError> {
    if !command.connection.is_empty() {
        return Err(invalid("a publish names a channel or an API, not a connection"));
    }
    if command.unlogged && caller == Caller::Commit {
        return Err(invalid("a commit goes through the log whole: submit unlogged publishes"));
    }
    let target = match (publish.channel.is_empty(), publish.api.is_empty()) {
        (false, true) => {
            check_channel(&publish.channel)?;
            who.may_use_channel(&publish.channel)?;
            count.of_name(&publish.channel)
        }
        (true, false) => {
            check_name("API", &publish.api)?;
            who.may_use_api(&publish.api)?;
            count.of_name(&publish.api)
        }
        _ => return Err(invalid("a publish names either a channel or an API")),
    };
    check_payload(publish.kind, &publish.payload)?;
    if publish.except.len() > limits::EXCEPT_MAX {
        let (sent, limit) = (publish.except.len(), limits::EXCEPT_MAX);
        return Err(invalid(format!("a publish may except {limit} connections; this one has {sent}")));
    }
    for except in &publish.except {
        connection_of(except)?;
    }
    let record = make(RecordKind::Published, ConnectionId::NONE, &publish.api, publish);
    Ok(Encoded { record, target, unlogged: command.unlogged })
}

fn check_payload(kind: i32, payload: &[u8]) -> Result<(), CommandError> {
    within("payload", payload.len(), limits::MESSAGE_BYTES_MAX)?;
    match v1::MessageKind::try_from(kind) {
        Ok(v1::MessageKind::Text) if std::str::from_utf8(payload).is_err() => {
            Err(invalid("the payload of a text message must be UTF-8"))
        }
        Ok(v1::MessageKind::Text | v1::MessageKind::Binary) => Ok(()),
        Ok(v1::MessageKind::Unspecified) | Err(_) => Err(invalid("the message kind is neither text nor binary")),
    }
}

fn check_channel(channel: &str) -> Result<(), CommandError> {
    if limits::is_channel(channel) {
        return Ok(());
    }
    let limit = limits::CHANNEL_BYTES_MAX;
    Err(invalid(format!("a channel name has 1 to {limit} bytes and no control characters")))
}

fn check_name(what: &str, name: &str) -> Result<(), CommandError> {
    if limits::is_name(name) { Ok(()) } else { Err(invalid(format!("{what} names are 1 to 64 of [A-Za-z0-9._-]"))) }
}

fn check_close(close: &v1::CloseRequested) -> Result<v1::CloseRequested, CommandError> {
    within("close reason", close.reason.len(), limits::CLOSE_REASON_BYTES_MAX)?;
    // proto3 has no "absent": 0 asks for the default
    let code = if close.code == 0 { u32::from(CloseCode::NORMAL.0) } else { close.code };
    if u16::try_from(code).is_ok_and(|code| CloseCode(code).may_be_requested()) {
        return Ok(v1::CloseRequested { code, reason: close.reason.clone() });
    }
    Err(invalid(format!("close code {code} may not be asked for: use 1000, 1001, 1008, 1011 to 1013 or 3000 to 4999")))
}

fn check_accept(accept: &v1::ConnectionAccepted) -> Result<&v1::ConnectionAccepted, CommandError> {
    within("subprotocol", accept.subprotocol.len(), SUBPROTOCOL_BYTES_MAX)?;
    if !accept.subprotocol.bytes().all(is_token_byte) {
        return Err(invalid("a subprotocol is an HTTP token (RFC 9110, section 5.6.2)"));
    }
    check_headers(&accept.headers)?;
    check_attributes(&accept.attributes)?;
    let limit = limits::CHANNELS_PER_CONNECTION_MAX;
    if accept.channels.len() > limit {
        return Err(invalid(format!("a connection may be in {limit} channels")));
    }
    let mut seen = BTreeSet::new();
    for channel in &accept.channels {
        check_channel(channel)?;
        if !seen.insert(channel) {
            return Err(invalid("a channel is named twice"));
        }
    }
    Ok(accept)
}

fn check_reject(reject: &v1::ConnectionRejected) -> Result<&v1::ConnectionRejected, CommandError> {
    within("body of the rejection", reject.body.len(), REJECT_BODY_BYTES_MAX)?;
    if !(400..=599).contains(&reject.status) {
        return Err(invalid(format!("HTTP status {} does not reject: use 400 to 599", reject.status)));
    }
    Ok(reject)
}

fn check_headers(headers: &[v1::Header]) -> Result<(), CommandError> {
    if headers.len() > HEADERS_MAX {
        return Err(invalid(format!("at most {HEADERS_MAX} headers may be set")));
    }
    within("headers", headers.iter().map(|header| header.name.len() + header.value.len()).sum(), HEADERS_BYTES_MAX)?;
    for header in headers {
        if header.name.is_empty() || !header.name.bytes().all(is_token_byte) {
            return Err(invalid("a header name is an HTTP token (RFC 9110, section 5.1)"));
        }
        if OWN_HEADERS.iter().any(|own| header.name.eq_ignore_ascii_case(own)) {
            return Err(invalid(format!("header {} is the edge's to set", header.name)));
        }
        // visible characters, spaces and tabs: nothing that could end the line
        if !header.value.bytes().all(|byte| byte == b'\t' || (byte >= 0x20 && byte != 0x7f)) {
            return Err(invalid(format!("the value of header {} holds control characters", header.name)));
        }
    }
    Ok(())
}

fn check_attributes_set(attributes: &v1::AttributesSet) -> Result<&v1::AttributesSet, CommandError> {
    check_attributes(&attributes.set)?;
    within("removed keys", attributes.removed.iter().map(String::len).sum(), limits::ATTRIBUTES_BYTES_MAX)?;
    if attributes.removed.iter().any(String::is_empty) {
        return Err(invalid("an attribute key is not empty"));
    }
    if attributes.removed.len() > limits::ATTRIBUTES_BYTES_MAX {
        return Err(invalid("too many keys to remove"));
    }
    Ok(attributes)
}

fn check_attributes(attributes: &BTreeMap<String, String>) -> Result<(), CommandError> {
    let bytes = attributes.iter().map(|(key, value)| key.len() + value.len()).sum();
    within("attributes", bytes, limits::ATTRIBUTES_BYTES_MAX)?;
    if attributes.keys().any(String::is_empty) {
        return Err(invalid("an attribute key is not empty"));
    }
    Ok(())
}

/// RFC 9110, section 5.6.2.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use v1::command::Command as Body;

    use super::*;

    fn count() -> PartitionCount {
        PartitionCount::new(8).unwrap()
    }

    fn to(connection: &[u8], body: Body) -> v1::Command {
        v1::Command { connection: Bytes::copy_from_slice(connection), command: Some(body), unlogged: false }
    }

    fn push(kind: i32, payload: &[u8]) -> Body {
        Body::Push(v1::Pushed { kind, payload: Bytes::copy_from_slice(payload) })
    }

    fn publish(channel: &str, api: &str) -> v1::Published {
        v1::Published { channel: channel.into(), api: api.into(), kind: 2, ..Default::default() }
    }

    #[test]
    fn commands_go_to_the_partition_that_decides() {
        let id = [7; 16];
        let encoded = encode(&to(&id, push(1, b"hi")), Caller::Submit, &access::Caller::default(), count()).unwrap();
        assert_eq!((encoded.record.kind, encoded.target), (RecordKind::Pushed, ConnectionId(id).partition(count())));
        let command = v1::Command { command: Some(Body::Publish(publish("lobby", ""))), ..Default::default() };
        assert_eq!(
            encode(&command, Caller::Commit, &access::Caller::default(), count()).unwrap().target,
            count().of_name("lobby")
        );
        let command = v1::Command { command: Some(Body::Publish(publish("", "chat"))), ..Default::default() };
        let encoded = encode(&command, Caller::Commit, &access::Caller::default(), count()).unwrap();
        assert_eq!((encoded.target, encoded.record.api()), (count().of_name("chat"), "chat"));
    }

    #[test]
    fn close_without_a_code_is_a_normal_close() {
        let close = Body::Close(v1::CloseRequested::default());
        let encoded = encode(&to(&[1; 16], close), Caller::Submit, &access::Caller::default(), count()).unwrap();
        assert_eq!(encoded.record.decode::<v1::CloseRequested>().unwrap().code, 1000);
    }

    #[test]
    fn bad_commands_are_refused_with_a_reason() {
        let id = [1; 16];
        let close = |code, reason: &str| Body::Close(v1::CloseRequested { code, reason: reason.into() });
        let join = |channel: &str| Body::Join(v1::ChannelJoined { channel: channel.into(), edge: String::new() });
        let accept = |accept: v1::ConnectionAccepted| Body::Accept(accept);
        let header = |name: &str, value: &str| v1::ConnectionAccepted {
            headers: vec![v1::Header { name: name.into(), value: value.into() }],
            ..Default::default()
        };
        let attributes = |bytes: usize| v1::AttributesSet {
            set: BTreeMap::from([("k".to_owned(), "v".repeat(bytes))]),
            removed: Vec::new(),
        };
        let bad = [
            ("nothing", v1::Command::default(), v1::Code::Invalid),
            ("short id", to(&[1; 15], push(1, b"")), v1::Code::Invalid),
            ("no id", to(&[], push(1, b"")), v1::Code::Invalid),
            ("zero id", to(&[0; 16], push(1, b"")), v1::Code::Invalid),
            ("no kind", to(&id, push(0, b"")), v1::Code::Invalid),
            ("unknown kind", to(&id, push(3, b"")), v1::Code::Invalid),
            ("negative kind", to(&id, push(-1, b"")), v1::Code::Invalid),
            ("text that is not UTF-8", to(&id, push(1, &[0xff])), v1::Code::Invalid),
            ("too large", to(&id, push(2, &vec![0; limits::MESSAGE_BYTES_MAX + 1])), v1::Code::TooLarge),
            ("close 1005", to(&id, close(1005, "")), v1::Code::Invalid),
            ("close 1006", to(&id, close(1006, "")), v1::Code::Invalid),
            ("close 70000", to(&id, close(70_000, "")), v1::Code::Invalid),
            ("close 999", to(&id, close(999, "")), v1::Code::Invalid),
            ("long reason", to(&id, close(1000, &"r".repeat(124))), v1::Code::TooLarge),
            ("empty channel", to(&id, join("")), v1::Code::Invalid),
            ("control character", to(&id, join("a\nb")), v1::Code::Invalid),
            ("long channel", to(&id, join(&"c".repeat(256))), v1::Code::Invalid),
            (
                "status 200",
                to(&id, Body::Reject(v1::ConnectionRejected { status: 200, ..Default::default() })),
                v1::Code::Invalid,
            ),
            (
                "status 600",
                to(&id, Body::Reject(v1::ConnectionRejected { status: 600, ..Default::default() })),
                v1::Code::Invalid,
            ),
            ("header injection", to(&id, accept(header("x", "a\r\nSet-Cookie: b"))), v1::Code::Invalid),
            ("header name", to(&id, accept(header("x y", "a"))), v1::Code::Invalid),
            ("edge's header", to(&id, accept(header("Upgrade", "h2c"))), v1::Code::Invalid),
            (
                "subprotocol",
                to(&id, accept(v1::ConnectionAccepted { subprotocol: "a,b".into(), ..Default::default() })),
                v1::Code::Invalid,
            ),
            (
                "channel twice",
                to(
                    &id,
                    accept(v1::ConnectionAccepted { channels: vec!["a".into(), "a".into()], ..Default::default() }),
                ),
                v1::Code::Invalid,
            ),
            ("attributes", to(&id, Body::Attributes(attributes(limits::ATTRIBUTES_BYTES_MAX))), v1::Code::TooLarge),
            ("publish to a connection", to(&id, Body::Publish(publish("a", ""))), v1::Code::Invalid),
            ("publish to both", to(&[], Body::Publish(publish("a", "b"))), v1::Code::Invalid),
            ("publish to nobody", to(&[], Body::Publish(publish("", ""))), v1::Code::Invalid),
            ("publish to no API", to(&[], Body::Publish(publish("", "a b"))), v1::Code::Invalid),
            (
                "except",
                to(&[], Body::Publish(v1::Published { except: vec![Bytes::from_static(b"x")], ..publish("a", "") })),
                v1::Code::Invalid,
            ),
            ("unlogged push", v1::Command { unlogged: true, ..to(&id, push(1, b"")) }, v1::Code::Invalid),
            (
                "unlogged commit",
                v1::Command { unlogged: true, ..to(&[], Body::Publish(publish("a", ""))) },
                v1::Code::Invalid,
            ),
        ];
        for (name, command, code) in bad {
            let refused = encode(&command, Caller::Commit, &access::Caller::default(), count()).expect_err(name);
            assert_eq!(refused.code(), code, "{name}: {refused}");
        }
        let decision = to(&id, accept(v1::ConnectionAccepted::default()));
        assert!(encode(&decision, Caller::Commit, &access::Caller::default(), count()).is_ok());
        assert_eq!(
            encode(&decision, Caller::Submit, &access::Caller::default(), count()).unwrap_err().code(),
            v1::Code::Invalid
        );
    }
}
