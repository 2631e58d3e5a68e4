//! Step 13 of the walk. One partition to one member, within credit: between the tail (step 12) and the member (step 14). Lives from
//! an assignment to the next. The [`Flow`] decides; this reads, sends, and takes commits to the log (step 15).
//!
//! The way out is bounded: who does not read its stream stops being sent to, and holds up nobody else. Commits are appended in the
//! order they came and answered in that order.

mod commits;

use std::{collections::VecDeque, future::Future, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use trunkline_proto::{Offset, Timestamp, v1, v1::subscribe_response::Response};

use super::{
    commit::Lease,
    cursor::{Ahead, Cursor, Scanned, Step},
    flow::{Flow, Free, Leftover, Turn, Wanted},
    member::{Member, Request, SessionEnd},
};
use crate::{
    clock,
    core::Skipped,
    node::{Node, PartitionHandle, ReadError, Role},
};
use commits::{Expiry, OnWire, resolve_front};

/// Most events in one message.
const BATCH_EVENTS: usize = 128;
/// Most bytes of records in one message, unless a single one is larger.
const BATCH_BYTES: usize = 256 << 10;
/// Most commits of one stream on their way through the log. When full its requests wait.
const WIRE_MAX: usize = 64;
/// How long a partition that moves to another member waits for what is in flight.
const HANDOVER: Duration = Duration::from_secs(2);
/// How long a member may leave answers unread when its assignment ends, and the log commits unanswered.
const STALLED: Duration = Duration::from_secs(10);
/// An event that waits for a credit is held, to see what comes after it, once it is so old: new connections have credits of their own.
const LOOK_PAST: Duration = Duration::from_millis(500);

/// Why a stream ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// The member's `Subscribe` stream has ended.
    Gone,
    /// Another member is to have the partition.
    Moved,
    /// This broker leads the partition no longer, or its store is closed.
    NotLeader,
    /// What the stream knew is not what the state says: begin anew.
    Restart,
    /// The log cannot be read.
    Unreadable,
}

/// What a look ahead says there is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    /// Something can be sent.
    Deliver,
    /// The event that the reader has come to could, with such a free credit.
    Credit(Wanted),
    /// As much is open as may be: a commit or time must come first.
    Full,
    /// The log must grow first.
    Tail,
    /// The group was moved.
    Reset,
}

/// What retention has to do with a group.
pub(super) struct Trimming {
    /// It would take everything up to here.
    pub(super) wanted: watch::Receiver<Offset>,
    /// It has taken this.
    pub(super) skipped: Option<Skipped>,
}

/// See the module's head.
pub(super) struct Stream {
    node: Node,
    partition: PartitionHandle,
    member: Arc<Member>,
    lease: Lease,
    flow: Flow,
    cursor: Cursor,
    requests: mpsc::Receiver<Request>,
    wire: VecDeque<OnWire>,
    /// Answers that wait for the way out; at most [`WIRE_MAX`] commits are taken on, so at most that many twice.
    answers: VecDeque<v1::CommitResult>,
    /// Taken from the flow, and too large for the message before.
    carry: Option<(Scanned, u32)>,
    expiry: Expiry,
    trimming: Trimming,
}

impl Stream {
    pub(super) fn new(
        node: Node,
        partition: PartitionHandle,
        member: Arc<Member>,
        lease: Lease,
        flow: Flow,
        cursor: Cursor,
        trimming: Trimming,
    ) -> Self {
        let requests = member.open_route(partition.id, lease.epoch);
        let expiry = Expiry::new(member.terms.max_attempts > 0);
        Self {
            node,
            partition,
            member,
            lease,
            flow,
            cursor,
            requests,
            wire: VecDeque::new(),
            answers: VecDeque::new(),
            carry: None,
            expiry,
            trimming,
        }
    }

    /// Of the assignment.
    pub(super) fn epoch(&self) -> u64 {
        self.lease.epoch
    }

    /// Serves the member until something ends it. `moved` resolves when another member is to have the partition.
    pub(super) async fn run(&mut self, moved: impl Future<Output = ()>) -> End {
        let trimmed = self
            .trimming
            .skipped
            .map(|skipped| v1::TrimmedRange { from: skipped.after.0.saturating_add(1), through: skipped.through.0 });
        let assigned = v1::Assigned { partition: u32::from(self.partition.id.0), epoch: self.lease.epoch, trimmed };
        if !self.member.send(Response::Assigned(assigned)).await {
            return End::Gone;
        }
        match self.serve(moved).await {
            Ok(never) => never,
            Err(end) => end,
        }
    }

    async fn serve(&mut self, moved: impl Future<Output = ()>) -> Result<End, End> {
        tokio::pin!(moved);
        let member = self.member.clone();
        let tail = self.partition.tail.clone();
        let mut role = self.partition.role.clone();
        let mut handover: Option<Instant> = None;
        loop {
            self.commit_without_member().await?;
            let next = if handover.is_some() { Next::Full } else { self.look_ahead().await? };
            if handover.is_some() && self.wire.is_empty() && self.flow.given() == 0 {
                return Err(End::Moved);
            }
            let sendable = next == Next::Deliver || !self.answers.is_empty();
            let wanted = if handover.is_some() { None } else { self.wanted_credit(next) };
            let (index, wake) = (self.cursor.index(), self.wake(next));
            let handover_at = handover.unwrap_or_else(Instant::now);
            tokio::select! {
                biased;
                () = member.gone.cancelled() => return Err(End::Gone),
                changed = role.changed() => {
                    if changed.is_err() || !matches!(*role.borrow_and_update(), Role::Leader { .. }) {
                        return Err(End::NotLeader);
                    }
                }
                result = resolve_front(&mut self.wire), if !self.wire.is_empty() => self.handle_result(result)?,
                () = tokio::time::sleep_until(handover_at), if handover.is_some() => return Err(End::Moved),
                () = &mut moved, if handover.is_none() => handover = Some(Instant::now() + HANDOVER),
                request = self.requests.recv(), if self.takes_requests() => match request {
                    Some(request) => self.handle_request(request).await?,
                    None => return Err(End::Restart),
                },
                permit = member.outgoing().reserve(), if sendable => match permit {
                    Ok(permit) => {
                        if let Some(response) = self.next_response(next).await? {
                            permit.send(Ok(v1::SubscribeResponse { response: Some(response) }));
                        }
                    }
                    Err(_) => return Err(End::Gone),
                },
                () = member.credit.freed(wanted.unwrap_or(Wanted::Any)), if wanted.is_some() => {}
                () = tail.wait_past(index), if next == Next::Tail => {}
                // a registry outlives its streams
                Ok(()) = self.trimming.wanted.changed() => {}
                () = tokio::time::sleep(wake.unwrap_or_default()), if wake.is_some() => {}
            }
        }
    }

    /// Waits for the commits under way, answers them, and gives the partition back: what the next member must be told, if
    /// that is known.
    pub(super) async fn finish(mut self, end: End) -> Option<Leftover> {
        self.member.close_route(self.partition.id, self.lease.epoch);
        let mut known = matches!(end, End::Gone | End::Moved);
        let stalled = tokio::time::sleep(STALLED);
        tokio::pin!(stalled);
        while !self.wire.is_empty() {
            tokio::select! {
                result = resolve_front(&mut self.wire) => known &= self.handle_result(result).is_ok(),
                () = &mut stalled => {
                    known = false;
                    self.abandon();
                }
            }
        }
        self.requests.close();
        while let Some(request) = self.requests.recv().await {
            if let Request::Commit(commit) = request {
                self.answers.push_back(super::session::stale(&commit));
            }
        }
        self.member.credit.release(self.flow.given());
        if end != End::Gone {
            self.say_goodbye().await;
        }
        known.then(|| self.flow.leftover())
    }

    async fn say_goodbye(&mut self) {
        let revoked = v1::Revoked { partition: u32::from(self.partition.id.0), epoch: self.lease.epoch };
        let answers = self.answers.drain(..).map(Response::Committed);
        let last_words = async {
            for response in answers.chain([Response::Revoked(revoked)]) {
                if !self.member.send(response).await {
                    return;
                }
            }
        };
        if tokio::time::timeout(STALLED, last_words).await.is_err() {
            self.member.end(SessionEnd::Stalled);
        }
    }

    fn takes_requests(&self) -> bool {
        self.wire.len() < WIRE_MAX && self.answers.len() < WIRE_MAX
    }

    fn wake(&self, next: Next) -> Option<Duration> {
        let wake = self.flow.next_wake().map(|at| at.saturating_duration_since(now()).max(Duration::from_millis(1)));
        let look_past = matches!(next, Next::Credit(_)).then_some(LOOK_PAST);
        [wake, look_past].into_iter().flatten().min()
    }

    /// Goes over what needs no credit and says what there is to do then.
    async fn look_ahead(&mut self) -> Result<Next, End> {
        loop {
            if self.carry.is_some() {
                return Ok(Next::Deliver);
            }
            let (now, free) = (now(), self.member.credit.free());
            if self.flow.has_due(now, free) {
                return Ok(Next::Deliver);
            }
            match self.pass_over(now, free) {
                None => {}
                Some(Next::Reset) => return Err(End::Restart),
                Some(next) => return Ok(next),
            }
            match self.cursor.read_tail() {
                Ahead::Some => {}
                Ahead::End => return Ok(Next::Tail),
                Ahead::Behind => {
                    self.cursor.read_log().await.map_err(|error| self.unreadable(&error))?;
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// With such a free credit there would be something to send.
    fn wanted_credit(&mut self, next: Next) -> Option<Wanted> {
        match (next, self.flow.wanted(now())) {
            (Next::Deliver, _) => None,
            (Next::Credit(wanted), due) => Some(due.map_or(wanted, |due| due.min(wanted))),
            (Next::Full | Next::Tail | Next::Reset, due) => due,
        }
    }

    /// Takes the steps that send nothing: no matching record, or an event that must wait. Then says what there is to do; `None`: read on.
    fn pass_over(&mut self, now: std::time::Instant, free: Free) -> Option<Next> {
        while let Some(step) = self.cursor.peek() {
            match step {
                Step::Progress(offset) => self.flow.progress(*offset),
                Step::Reset => return Some(Next::Reset),
                Step::Event(_) if !self.flow.has_room() => return Some(Next::Full),
                Step::Event(event) => {
                    let arrival = event.arrival();
                    match self.flow.turn(&arrival, free) {
                        Turn::Now => return Some(Next::Deliver),
                        Turn::Credit(wanted) if arrival.opens || !is_old(event.time) => {
                            return Some(Next::Credit(wanted));
                        }
                        Turn::Behind | Turn::Credit(_) => self.flow.hold(now, &arrival),
                    }
                }
            }
            if let Some(Step::Event(held)) = self.cursor.take_step() {
                self.cursor.keep(held);
            }
        }
        None
    }

    async fn next_response(&mut self, next: Next) -> Result<Option<Response>, End> {
        if let Some(answer) = self.answers.pop_front() {
            return Ok(Some(Response::Committed(answer)));
        }
        if next != Next::Deliver {
            return Ok(None);
        }
        let events = self.next_batch().await?;
        let (partition, epoch) = (u32::from(self.partition.id.0), self.lease.epoch);
        Ok((!events.is_empty()).then_some(Response::Events(v1::Events { partition, epoch, events })))
    }

    /// Whatever is there, up to a message's bounds.
    async fn next_batch(&mut self) -> Result<Vec<v1::Event>, End> {
        let (mut events, mut bytes) = (Vec::new(), 0);
        while events.len() < BATCH_EVENTS {
            let next = match self.carry.take() {
                Some(carried) => Some(carried),
                None => self.next_event().await?,
            };
            let Some((scanned, attempt)) = next else { break };
            let size = scanned.record.bytes().len();
            if !events.is_empty() && bytes + size > BATCH_BYTES {
                self.carry = Some((scanned, attempt));
                break;
            }
            bytes += size;
            match scanned.event(attempt) {
                Some(event) => events.push(event),
                None => self.give_up(scanned.offset, "the event does not decode").await?,
            }
        }
        Ok(events)
    }

    /// The next event with its attempt, holding a credit: those that have waited first.
    async fn next_event(&mut self) -> Result<Option<(Scanned, u32)>, End> {
        while let Some(free) = self.member.credit.take() {
            let now = now();
            let Some((offset, attempt)) = self.flow.next_due(now, free) else {
                let next = self.next_new(now, free);
                self.member.credit.release(usize::from(next.is_none()));
                return Ok(next);
            };
            match self.cursor.again(offset).await {
                Ok(Some(scanned)) if self.member.caller.sees(scanned.record.api()) => {
                    return Ok(Some((scanned, attempt)));
                }
                // an earlier member of the group had it
                Ok(Some(_)) => self.give_up(offset, "the member's token is not for the event's API").await?,
                Ok(None) => self.give_up(offset, "the event is not in the log").await?,
                Err(ReadError::Trimmed { .. }) => self.give_up(offset, "retention has taken the event").await?,
                Err(error) => return Err(self.unreadable(&error)),
            }
        }
        Ok(None)
    }

    /// The next event that was never given.
    fn next_new(&mut self, now: std::time::Instant, free: Free) -> Option<(Scanned, u32)> {
        loop {
            match self.pass_over(now, free) {
                None if self.cursor.read_tail() == Ahead::Some => {}
                Some(Next::Deliver) => {
                    let Some(Step::Event(event)) = self.cursor.take_step() else { return None };
                    self.flow.give(now, &event.arrival());
                    return Some((event, 1));
                }
                _ => return None,
            }
        }
    }

    async fn handle_request(&mut self, request: Request) -> Result<(), End> {
        match request {
            Request::Extend(extend) => {
                self.flow.extend(now(), extend.offsets.into_iter().map(Offset));
                Ok(())
            }
            Request::Commit(commit) => self.handle_commit(&commit).await,
        }
    }

    fn unreadable(&self, error: &ReadError) -> End {
        tracing::error!(group = self.lease.group, partition = %self.partition.id, %error, "the log cannot be read");
        End::Unreadable
    }
}

/// Whether a record has waited long, by clocks that may differ: nothing but fairness rests on it.
fn is_old(time: Timestamp) -> bool {
    clock::now().0.saturating_sub(time.0) > LOOK_PAST.as_micros() as u64
}

/// Of a clock that nobody sets.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}
