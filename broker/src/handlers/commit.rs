//! Step 15 of the walk: validate a commit, make its batch, and say what it came to. Between step 14 (the member) and steps 5 to
//! 12 again. The batch holds one `HandlerCommitted` and the commands after it: they are applied together or not at all.

use std::time::Duration;

use bytes::Bytes;
use trunkline_proto::{Batch, Offset, PartitionCount, PartitionId, Record, RecordKind, Source, limits, v1};

use super::flow::{Hole, Outcome, Proposal};
use crate::{
    access,
    append::{AppendError, Appended},
    commands::{self, Caller},
    core::{Refusal, Verdict},
    submit,
};

/// Longest delay of a refused outcome.
pub const DELAY_MAX: Duration = Duration::from_secs(24 * 3600);
/// Longest reason of a parked outcome, in bytes; longer ones are cut.
pub const PARK_REASON_BYTES_MAX: usize = 1024;

/// Largest record that is kept with a dead letter, in bytes: it stands inside another record, with reasons and holes. Of a larger
/// one only its offset is kept.
pub const PARKED_RECORD_BYTES_MAX: usize = limits::RECORD_BYTES_MAX - (1 << 20);

/// A commit whose form is right.
#[derive(Debug)]
pub struct Checked {
    /// As the member says.
    pub outcomes: Vec<(Offset, Outcome)>,
    /// The commands' records.
    pub commands: Vec<Record>,
    /// What metrics call them.
    pub kinds: Vec<&'static str>,
}

/// Checks everything that needs no state. Commands are bound to what `who` may command.
pub fn check(commit: &v1::Commit, who: &access::Caller, count: PartitionCount) -> Result<Checked, v1::Status> {
    let invalid = |message: String| status(v1::Code::Invalid, message);
    if commit.outcomes.len() > limits::OUTCOMES_MAX {
        let (sent, limit) = (commit.outcomes.len(), limits::OUTCOMES_MAX);
        return Err(invalid(format!("{sent} outcomes; a commit has at most {limit}")));
    }
    if commit.commands.len() > limits::COMMANDS_MAX {
        let (sent, limit) = (commit.commands.len(), limits::COMMANDS_MAX);
        return Err(invalid(format!("{sent} commands; a commit has at most {limit}")));
    }
    if commit.outcomes.is_empty() {
        return Err(invalid(
            "a commit settles at least one event: commands that settle none go through Submit".to_owned(),
        ));
    }
    let outcomes = commit.outcomes.iter().map(|outcome| check_outcome(outcome).map_err(&invalid));
    let outcomes = outcomes.collect::<Result<_, _>>()?;
    let mut records = Vec::with_capacity(commit.commands.len());
    let mut bytes = 0;
    for (n, command) in commit.commands.iter().enumerate() {
        let encoded = commands::encode(command, Caller::Commit, who, count)
            .map_err(|error| status(error.code(), format!("command {n}: {error}")))?;
        bytes += encoded.record.bytes().len();
        records.push(encoded.record);
    }
    if bytes > limits::RECORD_BYTES_MAX {
        let limit = limits::RECORD_BYTES_MAX;
        return Err(status(
            v1::Code::TooLarge,
            format!("the commands have {bytes} bytes; at most {limit} are allowed"),
        ));
    }
    let kinds = commit.commands.iter().map(commands::kind_name).collect();
    Ok(Checked { outcomes, commands: records, kinds })
}

fn check_outcome(outcome: &v1::Outcome) -> Result<(Offset, Outcome), String> {
    use v1::outcome::Verdict as Body;
    let verdict = match &outcome.verdict {
        Some(Body::Acknowledged(_)) => Outcome::Acknowledged,
        Some(Body::Refused(refused)) => {
            let delay = Duration::from_millis(u64::from(refused.delay_ms));
            if delay > DELAY_MAX {
                return Err(format!("a delay is at most {DELAY_MAX:?}"));
            }
            Outcome::Refused { delay, released: refused.released }
        }
        Some(Body::Parked(parked)) => {
            let mut reason = parked.reason.clone();
            reason.truncate(reason.floor_char_boundary(PARK_REASON_BYTES_MAX));
            Outcome::Parked { reason, attempt: 0 }
        }
        None => return Err(format!("the outcome of {} says nothing", Offset(outcome.offset))),
    };
    Ok((Offset(outcome.offset), verdict))
}

/// Who commits.
#[derive(Clone, Debug)]
pub struct Lease {
    /// The group.
    pub group: String,
    /// The member.
    pub member: String,
    /// Of the assignment.
    pub epoch: u64,
}

/// The batch of a proposal. `parked` gives the bytes of the records that the proposal parks, in its order.
///
/// # Errors
/// Too large when the parked records do not fit one record.
pub fn batch(
    lease: &Lease,
    proposal: &Proposal,
    parked: Vec<Bytes>,
    commands: &[Record],
) -> Result<Batch, AppendError> {
    let mut parked = parked.into_iter();
    let outcomes = proposal.outcomes.iter().map(|(offset, outcome)| {
        let verdict = match outcome {
            Outcome::Acknowledged => v1::outcome::Verdict::Acknowledged(v1::Acknowledged {}),
            Outcome::Refused { delay, released } => v1::outcome::Verdict::Refused(v1::Refused {
                delay_ms: u32::try_from(delay.as_millis()).unwrap_or(u32::MAX),
                released: *released,
            }),
            Outcome::Parked { reason, attempt } => v1::outcome::Verdict::Parked(v1::Parked {
                reason: reason.clone(),
                record: parked.next().unwrap_or_default(),
                attempt: *attempt,
            }),
        };
        v1::Outcome { offset: offset.0, verdict: Some(verdict) }
    });
    let committed = v1::HandlerCommitted {
        group: lease.group.clone(),
        member: lease.member.clone(),
        epoch: lease.epoch,
        base: proposal.base.0,
        through: proposal.through.0,
        outcomes: outcomes.collect(),
        holes: proposal.holes.iter().map(hole).collect(),
        commands: u32::try_from(commands.len()).unwrap_or(u32::MAX),
    };
    let head = Record::new(RecordKind::HandlerCommitted, Default::default(), "", &committed);
    let (bytes, limit) = (head.bytes().len(), limits::RECORD_BYTES_MAX);
    if bytes > limit {
        return Err(AppendError::TooLarge { bytes, limit });
    }
    let mut records = Vec::with_capacity(1 + commands.len());
    records.push(head);
    records.extend_from_slice(commands);
    Ok(Batch::new(Source::Commit, &records))
}

/// A hole as records hold it.
pub fn hole(hole: &Hole) -> v1::Hole {
    v1::Hole { offset: hole.offset.0, attempt: hole.attempt, not_before: 0 }
}

/// What a commit came to, once its entry is applied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fate {
    /// All of it.
    Applied,
    /// None of it.
    Refused(Refusal),
}

/// The verdict on the commit as a whole.
pub fn fate(appended: &Appended) -> Fate {
    match appended.verdict(0) {
        Verdict::Applied | Verdict::Forwarded(_) => Fate::Applied,
        Verdict::Refused(refusal) => Fate::Refused(refusal),
    }
}

/// The answer to a commit that was applied.
pub fn applied(id: u64, partition: PartitionId, appended: &Appended) -> v1::CommitResult {
    let commands = 1..appended.outcome().count;
    v1::CommitResult {
        id,
        partition: u32::from(partition.0),
        status: Some(status(v1::Code::Applied, String::new())),
        offset: appended.offset(0).0,
        commands: commands.map(|n| submit::result(partition, appended, n)).collect(),
    }
}

/// The answer to one that was not.
pub fn refused(id: u64, partition: PartitionId, status: v1::Status) -> v1::CommitResult {
    v1::CommitResult { id, partition: u32::from(partition.0), status: Some(status), ..Default::default() }
}

/// What a refusal by the state means to the member. `doomed`: a commit before it was refused, so this one had to be.
pub fn refusal(refusal: &Refusal, doomed: bool) -> v1::Status {
    let (code, message) = match refusal {
        _ if doomed => (v1::Code::Throttled, "a commit before this one was refused; nothing happened, commit again"),
        Refusal::StaleEpoch => (v1::Code::StaleEpoch, "the partition belongs to another assignment now"),
        Refusal::NotOpen => (v1::Code::NotOpen, "the group was moved, or an event is settled already"),
        Refusal::Limit => (v1::Code::Throttled, "the group has as many parked or open events as it may have"),
        other => return submit::refusal_status(other),
    };
    status(code, message.to_owned())
}

/// What a failed append means to the member.
pub fn append_failed(error: &AppendError) -> v1::Status {
    submit::append_failed(error)
}

/// A status.
pub fn status(code: v1::Code, message: String) -> v1::Status {
    v1::Status { code: code.into(), message }
}
