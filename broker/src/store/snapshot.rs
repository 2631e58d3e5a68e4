//! State snapshots: written in chunks through the writer, the manifest last and synced, so that what has a manifest is whole.

use trunkline_proto::{LogIndex, PartitionId};

use super::{
    db::reading,
    error::StoreError,
    keys::{self, MANIFEST_CHUNK},
    reader::Reader,
    record::{self, Body, StoredLogId, ValueError},
    write::Write,
    writer::{Closed, Handle},
};

/// Bytes of state in one chunk: small enough not to delay appends that share its sync.
pub const CHUNK_BYTES: usize = 256 << 10;
const MANIFEST_VERSION: u8 = 1;

/// What a snapshot is of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Manifest {
    /// The last entry folded in.
    pub last: StoredLogId,
    /// Membership as of then: where it stands in the log, and its encoding (raft/types.rs).
    pub membership: (Option<StoredLogId>, Vec<u8>),
    /// `Partition::digest` as of then: of everything that was ever applied.
    pub digest: u64,
    /// `Partition::state_digest` as of then.
    pub state_digest: u64,
    /// Bytes of the encoded state.
    pub bytes: u64,
    /// CRC-32 over them.
    pub crc: u32,
}

impl Manifest {
    /// As bytes: what is stored, and what goes before the chunks to another broker.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = vec![MANIFEST_VERSION];
        let mut id = |id: &StoredLogId| {
            body.extend_from_slice(&id.term.to_le_bytes());
            body.extend_from_slice(&id.index.0.to_le_bytes());
        };
        id(&self.last);
        let (at, membership) = &self.membership;
        id(&at.unwrap_or(StoredLogId { term: 0, index: LogIndex(0) }));
        body.push(u8::from(at.is_some()));
        for number in [self.digest, self.state_digest, self.bytes] {
            body.extend_from_slice(&number.to_le_bytes());
        }
        body.extend_from_slice(&self.crc.to_le_bytes());
        // memberships are a few names: far below 4 GiB
        body.extend_from_slice(&(membership.len() as u32).to_le_bytes());
        body.extend_from_slice(membership);
        body
    }

    /// Reads back [`Manifest::encode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ValueError> {
        let mut body = Body(bytes);
        let version = body.u8()?;
        if version != MANIFEST_VERSION {
            return Err(ValueError::Version(version));
        }
        let mut id = || Ok(StoredLogId { term: body.u64()?, index: record::checked_index(body.u64()?)? });
        let (last, at) = (id()?, id()?);
        let at = (body.u8()? != 0).then_some(at);
        let (digest, state_digest, size, crc) = (body.u64()?, body.u64()?, body.u64()?, body.u32()?);
        let length = body.u32()? as usize;
        let membership = (at, body.bytes(length)?.to_vec());
        Ok(Self { last, membership, digest, state_digest, bytes: size, crc })
    }
}

/// Puts a snapshot whose chunks are written in the place of everything before it: either all of that or nothing has happened
/// after a crash. Blocks.
pub fn install(writer: &Handle, partition: PartitionId, manifest: &Manifest) -> Result<(), Closed> {
    let sealed = record::encode_manifest(partition, manifest.last.index, &manifest.encode());
    writer.write_blocking(partition, Write::Install { last: manifest.last, manifest: sealed })
}

/// Writes the chunks of a snapshot, which is none before its manifest is. Blocks.
pub fn write_chunks(writer: &Handle, partition: PartitionId, index: LogIndex, state: &[u8]) -> Result<(), Closed> {
    for (chunk, bytes) in (0..).zip(state.chunks(CHUNK_BYTES)) {
        let value = record::encode_chunk(partition, index, chunk, bytes);
        writer.write_blocking(partition, Write::Snapshot { index, chunk, value })?;
    }
    Ok(())
}

/// Writes a snapshot; when it returns the snapshot is on disk. Blocks.
pub fn write(writer: &Handle, partition: PartitionId, manifest: &Manifest, state: &[u8]) -> Result<(), Closed> {
    let index = manifest.last.index;
    write_chunks(writer, partition, index, state)?;
    let value = record::encode_manifest(partition, index, &manifest.encode());
    writer.write_blocking(partition, Write::Snapshot { index, chunk: MANIFEST_CHUNK, value })
}

/// Deletes all snapshots but the newest `keep`, the first that covers all that is purged, and the one at `trimmed`; and what is
/// left of unfinished ones between them. Blocks.
pub fn retain(writer: &Handle, reader: &Reader, keep: usize, trimmed: Option<LogIndex>) -> Result<(), StoreError> {
    let purged = reader.purged()?.map(|purged| purged.index);
    let snapshots: Vec<LogIndex> = list(reader)?.into_iter().map(|manifest| manifest.last.index).collect();
    let anchor = purged.and_then(|purged| snapshots.iter().rev().copied().find(|index| *index >= purged));
    let is_kept = |(n, index): &(usize, LogIndex)| *n < keep || Some(*index) == anchor || Some(*index) == trimmed;
    let mut kept: Vec<LogIndex> = snapshots.into_iter().enumerate().filter(is_kept).map(|(_, index)| index).collect();
    kept.reverse();
    let mut after = None;
    for before in kept {
        // a closed writer deletes nothing, and nothing is lost by that
        let _ = writer.write_blocking(reader.partition(), Write::SnapshotsBetween { after, before });
        after = Some(before);
    }
    Ok(())
}

/// The snapshots there are, newest first.
pub fn list(reader: &Reader) -> Result<Vec<Manifest>, StoreError> {
    let mut manifests = Vec::new();
    let mut before = LogIndex(u64::MAX);
    while let Some(manifest) = newest(reader, before)? {
        let index = manifest.last.index;
        manifests.push(manifest);
        match index.0.checked_sub(1) {
            Some(earlier) => before = LogIndex(earlier),
            None => break,
        }
    }
    Ok(manifests)
}

fn manifest(partition: PartitionId, index: LogIndex, value: &[u8]) -> Result<Manifest, StoreError> {
    let manifest = record::decode_manifest(partition, index, value).and_then(Manifest::decode);
    manifest.map_err(|error| damaged(partition, index, &error.to_string()))
}

/// The newest snapshot that covers nothing after `through`. Unfinished ones (a crash while they were written) are passed over.
pub fn newest(reader: &Reader, through: LogIndex) -> Result<Option<Manifest>, StoreError> {
    let (db, partition) = (reader.db(), reader.partition());
    let mut iterator = db.rocks().raw_iterator_cf_opt(db.snapshots()?, reading());
    let mut target = keys::snapshot_key(partition, through, MANIFEST_CHUNK);
    loop {
        iterator.seek_for_prev(target);
        let Some((key, value)) = iterator.item() else {
            iterator.status().map_err(|error| unreadable(partition, error))?;
            return Ok(None);
        };
        match keys::parse_snapshot_key(key) {
            Some((found, index, MANIFEST_CHUNK)) if found == partition => {
                return manifest(partition, index, value).map(Some);
            }
            // chunks without a manifest
            Some((found, index, _)) if found == partition && index.0 > 0 => {
                target = keys::snapshot_key(partition, LogIndex(index.0 - 1), MANIFEST_CHUNK);
            }
            _ => return Ok(None),
        }
    }
}

/// The oldest snapshot that covers everything up to `from`.
pub fn oldest(reader: &Reader, from: LogIndex) -> Result<Option<Manifest>, StoreError> {
    let (db, partition) = (reader.db(), reader.partition());
    let mut options = reading();
    // what is deleted below is not even looked at
    options.set_iterate_lower_bound(keys::snapshot_key(partition, from, 0));
    let mut iterator = db.rocks().raw_iterator_cf_opt(db.snapshots()?, options);
    let mut target = keys::snapshot_key(partition, from, 0);
    loop {
        iterator.seek(target);
        let Some((key, value)) = iterator.item() else {
            iterator.status().map_err(|error| unreadable(partition, error))?;
            return Ok(None);
        };
        match keys::parse_snapshot_key(key) {
            Some((found, index, MANIFEST_CHUNK)) if found == partition => {
                return manifest(partition, index, value).map(Some);
            }
            // its manifest comes after its chunks; an unfinished one has none, and the next key is another one's
            Some((found, index, _)) if found == partition => {
                target = keys::snapshot_key(partition, index, MANIFEST_CHUNK);
            }
            _ => return Ok(None),
        }
    }
}

/// Reads a snapshot's state and checks it.
pub fn load(reader: &Reader, manifest: &Manifest) -> Result<Vec<u8>, StoreError> {
    let (db, partition, index) = (reader.db(), reader.partition(), manifest.last.index);
    let mut state = Vec::new();
    // exactly that many: a vector that grows holds up to three times as much at once. If there is no room it fails further down
    let _ = state.try_reserve_exact(usize::try_from(manifest.bytes).unwrap_or_default());
    let mut iterator = db.rocks().raw_iterator_cf_opt(db.snapshots()?, reading());
    iterator.seek(keys::snapshot_key(partition, index, 0));
    for chunk in 0.. {
        if state.len() as u64 >= manifest.bytes {
            break;
        }
        let expected = keys::snapshot_key(partition, index, chunk);
        let Some((_, value)) = iterator.item().filter(|(key, _)| *key == expected) else {
            iterator.status().map_err(|error| unreadable(partition, error))?;
            return Err(damaged(partition, index, &format!("chunk {chunk} is missing")));
        };
        let bytes = record::decode_chunk(partition, index, chunk, value);
        state.extend_from_slice(bytes.map_err(|error| damaged(partition, index, &format!("chunk {chunk}: {error}")))?);
        iterator.next();
    }
    match state.len() as u64 == manifest.bytes && crc32fast::hash(&state) == manifest.crc {
        true => Ok(state),
        false => Err(damaged(partition, index, "its bytes are not those its manifest describes")),
    }
}

/// Reads one chunk of a snapshot.
pub fn chunk(reader: &Reader, index: LogIndex, n: u32) -> Result<Vec<u8>, StoreError> {
    let (db, partition) = (reader.db(), reader.partition());
    let value = db.rocks().get_pinned_cf_opt(db.snapshots()?, keys::snapshot_key(partition, index, n), &reading());
    let value = value.map_err(|error| unreadable(partition, error))?;
    let value = value.ok_or_else(|| damaged(partition, index, &format!("chunk {n} is missing")))?;
    let bytes = record::decode_chunk(partition, index, n, &value);
    Ok(bytes.map_err(|error| damaged(partition, index, &format!("chunk {n}: {error}")))?.to_vec())
}

fn unreadable(partition: PartitionId, error: rocksdb::Error) -> StoreError {
    StoreError::from(error).within(|| format!("partition {partition} snapshots"))
}

fn damaged(partition: PartitionId, index: LogIndex, reason: &str) -> StoreError {
    StoreError::Damaged { place: format!("partition {partition} snapshot {index}"), reason: reason.to_owned() }
}
