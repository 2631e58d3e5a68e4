//! Step 13 of the walk. One partition to one member, within credit: between the tail (step 12) and the member (step 14). Lives from
//! an assignment to the next. The [`Flow`] decides; this reads, sends, and takes commits to the log (step 15).
//!
//! The way out is bounded: who does not read its stream stops being sent to, and holds up nobody else. Commits are appended in the
//! order they came and answered in that order.

use std::{collections::VecDeque, future::Future, sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::Instant};
use trunkline_proto::{Offset, Timestamp, limits, v1, v1::subscribe_response::Response};

use super::{
    commit::{self, Fate, Lease},
    cursor::{Ahead, Cursor, Scanned, Step},
    flow::{Flow, Leftover, Offer, Outcome, Proposal},
    member::{Member, Request, SessionEnd},
};
use crate::{
    append::{AppendError, Appended, Pending},
    clock,
    core::Refusal,
    metrics,
    node::{Node, PartitionHandle, ReadError, Role},
    submit,
};

/// Most events in one message.
const BATCH_EVENTS: usize = 128;
/// Most bytes of records in one message, unless a single one is larger.
const BATCH_BYTES: usize = 256 << 10;
/// Most commits of one stream on their way through the log. When full its requests wait.
const WIRE_MAX: usize = 64;
/// How long a partition that moves to another member waits for what is in flight.
const HANDOVER: Duration = Duration::from_secs(2);
/// How long a member may leave answers unread when its assignment ends.
const STALLED: Duration = Duration::from_secs(10);
/// The settled prefix is moved over records of others once they span so many entries.
const ADVANCE_ENTRIES: u64 = 1024;
/// Events past their deadline in one commit when some may have to be parked, which puts their records into it.
const EXPIRE_WITH_PARKING: usize = 16;

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

struct OnWire {
    pending: Pending,
    /// The commit's id; `None`: the broker's own.
    answer: Option<u64>,
    kinds: Vec<&'static str>,
}

/// What a look ahead says there is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    /// Something can be sent.
    Deliver,
    /// It could, with a credit.
    Credit,
    /// As much is open as may be: a commit or time must come first.
    Full,
    /// The log must grow first.
    Tail,
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
    expire_most: usize,
}

impl Stream {
    pub(super) fn new(
        node: Node,
        partition: PartitionHandle,
        member: Arc<Member>,
        lease: Lease,
        flow: Flow,
        cursor: Cursor,
    ) -> Self {
        let requests = member.open_route(partition.id, lease.epoch);
        let expire_most = if member.terms.max_attempts > 0 { EXPIRE_WITH_PARKING } else { limits::OUTCOMES_MAX };
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
            expire_most,
        }
    }

    /// Serves the member until something ends it. `moved` resolves when another member is to have the partition.
    pub(super) async fn run(&mut self, moved: impl Future<Output = ()>) -> End {
        let assigned = v1::Assigned { partition: u32::from(self.partition.id.0), epoch: self.lease.epoch };
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
            let (index, wake) = (self.cursor.index(), self.wake());
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
                () = member.credit.freed(), if next == Next::Credit => {}
                () = tail.wait_past(index), if next == Next::Tail => {}
                () = tokio::time::sleep(wake.unwrap_or_default()), if wake.is_some() => {}
            }
        }
    }

    /// Waits for the commits under way, answers them, and gives the partition back: what the next member must be told, if
    /// that is known.
    pub(super) async fn finish(mut self, end: End) -> Option<Leftover> {
        self.member.close_route(self.partition.id, self.lease.epoch);
        let mut known = matches!(end, End::Gone | End::Moved);
        while !self.wire.is_empty() {
            let result = resolve_front(&mut self.wire).await;
            known &= self.handle_result(result).is_ok();
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

    fn wake(&self) -> Option<Duration> {
        let now = clock::now();
        self.flow.next_wake().map(|at| Duration::from_micros(at.0.saturating_sub(now.0)).max(Duration::from_millis(1)))
    }

    /// Commits that the leader makes by itself: events past their deadline, and a prefix that nothing else moves.
    async fn commit_without_member(&mut self) -> Result<(), End> {
        while self.wire.len() < WIRE_MAX {
            let proposal = match self.flow.expire(clock::now(), self.expire_most) {
                Some(proposal) => proposal,
                None => match self.flow.advance(ADVANCE_ENTRIES) {
                    Some(proposal) => proposal,
                    None => return Ok(()),
                },
            };
            self.propose(proposal, &[], None, Vec::new()).await?;
        }
        Ok(())
    }

    /// Goes over what needs no credit and says what there is to do then.
    async fn look_ahead(&mut self) -> Result<Next, End> {
        loop {
            if self.carry.is_some() {
                return Ok(Next::Deliver);
            }
            let now = clock::now();
            let sendable = if self.member.credit.is_free() { Next::Deliver } else { Next::Credit };
            if self.flow.has_due(now) {
                return Ok(sendable);
            }
            self.pass_over(now);
            match self.cursor.peek() {
                Some(Step::Reset) => return Err(End::Restart),
                Some(_) if self.flow.has_room() => return Ok(sendable),
                Some(_) => return Ok(Next::Full),
                None => match self.cursor.read_tail() {
                    Ahead::Some => {}
                    Ahead::End => return Ok(Next::Tail),
                    Ahead::Behind => {
                        self.cursor.read_log().await.map_err(|error| self.unreadable(&error))?;
                        tokio::task::yield_now().await;
                    }
                },
            }
        }
    }

    /// Takes the steps that send nothing: no matching record, or an event that must wait behind another.
    fn pass_over(&mut self, now: Timestamp) {
        while let Some(step) = self.cursor.peek() {
            match step {
                Step::Progress(offset) => self.flow.progress(*offset),
                Step::Event(event) if self.flow.has_room() && self.flow.blocks(event.connection()) => {
                    let _held = self.flow.offer(now, event.offset, event.connection());
                }
                Step::Event(_) | Step::Reset => return,
            }
            self.cursor.take_step();
        }
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

    /// The next event with its attempt, holding a credit: those that are due again first.
    async fn next_event(&mut self) -> Result<Option<(Scanned, u32)>, End> {
        while self.member.credit.take() {
            let now = clock::now();
            let Some((offset, attempt)) = self.flow.next_due(now) else {
                let next = self.next_new(now);
                self.member.credit.release(usize::from(next.is_none()));
                return Ok(next);
            };
            match self.cursor.record(offset).await {
                Ok(Some(scanned)) => return Ok(Some((scanned, attempt))),
                Ok(None) => self.give_up(offset, "the event is not in the log").await?,
                Err(ReadError::Trimmed { .. }) => self.give_up(offset, "retention has taken the event").await?,
                Err(error) => return Err(self.unreadable(&error)),
            }
        }
        Ok(None)
    }

    fn next_new(&mut self, now: Timestamp) -> Option<(Scanned, u32)> {
        loop {
            self.pass_over(now);
            let step = self.cursor.peek();
            if step.is_none() {
                if self.cursor.read_tail() != Ahead::Some {
                    return None;
                }
            } else if matches!(step, Some(Step::Event(_))) && self.flow.has_room() {
                let Some(Step::Event(event)) = self.cursor.take_step() else { return None };
                if let Offer::Deliver { attempt } = self.flow.offer(now, event.offset, event.connection()) {
                    return Some((event, attempt));
                }
            } else {
                return None;
            }
        }
    }

    /// Parks an event that no member can be given.
    async fn give_up(&mut self, offset: Offset, reason: &str) -> Result<(), End> {
        tracing::warn!(group = self.lease.group, partition = %self.partition.id, %offset, reason, "event parked");
        let parked = Outcome::Parked { reason: reason.to_owned(), attempt: 0 };
        match self.flow.commit(vec![(offset, parked)]) {
            Ok(proposal) => self.propose(proposal, &[], None, Vec::new()).await,
            Err(_) => Ok(()),
        }
    }

    async fn handle_request(&mut self, request: Request) -> Result<(), End> {
        match request {
            Request::Extend(extend) => {
                self.flow.extend(clock::now(), extend.offsets.into_iter().map(Offset));
                Ok(())
            }
            Request::Commit(commit) => self.handle_commit(&commit).await,
        }
    }

    async fn handle_commit(&mut self, commit: &v1::Commit) -> Result<(), End> {
        let checked = match commit::check(commit, self.node.partition_count()) {
            Ok(checked) => checked,
            Err(status) => {
                self.answer(commit.id, status);
                return Ok(());
            }
        };
        match self.flow.commit(checked.outcomes) {
            Ok(proposal) => self.propose(proposal, &checked.commands, Some(commit.id), checked.kinds).await,
            Err(not_open) => {
                self.answer(commit.id, commit::status(v1::Code::NotOpen, not_open.to_string()));
                Ok(())
            }
        }
    }

    fn answer(&mut self, id: u64, status: v1::Status) {
        metrics::handlers::count_commit(&self.lease.group, status.code());
        self.answers.push_back(commit::refused(id, self.partition.id, status));
    }

    /// Puts a commit into the log.
    async fn propose(
        &mut self,
        proposal: Proposal,
        commands: &[trunkline_proto::Record],
        answer: Option<u64>,
        kinds: Vec<&'static str>,
    ) -> Result<(), End> {
        let parked = self.parked_records(&proposal).await?;
        let queued = match commit::batch(&self.lease, &proposal, parked, commands) {
            Ok(batch) => self.partition.append.enqueue(batch).await,
            Err(error) => Err(error),
        };
        let error = match queued {
            Ok(pending) => {
                self.wire.push_back(OnWire { pending, answer, kinds });
                return Ok(());
            }
            Err(error) => error,
        };
        self.flow.withdrawn(clock::now());
        if let Some(id) = answer {
            self.answer(id, commit::append_failed(&error));
        }
        match error {
            AppendError::TooLarge { .. } => {
                self.expire_most = 1;
                Ok(())
            }
            AppendError::Busy { .. } | AppendError::Full(_) => Ok(()),
            AppendError::NotLeader { .. } | AppendError::Closed { .. } => Err(End::NotLeader),
            AppendError::Unknown { .. } => Err(End::Restart),
        }
    }

    async fn parked_records(&self, proposal: &Proposal) -> Result<Vec<bytes::Bytes>, End> {
        let (mut records, mut bytes) = (Vec::new(), 0);
        for (offset, _) in proposal.outcomes.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Parked { .. })) {
            let scanned = match self.cursor.record(*offset).await {
                Ok(scanned) => scanned,
                Err(ReadError::Trimmed { .. }) => None,
                Err(error) => return Err(self.unreadable(&error)),
            };
            let record = scanned.map(|scanned| scanned.record.bytes().clone());
            let record = record.filter(|record| record.len() <= commit::PARKED_RECORD_BYTES_MAX).unwrap_or_default();
            bytes += record.len();
            records.push(record);
            if bytes > limits::RECORD_BYTES_MAX {
                break; // too large already: the batch will say so
            }
        }
        Ok(records)
    }

    /// The oldest commit under way has come to something.
    fn handle_result(&mut self, result: Result<Appended, AppendError>) -> Result<(), End> {
        let Some(OnWire { answer, kinds, .. }) = self.wire.pop_front() else { return Ok(()) };
        match result {
            Ok(appended) => match commit::fate(&appended) {
                Fate::Applied => {
                    let credits = self.flow.applied(appended.entry.applied.time);
                    self.member.credit.release(credits);
                    if let Some(id) = answer {
                        self.answer_applied(id, &appended, &kinds);
                    }
                    Ok(())
                }
                Fate::Refused(refusal) => self.handle_refused(&refusal, answer),
            },
            Err(error) => {
                self.flow.refused(clock::now());
                if let Some(id) = answer {
                    self.answer(id, commit::append_failed(&error));
                }
                Err(if matches!(error, AppendError::Unknown { .. }) { End::Restart } else { End::NotLeader })
            }
        }
    }

    fn answer_applied(&mut self, id: u64, appended: &Appended, kinds: &[&'static str]) {
        let result = commit::applied(id, self.partition.id, appended);
        metrics::handlers::count_commit(&self.lease.group, v1::Code::Applied);
        for (kind, command) in kinds.iter().zip(&result.commands) {
            let code = command.status.as_ref().map(v1::Status::code).unwrap_or_default();
            metrics::handlers::count_command(kind, code);
        }
        self.answers.push_back(result);
    }

    fn handle_refused(&mut self, refusal: &Refusal, answer: Option<u64>) -> Result<(), End> {
        let doomed = self.flow.refused(clock::now());
        let status = commit::refusal(refusal, doomed);
        if !doomed {
            let (group, partition, reason) = (&self.lease.group, self.partition.id, &status.message);
            tracing::warn!(group, %partition, reason, "commit refused");
        }
        if let Some(id) = answer {
            self.answer(id, status);
        }
        match refusal {
            Refusal::StaleEpoch | Refusal::NotOpen if !doomed => Err(End::Restart),
            _ => Ok(()),
        }
    }

    fn unreadable(&self, error: &ReadError) -> End {
        tracing::error!(group = self.lease.group, partition = %self.partition.id, %error, "the log cannot be read");
        End::Unreadable
    }
}

/// Waits for the oldest commit under way. Cancel safe; call with one under way.
async fn resolve_front(wire: &mut VecDeque<OnWire>) -> Result<Appended, AppendError> {
    match wire.front_mut() {
        Some(on_wire) => submit::resolve(&mut on_wire.pending).await,
        None => std::future::pending().await,
    }
}
