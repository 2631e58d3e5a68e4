//! Disks of members that the cluster was recovered without (`node/recover.rs`): whatever they hold is of the time before, and none of
//! them counts any more.
//!
//! `TLRETIRE`, 16 bytes a disk, u32 LE crc32 of all before it.

use std::{collections::BTreeSet, path::Path};

use super::{
    error::OpenError,
    files::{self, damaged, io_error},
    identity::DiskId,
};

const FILE: &str = "retired";
const MAGIC: &[u8; 8] = b"TLRETIRE";
/// So many are told to others in a hello.
pub const RETIRED_MAX: usize = 1024;

/// Those that the folder knows; mostly none.
pub fn read(dir: &Path) -> Result<BTreeSet<DiskId>, OpenError> {
    let path = dir.join(FILE);
    match files::read(&path)? {
        Some(bytes) => decode(&bytes).map_err(|reason| damaged(&path, reason)),
        None => Ok(BTreeSet::new()),
    }
}

/// Replaces them. Durable when it returns.
pub fn write(dir: &Path, disks: &BTreeSet<DiskId>) -> Result<(), OpenError> {
    let path = dir.join(FILE);
    let mut bytes = MAGIC.to_vec();
    disks.iter().for_each(|disk| bytes.extend_from_slice(&disk.0));
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
    files::replace(&path, &bytes, true).map_err(|error| io_error(&path, &error))
}

fn decode(bytes: &[u8]) -> Result<BTreeSet<DiskId>, &'static str> {
    let (body, crc) = bytes.split_last_chunk::<4>().ok_or("it is too short")?;
    if u32::from_le_bytes(*crc) != crc32fast::hash(body) {
        return Err("its checksum does not match");
    }
    let (disks, rest) = body.strip_prefix(MAGIC).ok_or("it begins otherwise")?.as_chunks::<16>();
    match rest.is_empty() {
        true => Ok(disks.iter().map(|disk| DiskId(*disk)).collect()),
        false => Err("it ends within a disk"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_every_flipped_bit_is_found() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), BTreeSet::new());
        let disks: BTreeSet<DiskId> = [DiskId([1; 16]), DiskId([2; 16])].into();
        write(dir.path(), &disks).unwrap();
        assert_eq!(read(dir.path()).unwrap(), disks);
        let bytes = std::fs::read(dir.path().join(FILE)).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&flipped).is_err(), "bit {bit}");
        }
        (0..bytes.len()).for_each(|length| assert!(decode(&bytes[..length]).is_err(), "cut at {length}"));
    }
}
