//! Retention, the leader's part: it decides how far each log goes back (`decide.rs`) and says so in the log, and it notes the handler
//! groups that nobody comes back to. What every replica does then is `raft/retention.rs`.

pub mod decide;
#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use trunkline_proto::{Batch, ConnectionId, Offset, Record, RecordKind, Source, Timestamp, v1};

use self::decide::{Attendance, Facts, GroupFact, Note, Trim};
pub use self::decide::{Limits, Retention};
use crate::{
    append::AppendError,
    clock,
    core::Verdict,
    handlers::Registry,
    node::{Node, PartitionHandle, Role},
};

/// How a broker retains.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// What may be kept.
    pub limits: Limits,
    /// How often that is looked at.
    pub check_every: Duration,
}

/// Looks after all of the broker's partitions until `shutdown`.
pub async fn run(node: Node, registry: Arc<Registry>, settings: Settings, shutdown: CancellationToken) {
    let mut tasks = JoinSet::new();
    for id in node.partition_count().iter() {
        let Some(partition) = node.partition(id) else { continue };
        let keeper = Keeper {
            partition: partition.clone(),
            registry: registry.clone(),
            retention: Retention(settings.limits),
            attendance: Attendance::default(),
        };
        tasks.spawn(keeper.run(settings.check_every, shutdown.clone()));
    }
    while tasks.join_next().await.is_some() {}
    // a broker without partitions of its own
    shutdown.cancelled().await;
}

/// Looks after one partition while this broker leads it.
struct Keeper {
    partition: PartitionHandle,
    registry: Arc<Registry>,
    retention: Retention,
    attendance: Attendance,
}

impl Keeper {
    async fn run(mut self, every: Duration, shutdown: CancellationToken) {
        let mut tick = tokio::time::interval(every);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while shutdown.run_until_cancelled(tick.tick()).await.is_some() {
            if !matches!(*self.partition.role.borrow(), Role::Leader { .. }) {
                // whoever leads knows who is there; this broker begins anew when it does
                self.attendance = Attendance::default();
                continue;
            }
            let looked = shutdown.run_until_cancelled(self.look()).await;
            if let Some(Err(error)) = looked {
                tracing::debug!(partition = %self.partition.id, %error, "retention waits");
            }
        }
    }

    async fn look(&mut self) -> Result<(), AppendError> {
        self.note_groups().await?;
        let (facts, now) = {
            let state = self.partition.state.read();
            (Facts::of(&state, self.partition.transfers.is_running()), now(&state))
        };
        if let Some(wanted) = self.retention.wanted(now, &facts) {
            self.registry.want(self.partition.id, Offset::end_of(wanted));
        }
        match self.retention.decide(now, &facts) {
            Some(trim) => self.trim(trim).await,
            None => Ok(()),
        }
    }

    async fn trim(&self, trim: Trim) -> Result<(), AppendError> {
        let (partition, through) = (self.partition.id, Offset::end_of(trim.through).0);
        // one record: nobody is told that events are gone which are not
        let body = v1::Trimmed { through, skipping: trim.skipping };
        let record = record(RecordKind::Trimmed, &body);
        let appended = self.partition.append.append(Batch::new(Source::Leader, &[record])).await?;
        match appended.verdict(0) {
            Verdict::Applied => {
                tracing::info!(%partition, through = %trim.through, "trimmed");
                for group in &body.skipping {
                    tracing::error!(%partition, group, through = %trim.through, "the log is full: a handler group skips what it has not settled");
                }
            }
            // a group was made or moved meanwhile, which still needs some of it
            verdict => tracing::debug!(%partition, ?verdict, "a trim was refused"),
        }
        Ok(())
    }

    async fn note_groups(&mut self) -> Result<(), AppendError> {
        let (groups, now) = {
            let state = self.partition.state.read();
            let groups = state.groups().map(|group| GroupFact {
                name: group.name.to_owned(),
                epoch: group.epoch,
                has_member: !group.member.is_empty(),
                active: group.active,
            });
            (groups.collect::<Vec<_>>(), now(&state))
        };
        let present = groups.iter().map(|group| group.name.clone());
        let present: BTreeSet<String> = present.filter(|group| !self.registry.members(group).is_empty()).collect();
        for note in self.attendance.notes(&self.retention, now, groups, &present) {
            let Some(record) = self.note(note) else { continue };
            self.partition.append.append(Batch::new(Source::Leader, &[record])).await?;
        }
        Ok(())
    }

    /// Refused by apply if a member has come meanwhile.
    fn note(&self, note: Note) -> Option<Record> {
        let partition = self.partition.id;
        match note {
            Note::Forgotten(group, epoch) => {
                tracing::warn!(%partition, group, "a handler group without members has expired and is forgotten");
                Some(record(RecordKind::GroupDropped, &v1::GroupDropped { group, epoch }))
            }
            Note::Unattended(group) => {
                let state = self.partition.state.read();
                let view = state.group(&group)?;
                let (base, epoch) = (view.through.0, view.epoch + 1);
                tracing::info!(%partition, group, "a handler group has no members");
                let nobody = v1::HandlerAssigned { group, epoch, base, through: base, ..Default::default() };
                Some(record(RecordKind::HandlerAssigned, &nobody))
            }
        }
    }
}

/// The leader's time: never before the log's.
fn now(state: &crate::core::Partition) -> Timestamp {
    clock::now().max(state.time())
}

fn record(kind: RecordKind, body: &impl prost::Message) -> Record {
    Record::new(kind, ConnectionId::NONE, "", body)
}
