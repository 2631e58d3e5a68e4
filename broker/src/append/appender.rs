//! The task behind a partition's queue: coalesces what waits into entries, stamps their time, keeps a few in flight.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Instant,
};

use tokio::sync::{mpsc, oneshot, watch};
use trunkline_proto::{Batch, EntryBuilder, Source, Timestamp};

use super::{AppendError, Appended, Bounds, Shared, Waiting};
use crate::{
    clock,
    metrics::store::{LOG_APPEND_SECONDS, LOG_BATCH_RECORDS},
    raft::{
        Group, Role,
        group::{Outcome, Proposed},
    },
};

/// Entries proposed and not applied yet. What comes meanwhile waits together and becomes the next entry: more in flight would
/// make entries smaller, not faster (costs A2).
const ENTRIES_IN_FLIGHT: usize = 8;
/// Bytes of entries proposed and not applied yet, if there is more than one.
const BYTES_IN_FLIGHT: usize = 8 << 20;
/// What settles events, moves groups and trims is appended though the log is full: nothing else makes room.
fn makes_room(batch: &Batch) -> bool {
    matches!(batch.source, Source::Commit | Source::Leader)
}

impl Waiting {
    /// Its term has ended: this broker may lead again, but what came before it may be lost.
    fn is_of_another(&self, term: u64) -> bool {
        self.term.is_some_and(|bound| bound != term)
    }
}

/// An entry proposed and not applied yet.
struct InFlight {
    outcome: Proposed,
    answers: Vec<(oneshot::Sender<Result<Appended, AppendError>>, Instant)>,
    bytes: usize,
}

/// The task that makes entries of what waits in one partition's queue.
pub(super) struct Appender {
    group: Group,
    shared: Arc<Shared>,
    role: watch::Receiver<Role>,
    batches: mpsc::Receiver<Waiting>,
    /// Taken from the queue, but too large for the entry before.
    held: Option<Waiting>,
    /// In the order of the log.
    in_flight: VecDeque<InFlight>,
    bytes_in_flight: usize,
    /// Time of the last entry.
    stamped: Timestamp,
    bounds: Bounds,
}

enum Event {
    Batch(Option<Waiting>),
    Outcome(Outcome),
    Closed,
}

impl Appender {
    pub(super) fn new(group: Group, shared: Arc<Shared>, batches: mpsc::Receiver<Waiting>, bounds: Bounds) -> Self {
        Self {
            role: group.role(),
            group,
            shared,
            batches,
            held: None,
            in_flight: VecDeque::new(),
            bytes_in_flight: 0,
            stamped: Timestamp(0),
            bounds,
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            match self.next().await {
                Event::Batch(Some(waiting)) => self.propose(waiting).await,
                Event::Outcome(outcome) => self.answer_first(outcome),
                Event::Batch(None) | Event::Closed => break,
            }
        }
        self.close();
    }

    async fn next(&mut self) -> Event {
        let room = self.in_flight.is_empty()
            || (self.in_flight.len() < ENTRIES_IN_FLIGHT && self.bytes_in_flight < BYTES_IN_FLIGHT);
        if room && let Some(held) = self.held.take() {
            return Event::Batch(Some(held));
        }
        let (in_flight, batches, role) = (&mut self.in_flight, &mut self.batches, &mut self.role);
        // outcomes first: they make room, and whoever is answered sends the next batch
        let outcome = poll_fn(|context| match in_flight.front_mut() {
            Some(first) => Pin::new(&mut first.outcome).poll(context),
            None => Poll::Pending,
        });
        tokio::select! {
            biased;
            outcome = outcome => Event::Outcome(outcome),
            _ = role.wait_for(|role| *role == Role::Closed) => Event::Closed,
            batch = batches.recv(), if room => Event::Batch(batch),
        }
    }

    /// Makes one entry of `first` and what else waits, and proposes it.
    async fn propose(&mut self, first: Waiting) {
        let role = *self.role.borrow();
        let term = match role {
            Role::Leader { term } => term,
            Role::Follower { leader } => return self.refuse(first, &AppendError::NotLeader { leader }),
            Role::Closed => return self.refuse(first, &self.shared.closed()),
        };
        if first.is_of_another(term) {
            return self.refuse(first, &AppendError::NotLeader { leader: None });
        }
        // every entry before this term is applied, and every one of this term was stamped here: time never goes back
        let (time, retained) = {
            let state = self.group.state();
            let state = state.read();
            (state.time(), state.retained_bytes() + self.bytes_in_flight as u64)
        };
        let full = self.bounds.check(retained).err();
        if let Some(full) = full.filter(|_| !makes_room(&first.batch)) {
            return self.refuse(first, &AppendError::Full(full));
        }
        self.stamped = self.stamped.max(time).max(clock::now());
        let mut builder = EntryBuilder::new(self.stamped, first.batch.weight());
        let (mut answers, mut records, mut bytes) = (Vec::new(), 0, 0);
        let mut next = Some(first);
        while let Some(waiting) = next.take() {
            if let Some(full) = full.filter(|_| !makes_room(&waiting.batch)) {
                self.refuse(waiting, &AppendError::Full(full));
                next = self.batches.try_recv().ok();
                continue;
            }
            if waiting.is_of_another(term) {
                self.refuse(waiting, &AppendError::NotLeader { leader: None });
                next = self.batches.try_recv().ok();
                continue;
            }
            if !builder.fits(&waiting.batch) {
                self.held = Some(waiting);
                break;
            }
            builder.push(&waiting.batch);
            records += u32::from(waiting.batch.count);
            bytes += waiting.batch.weight();
            answers.push((waiting.answer, waiting.since));
            next = self.batches.try_recv().ok();
        }
        self.shared.queued.fetch_sub(bytes, Ordering::Relaxed);
        metrics::histogram!(LOG_BATCH_RECORDS).record(f64::from(records));
        match self.group.propose(term, builder.finish()).await {
            Ok(outcome) => {
                self.bytes_in_flight += bytes;
                self.in_flight.push_back(InFlight { outcome, answers, bytes });
            }
            // the group did not take the message: nothing happened
            Err(_) => {
                for (answer, _) in answers {
                    let _ = answer.send(Err(self.shared.closed()));
                }
            }
        }
    }

    fn refuse(&self, waiting: Waiting, error: &AppendError) {
        self.shared.queued.fetch_sub(waiting.batch.weight(), Ordering::Relaxed);
        let _ = waiting.answer.send(Err(error.clone()));
    }

    fn answer_first(&mut self, outcome: Outcome) {
        let Some(first) = self.in_flight.pop_front() else { return };
        self.bytes_in_flight -= first.bytes;
        let latency = metrics::histogram!(LOG_APPEND_SECONDS);
        for (batch, (answer, since)) in first.answers.into_iter().enumerate() {
            let waited = since.elapsed();
            latency.record(waited.as_secs_f64());
            // whoever stopped waiting needs no answer
            let _ = answer.send(match &outcome {
                Outcome::Applied(entry) => Ok(Appended { entry: Arc::clone(entry), batch }),
                Outcome::NotLeader { leader } => Err(AppendError::NotLeader { leader: *leader }),
                Outcome::Unknown => Err(AppendError::Unknown { waited }),
            });
        }
    }

    /// The group has stopped: what was proposed is unknown unless it is answered already, what waits never happened.
    fn close(mut self) {
        self.batches.close();
        while let Some(first) = self.in_flight.front_mut() {
            let outcome = first.outcome.try_outcome().unwrap_or(Outcome::Unknown);
            self.answer_first(outcome);
        }
        let error = self.shared.closed();
        if let Some(held) = self.held.take() {
            self.refuse(held, &error);
        }
        while let Ok(waiting) = self.batches.try_recv() {
            self.refuse(waiting, &error);
        }
    }
}
