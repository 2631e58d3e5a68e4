//! The key table. Numbers are big endian, so that RocksDB's order is theirs. Tags reach disk: never reuse one.
//!
//! | column family | key | value (record.rs) |
//! |---|---|---|
//! | `log-00007` (one per partition) | `index u64` | entry: term and payload |
//! | `meta` | `tag u8, partition u16` | by tag, see [`MetaTag`] |
//! | `refused` | `partition u16, index u64` | positions of refused records and why |
//! | `closed` | `partition u16, block u32, connection 16 bytes` | how a closed connection came to be; the block is that of its closing's entry |
//! | `snapshots` | `partition u16, index u64, chunk u32` | a chunk of the state; chunk `u32::MAX` is the manifest, written last |
//! | `default` | | empty; RocksDB insists on it |

use trunkline_proto::{ConnectionId, LogIndex, PartitionId};

/// Votes, committed and purged positions.
pub const CF_META: &str = "meta";
/// Refused records.
pub const CF_REFUSED: &str = "refused";
/// Closed connections.
pub const CF_CLOSED: &str = "closed";
/// State snapshots.
pub const CF_SNAPSHOTS: &str = "snapshots";
/// Chunk number of a snapshot's manifest: after its chunks.
pub const MANIFEST_CHUNK: u32 = u32::MAX;

/// What a key of `meta` holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum MetaTag {
    /// Raft's vote.
    Vote = 1,
    /// The last committed log id known when it was written.
    Committed = 2,
    /// Raft's logical purge. Entries below stay readable until retention deletes them.
    Purged = 3,
}

/// The column family of a partition's log.
pub fn log_cf(partition: PartitionId) -> String {
    format!("log-{:05}", partition.0)
}

/// Key of a log entry.
pub fn log_key(index: LogIndex) -> [u8; 8] {
    index.0.to_be_bytes()
}

/// Reads back [`log_key`].
pub fn parse_log_key(key: &[u8]) -> Option<LogIndex> {
    key.try_into().ok().map(|key| LogIndex(u64::from_be_bytes(key)))
}

/// Key in `meta`.
pub fn meta_key(tag: MetaTag, partition: PartitionId) -> [u8; 3] {
    let [high, low] = partition.0.to_be_bytes();
    [tag as u8, high, low]
}

/// Key in `refused`.
pub fn refused_key(partition: PartitionId, index: LogIndex) -> [u8; 10] {
    let mut key = [0; 10];
    key[..2].copy_from_slice(&partition.0.to_be_bytes());
    key[2..].copy_from_slice(&index.0.to_be_bytes());
    key
}

/// Reads back [`refused_key`].
pub fn parse_refused_key(key: &[u8]) -> Option<(PartitionId, LogIndex)> {
    let (partition, index) = key.split_first_chunk::<2>()?;
    Some((PartitionId(u16::from_be_bytes(*partition)), LogIndex(u64::from_be_bytes(index.try_into().ok()?))))
}

/// The entries of a block of `closed`, as a power of two. A block goes as a whole; whoever looks for a connection looks into one after the
/// other.
const BLOCK_BITS: u32 = 16;

/// The block of `closed` that holds what an entry closed.
pub fn block(index: LogIndex) -> u32 {
    // 48 bits, less 16
    (index.0 >> BLOCK_BITS) as u32
}

/// Key in `closed`.
pub fn closed_key(partition: PartitionId, block: u32, connection: ConnectionId) -> [u8; 22] {
    let mut key = [0; 22];
    key[..2].copy_from_slice(&partition.0.to_be_bytes());
    key[2..6].copy_from_slice(&block.to_be_bytes());
    key[6..].copy_from_slice(&connection.0);
    key
}

/// Key in `snapshots`.
pub fn snapshot_key(partition: PartitionId, index: LogIndex, chunk: u32) -> [u8; 14] {
    let mut key = [0; 14];
    key[..2].copy_from_slice(&partition.0.to_be_bytes());
    key[2..10].copy_from_slice(&index.0.to_be_bytes());
    key[10..].copy_from_slice(&chunk.to_be_bytes());
    key
}

/// Reads back [`snapshot_key`].
pub fn parse_snapshot_key(key: &[u8]) -> Option<(PartitionId, LogIndex, u32)> {
    let (partition, rest) = key.split_first_chunk::<2>()?;
    let (index, chunk) = rest.split_first_chunk::<8>()?;
    let chunk = u32::from_be_bytes(chunk.try_into().ok()?);
    Some((PartitionId(u16::from_be_bytes(*partition)), LogIndex(u64::from_be_bytes(*index)), chunk))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_round_trip_and_sort_as_their_numbers(p in any::<u16>(), i in any::<u64>(), c in any::<u32>(),
                                                     q in any::<u16>(), j in any::<u64>(), d in any::<u32>()) {
            let (p, i, q, j) = (PartitionId(p), LogIndex(i), PartitionId(q), LogIndex(j));
            prop_assert_eq!(parse_log_key(&log_key(i)), Some(i));
            prop_assert_eq!(parse_refused_key(&refused_key(p, i)), Some((p, i)));
            prop_assert_eq!(parse_snapshot_key(&snapshot_key(p, i, c)), Some((p, i, c)));
            prop_assert_eq!(log_key(i).cmp(&log_key(j)), i.cmp(&j));
            prop_assert_eq!(refused_key(p, i).cmp(&refused_key(q, j)), (p, i).cmp(&(q, j)));
            prop_assert_eq!(snapshot_key(p, i, c).cmp(&snapshot_key(q, j, d)), (p, i, c).cmp(&(q, j, d)));
        }
    }
}
