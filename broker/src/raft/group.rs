//! Step 6 of the walk, between `append.rs` and `raft/log_store.rs`: one partition's Raft group, and who leads it.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use openraft::{
    Config, Instant as _, Raft, RaftMetrics, ServerState, SnapshotPolicy,
    errors::{ClientWriteError, Fatal},
    impls::ProgressResponder,
    raft::ClientWriteResult,
    type_config::{alias::WatchReceiverOf, async_runtime::watch::WatchReceiver as _},
};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{oneshot, watch};
use trunkline_proto::PartitionId;

use super::{
    log_store::LogStore,
    pace::{Pace, Proposal},
    peer_client::Network,
    peers::Peers,
    state_machine::{Initial, Parts, StateMachine},
    transfer::Receiver,
    types::{CommittedLeader, EntryBytes, Member, Types},
};
use crate::{
    core::{AppliedEntry, Partition},
    metrics::store::{PARTITION_ROLE, RAFT_ELECTIONS_TOTAL},
    store::{Health, OpenError},
};

/// Milliseconds between a leader's heartbeats. One to a follower that has just answered an append is left out, so that two may be this
/// long, [`HEARTBEAT_SPARED`] and a tick (13/64 of this) apart: 661 ms, which openraft wants below [`ELECTION_MIN`].
const HEARTBEAT: u64 = 300;
const HEARTBEAT_SPARED: u64 = 300;
/// A follower asks for votes once it has heard nothing for openraft's lease, which is [`ELECTION_MAX`], and after it for a random time
/// between these two: 1.9 to 2.4 s after the last heartbeat it has heard.
const ELECTION_MIN: u64 = 700;
const ELECTION_MAX: u64 = 1200;
/// A leader whom no majority has answered for the lease is silent for so long, then tries again for as long, and so on. Otherwise one
/// that is heard and hears nothing would keep the others from electing. openraft wants at least twice the lease: theirs must end, and
/// then their random time.
const SILENCE: u64 = 4000;
/// A leader that no majority has answered for so long does not count as one: openraft refuses its proposals from then on, and others
/// may be about to elect another.
const LEASE: Duration = Duration::from_millis(ELECTION_MAX);
/// A leader that a follower has not heard for so long is none: by then an election has begun. Nor does a member count that its leader has not.
pub(super) const UNHEARD: Duration = Duration::from_millis(2 * ELECTION_MAX);
/// How often that is looked at.
const LEASE_CHECK: Duration = Duration::from_millis(250);

/// Who leads a partition, as this broker sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// This broker, and everything committed before its term is applied: effects are this broker's to carry out.
    Leader {
        /// Raft term.
        term: u64,
    },
    /// Another broker, or nobody.
    Follower {
        /// Who.
        leader: Option<u64>,
    },
    /// The group has stopped: the store failed or is damaged.
    Closed,
}

/// What a group is made of.
#[derive(Debug)]
pub struct GroupConfig {
    /// Raft id of this broker.
    pub node_id: u64,
    /// Name of the cluster.
    pub cluster: String,
    /// Its log.
    pub log: LogStore,
    /// The state to go on from.
    pub initial: Initial,
    /// What its state machine works with.
    pub parts: Parts,
    /// The other brokers.
    pub peers: Peers,
    /// Whom a group that was never started begins with. Empty: it waits until its founders form it, or a leader adds it.
    pub founders: BTreeMap<u64, Member>,
    /// Is told when the group stops.
    pub health: Health,
}

/// What became of a proposed entry.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It is committed and applied.
    Applied(Arc<AppliedEntry>),
    /// It was never appended: this broker does not lead in that term. Nothing happened.
    NotLeader {
        /// Who leads, if known.
        leader: Option<u64>,
    },
    /// It was appended and then discarded, or the group stopped: another replica may have it, and commit it.
    Unknown,
}

/// A proposed entry; resolves once it is applied, or cannot be any more. Cancel safe.
#[derive(Debug)]
pub struct Proposed {
    result: oneshot::Receiver<ClientWriteResult<Types>>,
    proposal: Proposal,
}

impl Proposed {
    /// The outcome if there is one already.
    pub fn try_outcome(&mut self) -> Option<Outcome> {
        let result = self.result.try_recv().ok()?;
        Some(self.outcome(result))
    }
}

impl Proposed {
    fn outcome(&self, result: ClientWriteResult<Types>) -> Outcome {
        let outcome = outcome(result);
        if matches!(outcome, Outcome::Applied(_)) {
            self.proposal.applied();
        }
        outcome
    }
}

impl Future for Proposed {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        let result = ready!(Pin::new(&mut self.result).poll(context));
        Poll::Ready(result.map_or(Outcome::Unknown, |result| self.outcome(result)))
    }
}

fn outcome(result: ClientWriteResult<Types>) -> Outcome {
    match result {
        Ok(response) => response.data.0.map_or(Outcome::Unknown, Outcome::Applied),
        Err(ClientWriteError::ForwardToLeader(forward)) => Outcome::NotLeader { leader: forward.leader_id },
        Err(_) => Outcome::Unknown,
    }
}

/// The group has stopped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the partition's group has stopped: {0}")]
pub struct Stopped(pub String);

/// One partition's group. Cheap to clone.
#[derive(Clone)]
pub struct Group {
    partition: PartitionId,
    raft: Raft<Types, StateMachine>,
    receiver: Receiver,
    state: Arc<RwLock<Partition>>,
    role: watch::Receiver<Role>,
    heard: Heard,
    pace: Arc<Pace>,
}

/// The brokers that this one has heard as leaders, and when last. A vote outlives the one it was given to: a follower that is cut off would
/// name its leader for ever.
#[derive(Clone, Debug, Default)]
struct Heard(Arc<Mutex<BTreeMap<u64, Instant>>>);

impl Heard {
    fn lately(&self, leader: u64) -> bool {
        self.0.lock().get(&leader).is_some_and(|at| at.elapsed() < UNHEARD)
    }
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group").field("partition", &self.partition).finish_non_exhaustive()
    }
}

impl Group {
    /// Starts the group. One that was never started begins with its founders, and a broker that is alone asks for its election
    /// at once, so that a restart is ready at once.
    pub async fn start(config: GroupConfig) -> Result<Self, OpenError> {
        let partition = config.parts.reader.partition();
        let failed = |reason: String| OpenError::Raft { partition, reason };
        let settings = settings(format!("{}/{partition}", config.cluster)).validate();
        let settings = settings.map_err(|error| failed(error.to_string()))?;
        let applied_term = config.parts.term.subscribe();
        let receiver = Receiver::new(config.parts.reader.clone(), config.parts.writer.clone());
        let floor = config.parts.floor.clone();
        let machine = StateMachine::new(config.initial, config.parts);
        let state = machine.state();
        let pace = Arc::clone(config.peers.pace());
        let (node, voted) = (config.node_id, config.log.log().term());
        let network = Network { peers: config.peers, partition, log: config.log.log().clone(), floor };
        let raft = Raft::new(node, Arc::new(settings), network, config.log, machine).await;
        let raft = raft.map_err(|error| failed(error.to_string()))?;
        if !raft.is_initialized().await.map_err(|error| failed(error.to_string()))? {
            if !config.founders.is_empty() {
                raft.initialize(config.founders).await.map_err(|error| failed(error.to_string()))?;
            }
        } else if raft.voter_ids().eq([node]) {
            raft.trigger().elect(false).await.map_err(|error| failed(error.to_string()))?;
        }
        let (roles, role) = watch::channel(Role::Follower { leader: None });
        let heard = Heard::default();
        tokio::spawn(watch_role(partition, raft.clone(), voted, applied_term, heard.clone(), roles, config.health));
        Ok(Self { partition, raft, receiver, state, role, heard, pace })
    }

    /// Which partition.
    pub fn partition(&self) -> PartitionId {
        self.partition
    }

    /// Takes its snapshots from peers.
    pub(super) fn receiver(&self) -> &Receiver {
        &self.receiver
    }

    /// Something came from a broker that leads this group.
    pub(super) fn hear(&self, leader: u64) {
        let mut heard = self.heard.0.lock();
        heard.retain(|_, at| at.elapsed() < UNHEARD);
        heard.insert(leader, Instant::now());
    }

    /// The group as openraft has it.
    pub(super) fn raft(&self) -> &Raft<Types, StateMachine> {
        &self.raft
    }

    /// Its state.
    pub fn state(&self) -> Arc<RwLock<Partition>> {
        Arc::clone(&self.state)
    }

    /// Who leads it.
    pub fn role(&self) -> watch::Receiver<Role> {
        self.role.clone()
    }

    /// Proposes an entry, to be appended only if this broker leads in `term`. Entries are appended in the order of calls.
    pub async fn propose(&self, term: u64, entry: Bytes) -> Result<Proposed, Stopped> {
        let (responder, result) = ProgressResponder::complete_only();
        let proposal = self.pace.proposed(entry.len() + super::log_cache::ENTRY_OVERHEAD);
        let write = self.raft.write(EntryBytes(entry)).with_leader(CommittedLeader::new(term)).responder(responder);
        match write.await {
            Ok(()) => Ok(Proposed { result, proposal }),
            Err(error) => Err(Stopped(error.to_string())),
        }
    }

    /// Stops the group; what was not applied by then is unknown to who proposed it.
    pub async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::error!(partition = %self.partition, %error, "the group did not stop cleanly");
        }
    }
}

fn settings(cluster: String) -> Config {
    Config {
        cluster_name: cluster,
        heartbeat_interval: HEARTBEAT,
        heartbeat_min_interval: Some(HEARTBEAT_SPARED),
        election_timeout_min: ELECTION_MIN,
        election_timeout_max: ELECTION_MAX,
        quorum_loss_probe_interval: Some(SILENCE),
        // a follower whose disk lied about a sync, or that was put back to an older copy, lacks what it acknowledged. It is closed if
        // anybody knows (witness.rs). If nobody does, without this its leader would offer it the same append for ever; what it lost is
        // in doubt until it is sent again, so that is at once, and the client says it in the log. One with another disk is no follower
        // at all
        allow_log_reversion: Some(true),
        enable_pre_vote: Some(true),
        // state is rebuilt by replay: a leader that restores itself could serve an older one
        enable_leader_restore: Some(false),
        install_snapshot_timeout: 30_000,
        max_payload_entries: 1024,
        // snapshots are ours (snapshotter.rs), and what is deleted is decided by retention
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        ..Config::default()
    }
}

/// Whether a majority has heard this leader lately: otherwise another one may have been elected, and what this one knows may be old.
fn has_lease(metrics: &WatchReceiverOf<Types, RaftMetrics<Types>>) -> bool {
    let metrics = metrics.borrow_watched();
    let alone = metrics.membership_config.membership().voter_ids().eq([metrics.id]);
    alone || metrics.last_quorum_acked.as_ref().is_some_and(|acked| acked.elapsed() < LEASE)
}

/// Turns openraft's view into roles until the group stops, and says so then: a fatal storage error is never a silent restart.
async fn watch_role(
    partition: PartitionId,
    raft: Raft<Types, StateMachine>,
    mut term: u64,
    mut applied_term: watch::Receiver<u64>,
    heard: Heard,
    roles: watch::Sender<Role>,
    health: Health,
) {
    let mut server = raft.server_metrics();
    // the group's own handle must not be what keeps it alive
    let metrics = raft.metrics();
    let node = *raft.node_id();
    drop(raft);
    let mut lease = tokio::time::interval(LEASE_CHECK);
    lease.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let gauge = metrics::gauge!(PARTITION_ROLE, "partition" => partition.to_string());
    loop {
        let applied = *applied_term.borrow_and_update();
        let (vote, state, leader) = {
            let view = server.borrow_and_update();
            (view.vote, view.state, view.current_leader)
        };
        if vote.leader_id.term > term {
            term = vote.leader_id.term;
            metrics::counter!(RAFT_ELECTIONS_TOTAL).increment(1);
        }
        let role = match state {
            ServerState::Leader if applied == vote.leader_id.term && has_lease(&metrics) => {
                Role::Leader { term: applied }
            }
            ServerState::Shutdown => break,
            // a leader that has not caught up yet, or that a majority does not hear, is nobody's leader
            _ => Role::Follower { leader: leader.filter(|leader| *leader != node && heard.lately(*leader)) },
        };
        gauge.set(if matches!(role, Role::Leader { .. }) { 2.0 } else { 1.0 });
        roles.send_if_modified(|last| std::mem::replace(last, role) != role);
        let ended = tokio::select! {
            changed = server.changed() => changed.is_err(),
            changed = applied_term.changed() => changed.is_err(),
            _ = lease.tick() => false,
        };
        if ended {
            break;
        }
    }
    gauge.set(0.0);
    let running = metrics.borrow_watched().running_state.clone();
    match running {
        Err(Fatal::Stopped) | Ok(()) => {}
        Err(error) => health.damage(partition, &format!("partition {partition}: {error}")),
    }
    // whoever sees it closed asks health why
    roles.send_replace(Role::Closed);
}
