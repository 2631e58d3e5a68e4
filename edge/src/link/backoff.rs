//! How long to wait before trying again: twice as long each time, with jitter, so that edges do not come back in step.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(50);
/// Short enough that a partition goes on within 5 s of having a leader again.
const LONGEST: Duration = Duration::from_secs(2);
/// What lasted so long has worked. What ended sooner may end again at once, as with a broker that welcomes everybody and fails
/// right after.
const STEADY: Duration = Duration::from_secs(5);

/// Delays between attempts; forever.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { next: FIRST }
    }

    /// What the last attempt gave has lasted so long: if that is steady, delays begin anew.
    pub(crate) fn lasted(&mut self, time: Duration) {
        if time >= STEADY {
            self.next = FIRST;
        }
    }

    /// Waits before the next attempt: from half to the whole delay.
    pub(crate) async fn wait(&mut self) {
        let delay = self.next();
        tokio::time::sleep(delay).await;
    }

    fn next(&mut self) -> Duration {
        let delay = self.next;
        self.next = (delay * 2).min(LONGEST);
        delay.mul_f64(rand::random_range(0.5..1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_until_something_lasts() {
        let mut backoff = Backoff::new();
        for _ in 0..10 {
            backoff.next();
            backoff.lasted(STEADY - Duration::from_millis(1));
        }
        let longest = backoff.next();
        assert!((LONGEST / 2..=LONGEST).contains(&longest), "{longest:?}");
        backoff.lasted(STEADY);
        let first = backoff.next();
        assert!((FIRST / 2..=FIRST).contains(&first), "{first:?}");
    }
}
