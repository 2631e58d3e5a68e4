//! Reads a stopped broker's folder from end to end and says what, if anything, is wrong with it. Changes nothing.

use std::{path::Path, sync::Arc};

use trunkline_proto::{LogIndex, PartitionCount, PartitionId, Timestamp};

use super::{
    db::Db,
    error::{OpenError, StoreError},
    identity::{self, Identity},
    keys,
    marks::{self, Mark},
    reader::{self, Reader},
    record::{Payload, StoredLogId},
    snapshot::{self, Manifest},
};
use crate::core;

/// How often progress is told, in entries.
const PROGRESS_ENTRIES: u64 = 4096;

/// What was read of one partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartitionReport {
    /// Which.
    pub partition: PartitionId,
    /// First and last entry.
    pub range: Option<(LogIndex, LogIndex)>,
    /// Records in its entries, refused ones too.
    pub records: u64,
    /// Refused records, as computed by the replay.
    pub refused: u64,
    /// Bytes of its entries.
    pub bytes: u64,
    /// State and history at the last committed entry: equal on every replica at the same index.
    pub digest: u64,
    /// State alone at the last committed entry.
    pub state_digest: u64,
    /// The last committed entry known on disk; entries after it may still be replaced, and are read but not replayed.
    pub committed: Option<StoredLogId>,
    /// Snapshots whose digests the replay has confirmed.
    pub snapshots: usize,
    /// The first damage found; nothing after it was read.
    pub damage: Option<String>,
}

/// What was read of a folder.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Whose folder it is.
    pub identity: Identity,
    /// One per partition.
    pub partitions: Vec<PartitionReport>,
    /// Damaged blocks of the column families that partitions share, of values that are overwritten since too.
    pub damage: Vec<String>,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty() && self.partitions.iter().all(|partition| partition.damage.is_none())
    }
}

/// Where a running verification is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// In this partition.
    pub partition: PartitionId,
    /// At this entry.
    pub index: LogIndex,
    /// Of this last one.
    pub last: LogIndex,
}

/// Verifies a stopped broker's folder: every entry's checksum and form, gaps, the marks, and each snapshot against a replay. What
/// keeps the folder from being opened at all is the error; damage inside a partition is in the report.
pub fn verify(dir: &Path, mut progress: impl FnMut(Progress)) -> Result<Report, OpenError> {
    let folder = identity::open_existing(dir)?;
    let identity = folder.identity.clone();
    let marks = marks::read(dir, identity.partitions)?;
    let db = Arc::new(Db::open_read_only(dir, identity.partitions)?);
    let partitions = identity.partitions.iter().zip(marks).map(|(partition, mark)| {
        let reader = Reader::new(Arc::clone(&db), partition);
        Walk::new(&reader, identity.partitions).run(mark, &mut progress)
    });
    let partitions = partitions.collect();
    let shared = [keys::CF_META, keys::CF_REFUSED, keys::CF_SNAPSHOTS];
    let damage = shared.into_iter().filter_map(|family| db.scrub(family).err()).map(|error| error.to_string());
    Ok(Report { identity, partitions, damage: damage.collect() })
}

struct Walk<'a> {
    reader: &'a Reader,
    state: core::Partition,
    report: PartitionReport,
}

impl<'a> Walk<'a> {
    fn new(reader: &'a Reader, count: PartitionCount) -> Self {
        let partition = reader.partition();
        let report = PartitionReport {
            partition,
            range: None,
            records: 0,
            refused: 0,
            bytes: 0,
            digest: 0,
            state_digest: 0,
            committed: None,
            snapshots: 0,
            damage: None,
        };
        Self { reader, state: core::Partition::new(partition, count), report }
    }

    fn run(mut self, mark: Mark, progress: &mut impl FnMut(Progress)) -> PartitionReport {
        if let Err(error) = self.walk(mark, progress) {
            self.report.damage = Some(error.to_string());
        }
        self.report.digest = self.state.digest();
        self.report.state_digest = self.state.state_digest();
        self.report
    }

    fn walk(&mut self, mark: Mark, progress: &mut impl FnMut(Progress)) -> Result<(), StoreError> {
        self.find_end()?;
        check_mark(self.reader, mark)?;
        self.report.committed = self.reader.committed()?;
        check_covered(self.reader)?;
        let purged = self.reader.purged()?.map_or(0, |purged| purged.index.0);
        let mut snapshots = snapshot::list(self.reader)?;
        // older ones are about to be deleted: the log after them is
        snapshots.retain(|manifest| manifest.last.index.0 >= purged);
        let (Some(first), Some(last)) = (self.reader.first()?, self.reader.last()?) else {
            // a snapshot has taken the place of the log, and nothing has come since
            if let Some(manifest) = snapshots.pop() {
                self.report.committed = self.report.committed.max(Some(manifest.last));
                self.begin_at_snapshot(&manifest)?;
            }
            return Ok(());
        };
        // a snapshot covers applied entries only, whatever the lazily written committed position says
        let through = snapshots.first().map(|manifest| manifest.last).max(self.report.committed);
        self.report.committed = through;
        if first.index.0 > 0 {
            match snapshots.pop() {
                Some(oldest) => self.begin_at_snapshot(&oldest)?,
                None => return Err(uncovered(self.reader.partition(), first.index)),
            }
        }
        let mut time = Timestamp(0);
        let mut scan = self.reader.scan(first.index, LogIndex(last.index.0 + 1))?;
        while let Some(entry) = scan.next_entry()? {
            let index = entry.id.index;
            let parsed = match &entry.payload {
                Payload::Entry(payload) => Some(reader::parse(self.reader.partition(), index, payload)?),
                Payload::Blank | Payload::Membership(_) => None,
            };
            if let Some(parsed) = &parsed {
                self.report.records += parsed.records() as u64;
                if parsed.time < time {
                    return Err(StoreError::at(
                        self.reader.partition(),
                        index,
                        "its time is before that of the entry before",
                    ));
                }
                time = parsed.time;
            }
            self.report.bytes += entry.payload.len() as u64;
            self.report.range = Some((first.index, index));
            if through.is_some_and(|through| index <= through.index) {
                self.replay(index, parsed.as_ref())?;
            }
            self.compare(index, &mut snapshots)?;
            if index.0 % PROGRESS_ENTRIES == 0 || index == last.index {
                progress(Progress { partition: self.reader.partition(), index, last: last.index });
            }
        }
        Ok(())
    }

    /// Where the end cannot be read, a walk from the beginning tells from which entry on.
    fn find_end(&self) -> Result<(), StoreError> {
        let Err(unplaced) = self.reader.last() else { return Ok(()) };
        if let Some(first) = self.reader.first()? {
            let mut scan = self.reader.scan(first.index, LogIndex(u64::MAX))?;
            while scan.next_entry()?.is_some() {}
        }
        Err(unplaced)
    }

    /// Where retention has taken the beginning, the replay begins at the oldest snapshot.
    fn begin_at_snapshot(&mut self, manifest: &Manifest) -> Result<(), StoreError> {
        self.state = decode_state(self.reader, manifest)?;
        self.report.snapshots += 1;
        Ok(())
    }

    fn replay(&mut self, index: LogIndex, entry: Option<&trunkline_proto::Entry>) -> Result<(), StoreError> {
        if index <= self.state.applied() && index.0 > 0 {
            return Ok(());
        }
        let Some(entry) = entry else {
            self.state.skip(index);
            return Ok(());
        };
        let applied = self.state.apply(index, entry);
        self.report.refused += applied.refused.len() as u64;
        // refused sets are written behind the entries they belong to: none yet is no damage, another one is
        let stored = self.reader.refused(index, index)?;
        match stored.first() {
            Some((_, stored)) if *stored != applied.refused => {
                Err(StoreError::at(self.reader.partition(), index, "its stored refusals are not those of a replay"))
            }
            _ => Ok(()),
        }
    }

    fn compare(&mut self, index: LogIndex, snapshots: &mut Vec<Manifest>) -> Result<(), StoreError> {
        if snapshots.last().is_none_or(|manifest| manifest.last.index != index) {
            return Ok(());
        }
        let Some(manifest) = snapshots.pop() else { return Ok(()) };
        let bytes = snapshot::load(self.reader, &manifest)?;
        let snapshot = decode(self.reader, &manifest, &bytes)?;
        let digests = [snapshot.state_digest(), self.state.state_digest()];
        let is_same = snapshot.digest() == self.state.digest();
        if is_same && core::is_of_earlier_version(&bytes) {
            // the broker goes on from it too: later snapshots lack what this one does
            self.state = snapshot;
        } else if !is_same || digests.iter().any(|digest| *digest != manifest.state_digest) {
            return Err(StoreError::at(
                self.reader.partition(),
                index,
                "the snapshot here is not what a replay comes to",
            ));
        }
        self.report.snapshots += 1;
        Ok(())
    }
}

/// Decodes a snapshot's state and checks it against its manifest; not its state digest, which costs encoding it again.
pub fn decode_state(reader: &Reader, manifest: &Manifest) -> Result<core::Partition, StoreError> {
    decode(reader, manifest, &snapshot::load(reader, manifest)?)
}

fn decode(reader: &Reader, manifest: &Manifest, bytes: &[u8]) -> Result<core::Partition, StoreError> {
    let place = || format!("partition {} snapshot {}", reader.partition(), manifest.last.index);
    let state = core::Partition::decode(bytes)
        .map_err(|error| StoreError::Damaged { place: place(), reason: error.to_string() })?;
    if state.digest() != manifest.digest {
        return Err(StoreError::Damaged { place: place(), reason: "its digest is not the one in its manifest".into() });
    }
    if (state.id(), state.applied()) != (reader.partition(), manifest.last.index) {
        let reason = format!("it holds partition {} up to {}", state.id(), state.applied());
        return Err(StoreError::Damaged { place: place(), reason });
    }
    Ok(state)
}

/// Refuses a log whose beginning is gone without a snapshot that covers it.
pub fn check_covered(reader: &Reader) -> Result<(), StoreError> {
    let first = reader.first()?.map_or(LogIndex(0), |first| first.index);
    let Some(purged) = reader.purged()? else {
        return if first.0 == 0 { Ok(()) } else { Err(uncovered(reader.partition(), first)) };
    };
    match snapshot::oldest(reader, purged.index)? {
        Some(_) => Ok(()),
        None => Err(uncovered(reader.partition(), LogIndex(purged.index.0 + 1))),
    }
}

fn uncovered(partition: PartitionId, first: LogIndex) -> StoreError {
    StoreError::at(partition, first, "the log begins here, and no snapshot covers what is before")
}

/// Refuses a log that other brokers knew to lack something, or that ends before what was acknowledged from it, or a vote older than one
/// that was given.
pub fn check_mark(reader: &Reader, mark: Mark) -> Result<(), StoreError> {
    let place = || format!("partition {}", reader.partition());
    if let Some(reason) = reader.doubt()? {
        return Err(StoreError::Damaged { place: place(), reason });
    }
    let end = reader.end()?;
    if end < mark.end {
        let ends = end.checked_sub(1).map_or_else(|| "is empty".to_owned(), |last| format!("ends at index {last}"));
        let marked = mark.end.saturating_sub(1);
        let reason = format!("its log {ends}, but index {marked} was synced: acknowledged data is lost");
        return Err(StoreError::Damaged { place: place(), reason });
    }
    let term = reader.vote()?.map_or(0, |vote| vote.term);
    if term < mark.term {
        let reason = format!("its vote is of term {term}, but one of term {} was given", mark.term);
        return Err(StoreError::Damaged { place: place(), reason });
    }
    Ok(())
}
