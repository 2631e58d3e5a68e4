//! Step 7 of the walk, between `raft/group.rs` and `store/writer.rs`: openraft's log storage. Entries are readable from memory when
//! `append` returns and durable when its callback is called.

use std::{
    collections::VecDeque,
    fmt::Debug,
    future::Future,
    io,
    ops::{Bound, RangeBounds},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use openraft::{
    EntryPayload, LogState, OptionalSend, RaftLogReader,
    errors::LeaderChanged,
    storage::{IOFlushed, LeaderBoundedStreamError, RaftLogStorage},
    type_config::alias::LeaderIdOf,
};
use tokio_stream::Stream;
use trunkline_proto::{LogIndex, PartitionId, peer::APPEND_BYTES_MAX};

use super::{
    log_cache::{LogCache, Lookup, Opened},
    types::{self, Entry, LogId, Types, Vote},
};
use crate::store::{Reader, StoreError, Write, WriterHandle};

/// Bytes handed to openraft at once.
const CHUNK_BYTES: usize = 2 << 20;

/// One partition's log, as openraft writes it.
#[derive(Clone, Debug)]
pub struct LogStore {
    log: Log,
    writer: WriterHandle,
}

/// One partition's log, as openraft reads it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Log {
    cache: Arc<LogCache>,
    reader: Reader,
}

impl LogStore {
    /// Opens the log. Blocks.
    pub fn open(reader: Reader, writer: WriterHandle) -> Result<Self, StoreError> {
        let opened = Opened {
            first: reader.first()?.as_ref().map(types::from_stored),
            last: reader.last()?.as_ref().map(types::from_stored),
            purged: reader.purged()?.as_ref().map(types::from_stored),
            vote: reader.vote()?.as_ref().map(types::from_stored_vote),
            committed: reader.committed()?.as_ref().map(types::from_stored),
        };
        Ok(Self { log: Log { cache: Arc::new(LogCache::new(opened)), reader }, writer })
    }

    /// Reads it.
    pub fn log(&self) -> &Log {
        &self.log
    }

    fn partition(&self) -> PartitionId {
        self.log.reader.partition()
    }
}

impl Log {
    /// End (exclusive) of what RocksDB holds.
    pub fn written(&self) -> Arc<AtomicU64> {
        self.cache.written()
    }

    /// The last entry there is.
    pub fn last(&self) -> Option<LogId> {
        self.cache.last()
    }

    /// Whether everything before `end` is on disk.
    pub(super) fn is_written(&self, end: u64) -> bool {
        end <= self.cache.written().load(Ordering::Acquire)
    }

    /// Bytes of the entries after `index`, unless they are many.
    pub(super) fn bytes_after(&self, index: u64) -> Option<usize> {
        self.cache.bytes_after(index)
    }

    /// Term of the vote.
    pub fn term(&self) -> u64 {
        self.cache.vote().map_or(0, |vote| vote.leader_id.term)
    }

    /// The logical purge.
    pub fn purged(&self) -> Option<LogId> {
        self.cache.purged()
    }

    /// A snapshot on disk has taken the place of everything up to `last`.
    pub(super) fn installed(&self, last: LogId) {
        self.cache.purge(last);
        self.cache.mark_written(last.index + 1);
    }

    /// Entries up to `end` (exclusive) are applied.
    pub fn mark_applied(&self, end: u64) {
        self.cache.mark_applied(end);
    }

    /// `start..end` or its beginning, about [`CHUNK_BYTES`] of it; never empty unless there is nothing at `start`.
    async fn chunk(self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let end = match self.cache.lookup(start, end, CHUNK_BYTES) {
            Lookup::Cached(entries) => return Ok(entries),
            Lookup::Nothing => return Ok(Vec::new()),
            Lookup::OnDisk(end) => end,
        };
        let read = tokio::task::spawn_blocking(move || {
            let stored = self.reader.entries(LogIndex(start), LogIndex(end), CHUNK_BYTES)?;
            stored.iter().map(types::from_stored_entry).collect::<io::Result<Vec<_>>>()
        });
        let entries = read.await.map_err(io::Error::other)??;
        match entries.is_empty() {
            true => Err(io::Error::new(io::ErrorKind::InvalidData, format!("entry {start} is missing on disk"))),
            false => Ok(entries),
        }
    }

    fn bounds<RB: RangeBounds<u64>>(&self, range: &RB) -> (u64, u64) {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        self.cache.clamp(start, end)
    }

    fn chunks<RB: RangeBounds<u64>>(&self, range: &RB, leader: Option<LeaderIdOf<Types>>) -> Chunks {
        let (next, end) = self.bounds(range);
        Chunks { log: self.clone(), next, end, leader, ready: VecDeque::new(), reading: None, failed: false }
    }
}

impl RaftLogReader<Types> for Log {
    async fn leader_bounded_stream<RB>(
        &mut self,
        leader: LeaderIdOf<Types>,
        range: RB,
    ) -> impl Stream<Item = Result<Entry, LeaderBoundedStreamError<Types>>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        self.chunks(&range, Some(leader))
    }

    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        Committed(self.chunks(&range, None))
    }

    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (mut next, end) = self.bounds(&range);
        let mut entries = Vec::new();
        while next < end {
            let chunk = self.clone().chunk(next, end).await?;
            if chunk.is_empty() {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("entry {next} is missing")));
            }
            next += chunk.len() as u64;
            entries.extend(chunk);
        }
        Ok(entries)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        let (start, end) = self.bounds(&(start..end));
        let mut entries = self.clone().chunk(start, end).await?;
        let mut bytes = 0;
        // one that is larger alone goes alone
        let fits = entries.iter().take_while(|entry| {
            bytes += entry_bytes(entry);
            bytes <= APPEND_BYTES_MAX
        });
        let fits = fits.count().max(1);
        entries.truncate(fits);
        Ok(entries)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.cache.vote())
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Log;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        Ok(LogState { last_purged_log_id: self.log.cache.purged(), last_log_id: self.log.cache.last() })
    }

    async fn get_log_reader(&mut self) -> Log {
        self.log.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.writer.write(self.partition(), Write::Vote(types::to_stored_vote(vote))).await?;
        self.log.cache.set_vote(*vote);
        Ok(())
    }

    // rides with the next synced write: the log before it is then on disk too, and a restart that does not know the very last
    // committed position learns it again
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.log.cache.set_committed(committed);
        if let Some(committed) = committed {
            self.writer.submit(self.partition(), Write::Committed(types::to_stored(&committed)), None).await;
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.log.cache.committed())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let Some(end) = entries.last().map(|last| last.log_id.index + 1) else {
            callback.io_completed(Ok(()));
            return Ok(());
        };
        // readable first: openraft reads them back as soon as this returns
        self.log.cache.append(&entries).map_err(|reason| io::Error::new(io::ErrorKind::InvalidData, reason))?;
        let stored = entries.iter().map(types::to_stored_entry).collect();
        let cache = Arc::clone(&self.log.cache);
        let done = Box::new(move |outcome: Result<(), _>| {
            if outcome.is_ok() {
                cache.mark_written(end);
            }
            callback.io_completed(outcome.map_err(io::Error::from));
        });
        self.writer.submit(self.partition(), Write::Entries(stored), Some(done)).await;
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let Some(last) = self.log.cache.truncate(last_log_id) else { return Ok(()) };
        let keep = last_log_id.map(|keep| LogIndex(keep.index));
        self.writer.write(self.partition(), Write::Truncate { keep, last: LogIndex(last) }).await?;
        // earlier appends have called back by now: the writer keeps the order
        self.log.cache.lower_written(keep.map_or(0, |keep| keep.0 + 1));
        Ok(())
    }

    // logical: what is below stays on disk and readable until retention deletes it. Only where a snapshot has replaced the log
    // as a whole (it ends beyond it) nothing of it stays
    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        // a snapshot that was installed has purged what it covers
        if self.log.purged() >= Some(log_id) {
            return Ok(());
        }
        let beyond = self.log.cache.purge(log_id);
        self.writer.write(self.partition(), Write::Purged { id: types::to_stored(&log_id), beyond }).await?;
        Ok(())
    }
}

fn entry_bytes(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(bytes) => bytes.0.len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    }
}

type Reading = Pin<Box<dyn Future<Output = io::Result<Vec<Entry>>> + Send>>;

/// Walks a range chunk by chunk: a range may be the whole log, which must not be held in memory at once.
struct Chunks {
    log: Log,
    next: u64,
    end: u64,
    leader: Option<LeaderIdOf<Types>>,
    ready: VecDeque<Entry>,
    reading: Option<Reading>,
    failed: bool,
}

impl Chunks {
    /// Whether the leader the entries are read for still is one: otherwise they may have been replaced meanwhile.
    fn check_leader(&self) -> Result<(), LeaderBoundedStreamError<Types>> {
        let Some(leader) = self.leader else { return Ok(()) };
        let vote = self.log.cache.vote();
        match vote.is_some_and(|vote| vote.committed && vote.leader_id == leader) {
            true => Ok(()),
            false => Err(LeaderChanged::new(leader, vote).into()),
        }
    }

    fn fail(
        &mut self,
        error: LeaderBoundedStreamError<Types>,
    ) -> Option<Result<Entry, LeaderBoundedStreamError<Types>>> {
        self.failed = true;
        Some(Err(error))
    }
}

impl Stream for Chunks {
    type Item = Result<Entry, LeaderBoundedStreamError<Types>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.failed {
            return Poll::Ready(None);
        }
        loop {
            if let Err(error) = self.check_leader() {
                return Poll::Ready(self.fail(error));
            }
            if let Some(entry) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(entry)));
            }
            if self.next >= self.end {
                return Poll::Ready(None);
            }
            let (next, end) = (self.next, self.end);
            let chunk = match self.reading.take() {
                Some(mut reading) => match reading.as_mut().poll(context) {
                    Poll::Ready(chunk) => chunk,
                    Poll::Pending => {
                        self.reading = Some(reading);
                        return Poll::Pending;
                    }
                },
                None => {
                    self.reading = Some(Box::pin(self.log.clone().chunk(next, end)));
                    continue;
                }
            };
            match chunk {
                Ok(entries) if !entries.is_empty() => {
                    self.next += entries.len() as u64;
                    self.ready = entries.into();
                }
                // no short reads: a leader would replicate a hole
                Ok(_) => {
                    let error = io::Error::new(io::ErrorKind::InvalidData, format!("entry {next} is missing"));
                    return Poll::Ready(self.fail(error.into()));
                }
                Err(error) => return Poll::Ready(self.fail(error.into())),
            }
        }
    }
}

/// [`Chunks`] of committed entries, which no leader can change any more.
struct Committed(Chunks);

impl Stream for Committed {
    type Item = io::Result<Entry>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(ready!(Pin::new(&mut self.0).poll_next(context)).map(|entry| {
            entry.map_err(|error| match error {
                LeaderBoundedStreamError::IoError(error) => error,
                // not reached: no leader is asked for
                LeaderBoundedStreamError::LeaderChanged(error) => io::Error::other(error),
            })
        }))
    }
}
