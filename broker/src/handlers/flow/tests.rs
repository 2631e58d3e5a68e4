//! The flow against a model of the group in the state machine: every event settles exactly once, a connection's events are
//! given in order, the base of every commit is right, and nothing grows beyond its bound.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::LazyLock,
};

use proptest::prelude::*;

use super::*;

fn connection(n: u8) -> ConnectionId {
    ConnectionId([n; 16])
}

fn at(n: u64) -> Offset {
    Offset(n << 16)
}

fn flow(max_attempts: u32) -> Flow {
    Flow::new(Settings { max_attempts, ..Settings::default() }, later(0), Offset::ZERO, Vec::new())
}

/// A message of a few bytes.
fn event(offset: Offset, connection: ConnectionId) -> Arrival {
    Arrival { offset, connection, bytes: 100, opens: false }
}

/// Credit that nothing falls short of.
const PLENTY: Free = Free::new(10_000, 10_000);

#[derive(PartialEq, Eq, Debug)]
enum Offer {
    Deliver { attempt: u32 },
    Held,
}

impl Flow {
    /// The reader comes to an event while there is plenty of credit.
    fn offer(&mut self, now: Instant, offset: Offset, connection: ConnectionId) -> Offer {
        let event = event(offset, connection);
        match self.turn(&event, PLENTY) {
            Turn::Now => self.give(now, &event),
            Turn::Behind => {
                self.hold(now, &event);
                return Offer::Held;
            }
            Turn::Credit(_) => panic!("there is plenty"),
        }
        Offer::Deliver { attempt: 1 }
    }

    fn due(&mut self, now: Instant) -> Option<(Offset, u32)> {
        self.next_due(now, PLENTY)
    }
}

fn ack(n: u64) -> (Offset, Outcome) {
    (at(n), Outcome::Acknowledged)
}

fn refuse(n: u64, seconds: u64) -> (Offset, Outcome) {
    (at(n), Outcome::Refused { delay: Duration::from_secs(seconds), released: false })
}

/// So long after the tests began.
fn later(seconds: u64) -> Instant {
    #[expect(clippy::disallowed_methods, reason = "there is no other way to make one")]
    static T0: LazyLock<Instant> = LazyLock::new(Instant::now);
    *T0 + Duration::from_secs(seconds)
}

#[test]
fn commit_ahead_leaves_holes_and_prefix_passes_other_records() {
    let mut flow = flow(0);
    for n in 1..=4 {
        assert_eq!(flow.offer(later(0), at(n), connection(n as u8)), Offer::Deliver { attempt: 1 });
    }
    flow.progress(at(9));
    let first = flow.commit(vec![ack(3)]).unwrap();
    assert_eq!((first.base, first.through), (Offset::ZERO, Offset(at(4).0 - 1)));
    assert_eq!(first.holes.iter().map(|hole| hole.offset).collect::<Vec<_>>(), [at(1), at(2)]);
    // pipelined: computed on the one before, nothing applied yet
    let second = flow.commit(vec![ack(1), ack(4)]).unwrap();
    assert_eq!((second.base, second.through), (first.through, at(9)));
    assert!(second.holes.is_empty());
    assert_eq!(flow.commit(vec![ack(1)]), Err(NotOpen::NotInFlight(at(1))));
    assert_eq!(flow.applied(later(0)), 1);
    assert_eq!(flow.applied(later(0)), 2);
    assert_eq!((flow.through(), flow.open()), (at(9), 1));
}

#[test]
fn prefix_moves_by_itself_over_records_of_others_when_there_are_many_or_retention_asks() {
    let mut flow = flow(0);
    flow.progress(at(8));
    assert_eq!(flow.advance(9, Offset::ZERO), None, "too few");
    let wanted = flow.advance(9, at(3)).unwrap();
    assert_eq!((wanted.base, wanted.through), (Offset::ZERO, at(8)));
    assert_eq!(flow.advance(9, at(20)), None, "one is on its way");
    flow.applied(later(0));
    assert_eq!(flow.advance(9, at(20)), None, "there is nothing more to pass");
    flow.offer(later(0), at(9), connection(1));
    flow.progress(at(40));
    assert_eq!(flow.advance(9, at(20)), None, "an open event holds it");
    flow.commit(vec![ack(9)]).unwrap();
    flow.applied(later(0));
    flow.progress(at(48));
    assert_eq!(flow.advance(9, at(20)), None, "what is wanted is passed");
    flow.progress(at(49));
    assert_eq!(flow.advance(9, Offset::ZERO).map(|proposal| proposal.through), Some(at(49)));
}

#[test]
fn later_events_of_a_connection_wait_behind_a_refused_one() {
    let mut flow = flow(0);
    flow.offer(later(0), at(1), connection(1));
    flow.commit(vec![refuse(1, 5)]).unwrap();
    assert_eq!(flow.offer(later(0), at(2), connection(1)), Offer::Held, "the refusal is on its way");
    assert_eq!(flow.offer(later(0), at(3), connection(2)), Offer::Deliver { attempt: 1 });
    assert_eq!(flow.applied(later(0)), 1);
    assert_eq!(flow.due(later(4)), None);
    assert_eq!(flow.next_wake(), Some(later(5)));
    assert_eq!(flow.due(later(5)), Some((at(1), 2)));
    assert_eq!(flow.due(later(5)), Some((at(2), 1)));
    assert_eq!(flow.due(later(5)), None);
}

#[test]
fn event_past_its_deadline_is_given_again_and_parked_in_the_end() {
    let mut flow = flow(2);
    flow.offer(later(0), at(1), connection(1));
    assert_eq!(flow.expire(later(59), 100), None);
    flow.extend(later(59), [at(1), at(7)]);
    assert_eq!(flow.expire(later(61), 100), None, "extended");
    let again = flow.expire(later(119), 100).unwrap();
    assert_eq!(again.outcomes, [refuse(1, 0)]);
    assert_eq!(flow.applied(later(119)), 1);
    assert_eq!(flow.due(later(119)), Some((at(1), 2)));
    let parked = flow.commit(vec![refuse(1, 0)]).unwrap();
    assert_eq!(parked.outcomes[0].1, Outcome::Parked { reason: "out of attempts".into(), attempt: 2 });
    flow.applied(later(120));
    assert_eq!(flow.open(), 0);
}

#[test]
fn refused_commit_takes_those_that_built_on_it_along_and_no_others() {
    let mut flow = flow(0);
    for n in 1..=5 {
        flow.offer(later(0), at(n), connection(n as u8));
    }
    flow.commit(vec![ack(2)]).unwrap();
    flow.commit(vec![ack(3)]).unwrap();
    assert!(!flow.refused(later(0)), "for a reason of its own");
    let fresh = flow.commit(vec![ack(2)]).unwrap();
    assert_eq!(fresh.base, Offset::ZERO, "not on the refused one");
    assert!(flow.refused(later(0)), "because of the one before");
    assert_eq!(flow.applied(later(0)), 1);
    assert!(flow.commit(vec![ack(3), ack(1)]).is_ok());
}

#[test]
fn what_a_lost_member_was_given_gets_another_attempt() {
    let mut flow = flow(0);
    flow.offer(later(0), at(1), connection(1));
    flow.offer(later(0), at(2), connection(2));
    flow.commit(vec![refuse(1, 5), ack(2)]).unwrap();
    flow.applied(later(0));
    flow.offer(later(0), at(3), connection(1)); // held
    flow.offer(later(0), at(4), connection(4));
    flow.progress(at(6));
    let left = flow.leftover();
    assert_eq!(left.through, at(6));
    assert_eq!(
        left.holes.iter().map(|hole| (hole.offset, hole.attempt)).collect::<Vec<_>>(),
        [(at(3), 1), (at(4), 2)],
        "1 is a hole of the state already, and was not given again"
    );
}

#[test]
fn event_out_of_attempts_before_the_flow_began_is_parked_undelivered() {
    let hole = StartHole { event: event(at(1), connection(1)), attempt: 4, delay: Duration::ZERO };
    let mut flow = Flow::new(Settings { max_attempts: 3, ..Settings::default() }, later(0), at(5), vec![hole]);
    let parked = flow.expire(later(0), 100).unwrap();
    assert_eq!(parked.outcomes[0].1, Outcome::Parked { reason: "out of attempts".into(), attempt: 3 });
    assert_eq!(flow.due(later(0)), None);
    // dead letters are full: tried again after a deadline, not at once
    flow.refused(later(0));
    assert_eq!(flow.expire(later(1), 100), None);
    assert!(flow.expire(later(60), 100).is_some());
    assert_eq!(flow.applied(later(60)), 0, "no credit was held");
}

#[test]
fn refused_event_waits_for_the_later_ones_of_its_connection() {
    let mut flow = flow(0);
    for n in 1..=4 {
        flow.offer(later(0), at(n), connection(1));
    }
    flow.commit(vec![refuse(2, 0)]).unwrap();
    flow.applied(later(0));
    assert_eq!(flow.due(later(0)), None, "3 and 4 are with the member");
    flow.commit(vec![ack(3)]).unwrap();
    flow.commit(vec![(at(4), Outcome::Refused { delay: Duration::ZERO, released: true })]).unwrap();
    assert_eq!(flow.due(later(0)), None, "nobody knows what comes of it");
    flow.applied(later(0));
    flow.applied(later(0));
    assert_eq!(flow.offer(later(0), at(5), connection(1)), Offer::Held);
    let given = std::iter::from_fn(|| flow.due(later(0))).collect::<Vec<_>>();
    assert_eq!(given, [(at(2), 2), (at(4), 1), (at(5), 1)], "3 stays acknowledged; 1, which came before, is still out");
}

#[test]
fn member_that_sits_on_a_later_event_delays_the_refused_one_by_no_more_than_a_deadline() {
    let mut flow = flow(0);
    flow.offer(later(0), at(1), connection(1));
    flow.offer(later(0), at(2), connection(1));
    flow.offer(later(0), at(3), connection(2));
    flow.commit(vec![refuse(1, 0)]).unwrap();
    flow.applied(later(0));
    flow.extend(later(50), [at(2), at(3)]);
    let expired = flow.expire(later(60), 100).unwrap();
    let released = Outcome::Refused { delay: Duration::ZERO, released: true };
    assert_eq!(expired.outcomes, [(at(2), released)], "3 is of another connection");
    flow.applied(later(60));
    assert_eq!(flow.due(later(60)), Some((at(1), 2)));
    assert_eq!(flow.due(later(60)), Some((at(2), 1)));
}

#[test]
fn event_behind_one_that_never_ends_is_not_parked_with_it() {
    let mut flow = flow(2);
    flow.offer(later(0), at(1), connection(1));
    flow.offer(later(0), at(2), connection(1));
    for round in 1..=2 {
        let parks = flow.expire(later(60 * round), 100).unwrap().outcomes;
        assert_eq!(matches!(parks[0].1, Outcome::Parked { .. }), round == 2);
        flow.applied(later(60 * round));
        while flow.due(later(60 * round)).is_some() {}
    }
    assert_eq!(flow.open.get(&at(2)).map(|open| (open.attempt, open.given)), Some((1, true)));
}

#[test]
fn expired_events_that_do_not_fit_one_commit_are_as_overdue_as_before() {
    let mut flow = flow(0);
    for n in 1..=4 {
        flow.offer(later(0), at(n), connection(n as u8));
    }
    assert_eq!(flow.expire(later(60), 4).unwrap().outcomes.len(), 4);
    flow.expired_too_many(later(60));
    assert_eq!(flow.expire(later(60), 2).unwrap().outcomes.len(), 2);
    assert_eq!(flow.expire(later(60), 2).unwrap().outcomes.len(), 2);
    assert_eq!(flow.expire(later(60), 2), None);
}

#[test]
fn one_connection_has_its_share_and_others_pass_by() {
    let (mut flow, free) = (flow(0), |flow: &Flow| Free::new(1024, 1024 - flow.given()));
    for n in 1..=3000 {
        let (event, free) = (event(at(n), connection(1)), free(&flow));
        match flow.turn(&event, free) {
            Turn::Now => flow.give(later(0), &event),
            turn => {
                assert_eq!(turn, Turn::Behind, "{n}");
                flow.hold(later(0), &event);
            }
        }
    }
    assert_eq!((flow.given(), flow.open()), (CONNECTION_EVENTS_MAX, 3000));
    let opened = Arrival { opens: true, ..event(at(3001), connection(2)) };
    assert_eq!(flow.turn(&opened, free(&flow)), Turn::Now);
    flow.give(later(0), &opened);
    // what was held follows in order, as room comes
    assert_eq!(flow.next_due(later(0), free(&flow)), None);
    assert_eq!(flow.wanted(later(0)), None, "not more credit, but its own events must go on");
    let first = flow.commit(vec![ack(2), ack(3)]).unwrap();
    assert_eq!((first.through, first.holes.len()), (Offset(at(4).0 - 1), 1));
    flow.applied(later(0));
    let next = std::iter::from_fn(|| flow.next_due(later(0), free(&flow))).collect::<Vec<_>>();
    assert_eq!(next, [(at(129), 1), (at(130), 1)]);
    // a commit beyond says which are open
    let ahead = flow.commit(vec![ack(3001)]).unwrap();
    assert_eq!((ahead.through, ahead.holes.len()), (at(3001), 3000 - 3));
}

#[test]
fn a_connections_bytes_in_flight_have_a_bound_that_one_event_may_pass() {
    let mut flow = flow(0);
    let large = |n| Arrival { bytes: CONNECTION_BYTES_MAX + 1, ..event(at(n), connection(1)) };
    assert_eq!(flow.turn(&large(1), PLENTY), Turn::Now);
    flow.give(later(0), &large(1));
    assert_eq!(flow.offer(later(0), at(2), connection(1)), Offer::Held);
    flow.commit(vec![ack(1)]).unwrap();
    flow.applied(later(0));
    assert_eq!(flow.due(later(0)), Some((at(2), 1)));
}

#[test]
fn last_credits_go_to_new_connections_and_then_to_who_has_waited_longest() {
    let (mut flow, short) = (flow(0), Free::new(16, 2));
    let opened = |n| Arrival { opens: true, ..event(at(n), connection(n as u8)) };
    assert_eq!(flow.turn(&event(at(1), connection(1)), short), Turn::Credit(Wanted::Common));
    flow.hold(later(0), &event(at(1), connection(1)));
    flow.hold(later(0), &event(at(2), connection(2)));
    assert_eq!(flow.turn(&opened(3), short), Turn::Now);
    assert_eq!(flow.turn(&opened(3), Free::new(16, 0)), Turn::Credit(Wanted::Any));
    flow.hold(later(0), &opened(3));
    assert!(flow.has_due(later(0), short));
    assert_eq!(flow.wanted(later(0)), Some(Wanted::Any));
    assert_eq!(flow.next_due(later(0), short), Some((at(3), 1)), "ahead of those before it");
    assert!(!flow.has_due(later(0), short));
    assert_eq!(flow.wanted(later(0)), Some(Wanted::Common));
    let enough = Free::new(16, 3);
    assert_eq!(flow.next_due(later(0), enough), Some((at(1), 1)));
    assert_eq!(flow.next_due(later(0), enough), Some((at(2), 1)));
}

/// The group as the state machine keeps it (the rules of `HandlerCommitted` and `HandlerAssigned`).
#[derive(Default, Debug)]
struct Group {
    through: Offset,
    holes: BTreeMap<Offset, (u32, Instant)>,
    settled: BTreeSet<Offset>,
}

impl Group {
    fn apply(&mut self, now: Instant, events: &BTreeMap<Offset, ConnectionId>, commit: &Proposal) -> bool {
        if commit.base != self.through {
            return false;
        }
        assert!(commit.through >= self.through);
        for hole in &commit.holes {
            assert!(hole.offset > self.through && hole.offset <= commit.through && events.contains_key(&hole.offset));
            self.holes.insert(hole.offset, (hole.attempt, later(0)));
        }
        for (offset, outcome) in &commit.outcomes {
            let fresh = *offset > self.through && *offset <= commit.through;
            assert!(self.holes.contains_key(offset) || fresh, "{offset} is open");
            let (attempt, _) = self.holes.remove(offset).unwrap_or((1, now));
            match outcome {
                Outcome::Refused { delay, released } => {
                    self.holes.insert(*offset, (attempt + u32::from(!released), now + *delay));
                }
                _ => assert!(self.settled.insert(*offset), "{offset} settled twice"),
            }
        }
        for (offset, _) in events.range(..=commit.through).filter(|(offset, _)| **offset > self.through) {
            let listed = self.holes.contains_key(offset) || self.settled.contains(offset);
            assert!(listed, "{offset} was passed over unsettled");
        }
        self.through = commit.through;
        true
    }

    fn assign(&mut self, left: &Leftover) {
        assert_eq!(left.base, self.through);
        for hole in &left.holes {
            self.holes.insert(hole.offset, (hole.attempt, later(0)));
        }
        self.through = left.through;
    }
}

#[derive(Clone, Debug)]
enum Step {
    Deliver(u8),
    Commit {
        picks: Vec<(u8, u8)>,
        seconds: u8,
    },
    Apply,
    RefuseNext,
    Pass(u8),
    /// The member says that it is at work on everything it has.
    Extend,
    Lose,
    LookPast(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1..20u8).prop_map(Step::Deliver),
        6 => (prop::collection::vec((any::<u8>(), 0..8u8), 1..6), 0..5u8)
            .prop_map(|(picks, seconds)| Step::Commit { picks, seconds }),
        6 => Just(Step::Apply),
        1 => Just(Step::RefuseNext),
        2 => (1..90u8).prop_map(Step::Pass),
        1 => Just(Step::Extend),
        1 => Just(Step::Lose),
        1 => any::<bool>().prop_map(Step::LookPast),
    ];
    prop::collection::vec(step, 1..120)
}

#[derive(Debug)]
struct World {
    flow: Flow,
    group: Group,
    now: Instant,
    /// The group's events, among other records.
    events: BTreeMap<Offset, ConnectionId>,
    end: Offset,
    wire: VecDeque<Proposal>,
    in_flight: BTreeSet<Offset>,
    given: BTreeSet<Offset>,
    /// What this flow's reader has come to.
    offered: BTreeSet<Offset>,
    holes_max: usize,
    max_attempts: u32,
    credit: usize,
    /// The reader holds what waits for a credit.
    looks_past: bool,
}

impl World {
    fn new(
        events: BTreeMap<Offset, ConnectionId>,
        end: Offset,
        holes_max: usize,
        max_attempts: u32,
        credit: usize,
    ) -> Self {
        let settings = Settings { holes_max, max_attempts, ..Settings::default() };
        Self {
            flow: Flow::new(settings, later(0), Offset::ZERO, Vec::new()),
            group: Group::default(),
            now: later(0),
            events,
            end,
            wire: VecDeque::new(),
            in_flight: BTreeSet::new(),
            given: BTreeSet::new(),
            offered: BTreeSet::new(),
            holes_max,
            max_attempts,
            credit,
            looks_past: false,
        }
    }

    fn free(&self) -> Free {
        let given = self.flow.given();
        assert!(given <= self.credit, "more than the member gave credit for");
        Free::new(self.credit, self.credit - given)
    }

    /// Whether a connection has nothing in flight, and none of its events waits for a time or an answer.
    fn is_idle(&self, connection: ConnectionId) -> bool {
        !self.flow.open.values().any(|open| open.connection == connection)
    }

    fn deliver(&mut self, most: usize) {
        for _ in 0..most {
            let free = self.free();
            if free == Free::new(self.credit, 0) {
                return;
            }
            let next = match self.flow.next_due(self.now, free) {
                Some((offset, _)) => Some(offset),
                None => self.scan(free),
            };
            let Some(offset) = next else { return };
            let connection = self.events[&offset];
            for (earlier, _) in self.events.range(..offset).filter(|(_, other)| **other == connection) {
                assert!(self.given.contains(earlier), "{offset} of {connection} overtook {earlier}");
                let waiting = matches!(self.flow.open.get(earlier), Some(Open { state: State::Waiting, .. }));
                assert!(!waiting, "{offset} overtook {earlier}, which waits");
            }
            // a delivery that goes back begins with everything later that is open again, in order
            let later = self.events.range(Offset(offset.0 + 1)..).filter(|(_, other)| **other == connection);
            for (later, _) in later {
                let open = self.flow.open.get(later);
                assert!(!open.is_some_and(|open| open.given), "{offset} is given behind {later}, which is unanswered");
            }
            self.given.insert(offset);
            assert!(self.in_flight.insert(offset), "{offset} given twice at once");
        }
    }

    fn scan(&mut self, free: Free) -> Option<Offset> {
        while self.flow.has_room() {
            let next = self.events.range(Offset(self.flow.scanned().0 + 1)..).next().map(|(o, c)| (*o, *c));
            let Some((offset, connection)) = next else {
                self.flow.progress(self.end);
                return None;
            };
            assert!(self.offered.insert(offset), "{offset} is read twice");
            let event = self.arrival(offset, connection);
            let turn = self.flow.turn(&event, free);
            let is_first = self.is_idle(connection);
            assert!(!is_first || turn == Turn::Now || free.is_short(), "{connection} has nothing in flight: {turn:?}");
            match turn {
                Turn::Now => {
                    self.flow.give(self.now, &event);
                    return Some(offset);
                }
                Turn::Credit(wanted) if event.opens || !self.looks_past => {
                    assert!(!free.has(wanted), "it is there");
                    self.offered.remove(&offset);
                    return None;
                }
                Turn::Behind | Turn::Credit(_) => self.flow.hold(self.now, &event),
            }
        }
        None
    }

    /// A connection's first event opens it; some have large ones.
    fn arrival(&self, offset: Offset, connection: ConnectionId) -> Arrival {
        let opens = self.events.iter().find(|(_, other)| **other == connection).is_some_and(|(at, _)| *at == offset);
        let bytes = if connection.0[0].is_multiple_of(3) { CONNECTION_BYTES_MAX / 2 } else { 100 };
        Arrival { offset, connection, bytes, opens }
    }

    /// No connection has more than its share.
    fn check_shares(&self) {
        let mut held: BTreeMap<ConnectionId, (usize, usize)> = BTreeMap::new();
        for open in self.flow.open.values().filter(|open| open.given) {
            let (events, bytes) = held.entry(open.connection).or_default();
            (*events, *bytes) = (*events + 1, *bytes + open.bytes);
        }
        for (connection, (events, bytes)) in held {
            assert!(events <= CONNECTION_EVENTS_MAX.min(self.credit / 2 + 1), "{connection} has {events}");
            assert!(bytes <= CONNECTION_BYTES_MAX, "{connection} has {bytes} bytes");
        }
    }

    fn send(&mut self, proposal: Proposal) {
        for (offset, _) in &proposal.outcomes {
            self.in_flight.remove(offset);
        }
        self.wire.push_back(proposal);
    }

    fn apply(&mut self, refuse: bool) {
        let Some(proposal) = self.wire.pop_front() else { return };
        if !refuse && self.group.apply(self.now, &self.events, &proposal) {
            self.flow.applied(self.now);
            assert_eq!(self.flow.through(), self.group.through);
        } else {
            let doomed = self.flow.refused(self.now);
            assert!(refuse || doomed, "a commit was refused that had every right");
            let open = proposal.outcomes.iter().map(|(offset, _)| *offset);
            self.in_flight.extend(open.filter(|offset| self.flow.open[offset].given));
        }
        assert!(self.group.holes.len() <= self.holes_max);
    }

    fn lose(&mut self) {
        while !self.wire.is_empty() {
            self.apply(false);
        }
        let left = self.flow.leftover();
        self.group.assign(&left);
        self.in_flight.clear();
        let events = &self.events;
        let holes = self.group.holes.iter().map(|(offset, (attempt, not_before))| StartHole {
            event: self.arrival(*offset, events[offset]),
            attempt: *attempt,
            delay: not_before.saturating_duration_since(self.now),
        });
        let settings = Settings { holes_max: self.holes_max, max_attempts: self.max_attempts, ..Settings::default() };
        self.flow = Flow::new(settings, self.now, self.group.through, holes.collect());
        self.offered.clear();
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Deliver(most) => self.deliver(usize::from(most)),
            Step::Commit { picks, seconds } => {
                let in_flight: Vec<_> = self.in_flight.iter().copied().collect();
                let mut outcomes = BTreeMap::new();
                for (pick, kind) in picks.into_iter().filter(|_| !in_flight.is_empty()) {
                    let delay = Duration::from_secs(u64::from(seconds));
                    outcomes.insert(
                        in_flight[usize::from(pick) % in_flight.len()],
                        match kind {
                            0 => Outcome::Refused { delay, released: false },
                            1 => Outcome::Refused { delay, released: true },
                            2 => Outcome::Parked { reason: String::new(), attempt: 0 },
                            _ => Outcome::Acknowledged,
                        },
                    );
                }
                let proposal = self.flow.commit(outcomes.into_iter().collect()).expect("all are in flight");
                self.send(proposal);
            }
            Step::Apply => self.apply(false),
            Step::RefuseNext => self.apply(true),
            Step::Pass(seconds) => {
                self.now += Duration::from_secs(u64::from(seconds));
                while let Some(proposal) = self.flow.expire(self.now, 100) {
                    self.send(proposal);
                }
            }
            Step::Extend => self.flow.extend(self.now, self.in_flight.iter().copied()),
            Step::Lose => self.lose(),
            Step::LookPast(looks_past) => self.looks_past = looks_past,
        }
        self.check_shares();
        assert!(self.flow.open() <= self.holes_max);
        assert_eq!(self.flow.pending(), self.wire.len());
    }

    /// A healthy member for long enough: everything settles.
    fn finish(&mut self) {
        for _ in 0..10_000 {
            self.step(Step::Pass(1));
            self.deliver(64);
            let outcomes: Vec<_> = self.in_flight.iter().map(|offset| (*offset, Outcome::Acknowledged)).collect();
            if !outcomes.is_empty() {
                let proposal = self.flow.commit(outcomes).expect("all are in flight");
                self.send(proposal);
            }
            while !self.wire.is_empty() {
                self.apply(false);
            }
            if self.group.settled.len() == self.events.len() {
                return;
            }
        }
        panic!("{} of {} events settled", self.group.settled.len(), self.events.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_event_settles_exactly_once(
        log in prop::collection::vec(prop::option::weighted(0.8, 0..6u8), 1..150),
        holes_max in prop_oneof![Just(4usize), Just(16), Just(1000)],
        max_attempts in prop_oneof![Just(0u32), Just(2)],
        credit in prop_oneof![Just(1usize), Just(5), Just(40), Just(1000)],
        steps in steps(),
    ) {
        let mut events = BTreeMap::new();
        for (n, owner) in log.iter().enumerate() {
            if let Some(owner) = owner {
                events.insert(at(n as u64 + 1), connection(*owner));
            }
        }
        let mut world = World::new(events, at(log.len() as u64 + 1), holes_max, max_attempts, credit);
        for step in steps {
            world.step(step);
        }
        world.finish();
    }
}

/// Every sequence of a few steps of one connection's three events, and one of another.
#[test]
fn no_sequence_of_steps_gives_an_event_behind_an_unanswered_later_one() {
    let pick = |pick, kind| Step::Commit { picks: vec![(pick, kind)], seconds: 1 };
    let alphabet = [
        Step::Deliver(1),
        Step::Deliver(9),
        pick(0, 0), // refuse the first
        pick(1, 0), // refuse the second
        pick(1, 7), // acknowledge the second
        pick(2, 1), // give the third back
        Step::Apply,
        Step::RefuseNext,
        Step::Pass(60),
        Step::Lose,
    ];
    let events = BTreeMap::from([1, 2, 3, 5].map(|n| (at(n), connection(u8::from(n != 5)))));
    let mut sequence = [0; 5];
    for number in 0..alphabet.len().pow(sequence.len() as u32) {
        let mut rest = number;
        for place in &mut sequence {
            *place = rest % alphabet.len();
            rest /= alphabet.len();
        }
        let mut world = World::new(events.clone(), at(6), 1000, 0, 1000);
        world.deliver(2);
        for place in sequence {
            world.step(alphabet[place].clone());
        }
        world.finish();
    }
}
