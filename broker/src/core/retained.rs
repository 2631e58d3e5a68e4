//! How much log stands behind the state, and how old it is: what retention decides by (`retention/decide.rs`), without a look at
//! the disk. A function of the log alone, so that it is the same on every replica and after every restart.

use std::collections::VecDeque;

use trunkline_proto::{Entry, LogIndex, Timestamp};

use super::snapshot::{Reader, SnapshotError, Writer};

/// Bytes an entry counts for besides its records: its keys and headers on disk.
const ENTRY_OVERHEAD: u64 = 64;
/// A milestone is set after so many bytes...
const SPACING_BYTES: u64 = 1 << 20;
/// ... or microseconds.
const SPACING_MICROSECONDS: u64 = 60_000_000;
/// Most milestones; with more every second one goes. 96 KiB of state.
const MILESTONES_MAX: usize = 4096;

/// An entry that the log may be trimmed through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Milestone {
    /// Which.
    pub index: LogIndex,
    /// Log time as of then: nothing up to here is younger.
    pub time: Timestamp,
    /// Bytes of all entries up to and with it, since the log began.
    pub bytes: u64,
}

/// Milestones of what is retained.
#[derive(Clone, Default, Debug)]
pub(super) struct Retained {
    /// Bytes of all entries there ever were.
    bytes: u64,
    /// Of these, bytes that are trimmed; short by less than the spacing after a trim between milestones.
    trimmed: u64,
    /// Ascending.
    milestones: VecDeque<Milestone>,
}

impl Retained {
    /// Bytes of all entries there ever were.
    pub(super) fn written(&self) -> u64 {
        self.bytes
    }

    /// Bytes of the entries that are not trimmed.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes - self.trimmed
    }

    /// Ascending.
    pub(super) fn milestones(&self) -> impl DoubleEndedIterator<Item = Milestone> {
        self.milestones.iter().copied()
    }

    /// Counts an entry that is applied.
    pub(super) fn push(&mut self, index: LogIndex, time: Timestamp, entry: &Entry) {
        let records: u64 = entry.batches.iter().map(|batch| batch.records.len() as u64).sum();
        self.bytes += records + ENTRY_OVERHEAD;
        let is_due = self.milestones.back().is_none_or(|last| {
            self.bytes - last.bytes >= SPACING_BYTES || time.0.saturating_sub(last.time.0) >= SPACING_MICROSECONDS
        });
        // before the log has a time everything in it looks as old as can be
        if is_due && time != Timestamp(0) {
            self.milestones.push_back(Milestone { index, time, bytes: self.bytes });
        }
        if self.milestones.len() > MILESTONES_MAX {
            self.thin();
        }
    }

    /// Entries up to `through` are trimmed.
    pub(super) fn trim(&mut self, through: LogIndex) {
        let gone = self.milestones.partition_point(|milestone| milestone.index <= through);
        if let Some(last) = self.milestones.drain(..gone).next_back() {
            self.trimmed = last.bytes;
        }
    }

    /// Keeps every second milestone, the newest among them.
    fn thin(&mut self) {
        let newest = self.milestones.len() % 2;
        let mut place = 0;
        self.milestones.retain(|_| {
            place += 1;
            place % 2 == newest
        });
    }

    /// Whether it ascends, and what is trimmed is not more than there was.
    pub(super) fn check(&self, applied: LogIndex) -> Result<(), &'static str> {
        let ascends = self.milestones.iter().is_sorted_by(|one, next| one.index < next.index && one.bytes < next.bytes);
        let first = self.milestones.front().is_none_or(|first| first.bytes > self.trimmed);
        let last = self.milestones.back().is_none_or(|last| last.index <= applied && last.bytes <= self.bytes);
        match ascends && first && last && self.trimmed <= self.bytes && self.milestones.len() <= MILESTONES_MAX {
            true => Ok(()),
            false => Err("milestones of what is retained are out of order"),
        }
    }

    pub(super) fn encode(&self, out: &mut Writer) {
        out.u64(self.bytes);
        out.u64(self.trimmed);
        out.length(self.milestones.len());
        for milestone in &self.milestones {
            out.u64(milestone.index.0);
            out.u64(milestone.time.0);
            out.u64(milestone.bytes);
        }
    }

    pub(super) fn decode(input: &mut Reader<'_>) -> Result<Self, SnapshotError> {
        let mut retained = Self { bytes: input.u64()?, trimmed: input.u64()?, milestones: VecDeque::new() };
        for _ in 0..input.length()? {
            let (index, time) = (LogIndex(input.u64()?), Timestamp(input.u64()?));
            retained.milestones.push_back(Milestone { index, time, bytes: input.u64()? });
        }
        // what is subtracted later must not run under
        match retained.trimmed <= retained.bytes && retained.milestones.iter().all(|one| one.bytes <= retained.bytes) {
            true => Ok(retained),
            false => Err(SnapshotError::Invalid("retention")),
        }
    }
}

#[cfg(test)]
mod tests {
    use trunkline_proto::{Batch, Source};

    use super::*;

    fn entry(bytes: usize) -> Entry {
        let batch = Batch { source: Source::Leader, count: 1, records: vec![0; bytes].into() };
        Entry { time: Timestamp(0), batches: vec![batch] }
    }

    #[test]
    fn milestones_stand_a_megabyte_or_a_minute_apart() {
        let mut retained = Retained::default();
        let half = entry((SPACING_BYTES / 2 - ENTRY_OVERHEAD) as usize);
        let begun = Timestamp(9);
        (1..=5).for_each(|index| retained.push(LogIndex(index), begun, &half));
        retained.push(LogIndex(6), Timestamp(begun.0 + SPACING_MICROSECONDS - 1), &entry(1));
        retained.push(LogIndex(7), Timestamp(begun.0 + SPACING_MICROSECONDS), &entry(1));
        let indexes: Vec<u64> = retained.milestones().map(|milestone| milestone.index.0).collect();
        assert_eq!(indexes, [1, 3, 5, 7]);
        assert_eq!(retained.bytes(), 5 * SPACING_BYTES / 2 + 2 * (ENTRY_OVERHEAD + 1));
        retained.trim(LogIndex(4));
        assert_eq!(
            retained.bytes(),
            SPACING_BYTES + 2 * (ENTRY_OVERHEAD + 1),
            "what is before the milestone at 3 is gone"
        );
        assert_eq!(retained.milestones().next().map(|first| first.index), Some(LogIndex(5)));
        assert_eq!(retained.check(LogIndex(7)), Ok(()));
        retained.trim(LogIndex(4));
        assert_eq!(retained.milestones().count(), 2, "trimming again changes nothing");
    }

    #[test]
    fn a_log_without_a_time_has_no_milestones() {
        let mut retained = Retained::default();
        retained.push(LogIndex(1), Timestamp(0), &entry(2 * SPACING_BYTES as usize));
        assert_eq!(retained.milestones().next(), None);
        retained.push(LogIndex(2), Timestamp(5), &entry(1));
        assert_eq!(retained.milestones().map(|first| first.index).collect::<Vec<_>>(), [LogIndex(2)]);
        assert_eq!(retained.check(LogIndex(2)), Ok(()));
    }

    #[test]
    fn any_length_of_log_has_a_bounded_number_of_milestones_and_the_newest_is_among_them() {
        let mut retained = Retained::default();
        for index in 1..=3 * MILESTONES_MAX as u64 {
            retained.push(LogIndex(index), Timestamp(index * SPACING_MICROSECONDS), &entry(1));
            assert!(retained.milestones.len() <= MILESTONES_MAX);
            assert_eq!(retained.milestones.back().map(|last| last.index), Some(LogIndex(index)));
        }
        assert!(retained.milestones.len() > MILESTONES_MAX / 4);
        assert_eq!(retained.check(LogIndex(u64::MAX)), Ok(()));
        let mut out = Writer(Vec::new());
        retained.encode(&mut out);
        let decoded = Retained::decode(&mut Reader(&out.0)).unwrap();
        assert_eq!(decoded.milestones, retained.milestones);
        assert_eq!((decoded.bytes, decoded.trimmed), (retained.bytes, retained.trimmed));
    }
}
