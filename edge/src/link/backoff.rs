//! How long to wait before trying again: twice as long each time, with jitter, so that edges do not come back in step.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(50);
/// Short enough that a partition goes on within 5 s of having a leader again.
const LONGEST: Duration = Duration::from_secs(2);

/// Delays between attempts; forever.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { next: FIRST }
    }

    /// The last attempt succeeded.
    pub(crate) fn reset(&mut self) {
        self.next = FIRST;
    }

    /// Waits before the next attempt: from half to the whole delay.
    pub(crate) async fn wait(&mut self) {
        let delay = self.next;
        self.next = (delay * 2).min(LONGEST);
        let jitter = rand::random_range(0.5..1.0);
        tokio::time::sleep(delay.mul_f64(jitter)).await;
    }
}
