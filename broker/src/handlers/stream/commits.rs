//! The commits of a stream: what the member and the broker itself put into the log (step 15), and what comes of it.

use std::collections::VecDeque;

use trunkline_proto::{Offset, Record, limits, v1};

use super::{End, STALLED, Stream, WIRE_MAX, now};
use crate::{
    append::{AppendError, Appended, Pending},
    core::Refusal,
    handlers::{
        commit::{self, Fate},
        flow::{Outcome, Proposal},
    },
    metrics,
    node::{ReadError, Role},
    submit,
};

/// Events past their deadline in one commit when some may have to be parked, which puts their records into it.
const EXPIRE_WITH_PARKING: usize = 16;
/// The settled prefix is moved over records of others once they span so many entries.
const ADVANCE_ENTRIES: u64 = 1024;

/// A commit on its way through the log.
pub(super) struct OnWire {
    pending: Pending,
    /// The commit's id; `None`: the broker's own.
    answer: Option<u64>,
    kinds: Vec<&'static str>,
}

/// Why a commit is not in the log's queue. Nothing happened.
enum NotQueued {
    Append(AppendError),
    End(End),
}

/// How many events past their deadline go into one commit: halved when it is too large for the log, one more after each
/// that was not.
#[derive(Debug)]
pub(super) struct Expiry {
    most: usize,
    max: usize,
}

impl Expiry {
    pub(super) fn new(may_park: bool) -> Self {
        let max = if may_park { EXPIRE_WITH_PARKING } else { limits::OUTCOMES_MAX };
        Self { most: max, max }
    }

    fn most(&self) -> usize {
        self.most
    }

    fn fitted(&mut self) {
        self.most = (self.most + 1).min(self.max);
    }

    /// Whether fewer are worth a try.
    fn too_large(&mut self) -> bool {
        let fewer = self.most > 1;
        self.most = (self.most / 2).max(1);
        fewer
    }
}

impl Stream {
    /// Commits that the leader makes by itself: events past their deadline, and a prefix that nothing else moves.
    pub(super) async fn commit_without_member(&mut self) -> Result<(), End> {
        while self.wire.len() < WIRE_MAX {
            let proposal = match self.flow.expire(now(), self.expiry.most()) {
                Some(proposal) => proposal,
                None => match self.flow.advance(ADVANCE_ENTRIES, *self.trimming.wanted.borrow_and_update()) {
                    Some(proposal) => proposal,
                    None => return Ok(()),
                },
            };
            self.expire_or_advance(proposal).await?;
        }
        Ok(())
    }

    async fn expire_or_advance(&mut self, proposal: Proposal) -> Result<(), End> {
        let expires = !proposal.outcomes.is_empty();
        match self.queue(&proposal, &[]).await {
            Ok(pending) => {
                if expires {
                    self.expiry.fitted();
                }
                self.wire.push_back(OnWire { pending, answer: None, kinds: Vec::new() });
                Ok(())
            }
            Err(NotQueued::Append(AppendError::TooLarge { .. })) if self.expiry.too_large() => {
                self.flow.expired_too_many(now());
                Ok(())
            }
            Err(not_queued) => self.withdraw(not_queued, None),
        }
    }

    /// Parks an event that no member can be given.
    pub(super) async fn give_up(&mut self, offset: Offset, reason: &str) -> Result<(), End> {
        tracing::warn!(group = self.lease.group, partition = %self.partition.id, %offset, reason, "event parked");
        let parked = Outcome::Parked { reason: reason.to_owned(), attempt: 0 };
        match self.flow.commit(vec![(offset, parked)]) {
            Ok(proposal) => self.propose(proposal, &[], None, Vec::new()).await,
            Err(_) => Ok(()),
        }
    }

    pub(super) async fn handle_commit(&mut self, commit: &v1::Commit) -> Result<(), End> {
        let checked = match commit::check(commit, &self.member.caller, self.node.partition_count()) {
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
        commands: &[Record],
        answer: Option<u64>,
        kinds: Vec<&'static str>,
    ) -> Result<(), End> {
        match self.queue(&proposal, commands).await {
            Ok(pending) => {
                self.wire.push_back(OnWire { pending, answer, kinds });
                Ok(())
            }
            Err(not_queued) => self.withdraw(not_queued, answer),
        }
    }

    /// A log that stalls lets nothing into its queue: the member and the partition's role end the wait.
    async fn queue(&mut self, proposal: &Proposal, commands: &[Record]) -> Result<Pending, NotQueued> {
        let parked = self.parked_records(proposal).await.map_err(NotQueued::End)?;
        let batch = commit::batch(&self.lease, proposal, parked, commands).map_err(NotQueued::Append)?;
        let mut role = self.partition.role.clone();
        tokio::select! {
            biased;
            queued = self.partition.append.enqueue(batch) => queued.map_err(NotQueued::Append),
            () = self.member.gone.cancelled() => Err(NotQueued::End(End::Gone)),
            Ok(_) = role.wait_for(|role| !matches!(role, Role::Leader { .. })) => Err(NotQueued::End(End::NotLeader)),
        }
    }

    fn withdraw(&mut self, not_queued: NotQueued, answer: Option<u64>) -> Result<(), End> {
        self.flow.withdrawn(now());
        let error = match not_queued {
            NotQueued::Append(error) => error,
            NotQueued::End(end) => return Err(end),
        };
        if let Some(id) = answer {
            self.answer(id, commit::append_failed(&error));
        }
        match error {
            AppendError::TooLarge { .. } | AppendError::Busy { .. } | AppendError::Full(_) => Ok(()),
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
    pub(super) fn handle_result(&mut self, result: Result<Appended, AppendError>) -> Result<(), End> {
        let Some(OnWire { answer, kinds, .. }) = self.wire.pop_front() else { return Ok(()) };
        match result {
            Ok(appended) => match commit::fate(&appended) {
                Fate::Applied => {
                    let credits = self.flow.applied(now());
                    self.member.credit.release(credits);
                    if let Some(id) = answer {
                        self.answer_applied(id, &appended, &kinds);
                    }
                    Ok(())
                }
                Fate::Refused(refusal) => self.handle_refused(&refusal, answer),
            },
            Err(error) => {
                self.flow.refused(now());
                if let Some(id) = answer {
                    self.answer(id, commit::append_failed(&error));
                }
                Err(if matches!(error, AppendError::Unknown { .. }) { End::Restart } else { End::NotLeader })
            }
        }
    }

    /// The log does not answer in time: what comes of the commits under way stays unknown.
    pub(super) fn abandon(&mut self) {
        for OnWire { answer, .. } in std::mem::take(&mut self.wire) {
            if let Some(id) = answer {
                self.answer(id, commit::append_failed(&AppendError::Unknown { waited: STALLED }));
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
        let doomed = self.flow.refused(now());
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
}

/// Waits for the oldest commit under way. Cancel safe; call with one under way.
pub(super) async fn resolve_front(wire: &mut VecDeque<OnWire>) -> Result<Appended, AppendError> {
    match wire.front_mut() {
        Some(on_wire) => submit::resolve(&mut on_wire.pending).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_of_expiring_commits_recovers_from_one_that_was_too_large() {
        let mut expiry = Expiry::new(true);
        assert_eq!(expiry.most(), EXPIRE_WITH_PARKING);
        while expiry.too_large() {}
        assert_eq!(expiry.most(), 1);
        for _ in 0..2 * EXPIRE_WITH_PARKING {
            expiry.fitted();
        }
        assert_eq!(expiry.most(), EXPIRE_WITH_PARKING);
    }
}
