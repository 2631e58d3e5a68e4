//! Step 16 of the walk. One cursor per (partition, edge): at the tail it takes what apply's effects name for that edge, behind it
//! it reads the log. Before it step 12 (`tail.rs`), after it step 17 (`link/outbound.rs`).
//!
//! A cursor is pulled by the stream it serves: a slow edge's cursor falls behind and reads the disk, and keeps nobody waiting.

use std::{collections::VecDeque, future::Future, pin::Pin, time::Duration};

use tokio::time::Instant;
use trunkline_proto::{
    LogIndex, Offset, Timestamp,
    link::{Deliveries, Delivery},
};

use crate::{
    core::{
        AppliedEntry, EdgeIndex, LoggedEntry,
        expand::{self, Expanded, Recipient},
    },
    node::{LogRead, Node, PartitionHandle, ReadError},
    tail::TailRead,
};

/// Bytes of deliveries after which a frame is full; one offset's deliveries are never split, so a frame may be larger.
pub const FRAME_BYTES: usize = 256 << 10;
/// Bytes of log taken at once, from the tail or from disk. With what they expand to, this bounds a cursor's memory.
const READ_BYTES: usize = 1 << 20;
/// With nothing for its edge, a cursor says where it is after so many entries...
const PROGRESS_ENTRIES: u64 = 1000;
/// ... or after so long.
const PROGRESS_DELAY: Duration = Duration::from_millis(100);

/// What a cursor has for its edge.
#[derive(Clone, PartialEq, Debug)]
pub enum Next {
    /// Deliveries, in the partition's order.
    Deliveries(Deliveries),
    /// Nothing for this edge up to here.
    Progress(Offset),
}

type Reading = Pin<Box<dyn Future<Output = Result<LogRead, ReadError>> + Send>>;

/// Follows one partition for one edge.
pub struct Cursor {
    node: Node,
    partition: PartitionHandle,
    edge: EdgeIndex,
    name: String,
    /// Deliveries up to here have been seen by the edge before it attached.
    after: Offset,
    /// Entries up to here are in `ready` or done with.
    read: LogIndex,
    /// Read, not yet given out, each with its entry's time.
    ready: VecDeque<(Timestamp, Delivery)>,
    /// Everything up to here has been given out.
    given: Offset,
    given_at: Instant,
    /// A read of the disk under way: kept so that a cancelled [`Cursor::next`] does not start over.
    reading: Option<Reading>,
}

impl std::fmt::Debug for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cursor")
            .field("partition", &self.partition.id)
            .field("edge", &self.edge)
            .field("given", &self.given)
            .field("ready", &self.ready.len())
            .finish_non_exhaustive()
    }
}

impl Cursor {
    /// A cursor that gives what comes after `after` to the edge of that name and number.
    pub fn new(node: Node, partition: PartitionHandle, edge: EdgeIndex, name: &str, after: Offset) -> Self {
        Self {
            node,
            partition,
            edge,
            name: name.to_owned(),
            after,
            read: last_done(after),
            ready: VecDeque::new(),
            given: after,
            given_at: Instant::now(),
            reading: None,
        }
    }

    /// Everything up to here has been given out.
    pub fn given(&self) -> Offset {
        self.given
    }

    /// Waits for something to give. Cancel safe.
    pub async fn next(&mut self) -> Result<Next, ReadError> {
        loop {
            if let Some(deliveries) = self.take_frame() {
                return Ok(Next::Deliveries(deliveries));
            }
            let done = Offset::end_of(self.read);
            let quiet = self.read.0.saturating_sub(self.given.index().0);
            if quiet >= PROGRESS_ENTRIES || (done > self.given && self.given_at.elapsed() >= PROGRESS_DELAY) {
                self.give(done);
                return Ok(Next::Progress(done));
            }
            // a long stretch without deliveries must not hold the thread
            tokio::task::consume_budget().await;
            self.fill().await?;
        }
    }

    /// Reads on; returns when something was read or progress is due.
    async fn fill(&mut self) -> Result<(), ReadError> {
        if self.reading.is_none() {
            match self.partition.tail.read(self.read, READ_BYTES) {
                TailRead::Entries(entries) => {
                    for entry in entries {
                        self.take_applied(&entry);
                    }
                    return Ok(());
                }
                TailRead::End => {
                    self.wait().await;
                    return Ok(());
                }
                TailRead::Behind => self.reading = Some(self.start_reading()),
            }
        }
        let Some(reading) = self.reading.as_mut() else { return Ok(()) };
        let read = reading.await;
        self.reading = None;
        let read = read?;
        if read.through <= self.read {
            self.wait().await;
        }
        self.take_logged(&read.entries);
        // what holds no records is read too: after a snapshot was installed nothing else may lead up to the tail
        self.read = self.read.max(read.through);
        Ok(())
    }

    /// Waits for the next entry, or until progress is due.
    async fn wait(&mut self) {
        let more = self.partition.tail.wait_past(self.read);
        if Offset::end_of(self.read) > self.given {
            // not due yet or not progressed: a timeout is as good as an entry
            let _ = tokio::time::timeout_at(self.given_at + PROGRESS_DELAY, more).await;
        } else {
            more.await;
        }
    }

    fn start_reading(&self) -> Reading {
        let (node, partition, read) = (self.node.clone(), self.partition.id, self.read);
        Box::pin(async move { node.read_log(partition, read, READ_BYTES).await })
    }

    fn take_applied(&mut self, entry: &AppliedEntry) {
        let (index, edge) = (entry.logged.index, self.edge);
        for delivery in entry.applied.deliveries.iter().filter(|delivery| delivery.targets.contains(edge)) {
            self.take(entry.applied.time, Offset::new(index, delivery.position), delivery.record.clone());
        }
        self.read = index;
    }

    /// Deliveries of the past are made anew from the records (`core/expand.rs`): at least those that apply named. Where the
    /// connection decides who gets one, its present edge does: of a closed connection its edge knows, and needs nothing.
    fn take_logged(&mut self, entries: &[LoggedEntry]) {
        let (id, count) = (self.partition.id, self.node.partition_count());
        for entry in entries {
            for (offset, Expanded { recipient, record }) in expand::entry(id, count, entry) {
                if self.is_for_me(&recipient) {
                    self.take(entry.entry.time, offset, record);
                }
            }
            self.read = entry.index;
        }
    }

    fn is_for_me(&self, recipient: &Recipient) -> bool {
        match recipient {
            Recipient::Everyone => true,
            Recipient::Edge(name) => *name == self.name,
            Recipient::Connection(id) => {
                self.partition.state.read().connection(id).is_some_and(|connection| connection.edge_index == self.edge)
            }
        }
    }

    fn take(&mut self, time: Timestamp, offset: Offset, record: trunkline_proto::Record) {
        if offset > self.after {
            self.ready.push_back((time, Delivery { offset, record }));
        }
    }

    /// About [`FRAME_BYTES`] of what is ready, whole offsets only.
    fn take_frame(&mut self) -> Option<Deliveries> {
        let (mut bytes, mut deliveries, mut applied_at) = (0, Vec::new(), Timestamp::default());
        while let Some((time, delivery)) = self.ready.front() {
            let same_offset = deliveries.last().is_some_and(|last: &Delivery| last.offset == delivery.offset);
            let more = 8 + delivery.record.bytes().len();
            // one large record goes alone: behind small ones it could make a frame longer than the edge takes
            if !deliveries.is_empty() && bytes + more > FRAME_BYTES && !same_offset {
                break;
            }
            bytes += more;
            applied_at = applied_at.max(*time);
            deliveries.extend(self.ready.pop_front().map(|(_, delivery)| delivery));
        }
        let last = deliveries.last()?.offset;
        let through = if self.ready.is_empty() { Offset::end_of(self.read) } else { last };
        self.give(through);
        Some(Deliveries { applied_at, through, deliveries })
    }

    fn give(&mut self, through: Offset) {
        self.given = through;
        self.given_at = Instant::now();
    }
}

/// The last entry of which nothing after `after` remains.
fn last_done(after: Offset) -> LogIndex {
    if after == Offset::end_of(after.index()) { after.index() } else { LogIndex(after.index().0.saturating_sub(1)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{raft::AppliedSink, testing::reopened};

    /// A partition whose log ends with an entry without records, and its edge's cursor at the start.
    async fn cursor(dir: &tempfile::TempDir) -> (Node, PartitionHandle, Cursor) {
        let (node, partition) = reopened(dir).await;
        let edge = partition.state.read().edge_index("e1").unwrap();
        let cursor = Cursor::new(node.clone(), partition.clone(), edge, "e1", Offset::ZERO);
        (node, partition, cursor)
    }

    #[tokio::test]
    async fn a_cursor_gets_past_entries_without_records_that_a_snapshot_has_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (node, partition, mut cursor) = cursor(&dir).await;
        let applied = partition.tail.applied();
        assert!(
            node.read_log(partition.id, LogIndex(0), 1 << 20).await.unwrap().entries.last().unwrap().index < applied
        );
        partition.tail.installed(applied);
        let arrived = async { while cursor.next().await.unwrap() != Next::Progress(Offset::end_of(applied)) {} };
        tokio::time::timeout(Duration::from_secs(10), arrived).await.expect("progress up to the snapshot");
        drop(cursor);
        drop(partition);
        node.shutdown().await;
    }

    #[tokio::test]
    async fn a_cursor_is_told_that_what_a_snapshot_has_replaced_is_not_here() {
        let dir = tempfile::tempdir().unwrap();
        let (node, partition, mut cursor) = cursor(&dir).await;
        let beyond = LogIndex(partition.tail.applied().0 + 100);
        partition.tail.installed(beyond);
        let told = async {
            loop {
                if let Err(error) = cursor.next().await {
                    return error;
                }
            }
        };
        let told = tokio::time::timeout(Duration::from_secs(10), told).await.expect("an end");
        assert_eq!(told, ReadError::Trimmed { earliest: Offset::new(LogIndex(beyond.0 + 1), 0) });
        drop(cursor);
        drop(partition);
        node.shutdown().await;
    }
}
