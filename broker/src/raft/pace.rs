//! How fast a follower that is far behind is caught up: what it is sent must leave room for what is written now, and be more than that.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Bytes a follower lacks from which on it is far behind. One that lacks less is where a leader's cache and a moment's stall leave it.
const FAR_BYTES: usize = 8 << 20;
/// Bytes it lacks when it is no longer far behind.
const NEAR_BYTES: usize = 1 << 20;
/// Resolution of [`Recent`].
const STEP_BYTES: usize = 256 << 10;
/// How often the rate changes.
const INTERVAL: Duration = Duration::from_millis(250);
/// After the last bytes to a follower that is far behind; the largest append takes less at [`RATE_MIN`].
const OVER: Duration = Duration::from_secs(6);
/// Bytes per second that are always sent.
const RATE_MIN: f64 = 4e6;
/// What is sent is at least so much of what is written meanwhile: whoever was away for a minute lacks nothing four minutes later.
const AHEAD: f64 = 1.25;
/// A commit may take so much of what it took before somebody was far behind.
const SLOWER: f64 = 4.0 / 3.0;
/// What becomes of the rate after an interval whose commits were slower than that, and after another.
const DOWN: f64 = 0.5;
const UP: f64 = 1.1;
/// How much of an interval's figures is taken over into the averages.
const WEIGHT: f64 = 1.0 / 16.0;
/// What a commit takes at least, for its logarithm.
const LEAST_SECONDS: f64 = 1e-6;
/// Intervals without a commit, though some are waited for, after which it is the follower that they may wait for.
const STALLED: u32 = 8;

/// Where the last [`FAR_BYTES`] of a log begin, to the nearest step.
#[derive(Debug, Default)]
pub(super) struct Recent {
    /// First index and bytes of each step.
    steps: VecDeque<(u64, usize)>,
    bytes: usize,
}

impl Recent {
    /// An entry follows.
    pub(super) fn push(&mut self, index: u64, bytes: usize) {
        self.bytes += bytes;
        match self.steps.back_mut() {
            Some((_, step)) if *step < STEP_BYTES => *step += bytes,
            _ => self.steps.push_back((index, bytes)),
        }
        while let Some((_, step)) = self.steps.front()
            && self.bytes - step >= FAR_BYTES
        {
            self.bytes -= step;
            self.steps.pop_front();
        }
    }

    /// Entries from `end` on are gone.
    pub(super) fn truncate(&mut self, end: u64) {
        while let Some((first, step)) = self.steps.back()
            && *first >= end
        {
            self.bytes -= step;
            self.steps.pop_back();
        }
    }

    /// Bytes of the entries from `index` on, to the nearest step; none if that is [`FAR_BYTES`] or from before it was counted.
    pub(super) fn after(&self, index: u64) -> Option<usize> {
        self.steps.front().filter(|(first, _)| *first <= index)?;
        Some(self.steps.iter().filter(|(first, _)| *first >= index).map(|(_, step)| step).sum())
    }
}

/// Whether a follower that lacks so much ([`Recent::after`]) is far behind, if it `was`.
pub(super) fn is_far(was: bool, lacks: Option<usize>) -> bool {
    lacks.is_none_or(|bytes| was && bytes >= NEAR_BYTES)
}

/// What an interval was like.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// Entries committed and applied.
    commits: u64,
    /// What they took, in seconds: the geometric mean, which a sync that stalls now and then does not govern.
    took: f64,
    /// Bytes of them in a second.
    written: f64,
    /// Some are waited for.
    is_waiting: bool,
    /// A follower far behind is being sent what it lacks.
    is_catching_up: bool,
}

/// The rate by what commits take: it halves when they get slower, and grows slowly otherwise.
#[derive(Debug)]
struct Throttle {
    most: f64,
    rate: f64,
    /// Averages of bytes written in a second, and of what a commit takes while nobody is far behind.
    written: f64,
    usual: Option<f64>,
    stalled: u32,
}

impl Throttle {
    fn new(most: f64) -> Self {
        Self { most, rate: RATE_MIN, written: 0.0, usual: None, stalled: 0 }
    }

    fn turn(&mut self, seen: &Seen) {
        self.written += (seen.written - self.written) * WEIGHT;
        // what is configured as the most must not keep a follower from catching up at all
        let least = RATE_MIN.max(AHEAD * self.written);
        let most = self.most.max(least);
        let usual = self.usual.unwrap_or(seen.took);
        self.stalled = if seen.commits > 0 { 0 } else { self.stalled.saturating_add(1) };
        let rate = match (seen.is_catching_up, seen.commits) {
            (false, _) => least,
            // nobody is held up, or all are until this follower is there
            (true, 0) if !seen.is_waiting || self.stalled >= STALLED => most,
            (true, 0) => self.rate,
            (true, _) if seen.took > SLOWER * usual => self.rate * DOWN,
            (true, _) => self.rate * UP,
        };
        self.rate = rate.clamp(least, most);
        // while somebody catches up it stays what it was; who begins to lead meanwhile has nothing else to go by
        if seen.commits > 0 && (!seen.is_catching_up || self.usual.is_none()) {
            self.usual = Some(usual + (seen.took - usual) * WEIGHT);
        }
    }
}

/// The rate at which this broker sends to each follower that is far behind, for all groups that it leads: they share its cores and its
/// disk.
#[derive(Debug)]
pub(super) struct Pace {
    /// None: without a bound.
    state: Option<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    throttle: Throttle,
    /// Proposals that are not applied yet.
    waiting: usize,
    /// Of this interval.
    begun: Instant,
    commits: u64,
    /// Sum of the logarithms of the seconds they took.
    took: f64,
    bytes: u64,
    /// When bytes were last sent to a follower far behind.
    sent: Option<Instant>,
}

impl State {
    fn new(most: u64) -> Self {
        let (throttle, begun) = (Throttle::new(most as f64), Instant::now());
        Self { throttle, waiting: 0, begun, commits: 0, took: 0.0, bytes: 0, sent: None }
    }

    /// Ends the interval if it is over.
    fn turn(&mut self, now: Instant) {
        let lasted = now.saturating_duration_since(self.begun);
        if lasted < INTERVAL {
            return;
        }
        self.throttle.turn(&Seen {
            commits: self.commits,
            took: (self.took / self.commits.max(1) as f64).exp(),
            written: self.bytes as f64 / lasted.as_secs_f64(),
            is_waiting: self.waiting > 0,
            is_catching_up: self.sent.is_some_and(|at| now.saturating_duration_since(at) < OVER),
        });
        (self.begun, self.commits, self.took, self.bytes) = (now, 0, 0.0, 0);
    }
}

impl Pace {
    /// At most so many bytes per second; 0: any.
    pub(super) fn new(most: u64) -> Self {
        Self { state: (most > 0).then(|| Mutex::new(State::new(most))) }
    }

    /// An entry of so many bytes is proposed by a leader.
    pub(super) fn proposed(self: &Arc<Self>, bytes: usize) -> Proposal {
        if let Some(state) = &self.state {
            state.lock().waiting += 1;
        }
        Proposal { pace: Arc::clone(self), bytes: bytes as u64, begun: Instant::now() }
    }

    /// Waits until `bytes` may go to a follower far behind. Whoever waits holds others of the same follower up: they are behind it too.
    pub(super) async fn take(&self, paid: &Paid, bytes: usize) {
        let Some(state) = &self.state else { return };
        let mut paid = paid.0.lock().await;
        if let Some(paid) = *paid {
            tokio::time::sleep_until(paid.into()).await;
        }
        let now = Instant::now();
        let mut state = state.lock();
        state.turn(now);
        state.sent = Some(now);
        *paid = Some(paid_after(*paid, now, bytes, state.throttle.rate));
    }
}

/// A proposal that is not applied yet.
#[derive(Debug)]
pub(super) struct Proposal {
    pace: Arc<Pace>,
    bytes: u64,
    begun: Instant,
}

impl Proposal {
    /// It is committed and applied.
    pub(super) fn applied(&self) {
        let Some(state) = &self.pace.state else { return };
        let (now, mut state) = (Instant::now(), state.lock());
        state.commits += 1;
        state.took += now.saturating_duration_since(self.begun).as_secs_f64().max(LEAST_SECONDS).ln();
        state.bytes += self.bytes;
        state.turn(now);
    }
}

impl Drop for Proposal {
    fn drop(&mut self) {
        if let Some(state) = &self.pace.state {
            state.lock().waiting -= 1;
        }
    }
}

/// When what one follower was sent so far will have been paid for.
#[derive(Debug, Default)]
pub(super) struct Paid(tokio::sync::Mutex<Option<Instant>>);

/// What was not used is not saved up.
fn paid_after(paid: Option<Instant>, now: Instant, bytes: usize, rate: f64) -> Instant {
    paid.map_or(now, |paid| paid.max(now)) + Duration::from_secs_f64(bytes as f64 / rate)
}

#[cfg(test)]
#[path = "pace_tests.rs"]
mod tests;
