//! Failures that come again and again, told when they begin, then now and then with their number, and when they are over. Pure.

use std::time::{Duration, Instant};

/// A failure that goes on is told this often.
const EVERY: Duration = Duration::from_secs(10);

/// See the module's head.
#[derive(Debug, Default)]
pub(crate) struct Complaints {
    /// When one was told last.
    told: Option<Instant>,
    /// When there was one last.
    last: Option<Instant>,
    /// Since the last one that was told.
    untold: u64,
    /// Since it began.
    failures: u64,
}

impl Complaints {
    /// It failed. If that is to be told: how often it did since it was told last, this one included.
    pub(crate) fn failed(&mut self, now: Instant) -> Option<u64> {
        self.last = Some(now);
        self.failures += 1;
        self.untold += 1;
        if self.told.is_some_and(|told| now.saturating_duration_since(told) < EVERY) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }

    /// It did not fail. If it had before: how often.
    pub(crate) fn passed(&mut self) -> Option<u64> {
        let over = std::mem::take(self);
        (over.failures > 0).then_some(over.failures)
    }

    /// It did not fail, among others that may: over once none has for a while.
    pub(crate) fn passed_among_others(&mut self, now: Instant) -> Option<u64> {
        let is_over = self.last.is_some_and(|last| now.saturating_duration_since(last) >= EVERY);
        if is_over { self.passed() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_when_they_begin_now_and_then_and_when_they_are_over() {
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        let mut complaints = Complaints::default();
        assert_eq!(complaints.passed(), None);
        let told: Vec<_> = (0..25).map(|second| complaints.failed(after(second))).collect();
        assert_eq!(told.iter().flatten().collect::<Vec<_>>(), [&1, &10, &10]);
        assert_eq!((told[0], told[10], told[20]), (Some(1), Some(10), Some(10)));
        assert_eq!(complaints.passed_among_others(after(33)), None, "others may fail yet");
        assert_eq!(complaints.passed_among_others(after(34)), Some(25));
        assert_eq!(complaints.passed(), None);
        assert_eq!(complaints.failed(after(35)), Some(1), "a new one is told at once");
        assert_eq!(complaints.passed(), Some(1));
    }
}
