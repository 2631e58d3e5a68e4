//! Room on the disk. A full disk fails a write, which closes the store for good; so appends stop while there is room left for what
//! makes room: trims, settlements, compaction.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use crate::metrics::store::DISK_FREE_BYTES;

/// How often it is measured. A log grows by less than a reserve meanwhile.
const MEASURE_EVERY: Duration = Duration::from_secs(1);

/// The disk has less room than is to be kept free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the disk has {free} bytes left, and {reserve} are kept free (broker.disk_reserve): free some, or shorten broker.retention"
)]
pub struct NoSpace {
    /// As measured last.
    pub free: u64,
    /// As configured.
    pub reserve: u64,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    reserve: u64,
    free: AtomicU64,
    is_low: AtomicBool,
    #[cfg(test)]
    is_pretended: AtomicBool,
}

/// What is free where the data folder is. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Space(Arc<Shared>);

impl Space {
    /// Watches the disk of `dir`, which exists; with a reserve of 0 nothing is ever too little.
    pub fn new(dir: PathBuf, reserve: u64) -> Self {
        Self(Arc::new(Shared {
            dir,
            reserve,
            free: AtomicU64::new(u64::MAX),
            is_low: AtomicBool::new(false),
            #[cfg(test)]
            is_pretended: AtomicBool::new(false),
        }))
    }

    /// Whether there is room for more.
    pub fn check(&self) -> Result<(), NoSpace> {
        match self.0.is_low.load(Ordering::Acquire) {
            true => Err(NoSpace { free: self.0.free.load(Ordering::Acquire), reserve: self.0.reserve }),
            false => Ok(()),
        }
    }

    /// Bytes left, as measured last; `None` before it was.
    pub fn free(&self) -> Option<u64> {
        Some(self.0.free.load(Ordering::Acquire)).filter(|free| *free < u64::MAX)
    }

    /// Measures until `stop`.
    pub async fn watch(self, stop: CancellationToken) {
        loop {
            let space = self.clone();
            // a sick disk may not answer: the last word stands until it does
            if tokio::task::spawn_blocking(move || space.measure()).await.is_err() {
                return;
            }
            if stop.run_until_cancelled(tokio::time::sleep(MEASURE_EVERY)).await.is_none() {
                return;
            }
        }
    }

    /// Asks the file system. Blocks.
    pub fn measure(&self) {
        #[cfg(test)]
        if self.0.is_pretended.load(Ordering::Acquire) {
            return;
        }
        match rustix::fs::statvfs(&self.0.dir) {
            // what is left to a process without privileges
            Ok(disk) => self.note(disk.f_bavail.saturating_mul(disk.f_frsize)),
            Err(error) => tracing::warn!(%error, "room on the disk cannot be measured"),
        }
    }

    fn note(&self, free: u64) {
        metrics::gauge!(DISK_FREE_BYTES).set(free as f64);
        self.0.free.store(free, Ordering::Release);
        let is_low = free < self.0.reserve;
        if self.0.is_low.swap(is_low, Ordering::AcqRel) != is_low {
            match self.check() {
                Err(error) => tracing::error!(%error, "appends are refused"),
                Ok(()) => tracing::info!(free, "there is room on the disk again"),
            }
        }
    }

    /// As if so much were free, from now on.
    #[cfg(test)]
    pub(crate) fn pretend(&self, free: u64) {
        self.0.is_pretended.store(true, Ordering::Release);
        self.note(free);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_measured_and_a_reserve_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let space = Space::new(dir.path().to_owned(), 1);
        space.measure();
        assert_eq!(space.check(), Ok(()), "a test needs more than a byte of disk");
        let free = space.0.free.load(Ordering::Acquire);
        assert!(free > 1 && free < u64::MAX);
        let full = Space::new(dir.path().to_owned(), u64::MAX);
        full.measure();
        assert_eq!(full.check().map_err(|error| error.reserve), Err(u64::MAX));
        let unbounded = Space::new(dir.path().to_owned(), 0);
        unbounded.note(0);
        assert_eq!(unbounded.check(), Ok(()));
    }

    #[test]
    fn it_takes_no_more_than_room_to_go_on() {
        let space = Space::new(PathBuf::from("."), 100);
        space.note(99);
        assert_eq!(space.check(), Err(NoSpace { free: 99, reserve: 100 }));
        space.note(100);
        assert_eq!(space.check(), Ok(()));
    }
}
