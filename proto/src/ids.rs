//! Ids and positions as types: a bare `u64` never crosses a function boundary.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use xxhash_rust::xxh3::xxh3_64;

/// One WebSocket connection: 16 random bytes, shown as 22 characters of base64url. Opaque to users and unguessable.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ConnectionId(pub [u8; 16]);

/// Why a text or a byte string is no [`ConnectionId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a connection id is 16 bytes, written as 22 characters of base64url")]
pub struct ConnectionIdError;

impl ConnectionId {
    /// The id of records that belong to no connection.
    pub const NONE: Self = Self([0; 16]);

    /// From exactly 16 bytes.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, ConnectionIdError> {
        bytes.try_into().map(Self).map_err(|_| ConnectionIdError)
    }

    /// Whether this is [`ConnectionId::NONE`].
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }

    /// The partition that owns the connection: the first two bytes, big endian, modulo the count.
    pub fn partition(&self, count: PartitionCount) -> PartitionId {
        PartitionId(u16::from_be_bytes([self.0[0], self.0[1]]) % count.0)
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; 22];
        let length = URL_SAFE_NO_PAD.encode_slice(self.0, &mut text).map_err(|_| fmt::Error)?;
        f.write_str(std::str::from_utf8(&text[..length]).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ConnectionId {
    type Err = ConnectionIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| ConnectionIdError)?;
        Self::from_slice(&bytes)
    }
}

/// How many partitions the cluster has: 1 to 1024, fixed when it is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct PartitionCount(u16);

impl PartitionCount {
    /// Most partitions a cluster may have: each is a Raft group with tasks and a column family of its own.
    pub const MAX: u16 = 1024;

    /// `None` unless 1 ≤ `count` ≤ [`PartitionCount::MAX`].
    pub const fn new(count: u16) -> Option<Self> {
        if count >= 1 && count <= Self::MAX { Some(Self(count)) } else { None }
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }

    /// Every partition, in order.
    pub fn iter(self) -> impl Iterator<Item = PartitionId> {
        (0..self.0).map(PartitionId)
    }

    /// The partition of a channel or an API: XXH3-64 of its UTF-8 name modulo the count.
    pub fn of_name(self, name: &str) -> PartitionId {
        let slot = xxh3_64(name.as_bytes()) % u64::from(self.0);
        // below `count`, so it fits
        PartitionId(slot as u16)
    }
}

/// One Raft group and its log.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct PartitionId(pub u16);

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Index of an entry in a partition's Raft log, from 1 (0: before the first).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct LogIndex(pub u64);

impl LogIndex {
    /// The last index there can be: an [`Offset`] has 48 bits for it.
    pub const MAX: Self = Self((1 << 48) - 1);
}

impl fmt::Display for LogIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Position of a record in a partition: `raft index << 16 | position in the entry`. Ordered and sparse; shown as
/// `index.position`. 0 stands for "before the first record".
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Offset(pub u64);

/// Why a text is no [`Offset`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an offset is written index.position, for example 1042.0")]
pub struct OffsetError;

impl Offset {
    /// Before the first record.
    pub const ZERO: Self = Self(0);
    /// After every record.
    pub const MAX: Self = Self(u64::MAX);

    /// The record at `position` of entry `index`, which is at most [`LogIndex::MAX`].
    pub fn new(index: LogIndex, position: u16) -> Self {
        Self(index.0 << 16 | u64::from(position))
    }

    /// After every record of entry `index`.
    pub fn end_of(index: LogIndex) -> Self {
        Self::new(index, u16::MAX)
    }

    /// The entry's index.
    pub fn index(self) -> LogIndex {
        LogIndex(self.0 >> 16)
    }

    /// The position in the entry.
    pub fn position(self) -> u16 {
        self.0 as u16
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 >> 16, self.0 & 0xffff)
    }
}

impl fmt::Debug for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Offset {
    type Err = OffsetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (index, position) = text.split_once('.').ok_or(OffsetError)?;
        let index: u64 = index.parse().map_err(|_| OffsetError)?;
        let position: u16 = position.parse().map_err(|_| OffsetError)?;
        match LogIndex(index) {
            index if index <= LogIndex::MAX => Ok(Self::new(index, position)),
            _ => Err(OffsetError),
        }
    }
}

/// Wall-clock time as stamped by a leader: microseconds since the Unix epoch, UTC. Within a partition it never goes back.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// This time moved by `delay`, at most to the end of time.
    pub fn after(self, delay: std::time::Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(delay.as_micros()).unwrap_or(u64::MAX)))
    }
}
