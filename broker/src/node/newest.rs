//! Where the newest snapshots stand, for who describes this broker: which is most of all wanted where its disk is sick. So the disk is asked
//! by one at a time, however many want to know, and what it said last is told with how long it has been silent.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tokio::{sync::watch, time::timeout};
use trunkline_proto::{LogIndex, PartitionId};

use super::{Node, Open};
use crate::store::snapshot;

type Snapshots = BTreeMap<PartitionId, LogIndex>;

/// What the disk said last.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Newest {
    /// The last entry that each partition's newest snapshot covers, of those that have one and can be read.
    pub snapshots: Snapshots,
    /// For how long the disk has been asked without an answer: what is told is older than that.
    pub unanswered: Option<Duration>,
}

/// Asks the disk.
#[derive(Debug, Default)]
pub(super) struct Probe {
    told: watch::Sender<Told>,
    /// Held by a test it is a disk that hangs; counts how often it was asked.
    #[cfg(test)]
    pub(super) disk: std::sync::Arc<(std::sync::atomic::AtomicU32, tokio::sync::Mutex<()>)>,
}

#[derive(Debug, Default)]
struct Told {
    snapshots: Snapshots,
    /// Since when somebody asks.
    asked: Option<Instant>,
}

impl Node {
    /// Where the newest snapshots stand. Waits so long for the disk, and then tells what it said before.
    pub async fn newest_snapshots(&self, patience: Duration) -> Newest {
        let mut told = self.inner.newest.told.subscribe();
        self.ask_disk();
        // how it ended is looked at next
        let _ = timeout(patience, told.wait_for(|told| told.asked.is_none())).await;
        let told = told.borrow();
        let unanswered = told.asked.map(|asked| asked.elapsed()).filter(|since| *since >= patience);
        Newest { snapshots: told.snapshots.clone(), unanswered }
    }

    /// Unless somebody does already, or the broker shuts down.
    fn ask_disk(&self) {
        let Some(open) = self.inner.open.read().clone() else { return };
        let begin = |told: &mut Told| told.asked.is_none() && told.asked.replace(Instant::now()).is_none();
        if !self.inner.newest.told.send_if_modified(begin) {
            return;
        }
        let node = self.clone();
        tokio::spawn(async move {
            #[cfg(test)]
            let disk = std::sync::Arc::clone(&node.inner.newest.disk);
            let read = tokio::task::spawn_blocking(move || {
                #[cfg(test)]
                disk.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                #[cfg(test)]
                let _hanging = disk.1.blocking_lock();
                read(&open)
            });
            // a panic is reported where it happens
            let snapshots = read.await.unwrap_or_default();
            node.inner.newest.told.send_replace(Told { snapshots, asked: None });
        });
    }
}

fn read(open: &Open) -> Snapshots {
    let newest = open.readers.iter().filter_map(|(reader, _)| {
        // one that cannot be read is as good as none
        let manifest = snapshot::newest(reader, LogIndex(u64::MAX)).ok().flatten()?;
        Some((reader.partition(), manifest.last.index))
    });
    newest.collect()
}
