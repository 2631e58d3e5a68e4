//! How far each partition's log has been synced, kept outside RocksDB: a log that ends before its mark has lost acknowledged
//! data, which RocksDB by itself cannot tell from a torn tail. Marks run up to a second behind; that is harmless.
//!
//! `TLMARKS1`, u16 LE partitions, per partition u64 LE (last synced index + 1) and u64 LE term of the vote, u32 LE crc32 of all
//! before it.

use std::{io, path::Path};

use trunkline_proto::{LogIndex, PartitionCount};

use super::{
    error::OpenError,
    files::{self, damaged},
};

const FILE: &str = "marks";
const MAGIC: &[u8; 8] = b"TLMARKS1";

/// What is known to be on disk of one partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Mark {
    /// One more than the last synced index; 0 for an empty log (Raft's indexes begin at 0).
    pub end: u64,
    /// Term of the last synced vote.
    pub term: u64,
}

impl Mark {
    /// Nothing was ever acknowledged.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The last synced entry.
    pub fn last(&self) -> Option<LogIndex> {
        self.end.checked_sub(1).map(LogIndex)
    }
}

/// Replaces the marks of all partitions.
pub fn write(dir: &Path, marks: &[Mark], sync: bool) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(MAGIC.len() + 2 + marks.len() * 16 + 4);
    bytes.extend_from_slice(MAGIC);
    // at most PartitionCount::MAX
    bytes.extend_from_slice(&(marks.len() as u16).to_le_bytes());
    for mark in marks {
        bytes.extend_from_slice(&mark.end.to_le_bytes());
        bytes.extend_from_slice(&mark.term.to_le_bytes());
    }
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
    files::replace(&dir.join(FILE), &bytes, sync)
}

/// Reads the marks. A folder without them is damaged: they are made first.
pub fn read(dir: &Path, partitions: PartitionCount) -> Result<Vec<Mark>, OpenError> {
    let path = dir.join(FILE);
    let bytes = files::read(&path)?.ok_or_else(|| damaged(&path, "it is missing"))?;
    decode(&bytes, usize::from(partitions.get())).map_err(|reason| damaged(&path, reason))
}

fn decode(bytes: &[u8], partitions: usize) -> Result<Vec<Mark>, &'static str> {
    let (body, crc) = bytes.split_last_chunk::<4>().ok_or("it is too short")?;
    if u32::from_le_bytes(*crc) != crc32fast::hash(body) {
        return Err("its checksum does not match");
    }
    let rest = body.strip_prefix(MAGIC).ok_or("it does not begin as marks do")?;
    let (count, rest) = rest.split_first_chunk::<2>().ok_or("it is too short")?;
    let (marks, trailing) = rest.as_chunks::<16>();
    if usize::from(u16::from_le_bytes(*count)) != partitions || marks.len() != partitions || !trailing.is_empty() {
        return Err("it holds another number of partitions");
    }
    let half = |mark: &[u8; 16], at: usize| {
        u64::from_le_bytes(std::array::from_fn(|byte| mark.get(at + byte).copied().unwrap_or_default()))
    };
    Ok(marks.iter().map(|mark| Mark { end: half(mark, 0), term: half(mark, 8) }).collect())
}
