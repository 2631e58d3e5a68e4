//! Which event runs when, and which outcomes go into which commit. Pure: no task, no clock.
//!
//! A **lane** is one connection of one partition. Its rules:
//! - one event of a lane runs at a time, in the order they came;
//! - outcomes of a lane that are on their way in a commit hold back its later ones, so that a commit that has to be sent
//!   again cannot be overtaken; commits of different lanes are pipelined;
//! - when an event is refused, everything the lane holds after it is given back untried (`released`), because the broker
//!   sends those again behind the refused one; so it is when an outcome came too late, and its event is to come again.
//!
//! Bounds: events held ≤ twice the credit (a broker that does not keep to it is disconnected), running ≤ `workers`,
//! commits in flight ≤ `commits_max`, a commit ≤ the wire's limits.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use trunkline_proto::{
    ConnectionId,
    v1::{self, Code},
};

use crate::{
    backoff::exponential,
    lane::{Lane, Settled, WorkId},
};

mod commits;
#[cfg(test)]
mod tests;

/// First and longest delay of an event whose handler failed without naming one.
const REFUSE_DELAY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// The delay before an event is delivered again that failed at this attempt (from 1).
pub(crate) fn refuse_delay(attempt: u32) -> Duration {
    exponential(REFUSE_DELAY.0, REFUSE_DELAY.1, attempt.saturating_sub(1))
}

/// What bounds a schedule.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    /// Events that run at the same time.
    pub(crate) workers: usize,
    /// Events the broker may have on the way to this member. Up to as many again are held while the answers to their
    /// commits are on the way: the broker counts them settled already.
    pub(crate) credit: u32,
    /// Commits without an answer.
    pub(crate) commits_max: usize,
    /// How often events that are held are reported as worked on.
    pub(crate) extend_every: Duration,
}

/// An event to run the handler on.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) id: WorkId,
    pub(crate) partition: u32,
    /// Of the assignment it came by.
    pub(crate) generation: u64,
    pub(crate) event: v1::Event,
}

/// What the handler made of an event.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Verdict {
    Acknowledge(Vec<v1::Command>),
    Refuse(Duration),
    Park(String),
}

/// The broker sends more than it was given credit for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the broker sent more than {held_max} events at once")]
pub(crate) struct Overflow {
    held_max: usize,
}

type LaneKey = (u32, ConnectionId);

/// An assignment of a partition. `generation` is never reused, an epoch may be seen again after a reconnect.
#[derive(Debug)]
struct Assignment {
    epoch: u64,
    generation: u64,
    /// No commit before this moment: the last one came to nothing.
    pause_until: Option<Instant>,
    failures: u32,
    /// Lanes with outcomes to send, each once.
    sendable: VecDeque<ConnectionId>,
}

#[derive(Debug)]
struct Running {
    lane: LaneKey,
    generation: u64,
    offset: u64,
    attempt: u32,
    since: Instant,
    /// An event before it comes again: so must this one.
    given_back: bool,
}

#[derive(Debug)]
struct InFlight {
    partition: u32,
    /// Lane by lane, each lane's in order.
    settled: Vec<(ConnectionId, Settled)>,
}

/// One member's events from one broker.
#[derive(Debug)]
pub(crate) struct Schedule {
    bounds: Bounds,
    partitions: BTreeMap<u32, Assignment>,
    lanes: BTreeMap<LaneKey, Lane>,
    ready: VecDeque<LaneKey>,
    running: BTreeMap<WorkId, Running>,
    in_flight: BTreeMap<u64, InFlight>,
    /// Partitions in turn, so that a busy one does not starve the others.
    last_served: u32,
    last_number: u64,
    held: usize,
    next_extend: Option<Instant>,
    extends: VecDeque<v1::Extend>,
    /// Gives the credit back once, when stopping.
    credit_back: Option<i32>,
    stopping: bool,
}

impl Schedule {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            partitions: BTreeMap::new(),
            lanes: BTreeMap::new(),
            ready: VecDeque::new(),
            running: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            last_served: 0,
            last_number: 0,
            held: 0,
            next_extend: None,
            extends: VecDeque::new(),
            credit_back: None,
            stopping: false,
        }
    }

    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    // ---- inputs -----------------------------------------------------------------------------------------------------

    /// The partition is this member's.
    pub(crate) fn handle_assigned(&mut self, partition: u32, epoch: u64) {
        self.forget(partition);
        let generation = self.number();
        let assignment = Assignment { epoch, generation, pause_until: None, failures: 0, sendable: VecDeque::new() };
        self.partitions.insert(partition, assignment);
    }

    /// The partition is another member's: what is held of it is dropped; runs go on and come to nothing.
    pub(crate) fn handle_revoked(&mut self, partition: u32, epoch: u64) {
        if self.partitions.get(&partition).is_some_and(|assignment| assignment.epoch <= epoch) {
            self.forget(partition);
        }
    }

    /// The stream has ended, and with it the lease.
    pub(crate) fn handle_disconnected(&mut self) {
        for partition in self.partitions.keys().copied().collect::<Vec<_>>() {
            self.forget(partition);
        }
        self.extends.clear();
    }

    /// Events from the broker.
    pub(crate) fn handle_events(&mut self, now: Instant, events: v1::Events) -> Result<(), Overflow> {
        let partition = events.partition;
        if self.partitions.get(&partition).is_none_or(|assignment| assignment.epoch != events.epoch) {
            return Ok(());
        }
        for event in events.events {
            self.handle_event(now, partition, event);
        }
        self.next_extend.get_or_insert(now + self.bounds.extend_every);
        match self.bounds.credit as usize * 2 {
            held_max if self.held > held_max => Err(Overflow { held_max }),
            _ => Ok(()),
        }
    }

    fn handle_event(&mut self, now: Instant, partition: u32, event: v1::Event) {
        // events of no connection do not exist; a malformed id shares one lane and the handler's driver parks it
        let connection = ConnectionId::from_slice(&event.connection).unwrap_or(ConnectionId::NONE);
        let key = (partition, connection);
        if self.holds(key, event.offset) {
            return;
        }
        self.held += 1;
        let lane = self.lanes.entry(key).or_default();
        lane.newest = lane.newest.max(event.offset);
        if lane.refused == Some(event.offset) {
            lane.refused = None;
        }
        if self.stopping || lane.refused.is_some() {
            lane.settled.push_back(Settled::released(event.offset, event.attempt, now));
            self.list(key);
        } else {
            lane.queue.push_back((event, now));
            self.make_ready(key);
        }
    }

    /// A late redelivery of what is still here: the outcome to come settles it. A refused one is no longer here once its
    /// commit is on the way.
    fn holds(&self, key: LaneKey, offset: u64) -> bool {
        let Some(lane) = self.lanes.get(&key).filter(|lane| offset <= lane.newest) else { return false };
        let runs = || {
            lane.running
                .and_then(|id| self.running.get(&id))
                .is_some_and(|running| running.offset == offset && self.is_current(key.0, running.generation))
        };
        let on_its_way = || {
            lane.committing > 0
                && self.in_flight.values().filter(|commit| commit.partition == key.0).any(|commit| {
                    let same = |(connection, settled): &(ConnectionId, Settled)| {
                        *connection == key.1
                            && settled.offset == offset
                            && !matches!(settled.verdict, v1::outcome::Verdict::Refused(_))
                    };
                    commit.settled.iter().any(same)
                })
        };
        lane.settled.iter().any(|settled| settled.offset == offset)
            || lane.queue.iter().any(|(event, _)| event.offset == offset)
            || runs()
            || on_its_way()
    }

    /// A run has ended.
    pub(crate) fn handle_finished(&mut self, id: WorkId, verdict: Verdict) {
        let Some(running) = self.running.remove(&id) else { return };
        let key = running.lane;
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        lane.running = None;
        if !self.is_current(key.0, running.generation) {
            self.make_ready(key);
            self.drop_if_idle(key);
            return;
        }
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        let Running { offset, attempt, since, .. } = running;
        match verdict {
            _ if running.given_back => {
                lane.settled.push_back(Settled::released(offset, attempt, since));
                lane.release();
            }
            // a commit before this one came back refused for good: this event follows it
            _ if lane.refused.is_some() => lane.settled.push_back(Settled::released(offset, attempt, since)),
            Verdict::Acknowledge(commands) => {
                let verdict = v1::outcome::Verdict::Acknowledged(v1::Acknowledged {});
                lane.settled.push_back(Settled::new(offset, attempt, since, verdict, commands));
            }
            Verdict::Park(reason) => {
                let parked = v1::Parked { reason, record: bytes::Bytes::new(), attempt };
                let verdict = v1::outcome::Verdict::Parked(parked);
                lane.settled.push_back(Settled::new(offset, attempt, since, verdict, Vec::new()));
            }
            Verdict::Refuse(delay) => {
                lane.settled.push_back(Settled::refused(offset, attempt, since, delay));
                lane.refused = Some(offset);
                lane.release();
            }
        }
        self.list(key);
        self.make_ready(key);
    }

    /// The broker's answer to a commit. Returns the code of a commit that was given up, for the log.
    pub(crate) fn handle_committed(&mut self, now: Instant, id: u64, code: Code) -> Option<Code> {
        let commit = self.in_flight.remove(&id)?;
        match code {
            Code::Applied | Code::Forwarded => self.settle(now, commit),
            Code::StaleEpoch => self.forget(commit.partition),
            // nothing happened, or nobody knows: the same again. If it had happened, it will not be open any more
            Code::Throttled | Code::NoLeader | Code::Unknown => self.send_again(now, commit, false),
            _ if commit.settled.len() > 1 => self.send_again(now, commit, true),
            // too late: the broker gives it to somebody again, and then what comes after it
            Code::NotOpen => {
                self.give_back_later(&commit);
                self.settle(now, commit);
            }
            other => {
                self.refuse_malformed(now, commit);
                return Some(other);
            }
        }
        None
    }

    /// Takes no more work, gives back what has not begun.
    pub(crate) fn handle_stop(&mut self) {
        if self.stopping {
            return;
        }
        self.stopping = true;
        self.credit_back = Some(i32::try_from(self.bounds.credit).map_or(i32::MIN, |credit| -credit));
        self.ready.clear();
        for key in self.lanes.keys().copied().collect::<Vec<_>>() {
            if let Some(lane) = self.lanes.get_mut(&key) {
                lane.ready = false;
                lane.release();
                self.list(key);
            }
        }
    }

    /// Time has passed.
    pub(crate) fn handle_timer(&mut self, now: Instant) {
        // else the timer would be due for as long as commits find no room
        for assignment in self.partitions.values_mut() {
            assignment.pause_until = assignment.pause_until.filter(|until| *until > now);
        }
        if self.next_extend.is_none_or(|at| at > now) {
            return;
        }
        self.next_extend = (self.held > 0).then(|| now + self.bounds.extend_every);
        let since = now.checked_sub(self.bounds.extend_every / 2).unwrap_or(now);
        self.extends = self
            .partitions
            .iter()
            .filter_map(|(partition, assignment)| {
                let offsets = self.held_before(*partition, assignment.generation, since);
                (!offsets.is_empty()).then_some(v1::Extend { partition: *partition, epoch: assignment.epoch, offsets })
            })
            .collect();
    }

    // ---- outputs ----------------------------------------------------------------------------------------------------

    /// The next event to run the handler on; `None` while every worker is busy or nothing waits.
    pub(crate) fn next_work(&mut self) -> Option<Work> {
        while self.running.len() < self.bounds.workers {
            let key = self.ready.pop_front()?;
            let Some(lane) = self.lanes.get_mut(&key) else { continue };
            lane.ready = false;
            let Some((event, since)) = lane.queue.pop_front() else { continue };
            let Some(generation) = self.partitions.get(&key.0).map(|assignment| assignment.generation) else {
                continue;
            };
            let id = WorkId(self.number());
            if let Some(lane) = self.lanes.get_mut(&key) {
                lane.running = Some(id);
            }
            let running = Running {
                lane: key,
                generation,
                offset: event.offset,
                attempt: event.attempt,
                since,
                given_back: false,
            };
            self.running.insert(id, running);
            return Some(Work { id, partition: key.0, generation, event });
        }
        None
    }

    /// Whether [`Schedule::next_request`] has something.
    pub(crate) fn has_request(&self, now: Instant) -> bool {
        self.credit_back.is_some()
            || !self.extends.is_empty()
            || (self.in_flight.len() < self.bounds.commits_max
                && self.partitions.values().any(|assignment| assignment.may_commit(now)))
    }

    /// The next request to the broker.
    pub(crate) fn next_request(&mut self, now: Instant) -> Option<v1::subscribe_request::Request> {
        use v1::subscribe_request::Request;
        if let Some(amount) = self.credit_back.take() {
            return Some(Request::Credit(v1::Credit { amount }));
        }
        if let Some(extend) = self.extends.pop_front() {
            return Some(Request::Extend(extend));
        }
        if self.in_flight.len() >= self.bounds.commits_max {
            return None;
        }
        self.next_commit(now).map(Request::Commit)
    }

    /// When [`Schedule::handle_timer`] or [`Schedule::next_request`] wants to be asked again.
    pub(crate) fn next_timer(&self) -> Option<Instant> {
        let waits = |assignment: &&Assignment| !assignment.sendable.is_empty();
        let pauses = self.partitions.values().filter(waits).filter_map(|assignment| assignment.pause_until);
        pauses.chain(self.next_extend).min()
    }

    /// Whether nothing runs and nothing waits for an answer.
    pub(crate) fn is_drained(&self) -> bool {
        self.held == 0 && self.running.is_empty() && self.credit_back.is_none()
    }

    // ---- lanes ------------------------------------------------------------------------------------------------------

    fn is_current(&self, partition: u32, generation: u64) -> bool {
        self.partitions.get(&partition).is_some_and(|assignment| assignment.generation == generation)
    }

    fn make_ready(&mut self, key: LaneKey) {
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        if lane.running.is_none() && !lane.ready && !lane.queue.is_empty() {
            lane.ready = true;
            self.ready.push_back(key);
        }
    }

    fn list(&mut self, key: LaneKey) {
        let (Some(lane), Some(assignment)) = (self.lanes.get_mut(&key), self.partitions.get_mut(&key.0)) else {
            return;
        };
        if !lane.listed && lane.committing == 0 && !lane.settled.is_empty() {
            lane.listed = true;
            assignment.sendable.push_back(key.1);
        }
    }

    fn drop_if_idle(&mut self, key: LaneKey) {
        if self.lanes.get(&key).is_some_and(Lane::is_idle) {
            self.lanes.remove(&key);
        }
    }

    /// Drops everything held of a partition but the runs, which nobody can call back.
    fn forget(&mut self, partition: u32) {
        self.partitions.remove(&partition);
        self.in_flight.retain(|_, commit| commit.partition != partition);
        self.ready.retain(|key| key.0 != partition);
        self.extends.retain(|extend| extend.partition != partition);
        let first = (partition, ConnectionId::NONE);
        let last = (partition, ConnectionId([0xff; 16]));
        for key in self.lanes.range(first..=last).map(|(key, _)| *key).collect::<Vec<_>>() {
            if let Some(lane) = self.lanes.get_mut(&key) {
                *lane = Lane { running: lane.running, ..Lane::default() };
            }
            self.drop_if_idle(key);
        }
        self.held = self.count_held();
    }

    fn count_held(&self) -> usize {
        let waiting: usize =
            self.lanes.values().map(|lane| lane.queue.len() + lane.settled.len() + lane.committing).sum();
        waiting + self.running.values().filter(|running| self.is_current(running.lane.0, running.generation)).count()
    }

    fn held_before(&self, partition: u32, generation: u64, since: Instant) -> Vec<u64> {
        let first = (partition, ConnectionId::NONE);
        let last = (partition, ConnectionId([0xff; 16]));
        let mut offsets = Vec::new();
        for (_, lane) in self.lanes.range(first..=last) {
            offsets.extend(lane.queue.iter().filter(|(_, held)| *held <= since).map(|(event, _)| event.offset));
            offsets.extend(lane.settled.iter().filter(|settled| settled.since <= since).map(|settled| settled.offset));
        }
        let runs = self.running.values().filter(|run| run.lane.0 == partition && run.generation == generation);
        offsets.extend(runs.filter(|run| run.since <= since).map(|run| run.offset));
        for commit in self.in_flight.values().filter(|commit| commit.partition == partition) {
            let late = commit.settled.iter().filter(|(_, settled)| settled.since <= since);
            offsets.extend(late.map(|(_, settled)| settled.offset));
        }
        offsets
    }
}

impl Assignment {
    fn may_commit(&self, now: Instant) -> bool {
        !self.sendable.is_empty() && self.pause_until.is_none_or(|until| until <= now)
    }
}
