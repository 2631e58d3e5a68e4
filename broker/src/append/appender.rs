//! The task behind a partition's queue: proposes the entries that the assembler makes of what waits, and answers each batch.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Instant,
};

use tokio::sync::{mpsc, oneshot, watch};

use super::{
    AppendError, Appended, Bounds, Shared, Waiting,
    assembler::{Assembled, Assembler, Offered},
};
use crate::{
    clock,
    metrics::store::{LOG_APPEND_SECONDS, LOG_BATCH_RECORDS},
    raft::{
        Group, Role,
        group::{Outcome, Proposed},
    },
};

/// An entry proposed and not applied yet.
struct InFlight {
    outcome: Proposed,
    answers: Vec<(oneshot::Sender<Result<Appended, AppendError>>, Instant)>,
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
    assembler: Assembler,
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
            assembler: Assembler::default(),
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
        let room = self.assembler.has_room();
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
        let (time, retained) = {
            let state = self.group.state();
            let state = state.read();
            (state.time(), state.retained_bytes() + self.assembler.bytes_in_flight() as u64)
        };
        let full = self.bounds.check(retained).err();
        let times = (time, clock::now());
        let mut assembly = self.assembler.begin(term, times, full.is_some(), first.batch.weight());
        let mut answers = Vec::new();
        let mut next = Some(first);
        while let Some(waiting) = next.take() {
            match (assembly.offer(&waiting.batch, waiting.term), full) {
                (Offered::Taken, _) => answers.push((waiting.answer, waiting.since)),
                (Offered::Held, _) => {
                    self.held = Some(waiting);
                    break;
                }
                (Offered::Full, Some(full)) => self.refuse(waiting, &AppendError::Full(full)),
                (Offered::OtherTerm | Offered::Full, _) => {
                    self.refuse(waiting, &AppendError::NotLeader { leader: None });
                }
            }
            next = self.batches.try_recv().ok();
        }
        let Some(Assembled { entry, records, bytes }) = assembly.finish() else { return };
        self.shared.queued.fetch_sub(bytes, Ordering::Relaxed);
        metrics::histogram!(LOG_BATCH_RECORDS).record(f64::from(records));
        match self.group.propose(term, entry).await {
            Ok(outcome) => {
                self.assembler.proposed(bytes);
                self.in_flight.push_back(InFlight { outcome, answers });
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
        self.assembler.answered();
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
