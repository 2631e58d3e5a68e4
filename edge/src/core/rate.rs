//! A token bucket in eight bytes (the generic cell rate algorithm).

use super::{Millis, Rate};

/// What one client has used up of a [`Rate`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bucket {
    /// When it will be full again, in microseconds.
    full_at: u64,
}

impl Bucket {
    /// As [`Bucket::full_at`] told of another.
    pub(crate) fn of(full_at: u64) -> Self {
        Self { full_at }
    }

    /// All there is to it.
    pub(crate) fn full_at(self) -> u64 {
        self.full_at
    }

    /// Takes one; `false` if the client is too fast.
    pub(crate) fn take(&mut self, now: Millis, rate: Rate) -> bool {
        let Some(interval) = 1_000_000u64.checked_div(u64::from(rate.per_second)) else { return true };
        let now = now.0.saturating_mul(1000);
        let full_at = self.full_at.max(now).saturating_add(interval);
        if full_at - now > interval.saturating_mul(u64::from(rate.burst.max(1))) {
            return false;
        }
        self.full_at = full_at;
        true
    }

    /// Takes so many, whatever is left of it: what is too much is owed.
    pub(crate) fn spend(&mut self, now: Millis, rate: Rate, count: u64) {
        let Some(interval) = 1_000_000u64.checked_div(u64::from(rate.per_second)) else { return };
        self.full_at = self.full_at.max(now.0.saturating_mul(1000)).saturating_add(interval.saturating_mul(count));
    }

    /// Whether nothing is left to take.
    pub(crate) fn is_spent(self, now: Millis, rate: Rate) -> bool {
        let mut rest = self;
        !rest.take(now, rate)
    }

    /// Whether it is as one that nobody has taken from.
    pub(crate) fn is_full(self, now: Millis) -> bool {
        self.full_at <= now.0.saturating_mul(1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_owed_is_waited_for() {
        let (mut bucket, rate) = (Bucket::default(), Rate { per_second: 10, burst: 20 });
        bucket.spend(Millis(1000), rate, 19);
        assert!(!bucket.is_spent(Millis(1000), rate));
        bucket.spend(Millis(1000), rate, 31);
        for (now, spent) in [(1000, true), (4000, true), (4099, true), (4100, false)] {
            assert_eq!(bucket.is_spent(Millis(now), rate), spent, "{now}");
        }
        bucket.spend(Millis(1000), Rate::UNBOUNDED, u64::MAX);
        assert!(!bucket.is_spent(Millis(1000), Rate::UNBOUNDED));
    }

    #[test]
    fn burst_then_rate() {
        let (mut bucket, rate) = (Bucket::default(), Rate { per_second: 10, burst: 30 });
        let taken = |bucket: &mut Bucket, now| (0..100).filter(|_| bucket.take(Millis(now), rate)).count();
        assert_eq!(taken(&mut bucket, 5000), 30);
        assert_eq!(taken(&mut bucket, 5099), 0);
        assert_eq!(taken(&mut bucket, 6000), 10);
        assert_eq!(taken(&mut bucket, 60_000), 30);
        assert!((0..1000).all(|_| bucket.take(Millis(0), Rate::UNBOUNDED)));
    }
}
