//! One record: a fixed header that can be walked without decoding, and the protobuf body of its kind.
//!
//! ```text
//! u32 LE  bytes that follow      u8 kind      [16] connection (zeros: none)      u8 length of api, api (UTF-8)      body
//! ```
//! The edge encodes a record once; brokers store and forward these bytes as they are.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

use crate::{ids::ConnectionId, limits, v1};

/// Bytes of a record before its api and body.
const HEADER_BYTES: usize = 4 + 1 + 16 + 1;

/// What a record is. The numbers reach disk: never reuse one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(u8)]
#[allow(missing_docs)] // each is the message of the same name in records.proto
pub enum RecordKind {
    ConnectionOpened = 1,
    MessageReceived = 2,
    ConnectionClosed = 3,
    ConnectionAccepted = 16,
    ConnectionRejected = 17,
    Pushed = 18,
    Published = 19,
    CloseRequested = 20,
    ChannelJoined = 21,
    ChannelLeft = 22,
    AttributesSet = 23,
    HandlerCommitted = 32,
    HandlerAssigned = 33,
    EdgeAttached = 34,
    EdgeLost = 35,
    Forwarded = 36,
    Trimmed = 37,
    ApplyVersion = 38,
    GroupReset = 39,
    GroupDropped = 40,
    ParkedReleased = 41,
}

impl RecordKind {
    /// Every kind.
    pub const ALL: [Self; 21] = [
        Self::ConnectionOpened,
        Self::MessageReceived,
        Self::ConnectionClosed,
        Self::ConnectionAccepted,
        Self::ConnectionRejected,
        Self::Pushed,
        Self::Published,
        Self::CloseRequested,
        Self::ChannelJoined,
        Self::ChannelLeft,
        Self::AttributesSet,
        Self::HandlerCommitted,
        Self::HandlerAssigned,
        Self::EdgeAttached,
        Self::EdgeLost,
        Self::Forwarded,
        Self::Trimmed,
        Self::ApplyVersion,
        Self::GroupReset,
        Self::GroupDropped,
        Self::ParkedReleased,
    ];

    /// The kind of that number, if there is one.
    pub fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }

    /// Whether handlers consume it: opened, message, closed.
    pub fn is_event(self) -> bool {
        matches!(self, Self::ConnectionOpened | Self::MessageReceived | Self::ConnectionClosed)
    }

    /// Whether handlers and operators may ask for it.
    pub fn is_command(self) -> bool {
        (Self::ConnectionAccepted as u8..=Self::AttributesSet as u8).contains(&(self as u8))
    }

    /// The name tools show: `connection_opened`.
    pub fn name(self) -> &'static str {
        match self {
            Self::ConnectionOpened => "connection_opened",
            Self::MessageReceived => "message_received",
            Self::ConnectionClosed => "connection_closed",
            Self::ConnectionAccepted => "connection_accepted",
            Self::ConnectionRejected => "connection_rejected",
            Self::Pushed => "pushed",
            Self::Published => "published",
            Self::CloseRequested => "close_requested",
            Self::ChannelJoined => "channel_joined",
            Self::ChannelLeft => "channel_left",
            Self::AttributesSet => "attributes_set",
            Self::HandlerCommitted => "handler_committed",
            Self::HandlerAssigned => "handler_assigned",
            Self::EdgeAttached => "edge_attached",
            Self::EdgeLost => "edge_lost",
            Self::Forwarded => "forwarded",
            Self::Trimmed => "trimmed",
            Self::ApplyVersion => "apply_version",
            Self::GroupReset => "group_reset",
            Self::GroupDropped => "group_dropped",
            Self::ParkedReleased => "parked_released",
        }
    }
}

/// Why bytes are no record. Offset and kind say where to look.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The bytes end before the record does.
    #[error("record is cut short: {missing} more bytes expected")]
    Short {
        /// How many are missing.
        missing: usize,
    },
    /// Larger than [`limits::RECORD_BYTES_MAX`], or smaller than its header.
    #[error("record length {bytes} is out of range")]
    Length {
        /// As declared.
        bytes: usize,
    },
    /// No such kind.
    #[error("record kind {0} is unknown: it was written by a newer version, or is damaged")]
    Kind(u8),
    /// The api is no UTF-8.
    #[error("record names an api that is not UTF-8")]
    Api,
    /// The body is no message of its kind.
    #[error("body of a {kind} record does not decode: {reason}")]
    Body {
        /// The kind's name.
        kind: &'static str,
        /// What prost says.
        reason: String,
    },
}

/// A record whose parts share one buffer. Cloning copies no payload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// What it is.
    pub kind: RecordKind,
    /// The connection it belongs to, or [`ConnectionId::NONE`].
    pub connection: ConnectionId,
    /// The whole record, header included, as it stands in the log.
    bytes: Bytes,
    api_length: u8,
}

impl Record {
    /// Encodes a record. `api` must be a name ([`limits::is_name`]), empty, or with a command for a connection the names that it is
    /// bound to ([`Record::api`]).
    pub fn new(kind: RecordKind, connection: ConnectionId, api: &str, body: &impl Message) -> Self {
        let mut bytes = BytesMut::with_capacity(HEADER_BYTES + api.len() + body.encoded_len());
        encode_record(&mut bytes, kind, connection, api, body);
        Self { kind, connection, bytes: bytes.freeze(), api_length: api_length(api) }
    }

    /// Takes the first record off `bytes`, sharing the buffer.
    pub fn split_from(bytes: &mut Bytes) -> Result<Self, RecordError> {
        let header = RecordRef::first(bytes)?;
        let (kind, connection, api_length, length) =
            (header.kind, header.connection, header.api.len() as u8, header.length);
        Ok(Self { kind, connection, bytes: bytes.split_to(length), api_length })
    }

    /// The API it belongs to; empty where it names none. With a command for a connection: the APIs of which that must be, separated by
    /// commas; empty: of any.
    pub fn api(&self) -> &str {
        // checked when the record was made
        std::str::from_utf8(&self.bytes[HEADER_BYTES..HEADER_BYTES + usize::from(self.api_length)]).unwrap_or_default()
    }

    /// The protobuf body, sharing the buffer.
    pub fn body(&self) -> Bytes {
        self.bytes.slice(HEADER_BYTES + usize::from(self.api_length)..)
    }

    /// The whole record as it stands in the log.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Decodes the body; payloads share the buffer.
    pub fn decode<M: Message + Default>(&self) -> Result<M, RecordError> {
        M::decode(self.body()).map_err(|error| RecordError::Body { kind: self.kind.name(), reason: error.to_string() })
    }
}

fn api_length(api: &str) -> u8 {
    debug_assert!(api.len() <= limits::BOUND_BYTES_MAX);
    api.len() as u8
}

/// Appends an encoded record to `out`: the edge's and the leader's only encoder.
pub fn encode_record(out: &mut BytesMut, kind: RecordKind, connection: ConnectionId, api: &str, body: &impl Message) {
    let length = HEADER_BYTES - 4 + api.len() + body.encoded_len();
    out.reserve(4 + length);
    out.put_u32_le(length as u32);
    out.put_u8(kind as u8);
    out.put_slice(&connection.0);
    out.put_u8(api_length(api));
    out.put_slice(api.as_bytes());
    // a BytesMut grows: encoding into it cannot fail
    let _ = body.encode(out);
}

/// A [`v1::MessageReceived`] straight from a socket's buffer: one copy, no message built. Same bytes as [`encode_record`].
pub fn encode_message_received(
    out: &mut BytesMut,
    connection: ConnectionId,
    api: &str,
    kind: v1::MessageKind,
    payload: &[u8],
) {
    let payload_header = if payload.is_empty() { 0 } else { 1 + prost::length_delimiter_len(payload.len()) };
    let body = 2 + payload_header + payload.len();
    let length = HEADER_BYTES - 4 + api.len() + body;
    out.reserve(4 + length);
    out.put_u32_le(length as u32);
    out.put_u8(RecordKind::MessageReceived as u8);
    out.put_slice(&connection.0);
    out.put_u8(api_length(api));
    out.put_slice(api.as_bytes());
    out.put_slice(&[0x08, kind as u8]); // field 1, varint
    if !payload.is_empty() {
        out.put_u8(0x12); // field 2, length-delimited
        let _ = prost::encode_length_delimiter(payload.len(), out);
        out.put_slice(payload);
    }
}

/// A record's header, borrowed: what a walk over an entry needs (measured: 45 times cheaper than decoding bodies).
#[derive(Clone, Copy, Debug)]
pub struct RecordRef<'a> {
    /// What it is.
    pub kind: RecordKind,
    /// The connection it belongs to.
    pub connection: ConnectionId,
    /// The API it belongs to, or empty.
    pub api: &'a str,
    /// The protobuf body.
    pub body: &'a [u8],
    /// Bytes of the whole record, the length field included.
    pub length: usize,
}

impl<'a> RecordRef<'a> {
    /// The first record of `bytes`, fully checked but for its body.
    pub fn first(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let Some(length) = bytes.first_chunk::<4>() else {
            return Err(RecordError::Short { missing: 4 - bytes.len() });
        };
        let declared = u32::from_le_bytes(*length) as usize;
        if !(HEADER_BYTES - 4..=limits::RECORD_BYTES_MAX).contains(&declared) {
            return Err(RecordError::Length { bytes: declared });
        }
        let length = 4 + declared;
        if bytes.len() < length {
            return Err(RecordError::Short { missing: length - bytes.len() });
        }
        let mut rest = &bytes[4..length];
        let number = rest.get_u8();
        let kind = RecordKind::from_u8(number).ok_or(RecordError::Kind(number))?;
        let mut connection = ConnectionId::NONE;
        rest.copy_to_slice(&mut connection.0);
        let api_length = usize::from(rest.get_u8());
        if rest.len() < api_length {
            return Err(RecordError::Length { bytes: declared });
        }
        let (api, body) = rest.split_at(api_length);
        let api = std::str::from_utf8(api).map_err(|_| RecordError::Api)?;
        Ok(Self { kind, connection, api, body, length })
    }

    /// Decodes the body; payloads are copied.
    pub fn decode<M: Message + Default>(&self) -> Result<M, RecordError> {
        M::decode(self.body).map_err(|error| RecordError::Body { kind: self.kind.name(), reason: error.to_string() })
    }
}
