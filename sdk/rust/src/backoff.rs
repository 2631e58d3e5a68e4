//! Waiting between attempts: exponential with full jitter, so that a thousand members of a broker that restarts do not return
//! at the same moment.

use std::time::Duration;

/// Delays that double from `first` up to `most`.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    first: Duration,
    most: Duration,
    attempts: u32,
}

impl Backoff {
    pub(crate) fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, attempts: 0 }
    }

    /// The next delay: between half and all of the doubled one.
    pub(crate) fn next(&mut self) -> Duration {
        let delay = exponential(self.first, self.most, self.attempts);
        self.attempts = self.attempts.saturating_add(1);
        delay.mul_f64(0.5 + 0.5 * rand::random::<f64>())
    }

    pub(crate) fn reset(&mut self) {
        self.attempts = 0;
    }
}

/// `first · 2^doublings`, at most `most`.
pub(crate) fn exponential(first: Duration, most: Duration, doublings: u32) -> Duration {
    first.saturating_mul(2u32.saturating_pow(doublings.min(31))).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_and_stay_bounded() {
        let (first, most) = (Duration::from_millis(100), Duration::from_secs(5));
        let mut backoff = Backoff::new(first, most);
        for attempt in 0..100 {
            let full = exponential(first, most, attempt);
            let delay = backoff.next();
            assert!(delay >= full / 2 && delay <= full, "{attempt}: {delay:?} of {full:?}");
        }
        backoff.reset();
        assert!(backoff.next() <= first);
    }
}
