//! When is an edge lost? Pure: for one partition, from what its state says of edges and when each was last heard.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)] // no clock, no hash order

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

/// A tick later than this says that this process was stopped or starved: nobody's silence can be judged by it.
pub(super) const LATE: Duration = Duration::from_secs(1);

/// An incarnation of an edge.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Incarnation {
    /// The edge's name.
    pub edge: String,
    /// Which.
    pub number: u64,
}

/// Judges the silence of the edges of one partition that this broker leads.
#[derive(Debug)]
pub(super) struct Grace {
    grace: Duration,
    period: Duration,
    /// No silence before this counts: this broker did not lead then, or was not running.
    since: Instant,
    /// The last tick.
    ticked: Instant,
    /// When each incarnation was first seen in the state.
    first_seen: BTreeMap<Incarnation, Instant>,
}

impl Grace {
    /// From the moment this broker leads. Ticks are to come every `period`.
    pub(super) fn new(now: Instant, grace: Duration, period: Duration) -> Self {
        Self { grace, period, since: now, ticked: now, first_seen: BTreeMap::new() }
    }

    /// One tick. `edges`: the incarnations in the state that are not lost, each with when it was last heard, if ever by this
    /// broker. Gives those that are lost now; they are given again at every tick until the state says so.
    pub(super) fn handle_tick(&mut self, now: Instant, edges: Vec<(Incarnation, Option<Instant>)>) -> Vec<Incarnation> {
        if now.saturating_duration_since(self.ticked) > self.period + LATE {
            self.since = now;
        }
        self.ticked = now;
        let mut seen = BTreeMap::new();
        let mut lost = Vec::new();
        for (edge, heard) in edges {
            let first = self.first_seen.remove(&edge).unwrap_or(now);
            if self.is_past(now, first, heard) {
                lost.push(edge.clone());
            }
            seen.insert(edge, first);
        }
        // who is no longer in the state is forgotten: the map is bounded by it
        self.first_seen = seen;
        lost
    }

    /// Whether an edge that the last tick gave is lost still: right before it is declared so, which may be much later.
    pub(super) fn is_silent(&self, now: Instant, edge: &Incarnation, heard: Option<Instant>) -> bool {
        // so late that this process may have been stopped since: the next tick judges
        let is_late = now.saturating_duration_since(self.ticked) > self.period + LATE;
        !is_late && self.first_seen.get(edge).is_some_and(|first| self.is_past(now, *first, heard))
    }

    fn is_past(&self, now: Instant, first: Instant, heard: Option<Instant>) -> bool {
        let last = heard.map_or(first, |heard| heard.max(first)).max(self.since);
        now.saturating_duration_since(last) >= self.grace
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn edge(name: &str, number: u64) -> Incarnation {
        Incarnation { edge: name.to_owned(), number }
    }

    /// Ticks every second up to `until` seconds; gives the second at which `edge` was lost.
    fn run(
        grace: &mut Grace,
        start: Instant,
        from: u32,
        until: u32,
        heard: impl Fn(u32) -> Option<Instant>,
    ) -> Option<u32> {
        (from..=until).find(|second| {
            !grace.handle_tick(start + SECOND * *second, vec![(edge("a", 1), heard(*second))]).is_empty()
        })
    }

    #[test]
    #[allow(clippy::disallowed_methods)] // a test picks its own epoch
    fn silent_past_its_grace_is_lost() {
        let start = Instant::now();
        let mut grace = Grace::new(start, 10 * SECOND, SECOND);
        let heard_until_5 = |second: u32| Some(start + SECOND * second.min(5));
        assert_eq!(run(&mut grace, start, 1, 30, heard_until_5), Some(15));
    }

    #[test]
    #[allow(clippy::disallowed_methods)]
    fn who_pings_is_never_lost() {
        let start = Instant::now();
        let mut grace = Grace::new(start, 10 * SECOND, SECOND);
        assert_eq!(run(&mut grace, start, 1, 100, |second| Some(start + SECOND * second)), None);
    }

    #[test]
    #[allow(clippy::disallowed_methods)]
    fn a_new_leader_gives_everyone_a_fresh_grace() {
        let start = Instant::now();
        // leads since second 100; the edge was never heard here
        let mut grace = Grace::new(start + 100 * SECOND, 10 * SECOND, SECOND);
        assert_eq!(run(&mut grace, start, 101, 130, |_| None), Some(111), "from when the state was first looked at");
    }

    #[test]
    #[allow(clippy::disallowed_methods)]
    fn heard_before_leading_does_not_shorten_the_grace() {
        let start = Instant::now();
        let mut grace = Grace::new(start + 100 * SECOND, 10 * SECOND, SECOND);
        assert_eq!(run(&mut grace, start, 101, 130, |_| Some(start)), Some(111));
    }

    #[test]
    #[allow(clippy::disallowed_methods)]
    fn a_late_tick_starts_the_grace_anew() {
        let start = Instant::now();
        let mut grace = Grace::new(start, 10 * SECOND, SECOND);
        assert_eq!(run(&mut grace, start, 1, 9, |_| None), None);
        // stopped for 20 s
        assert_eq!(run(&mut grace, start, 29, 60, |_| None), Some(39));
        // a tick late by less counts as usual
        let mut grace = Grace::new(start, 10 * SECOND, SECOND);
        assert!(grace.handle_tick(start + SECOND, vec![(edge("a", 1), None)]).is_empty());
        assert!(grace.handle_tick(start + SECOND * 11 / 4, vec![(edge("a", 1), None)]).is_empty());
        assert_eq!(run(&mut grace, start, 4, 60, |_| None), Some(11));
    }

    #[test]
    #[allow(clippy::disallowed_methods)]
    fn what_a_tick_found_is_judged_anew_when_it_is_used() {
        let start = Instant::now();
        let mut grace = Grace::new(start, 10 * SECOND, SECOND);
        assert_eq!(run(&mut grace, start, 1, 30, |_| None), Some(11));
        let at_11 = start + 11 * SECOND;
        assert!(grace.is_silent(at_11, &edge("a", 1), None));
        assert!(grace.is_silent(at_11 + SECOND, &edge("a", 1), Some(start + SECOND)));
        assert!(!grace.is_silent(at_11 + SECOND, &edge("a", 1), Some(at_11)), "heard since");
        assert!(!grace.is_silent(at_11 + 3 * SECOND, &edge("a", 1), None), "nobody is judged after so long");
        assert!(!grace.is_silent(at_11, &edge("a", 2), None), "never seen");
    }

    #[test]
    #[allow(clippy::disallowed_methods)]
    fn a_new_incarnation_has_a_grace_of_its_own_and_the_lost_one_is_repeated_until_it_is_gone() {
        let start = Instant::now();
        let mut grace = Grace::new(start, 10 * SECOND, SECOND);
        for second in 1..=10 {
            grace.handle_tick(start + SECOND * second, vec![(edge("a", 1), None)]);
        }
        let at_11 = start + SECOND * 11;
        assert_eq!(grace.handle_tick(at_11, vec![(edge("a", 1), None)]), [edge("a", 1)]);
        assert_eq!(grace.handle_tick(at_11 + SECOND, vec![(edge("a", 1), None)]), [edge("a", 1)]);
        assert_eq!(grace.handle_tick(at_11 + 2 * SECOND, vec![(edge("a", 2), None)]), []);
        assert_eq!(grace.first_seen.len(), 1);
    }
}
