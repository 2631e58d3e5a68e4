//! The handler group of one partition at its leader: assignment, delivery, commits. After `broker/src/handlers/{registry,stream}.rs`;
//! the flow and the making of commits are theirs.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use trunkline_broker::{
    core::{Refusal, Verdict},
    handlers::{
        commit::{self, Lease},
        flow::{Arrival, Flow, Free, Leftover, Outcome, Proposal, Settings, StartHole, Turn},
    },
};
use trunkline_proto::{Batch, ConnectionId, LogIndex, Offset, Record, RecordKind, Source, v1};

use crate::{
    GROUP, Time,
    context::Context,
    delivery::View,
    leader::Answer,
    millis,
    net::{Body, Node},
};

/// Open events of a member.
const CREDIT: usize = 16;
/// An event that waits for a credit is held, to see what comes after it, once so much is read beyond it.
const LOOK_PAST: usize = 8;
/// A member that was not heard for so long is gone.
const LEASE: Time = millis(700);
const DEADLINE: Duration = Duration::from_millis(1500);
const HOLES_MAX: usize = 64;
/// The settled prefix is moved over records of others once they span so many entries.
const ADVANCE_ENTRIES: u64 = 16;
const RETRY: Time = millis(100);

#[derive(Debug)]
enum Step {
    Event(Offset, Record),
    Progress(Offset),
}

#[derive(Debug)]
struct Active {
    lease: Lease,
    member: u8,
    flow: Flow,
    after: Offset,
    index: u64,
    steps: VecDeque<Step>,
    /// It ends once no commit is under way; whether what it leaves is known.
    ending: Option<bool>,
}

/// See the module's head.
#[derive(Default, Debug)]
pub(crate) struct Worker {
    active: Option<Active>,
    leftover: Option<Leftover>,
    assigned: bool,
    assigning: bool,
    retry_at: Time,
}

impl Worker {
    /// What is to be appended now.
    pub(crate) fn pump(
        &mut self,
        context: &mut Context,
        view: View<'_>,
        heard: &BTreeMap<u8, Time>,
    ) -> Vec<(Batch, Answer)> {
        let mut appends = Vec::new();
        let alive = |member: &&u8| heard.get(*member).is_some_and(|at| *at + LEASE > context.now);
        let partition = u64::from(view.state.id().0);
        let pick =
            heard.keys().filter(alive).max_by_key(|member| (u64::from(**member) + 1) * (partition + 3) % 5).copied();
        if let Some(active) = &mut self.active {
            if active.ending.is_none() && pick != Some(active.member) {
                active.ending = Some(true);
            }
            if let Some(known) = active.ending
                && active.flow.pending() == 0
            {
                self.leftover = known.then(|| active.flow.leftover());
                self.active = None;
            }
        }
        match &mut self.active {
            Some(active) if active.ending.is_none() => active.serve(context, view, &mut appends),
            Some(_) => {}
            None if self.assigning || context.now < self.retry_at => {}
            None => {
                if let Some(member) = pick {
                    appends.push(self.assignment(view, Some(member)));
                } else if std::mem::take(&mut self.assigned) {
                    appends.push(self.assignment(view, None));
                }
            }
        }
        appends
    }

    fn assignment(&mut self, view: View<'_>, member: Option<u8>) -> (Batch, Answer) {
        let leftover = self.leftover.take();
        let known = view.state.group(GROUP).map(|group| (group.epoch, group.through));
        let (epoch, base) = known.unwrap_or_default();
        let leftover = leftover.filter(|leftover| leftover.base == base);
        let body = v1::HandlerAssigned {
            group: GROUP.to_owned(),
            member: member.map(member_name).unwrap_or_default(),
            epoch: epoch + 1,
            start: known.is_none().then_some(v1::Start { at: Some(v1::start::At::Earliest(true)) }),
            base: base.0,
            through: leftover.as_ref().map_or(base, |leftover| leftover.through).0,
            holes: leftover.iter().flat_map(|leftover| &leftover.holes).map(commit::hole).collect(),
            ..Default::default()
        };
        self.assigning = true;
        let record = Record::new(RecordKind::HandlerAssigned, Default::default(), "", &body);
        (Batch::new(Source::Leader, &[record]), Answer::Assign { member })
    }

    /// The assignment is applied, just now.
    pub(crate) fn assigned(&mut self, context: &mut Context, view: View<'_>, member: Option<u8>, verdict: &Verdict) {
        self.assigning = false;
        let group = view.state.group(GROUP).filter(|_| *verdict == Verdict::Applied);
        let (Some(group), Some(member)) = (group, member) else {
            self.retry_at = context.now + RETRY;
            return;
        };
        context.oracle.count("assignments");
        self.assigned = true;
        let (now, clock) = (context.steady(), context.clock(view.broker).max(view.state.time()));
        let holes = group.holes().map(|(offset, hole)| StartHole {
            event: view.record(offset).map_or_else(|| missing(offset), |record| arrival(offset, &record)),
            attempt: hole.attempt,
            delay: Duration::from_micros(hole.not_before.0.saturating_sub(clock.0)),
        });
        let settings =
            Settings { deadline: DEADLINE, max_attempts: context.options.max_attempts, holes_max: HOLES_MAX };
        let flow = Flow::new(settings, now, group.through, holes.collect());
        let lease = Lease { group: GROUP.to_owned(), member: member_name(member), epoch: group.epoch };
        let index = group.through.index().0.saturating_sub(1);
        let (after, steps) = (group.through, VecDeque::new());
        self.active = Some(Active { lease, member, flow, after, index, steps, ending: None });
    }

    /// A member commits.
    pub(crate) fn commit(
        &mut self,
        context: &mut Context,
        view: View<'_>,
        commit: &v1::Commit,
    ) -> Option<(Batch, Answer)> {
        let active = self.active.as_mut().filter(|active| active.ending.is_none())?;
        if active.lease.epoch != commit.epoch {
            // a member's session refuses it before it gets this far; the state has to refuse it as well
            let outcomes = commit::check(commit, &Default::default(), context.count).ok()?;
            let base = active.flow.through();
            let proposal = Proposal { base, through: base, outcomes: outcomes.outcomes, holes: Vec::new() };
            let lease = Lease { epoch: commit.epoch, ..active.lease.clone() };
            let batch = commit::batch(&lease, &proposal, Vec::new(), &outcomes.commands).ok()?;
            return Some((batch, Answer::Nothing));
        }
        let checked = commit::check(commit, &Default::default(), context.count).ok()?;
        let proposal = active.flow.commit(checked.outcomes).ok()?;
        Some(active.propose(view, &proposal, &checked.commands))
    }

    /// The oldest commit under way has come to this.
    pub(crate) fn committed(&mut self, now: Instant, epoch: u64, verdict: &Verdict) {
        let Some(active) = self.active.as_mut().filter(|active| active.lease.epoch == epoch) else { return };
        match verdict {
            Verdict::Refused(refusal) => {
                let doomed = active.flow.refused(now);
                if matches!(refusal, Refusal::StaleEpoch | Refusal::NotOpen) && !doomed {
                    active.ending = Some(false);
                }
            }
            _ => {
                active.flow.applied(now);
            }
        }
    }

    pub(crate) fn is_bounded(&self) -> bool {
        self.active.as_ref().is_none_or(|active| active.flow.open() <= HOLES_MAX && active.flow.given() <= CREDIT)
    }
}

fn arrival(offset: Offset, record: &Record) -> Arrival {
    let opens = record.kind == RecordKind::ConnectionOpened;
    Arrival { offset, connection: record.connection, bytes: record.bytes().len(), opens }
}

fn missing(offset: Offset) -> Arrival {
    Arrival { offset, connection: ConnectionId::NONE, bytes: 0, opens: false }
}

fn member_name(member: u8) -> String {
    format!("m{member}")
}

impl Active {
    fn serve(&mut self, context: &mut Context, view: View<'_>, appends: &mut Vec<(Batch, Answer)>) {
        let now = context.steady();
        while let Some(proposal) = self.flow.expire(now, 100) {
            appends.push(self.propose(view, &proposal, &[]));
        }
        if let Some(proposal) = self.flow.advance(ADVANCE_ENTRIES, Offset::ZERO) {
            appends.push(self.propose(view, &proposal, &[]));
        }
        self.read(view);
        let mut events = Vec::new();
        while let Some((offset, attempt)) = {
            let free = self.free();
            self.flow.next_due(now, free)
        } {
            if let Some(record) = view.record(offset) {
                events.push((offset, attempt, record));
            }
        }
        while let Some(step) = self.steps.front() {
            match step {
                Step::Progress(offset) => self.flow.progress(*offset),
                Step::Event(offset, record) => {
                    if !self.flow.has_room() {
                        break;
                    }
                    let event = arrival(*offset, record);
                    match self.flow.turn(&event, self.free()) {
                        Turn::Now => {
                            self.flow.give(now, &event);
                            events.push((*offset, 1, record.clone()));
                        }
                        Turn::Credit(_) if event.opens || self.steps.len() < LOOK_PAST => break,
                        Turn::Behind | Turn::Credit(_) => self.flow.hold(now, &event),
                    }
                }
            }
            self.steps.pop_front();
        }
        if !events.is_empty() {
            let body = Body::Events { partition: view.state.id(), epoch: self.lease.epoch, events };
            context.send(Node::Broker(view.broker), Node::Member(self.member), body);
        }
    }

    fn free(&self) -> Free {
        Free::new(CREDIT, CREDIT - self.flow.given())
    }

    fn read(&mut self, view: View<'_>) {
        // nothing of what is trimmed is the group's any more
        self.index = self.index.max(view.kept.trimmed());
        while self.steps.len() < HOLES_MAX && self.index < view.applied() {
            self.index += 1;
            if let Some(entry) = view.entry(self.index) {
                let events = entry.logged.records().filter(|(_, record)| record.kind.is_event());
                let events = events.filter(|(offset, _)| *offset > self.after);
                self.steps.extend(events.map(|(offset, record)| Step::Event(offset, record)));
            }
            let end = Offset::end_of(LogIndex(self.index));
            if end > self.after {
                self.steps.push_back(Step::Progress(end));
            }
        }
    }

    fn propose(&mut self, view: View<'_>, proposal: &Proposal, commands: &[Record]) -> (Batch, Answer) {
        let parked = proposal.outcomes.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Parked { .. }));
        let bytes = |(offset, _): &(Offset, Outcome)| view.record(*offset).map(|record| record.bytes().clone());
        let parked = parked.map(|parked| bytes(parked).unwrap_or_default()).collect();
        #[allow(clippy::expect_used)] // what is parked here is small
        let batch = commit::batch(&self.lease, proposal, parked, commands).expect("a commit fits its record");
        (batch, Answer::Commit { epoch: self.lease.epoch })
    }
}
