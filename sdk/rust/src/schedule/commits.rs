//! Which outcomes go into which commit, and what its answer means for the lanes.

use std::time::{Duration, Instant};

use trunkline_proto::{ConnectionId, limits, v1};

use super::{Assignment, InFlight, Schedule, refuse_delay};
use crate::{backoff::exponential, lane::Settled};

/// Bytes a commit's outcomes and commands may have together, unless one event's alone are more: with the records' headers it
/// stays about one log entry.
pub(super) const COMMIT_BYTES_MAX: usize = limits::ENTRY_BYTES_MAX - (64 << 10);
/// First and longest wait before a commit that nothing came of is sent again.
const COMMIT_RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

impl Schedule {
    pub(super) fn next_commit(&mut self, now: Instant) -> Option<v1::Commit> {
        let last = self.last_served;
        let may = |(_, assignment): &(&u32, &Assignment)| assignment.may_commit(now);
        let (&partition, _) = self
            .partitions
            .range(last.saturating_add(1)..)
            .find(may)
            .or_else(|| self.partitions.range(..=last).find(may))?;
        self.last_served = partition;
        let settled = self.collect(partition);
        if settled.is_empty() {
            return None;
        }
        let epoch = self.partitions.get(&partition)?.epoch;
        let id = self.number();
        let mut commit = v1::Commit { id, partition, epoch, outcomes: Vec::new(), commands: Vec::new() };
        for (_, settled) in &settled {
            commit.outcomes.push(v1::Outcome { offset: settled.offset, verdict: Some(settled.verdict.clone()) });
            commit.commands.extend(settled.commands.iter().cloned());
        }
        self.in_flight.insert(id, InFlight { partition, settled });
        Some(commit)
    }

    /// Takes what fits one commit from the lanes whose turn it is.
    fn collect(&mut self, partition: u32) -> Vec<(ConnectionId, Settled)> {
        let mut taken = Vec::new();
        let (mut commands, mut bytes) = (0, 0);
        let Some(assignment) = self.partitions.get_mut(&partition) else { return taken };
        while let Some(connection) = assignment.sendable.front().copied() {
            let Some(lane) = self.lanes.get_mut(&(partition, connection)) else {
                assignment.sendable.pop_front();
                continue;
            };
            if lane.settled.is_empty() {
                assignment.sendable.pop_front();
                lane.listed = false;
                continue;
            }
            if lane.alone && !taken.is_empty() {
                return taken; // next time
            }
            while let Some(next) = lane.settled.front() {
                let fits = taken.len() < limits::OUTCOMES_MAX
                    && commands + next.commands.len() <= limits::COMMANDS_MAX
                    && bytes + next.bytes <= COMMIT_BYTES_MAX;
                if !taken.is_empty() && (!fits || lane.alone) {
                    break;
                }
                commands += next.commands.len();
                bytes += next.bytes;
                lane.committing += 1;
                taken.extend(lane.settled.pop_front().map(|settled| (connection, settled)));
            }
            if lane.committing == 0 {
                return taken; // full before this lane's first: it stays in front
            }
            assignment.sendable.pop_front();
            lane.listed = false;
            if lane.alone || !lane.settled.is_empty() {
                return taken;
            }
        }
        taken
    }

    pub(super) fn settle(&mut self, now: Instant, commit: InFlight) {
        let partition = commit.partition;
        if let Some(assignment) = self.partitions.get_mut(&partition) {
            (assignment.failures, assignment.pause_until) = (0, None);
        }
        for (connection, settled) in commit.settled {
            let key = (partition, connection);
            self.held = self.held.saturating_sub(1);
            let Some(lane) = self.lanes.get_mut(&key) else { continue };
            lane.committing = lane.committing.saturating_sub(1);
            if lane.refused == Some(settled.offset) {
                lane.refused = None;
            }
            lane.alone &= !lane.settled.is_empty();
            self.list(key);
            self.drop_if_idle(key);
        }
        if self.held == 0 {
            self.next_extend = None;
        } else {
            self.next_extend.get_or_insert(now + self.bounds.extend_every);
        }
    }

    /// Puts a commit's outcomes back where they came from.
    pub(super) fn send_again(&mut self, now: Instant, commit: InFlight, alone: bool) {
        if let Some(assignment) = self.partitions.get_mut(&commit.partition).filter(|_| !alone) {
            let pause = exponential(COMMIT_RETRY.0, COMMIT_RETRY.1, assignment.failures);
            assignment.failures = assignment.failures.saturating_add(1);
            assignment.pause_until = Some(now + pause);
        }
        for (connection, settled) in commit.settled.into_iter().rev() {
            let key = (commit.partition, connection);
            if let Some(lane) = self.lanes.get_mut(&key) {
                lane.committing = lane.committing.saturating_sub(1);
                lane.alone |= alone;
                lane.settled.push_front(settled);
                self.list(key);
            }
        }
    }

    /// What its lane holds after the one event of this commit.
    pub(super) fn give_back_later(&mut self, commit: &InFlight) {
        let Some((connection, _)) = commit.settled.first() else { return };
        let Some(lane) = self.lanes.get_mut(&(commit.partition, *connection)) else { return };
        for later in &mut lane.settled {
            *later = Settled::released(later.offset, later.attempt, later.since);
        }
        match lane.running.and_then(|id| self.running.get_mut(&id)) {
            // in order: what is queued goes back behind it
            Some(running) => running.given_back = true,
            None => lane.release(),
        }
    }

    /// The one outcome of this commit cannot be taken as it is: it becomes a refusal without commands, once.
    pub(super) fn refuse_malformed(&mut self, now: Instant, mut commit: InFlight) {
        let key = match commit.settled.first() {
            Some((connection, settled)) if !matches!(settled.verdict, v1::outcome::Verdict::Refused(_)) => {
                (commit.partition, *connection)
            }
            _ => return self.settle(now, commit),
        };
        for (_, settled) in &mut commit.settled {
            *settled = Settled::refused(settled.offset, settled.attempt, settled.since, refuse_delay(settled.attempt));
            if let Some(lane) = self.lanes.get_mut(&key) {
                lane.refused = Some(settled.offset);
                for later in &mut lane.settled {
                    *later = Settled::released(later.offset, later.attempt, later.since);
                }
                lane.release();
            }
        }
        self.send_again(now, commit, false);
    }
}
