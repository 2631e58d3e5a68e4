//! The whole state as bytes, and back. Canonical: equal states give equal bytes, so their hash is the state's digest.
//!
//! ```text
//! "TKLS"   u16 LE version   sections (each part of the state writes its own)   u64 LE xxh3 of everything before
//! ```
//! Integers are little endian; texts, byte strings and lists carry a u32 or u64 length first.

use trunkline_proto::{ConnectionId, LogIndex, Offset, PartitionCount, PartitionId, Timestamp};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    apis::Apis, channels::Channels, connections::Connections, dedup::Dedup, edges::Edges, groups::Groups, names::Names,
    outbox::Outbox, partition::Partition, retained::Retained,
};

const MAGIC: &[u8; 4] = b"TKLS";
/// Version of the encoding. Old ones must stay readable: add, never edit.
/// 2: when connections were last active.
pub const SNAPSHOT_VERSION: u16 = 2;

/// Why bytes are no snapshot of a state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// They end too early, or too late.
    #[error("snapshot is cut short or has bytes too many")]
    Length,
    /// They begin with something else.
    #[error("not a snapshot of a partition's state")]
    Magic,
    /// Another program version wrote it.
    #[error("snapshot has format {0}; this version reads {SNAPSHOT_VERSION}")]
    Version(u16),
    /// Not the bytes that were written.
    #[error("snapshot is damaged: its checksum does not match")]
    Checksum,
    /// The checksum is right and the contents are not: a bug wrote it.
    #[error("snapshot holds impossible {0}")]
    Invalid(&'static str),
}

/// Whether a snapshot's bytes are of an earlier version: what they decode to lacks what that did not keep, and a replay comes to.
pub fn is_of_earlier_version(bytes: &[u8]) -> bool {
    let version = bytes.get(MAGIC.len()..).and_then(|rest| rest.first_chunk());
    version.is_some_and(|version| u16::from_le_bytes(*version) < SNAPSHOT_VERSION)
}

impl Partition {
    /// The whole state as bytes; equal states give equal bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer(Vec::with_capacity(4096 + 160 * self.connections.len()));
        out.0.extend_from_slice(MAGIC);
        out.u16(SNAPSHOT_VERSION);
        out.u16(self.id.0);
        out.u16(self.count.get());
        out.u64(self.applied.0);
        out.u64(self.time.0);
        out.u64(self.digest);
        self.retained.encode(&mut out);
        self.encode_sections(&mut out);
        let checksum = xxh3_64(&out.0);
        out.u64(checksum);
        out.0
    }

    /// Everything but position, time, rolling digest and the size of the log: what a refused batch leaves as it is.
    pub(super) fn encode_sections(&self, out: &mut Writer) {
        out.u32(self.apply_version);
        out.u64(self.trimmed.0);
        self.apis.encode(out);
        self.registrars.encode(out);
        self.edges.encode(out);
        self.connections.encode(out);
        self.channels.encode(out);
        self.groups.encode(out);
        self.outbox.encode(out);
        out.length(self.watermarks.len());
        for (source, offset) in &self.watermarks {
            out.u16(source.0);
            out.u64(offset.0);
        }
        self.dedup.encode(out);
        self.groups.encode_skipped(out);
    }

    /// The state that gave these bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let (content, checksum) = bytes.split_last_chunk::<8>().ok_or(SnapshotError::Length)?;
        let mut input = Reader(content);
        if input.array::<4>()? != *MAGIC {
            return Err(SnapshotError::Magic);
        }
        let version = input.u16()?;
        if !(1..=SNAPSHOT_VERSION).contains(&version) {
            return Err(SnapshotError::Version(version));
        }
        if u64::from_le_bytes(*checksum) != xxh3_64(content) {
            return Err(SnapshotError::Checksum);
        }
        let id = PartitionId(input.u16()?);
        let count = PartitionCount::new(input.u16()?).ok_or(SnapshotError::Invalid("partition count"))?;
        let mut state = Self::new(id, count);
        state.applied = LogIndex(input.u64()?);
        state.time = Timestamp(input.u64()?);
        state.digest = input.u64()?;
        state.retained = Retained::decode(&mut input)?;
        state.decode_sections(&mut input, version)?;
        if input.0.is_empty() { Ok(state) } else { Err(SnapshotError::Length) }
    }

    fn decode_sections(&mut self, input: &mut Reader<'_>, version: u16) -> Result<(), SnapshotError> {
        self.apply_version = input.u32()?;
        self.trimmed = input.offset()?;
        self.apis = Apis::decode(input)?;
        self.registrars = Names::decode(input)?;
        self.edges = Edges::decode(input)?;
        self.connections = Connections::decode(input, version)?;
        for (id, connection) in self.connections.iter() {
            let known = usize::from(connection.api) < self.apis.len()
                && connection.registrar.is_none_or(|number| usize::from(number.get()) <= self.registrars.len());
            if !known || !self.edges.restore(connection.edge, connection.incarnation, *id) {
                return Err(SnapshotError::Invalid("connection"));
            }
            self.apis.opened(connection.api);
        }
        self.channels = Channels::decode(input, self.edges.len())?;
        self.groups = Groups::decode(input)?;
        self.outbox = Outbox::decode(input)?;
        for _ in 0..input.length()? {
            self.watermarks.insert(PartitionId(input.u16()?), input.offset()?);
        }
        self.dedup = Dedup::decode(input)?;
        if !input.0.is_empty() {
            self.groups.decode_skipped(input)?;
        }
        Ok(())
    }
}

impl PartialEq for Partition {
    /// Whether the states are the same. As slow as encoding both: for tests and tools.
    fn eq(&self, other: &Self) -> bool {
        self.encode() == other.encode()
    }
}

/// Writes the parts of a snapshot.
#[derive(Debug)]
pub(super) struct Writer(pub Vec<u8>);

impl Writer {
    pub(super) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// How many elements follow.
    pub(super) fn length(&mut self, value: usize) {
        self.u64(value as u64);
    }

    pub(super) fn bytes(&mut self, value: &[u8]) {
        // nothing in the state is near 4 GiB: texts and records are bounded where they come in
        self.u32(value.len() as u32);
        self.0.extend_from_slice(value);
    }

    pub(super) fn text(&mut self, value: &str) {
        self.bytes(value.as_bytes());
    }

    pub(super) fn connection(&mut self, id: &ConnectionId) {
        self.0.extend_from_slice(&id.0);
    }
}

/// Reads the parts of a snapshot; never past the end, never allocating what is only declared.
#[derive(Debug)]
pub(super) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], SnapshotError> {
        let (array, rest) = self.0.split_first_chunk::<N>().ok_or(SnapshotError::Length)?;
        self.0 = rest;
        Ok(*array)
    }

    pub(super) fn u8(&mut self) -> Result<u8, SnapshotError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, SnapshotError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, SnapshotError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, SnapshotError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn offset(&mut self) -> Result<Offset, SnapshotError> {
        self.u64().map(Offset)
    }

    /// How many elements follow: each takes a byte at least.
    pub(super) fn length(&mut self) -> Result<usize, SnapshotError> {
        let length = self.u64()?;
        usize::try_from(length).ok().filter(|length| *length <= self.0.len()).ok_or(SnapshotError::Length)
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], SnapshotError> {
        let length = self.u32()? as usize;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(SnapshotError::Length)?;
        self.0 = rest;
        Ok(bytes)
    }

    pub(super) fn text(&mut self) -> Result<&'a str, SnapshotError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| SnapshotError::Invalid("text"))
    }

    pub(super) fn connection(&mut self) -> Result<ConnectionId, SnapshotError> {
        self.array().map(ConnectionId)
    }
}
