//! Keys that are fetched: for how long they count, and when they are fetched again. Nothing of a token but the bare fact that it names a key
//! which is not there has a say in it, and that one seldom.

use std::sync::Arc;

use super::Key;
use crate::core::Millis;

/// A key that is not in the set has it fetched before its time at most so often.
pub const EARLY_PERIOD: Millis = Millis::from_secs(30);
/// A fetch that failed is tried again after so long, which doubles,
const RETRY_FIRST: Millis = Millis::from_secs(1);
/// up to this.
const RETRY_MAX: Millis = Millis::from_secs(60);

/// The keys of a set as last fetched.
#[derive(Clone, Debug, Default)]
pub struct Fetched {
    keys: Arc<[Key]>,
    /// They count no more from then on, in seconds since 1970; 0: there are none yet.
    good_until: u64,
}

impl Fetched {
    /// These, until then.
    pub fn new(keys: Arc<[Key]>, good_until: u64) -> Self {
        Self { keys, good_until }
    }

    /// Those that count, if it is known which.
    pub(super) fn at(&self, now: u64) -> Option<&[Key]> {
        (now < self.good_until).then_some(&*self.keys)
    }

    /// Those that did when they were fetched.
    pub(super) fn all(&self) -> &[Key] {
        &self.keys
    }
}

/// When a set is fetched. Times are of one clock that never goes back.
#[derive(Debug)]
pub struct Refresh {
    period: Millis,
    due: Millis,
    brought_forward: Option<Millis>,
    failures: u32,
}

impl Refresh {
    /// At once, and then every `period`.
    pub fn new(period: Millis) -> Self {
        Self { period, due: Millis::ZERO, brought_forward: None, failures: 0 }
    }

    /// When it is fetched next.
    pub fn due(&self) -> Millis {
        self.due
    }

    /// A token names a key that the set does not hold. Says whether it is fetched now for that.
    pub fn handle_unknown_key(&mut self, now: Millis) -> bool {
        if self.due <= now || self.brought_forward.is_some_and(|before| now < before + EARLY_PERIOD) {
            return false;
        }
        self.brought_forward = Some(now);
        self.due = now;
        true
    }

    /// It was fetched. `random`, up to 1000, spreads the edges of a cluster over a fifth of the period.
    pub fn handle_fetched(&mut self, now: Millis, random: u64) {
        self.failures = 0;
        self.due = now + spread(self.period, random);
    }

    /// It was not.
    pub fn handle_failed(&mut self, now: Millis, random: u64) {
        let wait = Millis(RETRY_FIRST.0.saturating_mul(1 << self.failures.min(16))).min(RETRY_MAX).min(self.period);
        self.failures = self.failures.saturating_add(1);
        self.due = now + spread(wait, random);
    }
}

/// Nine tenths of it to eleven.
fn spread(time: Millis, random: u64) -> Millis {
    Millis((time.0 / 10 * 9).saturating_add(time.0 / 5 * random.min(1000) / 1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIDDLE: u64 = 500;

    #[test]
    fn a_set_is_fetched_at_once_and_then_every_period_more_or_less() {
        let mut refresh = Refresh::new(Millis::from_secs(600));
        assert_eq!(refresh.due(), Millis::ZERO);
        for (random, due) in [(0, 541_000), (MIDDLE, 601_000), (1000, 661_000), (u64::MAX, 661_000)] {
            refresh.handle_fetched(Millis(1000), random);
            assert_eq!(refresh.due(), Millis(due));
        }
    }

    #[test]
    fn failures_are_tried_again_soon_and_then_less_often() {
        let mut refresh = Refresh::new(Millis::from_secs(600));
        let mut waits = Vec::new();
        for _ in 0..100 {
            refresh.handle_failed(Millis(0), MIDDLE);
            waits.push(refresh.due().0 / 1000);
        }
        assert_eq!(waits[..8], [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(waits[99], 60);
        refresh.handle_fetched(Millis(0), MIDDLE);
        refresh.handle_failed(Millis(0), MIDDLE);
        assert_eq!(refresh.due(), Millis(1000));
        let mut often = Refresh::new(Millis::from_secs(2));
        (0..10).for_each(|_| often.handle_failed(Millis(0), MIDDLE));
        assert_eq!(often.due(), Millis(2000), "a failure is no reason to ask less often than it would be anyway");
    }

    #[test]
    fn a_flood_of_unknown_keys_fetches_twice_a_minute() {
        let mut refresh = Refresh::new(Millis::from_secs(3600));
        refresh.handle_fetched(Millis(0), MIDDLE);
        let mut fetches = 0;
        for now in (10..120_000).step_by(7).map(Millis) {
            if refresh.handle_unknown_key(now) {
                assert_eq!(refresh.due(), now);
                assert!(!refresh.handle_unknown_key(now), "it is under way");
                fetches += 1;
                if fetches % 2 == 0 { refresh.handle_failed(now, MIDDLE) } else { refresh.handle_fetched(now, MIDDLE) }
            } else if refresh.due() <= now {
                // what failed is tried again: not for the tokens' sake
                refresh.handle_fetched(now, MIDDLE);
            }
        }
        assert_eq!(fetches, 4, "in two minutes");
    }
}
