//! A state snapshot on its way from one broker's disk to another's, a chunk at a time. The sender's is stored already; the receiver
//! stores the chunks as they come, and what takes effect is the manifest (`state_machine.rs`, `install_snapshot`).

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;

use crate::store::{Manifest, Reader, StoreError, Write, WriterHandle, record, snapshot};

/// Snapshots of one partition that are being sent: the leader trims nothing meanwhile, or the receiver would need another one as
/// soon as it is done. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Transfers(Arc<AtomicUsize>);

impl Transfers {
    /// Whether one is.
    pub fn is_running(&self) -> bool {
        self.0.load(Ordering::Acquire) > 0
    }

    fn begin(&self) -> Running {
        self.0.fetch_add(1, Ordering::AcqRel);
        Running(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A snapshot: its manifest, and where its chunks are.
#[derive(Debug)]
pub struct SnapshotData {
    manifest: Manifest,
    reader: Reader,
    _running: Option<Running>,
}

impl SnapshotData {
    /// A stored snapshot, to be sent: counted among the running transfers until it is dropped.
    pub(super) fn stored(reader: Reader, manifest: Manifest, transfers: &Transfers) -> Self {
        Self { manifest, reader, _running: Some(transfers.begin()) }
    }

    /// What it is of.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// How many chunks it has.
    pub fn chunks(&self) -> u32 {
        u32::try_from(self.manifest.bytes.div_ceil(snapshot::CHUNK_BYTES as u64)).unwrap_or(u32::MAX)
    }

    /// The n-th chunk, from disk.
    ///
    /// # Errors
    /// It is damaged, or retention has deleted the snapshot meanwhile: the transfer must begin anew.
    pub async fn chunk(&self, n: u32) -> Result<Bytes, StoreError> {
        let (reader, index) = (self.reader.clone(), self.manifest.last.index);
        let chunk = tokio::task::spawn_blocking(move || snapshot::chunk(&reader, index, n));
        Ok(chunk.await.map_err(|error| StoreError::Task(error.to_string()))??.into())
    }

    /// Whether its chunks are in the database of `reader` already.
    pub(super) fn is_in(&self, reader: &Reader) -> bool {
        Arc::ptr_eq(self.reader.db(), reader.db()) && self.reader.partition() == reader.partition()
    }

    /// The whole encoded state, checked. Blocks.
    pub(super) fn load(&self) -> Result<Vec<u8>, StoreError> {
        snapshot::load(&self.reader, &self.manifest)
    }
}

/// Takes snapshots that peers send for one partition. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Receiver {
    reader: Reader,
    writer: WriterHandle,
}

impl Receiver {
    /// Stores what comes where `reader` reads.
    pub fn new(reader: Reader, writer: WriterHandle) -> Self {
        Self { reader, writer }
    }

    /// Begins to take a snapshot. What an earlier attempt at the same one has stored is overwritten with the same bytes.
    pub fn begin(&self, manifest: Manifest) -> Incoming {
        Incoming { to: self.clone(), manifest, chunks: 0, bytes: 0 }
    }
}

/// A snapshot that is being received. Dropped before its end it leaves chunks without a manifest, which nobody looks at.
#[derive(Debug)]
pub struct Incoming {
    to: Receiver,
    manifest: Manifest,
    chunks: u32,
    bytes: u64,
}

impl Incoming {
    /// Stores the next chunk; waits while the writer's queue is full.
    ///
    /// # Errors
    /// It is not of the length that its place asks for, or the store takes no writes.
    pub async fn push(&mut self, chunk: &[u8]) -> io::Result<()> {
        let expected = (self.manifest.bytes - self.bytes).min(snapshot::CHUNK_BYTES as u64);
        if chunk.len() as u64 != expected || chunk.is_empty() {
            let reason =
                format!("chunk {} of a snapshot has {} bytes in place of {expected}", self.chunks, chunk.len());
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        let (partition, index) = (self.to.reader.partition(), self.manifest.last.index);
        let value = record::encode_chunk(partition, index, self.chunks, chunk);
        self.to.writer.write(partition, Write::Snapshot { index, chunk: self.chunks, value }).await?;
        self.chunks += 1;
        self.bytes += expected;
        Ok(())
    }

    /// Whether every chunk has come.
    pub fn is_whole(&self) -> bool {
        self.bytes >= self.manifest.bytes
    }

    /// All of it is there, and it is what its manifest says: what is handed to Raft must not fail there, which would stop the group.
    ///
    /// # Errors
    /// It is not.
    pub async fn finish(self) -> io::Result<SnapshotData> {
        if self.bytes != self.manifest.bytes {
            let reason = format!("a snapshot of {} bytes ended after {}", self.manifest.bytes, self.bytes);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, reason));
        }
        let data = SnapshotData { manifest: self.manifest, reader: self.to.reader, _running: None };
        let checked = tokio::task::spawn_blocking(move || data.load().map(|_| data));
        Ok(checked.await.map_err(io::Error::other)??)
    }
}
