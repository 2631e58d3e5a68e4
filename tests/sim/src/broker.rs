//! A broker: a replica of every partition, and one disk under them all that loses what it has not synced.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use trunkline_broker::{
    core::{AppliedEntry, LoggedEntry, Partition},
    link::grace::Incarnation,
};
use trunkline_proto::{Batch, Entry, LogIndex, PartitionId, Record, RecordKind, Source, v1};

use crate::{
    Time,
    context::Context,
    delivery::View,
    edge::edge_name,
    leader::{Answer, Leading},
    millis,
    net::{Body, Node},
    oracle::Invariant,
    raft::{After, Install, Message, Out, Raft, Write},
    sabotage,
    stored::{Kept, Stored},
};

#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) raft: Raft,
    pub(crate) state: Partition,
    kept: Kept,
    /// What is before this has left the tail.
    tail: u64,
    leading: Option<Leading>,
}

#[derive(Debug)]
pub(crate) struct Broker {
    id: u8,
    /// None while it is down.
    pub(crate) replicas: Vec<Replica>,
    pub(crate) stored: Vec<Stored>,
    /// Written, not synced.
    writes: VecDeque<(PartitionId, Write)>,
    /// How many of them the sync under way takes along.
    syncing: usize,
    /// That sync's number.
    sync: Option<u64>,
    /// When edges and members were last heard.
    edges: BTreeMap<Incarnation, Time>,
    members: BTreeMap<u8, Time>,
}

impl Broker {
    pub(crate) fn new(id: u8, context: &mut Context) -> Self {
        let stored = context.partitions().map(|_| Stored::default()).collect();
        let mut broker = Self {
            id,
            replicas: Vec::new(),
            stored,
            writes: VecDeque::new(),
            syncing: 0,
            sync: None,
            edges: BTreeMap::new(),
            members: BTreeMap::new(),
        };
        broker.start(context);
        broker
    }

    pub(crate) fn is_up(&self) -> bool {
        !self.replicas.is_empty()
    }

    pub(crate) fn start(&mut self, context: &mut Context) {
        let (id, count) = (self.id, context.count);
        for (partition, stored) in count.iter().zip(&self.stored) {
            let mut replica = Replica {
                raft: Raft::new(id, &stored.durable, 0, context.now, &mut context.random),
                state: Partition::new(partition, count),
                kept: Kept::default(),
                tail: 1,
                leading: None,
            };
            if let Some(snapshot) = stored.newest() {
                match Partition::decode(&snapshot.state) {
                    Ok(state) => replica.state = state,
                    Err(error) => context.oracle.fail(Invariant::SameState, format!("a snapshot: {error}")),
                }
                replica.kept = snapshot.kept.clone();
                replica.raft.commit = snapshot.index;
                replica.tail = snapshot.index + 1;
            }
            self.replicas.push(replica);
        }
    }

    /// The power goes: of what is not synced, some beginning may be on disk.
    pub(crate) fn crash(&mut self, context: &mut Context) {
        let kept = context.random.below(self.writes.len() as u64 + 1) as usize;
        let kept = if context.random.chance(500) { 0 } else { kept };
        for (partition, write) in self.writes.drain(..).take(kept) {
            self.stored[usize::from(partition.0)].write(&write);
        }
        self.writes.clear();
        self.replicas.clear();
        self.edges.clear();
        self.members.clear();
        (self.syncing, self.sync) = (0, None);
    }

    fn write(&mut self, context: &mut Context, partition: PartitionId, write: Write) {
        if !context.rules.sync_before_ack {
            let after = write.after.clone();
            self.writes.push_back((partition, Write { after: After::Nothing, ..write }));
            self.follow(context, partition, after);
        } else {
            self.writes.push_back((partition, write));
        }
        self.begin_sync(context);
    }

    fn begin_sync(&mut self, context: &mut Context) {
        if self.sync.is_none() && !self.writes.is_empty() {
            let slow = context.random.chance(20) && !context.healed;
            let longest = if slow { millis(400) } else { context.options.sync };
            self.syncing = self.writes.len();
            let (at, sync) = (context.now + context.random.range(200, longest), context.serial());
            self.sync = Some(sync);
            context.syncs.push((at, self.id, sync));
        }
    }

    /// A sync is done: what it took along is durable, and what waited for that follows. One of an earlier life does not count.
    pub(crate) fn synced(&mut self, context: &mut Context, sync: u64) {
        if self.sync.take_if(|under_way| *under_way == sync).is_none() {
            return;
        }
        for _ in 0..std::mem::take(&mut self.syncing) {
            let Some((partition, write)) = self.writes.pop_front() else { break };
            self.stored[usize::from(partition.0)].write(&write);
            self.follow(context, partition, write.after);
        }
        self.begin_sync(context);
        for partition in context.partitions() {
            self.step(context, partition);
        }
    }

    fn follow(&mut self, context: &mut Context, partition: PartitionId, after: After) {
        let from = Node::Broker(self.id);
        match after {
            After::Nothing => {}
            After::Send(to, message) => context.send(from, Node::Broker(to), Body::Raft(partition, message)),
            After::SendAll(message) => {
                for to in (0..crate::raft::BROKERS).filter(|to| *to != self.id) {
                    context.send(from, Node::Broker(to), Body::Raft(partition, message.clone()));
                }
            }
            After::Matched { term, last } => {
                if let Some(replica) = self.replicas.get_mut(usize::from(partition.0)) {
                    replica.raft.matched(term, last);
                }
            }
        }
    }

    fn carry_out(&mut self, context: &mut Context, partition: PartitionId, out: Out) {
        for write in out.writes {
            self.write(context, partition, write);
        }
        for (to, message) in out.messages {
            context.send(Node::Broker(self.id), Node::Broker(to), Body::Raft(partition, message));
        }
        for (to, term) in out.lagging {
            let Some(snapshot) = self.stored[usize::from(partition.0)].for_peers() else { continue };
            let message = Message::Install { term, snapshot };
            context.send(Node::Broker(self.id), Node::Broker(to), Body::Raft(partition, message));
        }
        if let Some(snapshot) = out.install {
            self.replicas[usize::from(partition.0)].install(context, self.id, &snapshot);
        }
    }

    pub(crate) fn tick(&mut self, context: &mut Context) {
        for partition in context.partitions() {
            let mut out = Out::default();
            let replica = &mut self.replicas[usize::from(partition.0)];
            replica.raft.tick(context.now, &mut context.random, &mut out);
            if context.random.chance(20) {
                let applied = replica.kept.last();
                replica.tail = replica.tail.max((applied + 1).saturating_sub(context.random.below(12)));
            }
            self.carry_out(context, partition, out);
            if context.random.chance(10) {
                self.snapshot(context, partition);
            }
            if context.random.chance(100) {
                self.trim(context, partition);
            }
            self.step(context, partition);
        }
    }

    fn snapshot(&mut self, context: &mut Context, partition: PartitionId) {
        let at = usize::from(partition.0);
        let (replica, stored) = (&self.replicas[at], &mut self.stored[at]);
        if stored.snapshot(&replica.raft.log, &replica.state, &replica.kept) {
            context.oracle.count("snapshots");
        }
    }

    /// Lets go of what may go, by what the state says.
    fn trim(&mut self, context: &mut Context, partition: PartitionId) {
        let at = usize::from(partition.0);
        let (replica, stored) = (&mut self.replicas[at], &mut self.stored[at]);
        let through = replica.state.first_retained().0.saturating_sub(1);
        if through <= replica.raft.log.purged() {
            return;
        }
        let fresh = Partition::new(partition, context.count);
        let log = &replica.raft.log;
        if let Some(state) = stored.trim(context.rules, log, fresh, &replica.kept, through) {
            context.oracle.count("trims");
            context.oracle.restored(partition, through, &state);
            replica.raft.log.purge(log.term_at(through), through);
            replica.kept.trim(through);
            replica.tail = replica.tail.max(through + 1);
        }
    }

    /// Applies what is committed and does what there is to do for a partition.
    fn step(&mut self, context: &mut Context, partition: PartitionId) {
        let (id, at) = (self.id, usize::from(partition.0));
        let leaders: Vec<Option<u8>> = self.replicas.iter().map(|replica| replica.raft.leader).collect();
        let Some(replica) = self.replicas.get_mut(at) else { return };
        replica.check_role(context, id);
        replica.apply(context, id);
        let Replica { raft, state, kept, tail, leading } = replica;
        let Some(leading) = leading else { return };
        let view = View { broker: id, state, kept, tail: *tail };
        if leading.ready {
            leading.watch(context, view, &self.edges);
            if let Some(batch) = leading.forwarder.pump(context, view, &leaders) {
                leading.append(batch, Answer::Nothing);
            }
            for (batch, answer) in leading.worker.pump(context, view, &self.members) {
                leading.append(batch, answer);
            }
            leading.retain(context, view);
            leading.serve_edges(context, view);
        }
        let mut out = Out::default();
        while let Some((assembled, answers)) = leading.next_entry(context, view) {
            if let Some(index) = raft.propose(context.now, Some(assembled.entry), &mut out) {
                leading.proposed(index, assembled.bytes, answers);
            }
        }
        if !leading.is_bounded() {
            context.oracle.fail(Invariant::Bounded, format!("a queue of broker {id}, partition {partition}"));
        }
        self.carry_out(context, partition, out);
    }

    /// What it leads of a partition, if it may serve it.
    fn leading(&mut self, partition: PartitionId) -> Option<(&mut Leading, View<'_>)> {
        let broker = self.id;
        let Replica { state, kept, tail, leading, .. } = self.replicas.get_mut(usize::from(partition.0))?;
        let leading = leading.as_mut().filter(|leading| leading.ready)?;
        Some((leading, View { broker, state, kept, tail: *tail }))
    }

    pub(crate) fn receive(&mut self, context: &mut Context, from: Node, body: Body) {
        let me = Node::Broker(self.id);
        let partition = match body {
            Body::Raft(partition, message) => {
                let Node::Broker(from) = from else { return };
                let mut out = Out::default();
                let replica = &mut self.replicas[usize::from(partition.0)];
                replica.raft.receive(context.now, from, message, &mut context.random, &mut out);
                self.carry_out(context, partition, out);
                partition
            }
            Body::Grant { edge, nonce } => {
                let Some((leading, _)) = self.leading(PartitionId(0)) else { return };
                let nonce_bytes = Bytes::copy_from_slice(&nonce.to_le_bytes());
                let body = v1::EdgeAttached { edge: edge_name(edge), incarnation: 0, nonce: nonce_bytes };
                let record = Record::new(RecordKind::EdgeAttached, Default::default(), "", &body);
                leading.append(Batch::new(Source::Leader, &[record]), Answer::Grant { edge, nonce });
                PartitionId(0)
            }
            Body::Ping { edge, incarnation } => {
                self.edges.insert(Incarnation { edge: edge_name(edge), number: incarnation }, context.now);
                return;
            }
            Body::MemberPing { member } => {
                self.members.insert(member, context.now);
                return;
            }
            Body::Attach { partition, edge, incarnation, stream, after } => {
                let Some((leading, view)) = self.leading(partition) else { return };
                leading.attach(context, view, (edge, incarnation, stream, after));
                partition
            }
            Body::Batch { partition, edge, stream, batch } => {
                let Some((leading, _)) = self.leading(partition) else { return };
                leading.batch(edge, stream, batch);
                partition
            }
            Body::Commit { commit } => {
                let partition = PartitionId(commit.partition as u16);
                let Some((leading, view)) = self.leading(partition) else { return };
                if let Some((batch, answer)) = leading.worker.commit(context, view, &commit) {
                    leading.append(batch, answer);
                }
                partition
            }
            Body::Submit { partition, id, batch } => {
                let Some((leading, _)) = self.leading(partition) else { return };
                leading.append(batch, Answer::Submit { id });
                partition
            }
            Body::Forward { to, from: source, ticket, batch } => {
                let Some((leading, _)) = self.leading(to) else {
                    return context.send(me, from, Body::Forwarded { to, from: source, ticket, watermark: None });
                };
                leading.append(batch, Answer::Forward { broker: from, from: source, ticket });
                to
            }
            Body::Forwarded { to, from: source, ticket, watermark } => {
                let Some((leading, _)) = self.leading(source) else { return };
                leading.forwarder.answered(to, ticket, watermark);
                source
            }
            _ => return,
        };
        self.step(context, partition);
    }
}

impl Replica {
    fn check_role(&mut self, context: &mut Context, id: u8) {
        let leads = self.raft.leads();
        if self.leading.as_ref().map(|leading| leading.term) == leads.map(|(term, _)| term) {
            return;
        }
        if let Some(deposed) = self.leading.take() {
            let view = View { broker: id, state: &self.state, kept: &self.kept, tail: self.tail };
            deposed.depose(context, view);
        }
        if let Some((term, _)) = leads {
            context.oracle.count("elections won");
            let partition = self.state.id();
            context.note(|| format!("broker {id} leads partition {partition} in term {term}"));
            self.leading = Some(Leading::new(term));
        }
    }

    /// Begins anew from a leader's snapshot.
    fn install(&mut self, context: &mut Context, id: u8, snapshot: &Install) {
        context.oracle.count("installs");
        self.check_role(context, id);
        match Partition::decode(&snapshot.state) {
            Ok(state) => self.state = state,
            Err(error) => context.oracle.fail(Invariant::SameState, format!("a snapshot: {error}")),
        }
        let partition = self.state.id();
        context.note(|| format!("broker {id} installs partition {partition} as of {}", snapshot.index));
        context.oracle.restored(partition, snapshot.index, &self.state);
        self.kept = Kept::after(snapshot.index);
        self.tail = snapshot.index + 1;
    }

    fn apply(&mut self, context: &mut Context, id: u8) {
        while self.kept.last() < self.raft.commit {
            let index = self.kept.last() + 1;
            let Some(entry) = self.raft.log.get(index).cloned() else { return };
            self.kept.push(entry.bytes.as_ref().and_then(|bytes| {
                let parsed = sabotage::rewrite(context.rules, &self.state, Entry::parse(bytes).ok()?);
                let applied = self.state.apply(LogIndex(index), &parsed);
                sabotage::forget_losses(context.rules, &mut self.state);
                let logged = LoggedEntry { index: LogIndex(index), entry: parsed, refused: applied.refused.clone() };
                Some(Arc::new(AppliedEntry { logged, applied }))
            }));
            if entry.bytes.is_none() {
                self.state.skip(LogIndex(index));
            }
            context.oracle.applied(self.state.id(), index, &entry, &self.state);
            let begins = self.raft.leads().map(|(_, begins)| begins);
            if let Some(leading) = &mut self.leading {
                leading.ready |= begins == Some(index);
                let view = View { broker: id, state: &self.state, kept: &self.kept, tail: self.tail };
                leading.applied(context, view, index);
            }
        }
    }
}
