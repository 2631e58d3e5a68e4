//! Whether the store may be trusted. The first failure is final. A failed write or sync closes the writer, and with it every
//! partition; damage found in one partition closes that one only.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::watch;
use trunkline_proto::PartitionId;

use crate::metrics::store::STORAGE_HEALTHY;

/// What has gone wrong so far.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Failures {
    /// Nothing is written any more, for this reason.
    pub store: Option<String>,
    /// Partitions whose bytes on disk are not what was written, or less, and how that was found.
    pub damaged: BTreeMap<PartitionId, String>,
}

impl Failures {
    /// Why a partition is closed.
    pub fn of(&self, partition: PartitionId) -> Option<&String> {
        self.damaged.get(&partition).or(self.store.as_ref())
    }
}

/// Shared by writer, groups and node. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Health {
    failures: Arc<watch::Sender<Failures>>,
}

impl Health {
    /// Good until told otherwise.
    pub fn new() -> Self {
        metrics::gauge!(STORAGE_HEALTHY).set(1.0);
        Self::default()
    }

    /// Records a failure of the whole store for good; the first one is kept.
    pub fn fail(&self, reason: &str) {
        self.failures.send_if_modified(|failures| {
            let is_first = failures.store.is_none();
            if is_first {
                tracing::error!(reason, "the store has failed");
                metrics::gauge!(STORAGE_HEALTHY).set(0.0);
                failures.store = Some(reason.to_owned());
            }
            is_first
        });
    }

    /// Records damage in one partition for good; the first one is kept. What a failed store leads to is no damage.
    pub fn damage(&self, partition: PartitionId, reason: &str) {
        self.failures.send_if_modified(|failures| {
            let is_first = failures.of(partition).is_none();
            if is_first {
                tracing::error!(%partition, reason, "the partition is damaged and closed");
                metrics::gauge!(STORAGE_HEALTHY).set(0.0);
                failures.damaged.insert(partition, reason.to_owned());
            }
            is_first
        });
    }

    /// `Err` with what is wrong: the store if it has failed, otherwise the first damaged partition.
    pub fn check(&self) -> Result<(), String> {
        let failures = self.failures.borrow();
        match failures.store.as_ref().or_else(|| failures.damaged.values().next()) {
            Some(reason) => Err(reason.clone()),
            None => Ok(()),
        }
    }

    /// Why a partition is closed, if that is for the store.
    pub fn why(&self, partition: PartitionId) -> Option<String> {
        self.failures.borrow().of(partition).cloned()
    }

    /// Tells of every failure.
    pub fn subscribe(&self) -> watch::Receiver<Failures> {
        self.failures.subscribe()
    }
}
