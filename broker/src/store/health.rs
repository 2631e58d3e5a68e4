//! Whether the store may be trusted. The first failure is final. A failed write or sync closes the writer, and with it every
//! partition; damage found in one partition stops that one, and is told here all the same.

use std::sync::Arc;

use parking_lot::RwLock;

use crate::metrics::store::STORAGE_HEALTHY;

/// Shared by writer, groups and node. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Health {
    failure: Arc<RwLock<Option<String>>>,
}

impl Health {
    /// Good until told otherwise.
    pub fn new() -> Self {
        metrics::gauge!(STORAGE_HEALTHY).set(1.0);
        Self::default()
    }

    /// Records a failure for good; the first one is kept.
    pub fn fail(&self, reason: &str) {
        let mut failure = self.failure.write();
        if failure.is_none() {
            tracing::error!(reason, "the store has failed");
            metrics::gauge!(STORAGE_HEALTHY).set(0.0);
            *failure = Some(reason.to_owned());
        }
    }

    /// `Err` with what went wrong first.
    pub fn check(&self) -> Result<(), String> {
        match &*self.failure.read() {
            Some(reason) => Err(reason.clone()),
            None => Ok(()),
        }
    }
}
