//! Finds damage in RocksDB's write-ahead logs. RocksDB refuses to open a database with one, but does not say which file it is.
//!
//! Blocks of 32 KiB hold records `u32 LE crc, u16 LE length, u8 type, [u32 LE log number], payload`; a record never crosses a
//! block. The checksum is a masked CRC-32C of everything after the length. What is preallocated and not written is zero.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

const BLOCK_BYTES: usize = 32 << 10;
const HEADER_BYTES: usize = 7;
/// Bytes before what the checksum covers.
const UNCHECKED_BYTES: usize = 6;
/// Types whose header also holds a log number.
const WITH_LOG_NUMBER: [u8; 6] = [5, 6, 7, 8, 11, 131];
const CASTAGNOLI: [u32; 256] = table();

/// The first record whose checksum does not match, in the oldest log that has one: its file, and where in it. A log that only
/// ends too early has none.
pub fn first_damage(db: &Path) -> Option<(PathBuf, u64)> {
    let files = fs::read_dir(db).ok()?.filter_map(|file| Some(file.ok()?.path()));
    let mut logs: Vec<_> = files.filter(|path| path.extension().is_some_and(|extension| extension == "log")).collect();
    // their numbers have leading zeros
    logs.sort();
    logs.into_iter().find_map(|path| {
        let at = scan(&path).ok()??;
        Some((path, at))
    })
}

fn scan(path: &Path) -> io::Result<Option<u64>> {
    let mut file = File::open(path)?;
    let mut block = Vec::with_capacity(BLOCK_BYTES);
    let mut begin = 0;
    loop {
        block.clear();
        if file.by_ref().take(BLOCK_BYTES as u64).read_to_end(&mut block)? == 0 {
            return Ok(None);
        }
        if let Some(at) = damage_in(&block) {
            return Ok(Some(begin + at as u64));
        }
        begin += block.len() as u64;
    }
}

/// Where in a block its first damaged record begins.
fn damage_in(block: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(rest) = block.get(at..)
        && let Some(&[c0, c1, c2, c3, l0, l1, kind]) = rest.first_chunk::<HEADER_BYTES>()
    {
        let length = usize::from(u16::from_le_bytes([l0, l1]));
        if kind == 0 && length == 0 {
            return None;
        }
        let end = HEADER_BYTES + if WITH_LOG_NUMBER.contains(&kind) { 4 } else { 0 } + length;
        let Some(checked) = rest.get(UNCHECKED_BYTES..end) else {
            // torn at the end of the file; in a whole block a length that is not true
            return (block.len() == BLOCK_BYTES).then_some(at);
        };
        if mask(crc32c(checked)) != u32::from_le_bytes([c0, c1, c2, c3]) {
            return Some(at);
        }
        at += end;
    }
    None
}

fn mask(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

fn crc32c(bytes: &[u8]) -> u32 {
    // the index is one byte: in range
    !bytes.iter().fold(!0, |crc: u32, byte| CASTAGNOLI[((crc ^ u32::from(*byte)) & 0xff) as usize] ^ (crc >> 8))
}

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let (mut crc, mut bit) = (n as u32, 0);
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[n] = crc;
        n += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_of_its_standard() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn zeros_and_torn_ends_are_no_damage() {
        let mut record = vec![0, 0, 0, 0, 3, 0, 1, b'a', b'b', b'c'];
        let crc = mask(crc32c(&record[UNCHECKED_BYTES..])).to_le_bytes();
        record[..4].copy_from_slice(&crc);
        let two = [&record[..], &record[..]].concat();
        assert_eq!(damage_in(&two), None);
        assert_eq!(damage_in(&[&two[..], &[0; 100]].concat()), None);
        (0..two.len()).for_each(|end| assert_eq!(damage_in(&two[..end]), None, "{end}"));
        for at in 0..two.len() {
            let mut flipped = two.clone();
            flipped[at] ^= 0x10;
            // a length beyond the end of the file cannot be told from a torn record
            if at % record.len() != 4 && at % record.len() != 5 {
                assert_eq!(damage_in(&flipped), Some(at / record.len() * record.len()), "{at}");
            }
        }
    }
}
