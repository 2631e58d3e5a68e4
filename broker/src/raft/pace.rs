//! How fast a follower that is far behind is caught up: what it is sent must leave room for what is written now.

use std::time::Duration;

use tokio::{sync::Mutex, time::Instant};

/// Entries a follower may lack before it counts as far behind.
pub(super) const FAR_BEHIND: u64 = 4096;

/// A bound on bytes per second, shared by all partitions' streams to one peer.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_second: Option<u64>,
    /// When what was sent so far will have been paid for.
    paid: Mutex<Instant>,
}

impl Pace {
    pub(super) fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second: bytes_per_second.filter(|rate| *rate > 0), paid: Mutex::new(Instant::now()) }
    }

    /// Waits until `bytes` may go. Whoever waits holds others of the same peer up: they are behind it too.
    pub(super) async fn take(&self, bytes: usize) {
        let Some(rate) = self.bytes_per_second else { return };
        let mut paid = self.paid.lock().await;
        tokio::time::sleep_until(*paid).await;
        *paid = paid_after(*paid, Instant::now(), bytes, rate);
    }
}

/// What was not used is not saved up.
fn paid_after(paid: Instant, now: Instant, bytes: usize, rate: u64) -> Instant {
    paid.max(now) + Duration::from_secs_f64(bytes as f64 / rate as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_take_their_time_and_pauses_are_not_saved_up() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(paid_after(begun, begun, 500, 250), at(2));
        assert_eq!(paid_after(at(2), at(2), 1000, 500), at(4));
        assert_eq!(paid_after(at(4), at(60), 500, 500), at(61));
    }
}
