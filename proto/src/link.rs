//! Frames of the edge link. Every frame is `u32 LE length of the rest, u8 type, payload`; control frames are protobuf
//! (`link.proto`), batches and deliveries have a fixed layout because they are the hot path.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use crate::{
    ids::{Offset, Timestamp},
    limits,
    record::{Record, RecordError},
    v1::link as pb,
};

/// ALPN of the edge link.
pub const ALPN: &[u8] = b"trunkline/1";
/// Version in [`pb::Hello`].
pub const LINK_VERSION: u32 = 1;

/// One frame, either direction.
#[derive(Clone, PartialEq, Debug)]
pub enum Frame {
    /// Edge → broker: first frame of the control stream.
    Hello(pb::Hello),
    /// Broker → edge: answers it.
    Welcome(pb::Welcome),
    /// Edge → broker: first frame of a partition's stream.
    Attach(pb::Attach),
    /// Broker → edge: answers it.
    Attached(pb::Attached),
    /// Edge → broker: events. The edge, its incarnation and the partition are the stream's.
    Batch(UplinkBatch),
    /// Broker → edge: every batch up to this sequence is applied (refused ones too: they never were).
    Applied {
        /// The edge's last applied batch.
        sequence: u64,
    },
    /// Broker → edge: a batch was refused because it did not follow `last`; resend from there.
    Resend {
        /// The last applied batch.
        last: u64,
    },
    /// Broker → edge: deliveries, in the partition's order.
    Deliveries(Deliveries),
    /// Broker → edge: nothing for this edge up to here.
    Progress {
        /// Everything up to here has been sent.
        offset: Offset,
    },
    /// Edge → broker: deliveries up to here have been handed to the shards.
    Seen {
        /// The last one.
        offset: Offset,
    },
    /// Broker → edge: publishes that skipped the log.
    Unlogged(Record),
    /// Broker → edge: stop or go on reading sockets.
    Pause(pb::Pause),
    /// Broker → edge: the stream ends, and why.
    Goodbye(pb::Goodbye),
    /// Either way, on the control stream: still here.
    Ping,
}

/// Events of one edge for one partition.
#[derive(Clone, PartialEq, Debug)]
pub struct UplinkBatch {
    /// The one before it + 1, from 1 in each incarnation.
    pub sequence: u64,
    /// How many records.
    pub count: u16,
    /// The records as they go into the log.
    pub records: Bytes,
}

/// Deliveries of one stream. All deliveries of one offset are in one frame, so an edge drops whole offsets.
#[derive(Clone, PartialEq, Debug)]
pub struct Deliveries {
    /// When the newest of them was applied, by the leader's clock.
    pub applied_at: Timestamp,
    /// Everything up to here has been sent once these are.
    pub through: Offset,
    /// In order.
    pub deliveries: Vec<Delivery>,
}

/// One record on its way to an edge.
#[derive(Clone, PartialEq, Debug)]
pub struct Delivery {
    /// Where it stands in the partition; several (the joins of one opened) may share one.
    pub offset: Offset,
    /// Pushed, Published, CloseRequested, ConnectionAccepted, ConnectionRejected, ChannelJoined or ChannelLeft.
    pub record: Record,
}

/// Why bytes are no frame. The stream is closed with `REASON_INVALID`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum FrameError {
    #[error("frame of {0} bytes is longer than {max}", max = limits::FRAME_BYTES_MAX)]
    Length(usize),
    #[error("frame type {0} is unknown")]
    Type(u8),
    #[error("frame is cut short")]
    Short,
    #[error("control frame does not decode: {0}")]
    Control(String),
    #[error(transparent)]
    Record(#[from] RecordError),
}

const HELLO: u8 = 1;
const WELCOME: u8 = 2;
const ATTACH: u8 = 3;
const ATTACHED: u8 = 4;
const BATCH: u8 = 5;
const APPLIED: u8 = 6;
const RESEND: u8 = 7;
const DELIVERIES: u8 = 8;
const PROGRESS: u8 = 9;
const SEEN: u8 = 10;
const UNLOGGED: u8 = 11;
const PAUSE: u8 = 12;
const GOODBYE: u8 = 13;
const PING: u8 = 14;

impl Frame {
    /// Appends the encoded frame.
    pub fn encode(&self, out: &mut BytesMut) {
        let start = out.len();
        out.put_u32_le(0);
        match self {
            Self::Hello(message) => put(out, HELLO, message),
            Self::Welcome(message) => put(out, WELCOME, message),
            Self::Attach(message) => put(out, ATTACH, message),
            Self::Attached(message) => put(out, ATTACHED, message),
            Self::Pause(message) => put(out, PAUSE, message),
            Self::Goodbye(message) => put(out, GOODBYE, message),
            Self::Batch(batch) => {
                out.put_u8(BATCH);
                out.put_u64_le(batch.sequence);
                out.put_u16_le(batch.count);
                out.put_slice(&batch.records);
            }
            Self::Applied { sequence } => put_u64(out, APPLIED, *sequence),
            Self::Resend { last } => put_u64(out, RESEND, *last),
            Self::Progress { offset } => put_u64(out, PROGRESS, offset.0),
            Self::Seen { offset } => put_u64(out, SEEN, offset.0),
            Self::Unlogged(record) => {
                out.put_u8(UNLOGGED);
                out.put_slice(record.bytes());
            }
            Self::Deliveries(deliveries) => {
                out.put_u8(DELIVERIES);
                out.put_u64_le(deliveries.applied_at.0);
                out.put_u64_le(deliveries.through.0);
                for delivery in &deliveries.deliveries {
                    out.put_u64_le(delivery.offset.0);
                    out.put_slice(delivery.record.bytes());
                }
            }
            Self::Ping => out.put_u8(PING),
        }
        let length = (out.len() - start - 4) as u32;
        out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    }

    /// The encoded frame.
    pub fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::new();
        self.encode(&mut out);
        out.freeze()
    }

    /// Checks the length field of the next frame: how many bytes follow it.
    pub fn length(header: [u8; 4]) -> Result<usize, FrameError> {
        match u32::from_le_bytes(header) as usize {
            0 => Err(FrameError::Short),
            length if length > limits::FRAME_BYTES_MAX => Err(FrameError::Length(length)),
            length => Ok(length),
        }
    }

    /// Decodes what follows the length field. Payloads share the buffer.
    pub fn decode(mut bytes: Bytes) -> Result<Self, FrameError> {
        let frame_type = *bytes.first().ok_or(FrameError::Short)?;
        let _ = bytes.split_to(1);
        Ok(match frame_type {
            HELLO => Self::Hello(control(bytes)?),
            WELCOME => Self::Welcome(control(bytes)?),
            ATTACH => Self::Attach(control(bytes)?),
            ATTACHED => Self::Attached(control(bytes)?),
            PAUSE => Self::Pause(control(bytes)?),
            GOODBYE => Self::Goodbye(control(bytes)?),
            BATCH => {
                let sequence = take_u64(&mut bytes)?;
                let count =
                    bytes.first_chunk::<2>().map(|count| u16::from_le_bytes(*count)).ok_or(FrameError::Short)?;
                Self::Batch(UplinkBatch { sequence, count, records: bytes.slice(2..) })
            }
            APPLIED => Self::Applied { sequence: take_u64(&mut bytes)? },
            RESEND => Self::Resend { last: take_u64(&mut bytes)? },
            PROGRESS => Self::Progress { offset: Offset(take_u64(&mut bytes)?) },
            SEEN => Self::Seen { offset: Offset(take_u64(&mut bytes)?) },
            UNLOGGED => Self::Unlogged(Record::split_from(&mut bytes)?),
            DELIVERIES => Self::Deliveries(decode_deliveries(bytes)?),
            PING => Self::Ping,
            other => return Err(FrameError::Type(other)),
        })
    }
}

fn put(out: &mut BytesMut, frame_type: u8, message: &impl Message) {
    out.put_u8(frame_type);
    // a BytesMut grows: encoding into it cannot fail
    let _ = message.encode(out);
}

fn put_u64(out: &mut BytesMut, frame_type: u8, value: u64) {
    out.put_u8(frame_type);
    out.put_u64_le(value);
}

fn control<M: Message + Default>(bytes: Bytes) -> Result<M, FrameError> {
    M::decode(bytes).map_err(|error| FrameError::Control(error.to_string()))
}

fn take_u64(bytes: &mut Bytes) -> Result<u64, FrameError> {
    let value = *bytes.first_chunk::<8>().ok_or(FrameError::Short)?;
    let _ = bytes.split_to(8);
    Ok(u64::from_le_bytes(value))
}

fn decode_deliveries(mut bytes: Bytes) -> Result<Deliveries, FrameError> {
    let applied_at = Timestamp(take_u64(&mut bytes)?);
    let through = Offset(take_u64(&mut bytes)?);
    let mut deliveries = Vec::new();
    while !bytes.is_empty() {
        let offset = Offset(take_u64(&mut bytes)?);
        deliveries.push(Delivery { offset, record: Record::split_from(&mut bytes)? });
    }
    Ok(Deliveries { applied_at, through, deliveries })
}
