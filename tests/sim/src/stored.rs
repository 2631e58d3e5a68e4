//! What a replica has on disk, and what it keeps of what it has applied. After `broker/src/raft/retention.rs`: a trim makes a snapshot
//! at exactly the trim point, and only then lets go of what is before it.

use std::sync::Arc;

use bytes::Bytes;
use trunkline_broker::core::{AppliedEntry, Partition};
use trunkline_proto::LogIndex;

use crate::{
    Rules,
    log::Log,
    raft::{Durable, Install, Write},
    sabotage,
};

/// Applied entries with their verdicts; blank ones hold nothing. What is trimmed is gone.
#[derive(Clone, Default, Debug)]
pub(crate) struct Kept {
    trimmed: u64,
    entries: Vec<Option<Arc<AppliedEntry>>>,
}

impl Kept {
    /// Nothing, where `trimmed` entries are gone.
    pub(crate) fn after(trimmed: u64) -> Self {
        Self { trimmed, entries: Vec::new() }
    }

    /// The last entry that is gone.
    pub(crate) fn trimmed(&self) -> u64 {
        self.trimmed
    }

    pub(crate) fn last(&self) -> u64 {
        self.trimmed + self.entries.len() as u64
    }

    pub(crate) fn get(&self, index: u64) -> Option<&AppliedEntry> {
        self.entries.get(index.checked_sub(self.trimmed + 1)? as usize)?.as_deref()
    }

    pub(crate) fn push(&mut self, entry: Option<Arc<AppliedEntry>>) {
        self.entries.push(entry);
    }

    pub(crate) fn trim(&mut self, through: u64) {
        let gone = through.saturating_sub(self.trimmed).min(self.entries.len() as u64);
        self.entries.drain(..gone as usize);
        self.trimmed += gone;
    }
}

/// A state on disk, with the verdicts on what is before it and not trimmed.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) index: u64,
    term: u64,
    pub(crate) state: Bytes,
    pub(crate) kept: Kept,
}

/// One partition's part of the disk.
#[derive(Default, Debug)]
pub(crate) struct Stored {
    pub(crate) durable: Durable,
    /// The one at the trim point, if something is trimmed, and the newest.
    snapshots: Vec<Snapshot>,
}

impl Stored {
    /// A sync has taken this along.
    pub(crate) fn write(&mut self, write: &Write) {
        self.durable.write(write);
        if let Some(Install { index, term, state }) = &write.install {
            let kept = Kept::after(*index);
            self.snapshots = vec![Snapshot { index: *index, term: *term, state: state.clone(), kept }];
        }
    }

    /// What a replica begins from.
    pub(crate) fn newest(&self) -> Option<&Snapshot> {
        self.snapshots.last()
    }

    /// What a peer gets that lacks what is purged.
    pub(crate) fn for_peers(&self) -> Option<Install> {
        let purged = self.durable.log.purged();
        let snapshot = self.snapshots.first().filter(|snapshot| snapshot.index == purged)?;
        Some(Install { index: snapshot.index, term: snapshot.term, state: snapshot.state.clone() })
    }

    /// Keeps this state, if the log up to it is on disk.
    pub(crate) fn snapshot(&mut self, log: &Log, state: &Partition, kept: &Kept) -> bool {
        let (index, term) = (kept.last(), log.term_at(kept.last()));
        if index <= self.durable.log.purged() || !self.durable.has(index, term) {
            return false;
        }
        let purged = self.durable.log.purged();
        self.snapshots.retain(|snapshot| snapshot.index == purged);
        self.snapshots.push(Snapshot { index, term, state: state.encode().into(), kept: kept.clone() });
        true
    }

    /// Trims through this entry, if the log up to it is on disk. Gives the state there.
    pub(crate) fn trim(
        &mut self,
        rules: Rules,
        log: &Log,
        fresh: Partition,
        kept: &Kept,
        through: u64,
    ) -> Option<Partition> {
        let term = log.term_at(through);
        if !self.durable.has(through, term) {
            return None;
        }
        let before = self.snapshots.iter().rev().find(|snapshot| snapshot.index <= through);
        let (mut state, from) = match before {
            Some(snapshot) => (Partition::decode(&snapshot.state).ok()?, snapshot.index),
            None => (fresh, 0),
        };
        for index in from + 1..=through {
            match kept.get(index) {
                None => state.skip(LogIndex(index)),
                Some(entry) => {
                    state.apply(LogIndex(index), &entry.logged.entry);
                    sabotage::forget_losses(rules, &mut state);
                }
            }
        }
        self.snapshots.retain(|snapshot| snapshot.index > through);
        self.snapshots.iter_mut().for_each(|snapshot| snapshot.kept.trim(through));
        let kept = Kept::after(through);
        self.snapshots.insert(0, Snapshot { index: through, term, state: state.encode().into(), kept });
        self.durable.log.purge(term, through);
        Some(state)
    }
}
