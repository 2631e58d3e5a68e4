//! A timer wheel: one deadline per connection, set, moved and cancelled in constant time without allocating, 20 bytes each.

use super::Millis;

/// How finely deadlines are kept. They fire up to this much late, never early.
pub const TICK: Millis = Millis(100);
/// Slots of the wheel: a turn takes 51.2 s. Later deadlines stay in their slot and are looked at once a turn.
const SLOTS: usize = 512;
/// No entry.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Tick at which it fires; 0: not set.
    tick: u64,
    previous: u32,
    next: u32,
}

const UNSET: Entry = Entry { tick: 0, previous: NONE, next: NONE };

/// Deadlines by key; keys are small numbers (slots of a slab), each with at most one deadline.
#[derive(Debug)]
pub struct TimerWheel {
    entries: Vec<Entry>,
    heads: Box<[u32]>,
    /// The last tick that has fired.
    now: u64,
}

impl Default for TimerWheel {
    fn default() -> Self {
        Self { entries: Vec::new(), heads: vec![NONE; SLOTS].into_boxed_slice(), now: 0 }
    }
}

impl TimerWheel {
    /// Sets or moves a key's deadline. One in the past fires with the next tick.
    pub fn set(&mut self, key: u32, deadline: Millis) {
        let index = key as usize;
        if index >= self.entries.len() {
            self.entries.resize(index + 1, UNSET);
        }
        let tick = deadline.0.div_ceil(TICK.0).max(self.now + 1);
        if self.entries[index].tick == tick {
            return;
        }
        self.cancel(key);
        let head = &mut self.heads[slot(tick)];
        self.entries[index] = Entry { tick, previous: NONE, next: *head };
        let next = std::mem::replace(head, key);
        if let Some(entry) = self.entries.get_mut(next as usize) {
            entry.previous = key;
        }
    }

    /// Forgets a key's deadline, if it has one.
    pub fn cancel(&mut self, key: u32) {
        let Some(entry) = self.entries.get_mut(key as usize) else { return };
        let Entry { tick, previous, next } = std::mem::replace(entry, UNSET);
        if tick == 0 {
            return;
        }
        match self.entries.get_mut(previous as usize) {
            Some(entry) => entry.next = next,
            None => self.heads[slot(tick)] = next,
        }
        if let Some(entry) = self.entries.get_mut(next as usize) {
            entry.previous = previous;
        }
    }

    /// Takes out the keys whose deadline is not after `now`, in no particular order, and adds them to `due`.
    pub fn advance(&mut self, now: Millis, due: &mut Vec<u32>) {
        let target = now.0 / TICK.0;
        // after a pause longer than a turn every slot is looked at once
        let first = (self.now + 1).max((target + 1).saturating_sub(SLOTS as u64));
        for tick in first..=target {
            let mut key = self.heads[slot(tick)];
            while let Some(entry) = self.entries.get(key as usize) {
                let (next, fires) = (entry.next, entry.tick <= target);
                if fires {
                    self.cancel(key);
                    due.push(key);
                }
                key = next;
            }
        }
        self.now = self.now.max(target);
    }
}

fn slot(tick: u64) -> usize {
    (tick % SLOTS as u64) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn due(wheel: &mut TimerWheel, now: u64) -> Vec<u32> {
        let mut due = Vec::new();
        wheel.advance(Millis(now), &mut due);
        due.sort_unstable();
        due
    }

    #[test]
    fn fires_once_and_never_early() {
        let mut wheel = TimerWheel::default();
        wheel.set(3, Millis(1050));
        assert_eq!(due(&mut wheel, 1000), [0u32; 0]);
        assert_eq!(due(&mut wheel, 1099), [0u32; 0]);
        assert_eq!(due(&mut wheel, 1100), [3]);
        assert_eq!(due(&mut wheel, 60_000), [0u32; 0]);
    }

    #[test]
    fn deadline_in_the_past_fires_with_the_next_tick() {
        let mut wheel = TimerWheel::default();
        assert_eq!(due(&mut wheel, 5000), [0u32; 0]);
        wheel.set(0, Millis(10));
        assert_eq!(due(&mut wheel, 5000), [0u32; 0]);
        assert_eq!(due(&mut wheel, 5100), [0]);
    }

    proptest! {
        #[test]
        fn agrees_with_a_sorted_map(steps in proptest::collection::vec((0..3u8, 0..20u32, 0..200_000u64), 1..200)) {
            let (mut wheel, mut model, mut now) = (TimerWheel::default(), BTreeMap::new(), 0);
            for (what, key, number) in steps {
                match what {
                    0 => {
                        wheel.set(key, Millis(number));
                        model.insert(key, number.div_ceil(TICK.0).max(now / TICK.0 + 1));
                    }
                    1 => {
                        wheel.cancel(key);
                        model.remove(&key);
                    }
                    _ => {
                        now += number;
                        let expected: Vec<u32> =
                            model.iter().filter(|(_, tick)| **tick <= now / TICK.0).map(|(key, _)| *key).collect();
                        model.retain(|key, _| !expected.contains(key));
                        prop_assert_eq!(due(&mut wheel, now), expected);
                    }
                }
            }
        }
    }
}
