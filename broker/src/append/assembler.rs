//! Step 5 of the walk, what it decides: which of the batches that wait become the next entry, when it is stamped, and how many may be on
//! their way. Pure: the appender (`append.rs`) and the simulation drive it.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)] // no clock, no hash order

use std::collections::VecDeque;

use bytes::Bytes;
use trunkline_proto::{Batch, EntryBuilder, Source, Timestamp};

/// Entries proposed and not applied yet. What comes meanwhile waits together and becomes the next entry: more in flight would
/// make entries smaller, not faster (costs A2).
pub const ENTRIES_IN_FLIGHT: usize = 8;
/// Bytes of entries proposed and not applied yet, if there is more than one.
pub const BYTES_IN_FLIGHT: usize = 8 << 20;

/// Makes the entries of one partition.
#[derive(Debug, Default)]
pub struct Assembler {
    /// Time of the last entry.
    stamped: Timestamp,
    /// Bytes of each entry that is on its way, in the order of the log.
    in_flight: VecDeque<usize>,
    bytes_in_flight: usize,
}

/// An entry that is being made.
#[derive(Debug)]
pub struct Assembly {
    builder: EntryBuilder,
    term: u64,
    is_full: bool,
    batches: usize,
    records: u32,
    bytes: usize,
}

/// What became of a batch that was offered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Offered {
    /// It is the entry's next one.
    Taken,
    /// There is no room for it: it is the first of the next entry.
    Held,
    /// It was for another term. This broker may lead again, but what came before it may be lost.
    OtherTerm,
    /// The log is full, and it makes no room.
    Full,
}

/// An entry to be proposed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Assembled {
    /// The entry.
    pub entry: Bytes,
    /// Records in it.
    pub records: u32,
    /// Bytes of its batches.
    pub bytes: usize,
}

impl Assembler {
    /// Whether another entry may be proposed. What is offered meanwhile waits.
    pub fn has_room(&self) -> bool {
        self.in_flight.is_empty()
            || (self.in_flight.len() < ENTRIES_IN_FLIGHT && self.bytes_in_flight < BYTES_IN_FLIGHT)
    }

    /// Bytes of what is on its way.
    pub fn bytes_in_flight(&self) -> usize {
        self.bytes_in_flight
    }

    /// Begins an entry of `term`, about `capacity` bytes long. `log`: the state's time, in which every entry before this term is applied,
    /// and every one of this term was stamped here: with the clock's, whatever that says, time never goes back.
    pub fn begin(
        &mut self,
        term: u64,
        (log, clock): (Timestamp, Timestamp),
        is_full: bool,
        capacity: usize,
    ) -> Assembly {
        self.stamped = self.stamped.max(log).max(clock);
        let builder = EntryBuilder::new(self.stamped, capacity);
        Assembly { builder, term, is_full, batches: 0, records: 0, bytes: 0 }
    }

    /// An entry of so many bytes is on its way.
    pub fn proposed(&mut self, bytes: usize) {
        self.in_flight.push_back(bytes);
        self.bytes_in_flight += bytes;
    }

    /// The oldest one has come to something.
    pub fn answered(&mut self) {
        self.bytes_in_flight -= self.in_flight.pop_front().unwrap_or_default();
    }
}

impl Assembly {
    /// The next batch that waits, bound to a term or to none.
    pub fn offer(&mut self, batch: &Batch, bound: Option<u64>) -> Offered {
        if self.is_full && !makes_room(batch) {
            return Offered::Full;
        }
        if bound.is_some_and(|bound| bound != self.term) {
            return Offered::OtherTerm;
        }
        if !self.builder.fits(batch) {
            return Offered::Held;
        }
        self.builder.push(batch);
        self.batches += 1;
        self.records += u32::from(batch.count);
        self.bytes += batch.weight();
        Offered::Taken
    }

    /// The entry, if anything was taken.
    pub fn finish(self) -> Option<Assembled> {
        let (records, bytes) = (self.records, self.bytes);
        (self.batches > 0).then(|| Assembled { entry: self.builder.finish(), records, bytes })
    }
}

/// What settles events, moves groups and trims is appended though the log is full: nothing else makes room.
fn makes_room(batch: &Batch) -> bool {
    matches!(batch.source, Source::Commit | Source::Leader)
}

#[cfg(test)]
mod tests {
    use trunkline_proto::{ConnectionId, Entry, Record, RecordKind, limits, v1};

    use super::*;

    fn batch(source: Source, bytes: usize) -> Batch {
        let body = v1::Pushed { kind: 1, payload: vec![7; bytes].into() };
        Batch::new(source, &[Record::new(RecordKind::Pushed, ConnectionId::NONE, "", &body)])
    }

    fn submit(bytes: usize) -> Batch {
        batch(Source::Submit(v1::SubmitSource::default()), bytes)
    }

    fn begin(assembler: &mut Assembler, log: u64, clock: u64) -> Assembly {
        assembler.begin(3, (Timestamp(log), Timestamp(clock)), false, 0)
    }

    #[test]
    fn time_never_goes_back_whatever_the_clock_says() {
        let mut assembler = Assembler::default();
        let mut stamped = Vec::new();
        for (log, clock) in [(0, 50), (50, 20), (70, 60), (60, 65), (60, 90)] {
            let mut assembly = begin(&mut assembler, log, clock);
            assert_eq!(assembly.offer(&submit(1), None), Offered::Taken);
            stamped.push(Entry::parse(&assembly.finish().unwrap().entry).unwrap().time.0);
        }
        assert_eq!(stamped, [50, 50, 70, 70, 90]);
    }

    #[test]
    fn what_does_not_fit_is_the_next_entrys_first() {
        let mut assembler = Assembler::default();
        let mut assembly = begin(&mut assembler, 0, 1);
        let large = submit(limits::ENTRY_BYTES_MAX);
        assert_eq!(assembly.offer(&large, None), Offered::Taken, "one alone may be larger");
        assert_eq!(assembly.offer(&submit(1), None), Offered::Held);
        let assembled = assembly.finish().unwrap();
        assert_eq!((assembled.records, assembled.bytes), (1, large.weight()));
        assert_eq!(Entry::parse(&assembled.entry).unwrap().batches, [large]);
        assert_eq!(begin(&mut assembler, 0, 1).finish(), None, "an entry holds something");
    }

    #[test]
    fn what_is_refused_leaves_the_others_alone() {
        let mut assembler = Assembler::default();
        let mut assembly = begin(&mut assembler, 0, 1);
        let offered = [None, Some(2), Some(3), Some(4), None].map(|bound| assembly.offer(&submit(1), bound));
        assert_eq!(offered, [Offered::Taken, Offered::OtherTerm, Offered::Taken, Offered::OtherTerm, Offered::Taken]);
        assert_eq!(assembly.finish().unwrap().records, 3);
        let mut full = assembler.begin(3, (Timestamp(0), Timestamp(1)), true, 0);
        let sources = [Source::Leader, Source::Commit, Source::Submit(v1::SubmitSource::default())];
        let offered = sources.map(|source| full.offer(&batch(source, 1), None));
        assert_eq!(offered, [Offered::Taken, Offered::Taken, Offered::Full]);
    }

    #[test]
    fn entries_and_bytes_on_their_way_are_bounded_and_one_always_may_go() {
        let mut assembler = Assembler::default();
        assembler.proposed(2 * BYTES_IN_FLIGHT);
        assert!(!assembler.has_room());
        assembler.answered();
        for _ in 0..ENTRIES_IN_FLIGHT {
            assert!(assembler.has_room());
            assembler.proposed(1);
        }
        assert!(!assembler.has_room());
        assembler.answered();
        assert!(assembler.has_room());
        assert_eq!(assembler.bytes_in_flight(), ENTRIES_IN_FLIGHT - 1);
    }
}
