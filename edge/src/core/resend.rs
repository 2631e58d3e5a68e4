//! What an edge has on its way to one partition: records become batches with a sequence, and a batch is kept until the partition
//! has applied it. Pure: the uplink drives it under its lock, the link takes batches out of it.

use std::collections::VecDeque;

use bytes::BytesMut;
use trunkline_proto::{limits, link::UplinkBatch};

/// Most bytes of a batch, unless a single record alone is larger. A quarter of an entry: several edges' batches share one
/// sync, and a resend after a reconnect is cheap.
pub const BATCH_BYTES_MAX: usize = 256 << 10;
const _: () = assert!(BATCH_BYTES_MAX * 2 < limits::ENTRY_BYTES_MAX);
/// Batches that may be written and not applied. While they are on their way what comes waits and becomes larger batches: a busy
/// partition costs its leader less per record, and a quiet one never waits.
pub const BATCHES_IN_FLIGHT_MAX: usize = 64;
/// Room made for records at once, so that a quiet partition's batches share allocations.
const CHUNK_BYTES: usize = 16 << 10;

/// Batches on their way to one partition. `W` is whatever waits for a record to be applied.
///
/// Sequences run from 1 in each incarnation without gaps: `applied`, then one per sealed batch, then the open one.
#[derive(Debug)]
pub struct Outgoing<W> {
    /// Sequence of the last batch that is applied.
    applied: u64,
    /// Not applied yet, oldest first; the first has sequence `applied + 1`. Their bytes never change: some may be applied
    /// already without our knowing.
    sealed: VecDeque<Sealed<W>>,
    /// How many of `sealed` have been handed to the current stream.
    sent: usize,
    /// Records that are in no batch yet.
    open: BytesMut,
    open_count: u16,
    open_waiters: Vec<W>,
    /// Bytes of all records in here.
    bytes: usize,
}

#[derive(Debug)]
struct Sealed<W> {
    batch: UplinkBatch,
    waiters: Vec<W>,
}

/// What one append did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Appended {
    /// Bytes of the record.
    pub bytes: usize,
    /// Nothing waited to be sent before: whoever sends must be woken.
    pub wakes: bool,
}

/// What has left the queue.
#[derive(Debug)]
pub struct Released<W> {
    /// Bytes of records.
    pub bytes: usize,
    /// Those who waited for them.
    pub waiters: Vec<W>,
}

/// What a broker says about our batches contradicts what we know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SequenceError {
    /// It has less than what was acknowledged before: its state is old, or was lost.
    #[error("the broker has batches up to {last}, but {applied} was acknowledged before")]
    Behind {
        /// As the broker says.
        last: u64,
        /// As acknowledged before.
        applied: u64,
    },
    /// It has batches this process never made: somebody else runs under this incarnation.
    #[error("the broker has batches up to {last}, but only {made} were made")]
    Ahead {
        /// As the broker says.
        last: u64,
        /// The last one made.
        made: u64,
    },
}

impl<W> Default for Outgoing<W> {
    fn default() -> Self {
        Self {
            applied: 0,
            sealed: VecDeque::new(),
            sent: 0,
            open: BytesMut::new(),
            open_count: 0,
            open_waiters: Vec::new(),
            bytes: 0,
        }
    }
}

impl<W> Outgoing<W> {
    /// Appends the one record that `encode` writes.
    pub fn append(&mut self, waiter: Option<W>, encode: impl FnOnce(&mut BytesMut)) -> Appended {
        let wakes = self.is_sent();
        let before = self.open.len();
        if self.open.capacity() == before {
            self.open.reserve(CHUNK_BYTES);
        }
        encode(&mut self.open);
        let bytes = self.open.len() - before;
        if before > 0 && self.open.len() > BATCH_BYTES_MAX {
            let record = self.open.split_off(before);
            self.seal();
            self.open = record;
        }
        self.open_count += 1;
        self.open_waiters.extend(waiter);
        self.bytes += bytes;
        if usize::from(self.open_count) == limits::ENTRY_RECORDS_MAX || self.open.len() >= BATCH_BYTES_MAX {
            self.seal();
        }
        Appended { bytes, wakes }
    }

    /// The next batch for the current stream; what waits becomes one batch. `None` also while [`BATCHES_IN_FLIGHT_MAX`] are on
    /// their way: then the next [`Outgoing::applied`] makes room.
    pub fn take(&mut self) -> Option<UplinkBatch> {
        if self.sent >= BATCHES_IN_FLIGHT_MAX {
            return None;
        }
        if self.sent == self.sealed.len() {
            self.seal();
        }
        let next = self.sealed.get(self.sent)?;
        self.sent += 1;
        Some(next.batch.clone())
    }

    /// A new stream: the partition has everything up to `last`, and what is after it must be sent on this stream, again or for
    /// the first time.
    pub fn attached(&mut self, last: u64) -> Result<Released<W>, SequenceError> {
        if last < self.applied {
            return Err(SequenceError::Behind { last, applied: self.applied });
        }
        let released = self.applied(last)?;
        self.sent = 0;
        Ok(released)
    }

    /// Batches up to `last` are applied. An older `last` changes nothing.
    pub fn applied(&mut self, last: u64) -> Result<Released<W>, SequenceError> {
        let made = self.applied + self.sealed.len() as u64;
        if last > made {
            return Err(SequenceError::Ahead { last, made });
        }
        let mut released = Released { bytes: 0, waiters: Vec::new() };
        while self.applied < last
            && let Some(sealed) = self.sealed.pop_front()
        {
            self.applied += 1;
            self.sent = self.sent.saturating_sub(1);
            released.bytes += sealed.batch.records.len();
            released.waiters.extend(sealed.waiters);
        }
        self.bytes -= released.bytes;
        Ok(released)
    }

    /// The incarnation is over: everything goes, and sequences start anew.
    pub fn reset(&mut self) -> Released<W> {
        let old = std::mem::take(self);
        let sealed = old.sealed.into_iter().flat_map(|sealed| sealed.waiters);
        Released { bytes: old.bytes, waiters: sealed.chain(old.open_waiters).collect() }
    }

    /// Sequence of the last batch that is applied.
    pub fn last_applied(&self) -> u64 {
        self.applied
    }

    /// Sequence of the batch that holds, or will hold, the newest record.
    pub fn last_appended(&self) -> u64 {
        self.applied + self.sealed.len() as u64 + u64::from(self.open_count > 0)
    }

    /// Bytes of all records that are not applied.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether everything has been handed to the current stream.
    pub fn is_sent(&self) -> bool {
        self.sent == self.sealed.len() && self.open_count == 0
    }

    fn seal(&mut self) {
        if self.open_count == 0 {
            return;
        }
        let batch = UplinkBatch {
            sequence: self.applied + self.sealed.len() as u64 + 1,
            count: std::mem::take(&mut self.open_count),
            records: self.open.split().freeze(),
        };
        self.sealed.push_back(Sealed { batch, waiters: std::mem::take(&mut self.open_waiters) });
    }
}

#[cfg(test)]
#[path = "resend_tests.rs"]
mod tests;
