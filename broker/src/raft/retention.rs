//! What every replica does when a `Trimmed` is applied: a state snapshot where it trims, Raft's purge up to there, and then the
//! deletion. In the background, one task a partition; each step is done again after a crash if it is not known to be done.

use std::time::{Duration, Instant};

use openraft::type_config::async_runtime::watch::WatchReceiver as _;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use trunkline_proto::{LogIndex, PartitionCount};

use super::{
    Floor, Group, Snapshotter,
    snapshotter::{self, Turn},
};
use crate::store::{Reader, StoreError, WriterHandle, retention, snapshot};

/// After a step failed, and while Raft has not purged yet because a follower is being sent what goes.
const RETRY: Duration = Duration::from_secs(1);

/// How long Raft may take to purge, unless a follower is being sent what goes.
const PURGE_TIMEOUT: Duration = RETRY.saturating_mul(5);

/// Follows the trims of one partition.
#[derive(Debug)]
pub struct Trimmer {
    /// Its group.
    pub group: Group,
    /// Reads its log.
    pub reader: Reader,
    /// Where its readable log begins: everything before it goes.
    pub floor: Floor,
    /// How long what is trimmed is kept for followers that are there and still need it.
    pub patience: Duration,
}

/// The tasks that trim a broker's partitions.
#[derive(Debug)]
pub struct Trimmers {
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Trimmers {
    /// Starts one for each partition. What was left undone before a restart is done first.
    pub fn start(
        trimmers: Vec<Trimmer>,
        count: PartitionCount,
        writer: &WriterHandle,
        snapshotter: &Snapshotter,
    ) -> Self {
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        for trimmer in trimmers {
            let work = Work { trimmer, count, writer: writer.clone(), turn: snapshotter.turn(), stop: stop.clone() };
            tasks.spawn(work.run());
        }
        Self { stop, tasks }
    }

    /// Stops them; waits for a step under way.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Why a trim is not carried out yet.
#[derive(Debug, thiserror::Error)]
enum TrimError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the group has stopped: {0}")]
    Stopped(String),
    #[error("the snapshot at {0} is not there yet")]
    NoSnapshot(LogIndex),
    #[error("Raft has not purged up to {0} yet")]
    NotPurged(LogIndex),
}

struct Work {
    trimmer: Trimmer,
    count: PartitionCount,
    writer: WriterHandle,
    turn: Turn,
    stop: CancellationToken,
}

impl Work {
    async fn run(self) {
        let mut raised = self.trimmer.floor.subscribe();
        let stop = self.stop.clone();
        let partition = self.trimmer.reader.partition();
        // a trim that waits is carried out before a later one: who follows slowly may always be before the newest
        let mut waiting: Option<(LogIndex, Instant)> = None;
        loop {
            raised.mark_unchanged();
            let through = waiting.map(|(through, _)| through).or_else(|| self.trimmer.floor.trimmed());
            let begun = Instant::now();
            let outcome = match through {
                Some(through) => match stop.run_until_cancelled(self.trim(through)).await {
                    Some(outcome) => outcome,
                    None => return,
                },
                None => Ok(()),
            };
            let is_newest = through == self.trimmer.floor.trimmed();
            waiting = match (&outcome, waiting) {
                (Err(TrimError::NotPurged(through)), None) => Some((*through, begun)),
                (Err(_), waiting) => waiting,
                (Ok(()), _) => None,
            };
            if let Some((through, since)) = waiting
                && since.elapsed() >= self.trimmer.patience
            {
                self.trimmer.floor.send_from(LogIndex(through.0 + 1));
            }
            let retry = match outcome {
                Ok(()) if is_newest => Duration::MAX,
                Ok(()) => continue,
                Err(error @ (TrimError::NotPurged(_) | TrimError::NoSnapshot(_))) => {
                    tracing::debug!(%partition, %error, "trimming waits");
                    RETRY
                }
                Err(TrimError::Stopped(_)) => return,
                Err(TrimError::Store(error)) => {
                    tracing::warn!(%partition, %error, "the log is not trimmed yet");
                    RETRY * 10
                }
            };
            tokio::select! {
                changed = raised.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(retry) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    async fn trim(&self, through: LogIndex) -> Result<(), TrimError> {
        if self.purged() < Some(through) {
            self.make_snapshot(through).await?;
            self.purge(through).await?;
        }
        let (writer, reader) = (self.writer.clone(), self.trimmer.reader.clone());
        let deleted = tokio::task::spawn_blocking(move || retention::delete(&writer, &reader, through));
        Ok(deleted.await.map_err(|error| StoreError::Task(error.to_string()))??)
    }

    /// What Raft reads no more.
    fn purged(&self) -> Option<LogIndex> {
        let metrics = self.trimmer.group.raft().data_metrics();
        let purged = metrics.borrow_watched().purged;
        purged.map(|purged| LogIndex(purged.index))
    }

    async fn make_snapshot(&self, through: LogIndex) -> Result<(), TrimError> {
        // the semaphore is never closed
        let _turn = self.turn.acquire().await.ok();
        let (reader, count, writer, stop) =
            (self.trimmer.reader.clone(), self.count, self.writer.clone(), self.stop.clone());
        let made = tokio::task::spawn_blocking(move || {
            snapshotter::make(&reader, count, &writer, through, &stop)?;
            snapshot::newest(&reader, through)
        });
        let made = made.await.map_err(|error| StoreError::Task(error.to_string()))??;
        match made.is_some_and(|manifest| manifest.last.index == through) {
            true => Ok(()),
            // this broker's own disk is behind what the others hold, or somebody stops it
            false => Err(TrimError::NoSnapshot(through)),
        }
    }

    /// Has Raft note the snapshot and purge up to it. A leader waits until it sends nothing of that any more.
    async fn purge(&self, through: LogIndex) -> Result<(), TrimError> {
        let raft = self.trimmer.group.raft();
        let stopped = |error: openraft::errors::Fatal<super::types::Types>| TrimError::Stopped(error.to_string());
        let mut metrics = raft.data_metrics();
        let covers = |id: Option<super::types::LogId>| id.is_some_and(|id| id.index >= through.0);
        if !covers(metrics.borrow_watched().snapshot) {
            raft.trigger().snapshot().await.map_err(stopped)?;
        }
        let noted = async {
            while !covers(metrics.borrow_watched().snapshot) {
                metrics.changed().await.map_err(|_| TrimError::Stopped("its task is gone".into()))?;
            }
            Ok::<_, TrimError>(())
        };
        match tokio::time::timeout(PURGE_TIMEOUT, noted).await {
            Ok(noted) => noted?,
            Err(_) => return Err(TrimError::NoSnapshot(through)),
        }
        raft.trigger().purge_log(through.0).await.map_err(stopped)?;
        let purged = async {
            while !covers(metrics.borrow_watched().purged) {
                metrics.changed().await.map_err(|_| TrimError::Stopped("its task is gone".into()))?;
            }
            Ok::<_, TrimError>(())
        };
        match tokio::time::timeout(PURGE_TIMEOUT, purged).await {
            Ok(purged) => purged,
            Err(_) => Err(TrimError::NotPurged(through)),
        }
    }
}
