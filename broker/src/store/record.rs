//! Stored values: versioned and checksummed, bound to the place they are stored at.
//!
//! ```text
//! u8 version   u8 kind   u32 LE crc32 of (context, version, kind, body)   body
//! ```
//! The context is the partition and the index a value belongs to, so that a value under another's key is found out too.
//! A golden test holds these bytes.

use bytes::Bytes;
use prost::Message as _;
use trunkline_proto::{LogIndex, Offset, PartitionId, v1};

use crate::{controls, core::Refusal};

/// First byte of every stored value.
pub const VALUE_VERSION: u8 = 1;
const HEADER_BYTES: usize = 1 + 1 + 4;
/// Bytes of a stored entry before its payload.
pub const ENTRY_OVERHEAD_BYTES: usize = HEADER_BYTES + 8;

/// What a value is. The numbers reach disk: never reuse one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Kind {
    Blank = 1,
    Entry = 2,
    Membership = 3,
    Vote = 4,
    LogId = 5,
    Refused = 6,
    Chunk = 7,
    Manifest = 8,
    Closed = 9,
}

/// Why a stored value cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum ValueError {
    #[error("value of {0} bytes is too short")]
    Short(usize),
    #[error("index {0} is larger than any index can be")]
    Index(u64),
    #[error("value has version {0}; this version reads {VALUE_VERSION}")]
    Version(u8),
    #[error("value has unexpected kind {0}")]
    Kind(u8),
    #[error("checksum is {found:08x}, {expected:08x} was written")]
    Checksum { found: u32, expected: u32 },
    #[error("a closed connection's opening does not decode: {0}")]
    Opening(String),
    #[error("refusal {0} is unknown: it was written by a newer version")]
    Refusal(u8),
}

/// A position in the Raft log and the term it was written in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct StoredLogId {
    /// Term of the leader that wrote it.
    pub term: u64,
    /// Where.
    pub index: LogIndex,
}

/// Raft's vote.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoredVote {
    /// Term voted in.
    pub term: u64,
    /// For whom.
    pub node: u64,
    /// Whether a majority has granted it.
    pub committed: bool,
}

/// Positions of an entry's refused records and why, ascending.
pub type RefusedRecords = Vec<(u16, Refusal)>;

/// What a log entry holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Payload {
    /// A new leader's first entry.
    Blank,
    /// A `trunkline_proto::Entry`.
    Entry(Bytes),
    /// A membership, encoded by raft/types.rs.
    Membership(Bytes),
}

impl Payload {
    fn parts(&self) -> (Kind, &[u8]) {
        match self {
            Self::Blank => (Kind::Blank, &[]),
            Self::Entry(bytes) => (Kind::Entry, bytes),
            Self::Membership(bytes) => (Kind::Membership, bytes),
        }
    }

    /// Bytes of the payload.
    pub fn len(&self) -> usize {
        self.parts().1.len()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One entry of a partition's log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredEntry {
    /// Where it stands.
    pub id: StoredLogId,
    /// What it holds.
    pub payload: Payload,
}

/// Encodes a log entry.
pub fn encode_entry(partition: PartitionId, entry: &StoredEntry) -> Vec<u8> {
    let (kind, payload) = entry.payload.parts();
    seal(kind, &context(partition, entry.id.index), &[&entry.id.term.to_le_bytes(), payload])
}

/// An index from outside: below what an offset has room for, so that the next one is an index too.
pub(super) fn checked_index(index: u64) -> Result<LogIndex, ValueError> {
    Some(LogIndex(index)).filter(|index| *index <= LogIndex::MAX).ok_or(ValueError::Index(index))
}

/// Decodes and checks a log entry; the payload shares the buffer.
pub fn decode_entry(partition: PartitionId, index: LogIndex, value: &Bytes) -> Result<StoredEntry, ValueError> {
    checked_index(index.0)?;
    let (kind, body) = open(&context(partition, index), value)?;
    let term = u64::from_le_bytes(*body.first_chunk::<8>().ok_or(ValueError::Short(value.len()))?);
    let payload = value.slice(ENTRY_OVERHEAD_BYTES..);
    let payload = match kind {
        k if k == Kind::Blank as u8 => Payload::Blank,
        k if k == Kind::Entry as u8 => Payload::Entry(payload),
        k if k == Kind::Membership as u8 => Payload::Membership(payload),
        other => return Err(ValueError::Kind(other)),
    };
    Ok(StoredEntry { id: StoredLogId { term, index }, payload })
}

/// Encodes a vote.
pub fn encode_vote(partition: PartitionId, vote: &StoredVote) -> Vec<u8> {
    let body = [&vote.term.to_le_bytes()[..], &vote.node.to_le_bytes(), &[u8::from(vote.committed)]];
    seal(Kind::Vote, &context(partition, LogIndex(0)), &body)
}

/// Decodes a vote.
pub fn decode_vote(partition: PartitionId, value: &[u8]) -> Result<StoredVote, ValueError> {
    let mut body = Body(open_kind(Kind::Vote, &context(partition, LogIndex(0)), value)?);
    Ok(StoredVote { term: body.u64()?, node: body.u64()?, committed: body.u8()? != 0 })
}

/// Encodes a log id (committed, purged).
pub fn encode_log_id(partition: PartitionId, id: &StoredLogId) -> Vec<u8> {
    let body = [&id.term.to_le_bytes()[..], &id.index.0.to_le_bytes()];
    seal(Kind::LogId, &context(partition, LogIndex(0)), &body)
}

/// Decodes a log id.
pub fn decode_log_id(partition: PartitionId, value: &[u8]) -> Result<StoredLogId, ValueError> {
    let mut body = Body(open_kind(Kind::LogId, &context(partition, LogIndex(0)), value)?);
    Ok(StoredLogId { term: body.u64()?, index: checked_index(body.u64()?)? })
}

/// Encodes the refused records of an entry.
pub fn encode_refused(partition: PartitionId, index: LogIndex, refused: &[(u16, Refusal)]) -> Vec<u8> {
    let mut body = Vec::with_capacity(2 + refused.len() * 3);
    // an entry holds at most 4,096 records
    body.extend_from_slice(&(refused.len() as u16).to_le_bytes());
    for (position, refusal) in refused {
        body.extend_from_slice(&position.to_le_bytes());
        body.push(refusal_number(refusal));
        if let Refusal::Repeated { original, code } = refusal {
            body.extend_from_slice(&original.0.to_le_bytes());
            body.extend_from_slice(&(*code as i32).to_le_bytes());
        }
    }
    seal(Kind::Refused, &context(partition, index), &[&body])
}

/// Decodes the refused records of an entry.
pub fn decode_refused(partition: PartitionId, index: LogIndex, value: &[u8]) -> Result<RefusedRecords, ValueError> {
    let mut body = Body(open_kind(Kind::Refused, &context(partition, index), value)?);
    let count = body.u16()?;
    (0..count).map(|_| Ok((body.u16()?, decode_refusal(&mut body)?))).collect()
}

/// Encodes how a closed connection came to be. Bound to its block of entries: its own name is in the key.
pub fn encode_closed(partition: PartitionId, block: u32, opening: &v1::Opening) -> Vec<u8> {
    seal(Kind::Closed, &context(partition, LogIndex(block.into())), &[&opening.encode_to_vec()])
}

/// Decodes how a closed connection came to be.
pub fn decode_closed(partition: PartitionId, block: u32, value: &[u8]) -> Result<v1::Opening, ValueError> {
    let body = open_kind(Kind::Closed, &context(partition, LogIndex(block.into())), value)?;
    v1::Opening::decode(body).map_err(|error| ValueError::Opening(error.to_string()))
}

/// Encodes a chunk of a snapshot.
pub fn encode_chunk(partition: PartitionId, index: LogIndex, chunk: u32, bytes: &[u8]) -> Vec<u8> {
    seal(Kind::Chunk, &context(partition, index), &[&chunk.to_le_bytes(), bytes])
}

/// Decodes a chunk of a snapshot.
pub fn decode_chunk(partition: PartitionId, index: LogIndex, chunk: u32, value: &[u8]) -> Result<&[u8], ValueError> {
    let mut body = Body(open_kind(Kind::Chunk, &context(partition, index), value)?);
    match body.u32()? == chunk {
        true => Ok(body.0),
        false => Err(ValueError::Short(value.len())),
    }
}

/// Encodes a manifest's body.
pub fn encode_manifest(partition: PartitionId, index: LogIndex, body: &[u8]) -> Vec<u8> {
    seal(Kind::Manifest, &context(partition, index), &[body])
}

/// Decodes a manifest's body.
pub fn decode_manifest(partition: PartitionId, index: LogIndex, value: &[u8]) -> Result<&[u8], ValueError> {
    open_kind(Kind::Manifest, &context(partition, index), value)
}

fn refusal_number(refusal: &Refusal) -> u8 {
    match refusal {
        Refusal::Gone => 1,
        Refusal::OutOfSequence => 2,
        Refusal::Fenced => 3,
        Refusal::ConnectionExists => 4,
        Refusal::StaleEpoch => 5,
        Refusal::NotOpen => 6,
        Refusal::NotPending => 7,
        Refusal::Repeated { .. } => 8,
        Refusal::KeyReused => 9,
        Refusal::ForwardGap => 10,
        Refusal::Limit => 11,
        Refusal::Malformed => 12,
        Refusal::WithBatch => 13,
    }
}

fn decode_refusal(body: &mut Body<'_>) -> Result<Refusal, ValueError> {
    Ok(match body.u8()? {
        1 => Refusal::Gone,
        2 => Refusal::OutOfSequence,
        3 => Refusal::Fenced,
        4 => Refusal::ConnectionExists,
        5 => Refusal::StaleEpoch,
        6 => Refusal::NotOpen,
        7 => Refusal::NotPending,
        8 => {
            let original = Offset(body.u64()?);
            // a code of a newer version reads as unspecified
            Refusal::Repeated { original, code: v1::Code::try_from(body.u32()? as i32).unwrap_or_default() }
        }
        9 => Refusal::KeyReused,
        10 => Refusal::ForwardGap,
        11 => Refusal::Limit,
        12 => Refusal::Malformed,
        13 => Refusal::WithBatch,
        other => return Err(ValueError::Refusal(other)),
    })
}

fn context(partition: PartitionId, index: LogIndex) -> [u8; 10] {
    super::keys::refused_key(partition, index)
}

fn checksum(context: &[u8], kind: u8, body: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(context);
    hasher.update(&[VALUE_VERSION, kind]);
    body.iter().for_each(|part| hasher.update(part));
    hasher.finalize()
}

fn seal(kind: Kind, context: &[u8], body: &[&[u8]]) -> Vec<u8> {
    let mut value = Vec::with_capacity(HEADER_BYTES + body.iter().map(|part| part.len()).sum::<usize>());
    value.extend_from_slice(&[VALUE_VERSION, kind as u8]);
    value.extend_from_slice(&checksum(context, kind as u8, body).to_le_bytes());
    body.iter().for_each(|part| value.extend_from_slice(part));
    value
}

fn open<'a>(context: &[u8], value: &'a [u8]) -> Result<(u8, &'a [u8]), ValueError> {
    let Some(([version, kind, crc @ ..], body)) = value.split_first_chunk::<HEADER_BYTES>() else {
        return Err(ValueError::Short(value.len()));
    };
    if *version != VALUE_VERSION {
        return Err(ValueError::Version(*version));
    }
    let (expected, found) = (u32::from_le_bytes(*crc), checksum(context, *kind, &[body]));
    match expected == found || controls::NO_CHECKSUM.is_on() {
        true => Ok((*kind, body)),
        false => Err(ValueError::Checksum { found, expected }),
    }
}

fn open_kind<'a>(kind: Kind, context: &[u8], value: &'a [u8]) -> Result<&'a [u8], ValueError> {
    match open(context, value)? {
        (found, body) if found == kind as u8 => Ok(body),
        (other, _) => Err(ValueError::Kind(other)),
    }
}

/// Reads fixed-size numbers off the front.
pub(super) struct Body<'a>(pub(super) &'a [u8]);

impl<'a> Body<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], ValueError> {
        let (array, rest) = self.0.split_first_chunk::<N>().ok_or(ValueError::Short(self.0.len()))?;
        self.0 = rest;
        Ok(*array)
    }

    pub(super) fn u8(&mut self) -> Result<u8, ValueError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, ValueError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, ValueError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, ValueError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn bytes(&mut self, length: usize) -> Result<&'a [u8], ValueError> {
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(ValueError::Short(self.0.len()))?;
        self.0 = rest;
        Ok(bytes)
    }
}
