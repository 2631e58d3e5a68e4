//! One log entry: the batches that waited together, stamped once by the leader.
//!
//! ```text
//! u8 version   u64 LE time (µs)   u16 LE batches   batch*
//! batch:  u8 source   u16 LE header bytes   header (protobuf)   u16 LE records   u32 LE record bytes   record*
//! ```
//! A record's position is its place among all records of the entry.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use crate::{
    ids::Timestamp,
    limits,
    record::{Record, RecordError, RecordRef},
    v1,
};

/// First byte of every entry.
pub const ENTRY_VERSION: u8 = 1;
/// Bytes of an entry before its batches.
pub const ENTRY_HEADER_BYTES: usize = 1 + 8 + 2;

/// Who put a batch into the log.
#[derive(Clone, PartialEq, Debug)]
pub enum Source {
    /// An edge: events, with a sequence number that makes a resend harmless.
    Edge(v1::EdgeSource),
    /// A handler: a HandlerCommitted record and its commands, all or nothing.
    Commit,
    /// Commands that acknowledge nothing, with an optional idempotency key.
    Submit(v1::SubmitSource),
    /// Commands from another partition's log.
    Forward(v1::ForwardSource),
    /// The leader's own bookkeeping.
    Leader,
}

impl Source {
    fn number(&self) -> u8 {
        match self {
            Self::Edge(_) => 1,
            Self::Commit => 2,
            Self::Submit(_) => 3,
            Self::Forward(_) => 4,
            Self::Leader => 5,
        }
    }

    /// The name tools show.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Edge(_) => "edge",
            Self::Commit => "commit",
            Self::Submit(_) => "submit",
            Self::Forward(_) => "forward",
            Self::Leader => "leader",
        }
    }

    fn header(&self) -> Vec<u8> {
        match self {
            Self::Edge(header) => header.encode_to_vec(),
            Self::Submit(header) => header.encode_to_vec(),
            Self::Forward(header) => header.encode_to_vec(),
            Self::Commit | Self::Leader => Vec::new(),
        }
    }

    fn decode(number: u8, header: &[u8]) -> Result<Self, EntryError> {
        let damaged = |error: prost::DecodeError| EntryError::Header(error.to_string());
        Ok(match number {
            1 => Self::Edge(v1::EdgeSource::decode(header).map_err(damaged)?),
            2 => Self::Commit,
            3 => Self::Submit(v1::SubmitSource::decode(header).map_err(damaged)?),
            4 => Self::Forward(v1::ForwardSource::decode(header).map_err(damaged)?),
            5 => Self::Leader,
            other => return Err(EntryError::Source(other)),
        })
    }
}

/// Why bytes are no entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum EntryError {
    #[error("entry is cut short")]
    Short,
    #[error("entry has format {0}; this version reads {ENTRY_VERSION}")]
    Version(u8),
    #[error("batch has unknown source {0}")]
    Source(u8),
    #[error("header of a batch does not decode: {0}")]
    Header(String),
    #[error("batch declares {declared} records and holds {found}")]
    Count { declared: usize, found: usize },
    #[error("{0} bytes follow the last batch")]
    Trailing(usize),
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// A batch: records of one source that are admitted or refused together where the source says so.
#[derive(Clone, PartialEq, Debug)]
pub struct Batch {
    /// Who sent it.
    pub source: Source,
    /// How many records `records` holds.
    pub count: u16,
    /// The records, one after the other, as in the log.
    pub records: Bytes,
}

impl Batch {
    /// A batch of these records; at most [`limits::ENTRY_RECORDS_MAX`].
    pub fn new(source: Source, records: &[Record]) -> Self {
        debug_assert!(records.len() <= limits::ENTRY_RECORDS_MAX);
        let mut bytes = BytesMut::with_capacity(records.iter().map(|record| record.bytes().len()).sum());
        for record in records {
            bytes.put_slice(record.bytes());
        }
        Self { source, count: records.len() as u16, records: bytes.freeze() }
    }

    /// Checks bytes from outside: exactly `count` well-formed records. Bodies are not looked into.
    pub fn checked(source: Source, count: u16, records: Bytes) -> Result<Self, EntryError> {
        let (mut rest, mut found) = (&records[..], 0);
        while !rest.is_empty() {
            rest = &rest[RecordRef::first(rest)?.length..];
            found += 1;
        }
        if found != usize::from(count) {
            return Err(EntryError::Count { declared: usize::from(count), found });
        }
        Ok(Self { source, count, records })
    }

    /// The records, sharing the buffer.
    pub fn iter(&self) -> impl Iterator<Item = Result<Record, RecordError>> + use<> {
        let mut rest = self.records.clone();
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let record = Record::split_from(&mut rest);
            if record.is_err() {
                rest.clear();
            }
            Some(record)
        })
    }

    /// Bytes this batch adds to an entry, its header estimated from above.
    pub fn weight(&self) -> usize {
        self.records.len() + 128
    }
}

/// Builds an entry's bytes.
#[derive(Debug)]
pub struct EntryBuilder {
    bytes: BytesMut,
    batches: u16,
    records: usize,
}

impl EntryBuilder {
    /// An empty entry stamped `time`.
    pub fn new(time: Timestamp, capacity: usize) -> Self {
        let mut bytes = BytesMut::with_capacity(ENTRY_HEADER_BYTES + capacity);
        bytes.put_u8(ENTRY_VERSION);
        bytes.put_u64_le(time.0);
        bytes.put_u16_le(0);
        Self { bytes, batches: 0, records: 0 }
    }

    /// Whether `batch` still fits under the limits; the first always does.
    pub fn fits(&self, batch: &Batch) -> bool {
        self.batches == 0
            || (self.records + usize::from(batch.count) <= limits::ENTRY_RECORDS_MAX
                && self.bytes.len() + batch.weight() <= limits::ENTRY_BYTES_MAX
                && self.batches < u16::MAX)
    }

    /// Appends a batch; its first record's position is returned.
    pub fn push(&mut self, batch: &Batch) -> u16 {
        let header = batch.source.header();
        self.bytes.put_u8(batch.source.number());
        self.bytes.put_u16_le(header.len() as u16);
        self.bytes.put_slice(&header);
        self.bytes.put_u16_le(batch.count);
        self.bytes.put_u32_le(batch.records.len() as u32);
        self.bytes.put_slice(&batch.records);
        let position = self.records as u16;
        self.records += usize::from(batch.count);
        self.batches += 1;
        self.bytes[9..11].copy_from_slice(&self.batches.to_le_bytes());
        position
    }

    /// The finished entry.
    pub fn finish(self) -> Bytes {
        self.bytes.freeze()
    }
}

/// A checked entry: batches that share its buffer.
#[derive(Clone, PartialEq, Debug)]
pub struct Entry {
    /// As stamped by the leader; apply takes the maximum of this and the time before it.
    pub time: Timestamp,
    /// In order.
    pub batches: Vec<Batch>,
}

impl Entry {
    /// Parses an entry. Records are checked but for their bodies.
    pub fn parse(bytes: &Bytes) -> Result<Self, EntryError> {
        let mut rest = Cursor { bytes, at: 0 };
        let version = rest.u8()?;
        if version != ENTRY_VERSION {
            return Err(EntryError::Version(version));
        }
        let time = Timestamp(u64::from_le_bytes(rest.array()?));
        let count = u16::from_le_bytes(rest.array()?);
        let mut batches = Vec::with_capacity(usize::from(count).min(64));
        for _ in 0..count {
            let source = rest.u8()?;
            let header_length = usize::from(u16::from_le_bytes(rest.array()?));
            let source = Source::decode(source, &rest.take(header_length)?)?;
            let records = u16::from_le_bytes(rest.array()?);
            let length = u32::from_le_bytes(rest.array()?) as usize;
            batches.push(Batch::checked(source, records, rest.take(length)?)?);
        }
        match bytes.len() - rest.at {
            0 => Ok(Self { time, batches }),
            trailing => Err(EntryError::Trailing(trailing)),
        }
    }

    /// How many records it holds.
    pub fn records(&self) -> usize {
        self.batches.iter().map(|batch| usize::from(batch.count)).sum()
    }
}

struct Cursor<'a> {
    bytes: &'a Bytes,
    at: usize,
}

impl Cursor<'_> {
    fn take(&mut self, length: usize) -> Result<Bytes, EntryError> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len()).ok_or(EntryError::Short)?;
        let slice = self.bytes.slice(self.at..end);
        self.at = end;
        Ok(slice)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], EntryError> {
        let array = *self.bytes[self.at..].first_chunk::<N>().ok_or(EntryError::Short)?;
        self.at += N;
        Ok(array)
    }

    fn u8(&mut self) -> Result<u8, EntryError> {
        self.array::<1>().map(|[byte]| byte)
    }
}
