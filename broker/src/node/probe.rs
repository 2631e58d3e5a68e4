//! What tests of the layers above reach through: to stall the log, or to put into it what no appender would.

use std::time::Duration;

use trunkline_proto::{LogIndex, PartitionId};

use super::Node;
use crate::{raft::Group, store::WriterHandle};

impl Node {
    /// The queue of the one writer; paused, nothing is acknowledged.
    pub(crate) fn writer(&self) -> WriterHandle {
        self.inner.running.lock().as_ref().expect("the node runs").writer.handle()
    }

    /// A partition's group.
    pub(crate) fn group(&self, id: PartitionId) -> Group {
        let running = self.inner.running.lock();
        let groups = &running.as_ref().expect("the node runs").groups;
        groups.iter().find(|group| group.partition() == id).expect("it is not damaged").clone()
    }

    /// Keeps every replica on this broker from making a snapshot, and so from purging, while it is held.
    pub(crate) async fn hold_trims(&self) -> tokio::sync::OwnedSemaphorePermit {
        let turn = self.inner.running.lock().as_ref().expect("the node runs").snapshotter.turn();
        turn.acquire_owned().await.expect("it is never closed")
    }

    /// From now on each append of another broker takes so long here.
    pub(crate) fn drag(&self, each: Duration) {
        let running = self.inner.running.lock();
        let drag = &running.as_ref().expect("the node runs").server.drag;
        drag.store(each.as_millis() as u64, std::sync::atomic::Ordering::Relaxed);
    }

    /// Damages an entry on disk.
    pub(crate) fn spoil(&self, id: PartitionId, index: LogIndex) {
        let open = self.inner.open.read().clone().expect("the node runs");
        crate::store::spoil_entry(&open.db, id, index);
    }
}
