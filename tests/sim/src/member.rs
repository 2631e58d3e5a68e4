//! A member of the handler group: answers every message with a push to its sender and a publish to some channel, decides
//! registrations, and sometimes pushes to others, joins, leaves, closes, refuses or takes its time.

use std::collections::BTreeMap;

use bytes::Bytes;
use trunkline_proto::{ConnectionId, Offset, PartitionId, Record, RecordKind, v1};

use crate::{
    CHANNELS, GROUP, Time,
    context::Context,
    millis,
    net::{Body, Node},
    raft::BROKERS,
};

const PING: Time = millis(200);
/// Connections remembered to push to.
const KNOWN_MAX: usize = 16;

#[derive(Debug)]
struct Job {
    broker: Node,
    partition: PartitionId,
    epoch: u64,
    offset: Offset,
    record: Record,
}

#[derive(Debug)]
pub(crate) struct Member {
    id: u8,
    pub(crate) is_up: bool,
    pinged: Time,
    jobs: BTreeMap<(Time, u64), Job>,
    known: Vec<ConnectionId>,
}

impl Member {
    pub(crate) fn new(id: u8) -> Self {
        Self { id, is_up: true, pinged: 0, jobs: BTreeMap::new(), known: Vec::new() }
    }

    pub(crate) fn receive(&mut self, context: &mut Context, from: Node, body: Body) {
        let Body::Events { partition, epoch, events } = body else { return };
        for (offset, _attempt, record) in events {
            let thinks = if context.random.chance(30) { 2000 } else { context.random.range(1, 60) };
            let key = (context.now + millis(thinks), context.serial());
            self.jobs.insert(key, Job { broker: from, partition, epoch, offset, record });
        }
    }

    pub(crate) fn tick(&mut self, context: &mut Context) {
        let me = Node::Member(self.id);
        if context.now >= self.pinged + PING {
            self.pinged = context.now;
            for broker in 0..BROKERS {
                context.send(me, Node::Broker(broker), Body::MemberPing { member: self.id });
            }
        }
        let mut commits: BTreeMap<(Node, PartitionId, u64, u64), v1::Commit> = BTreeMap::new();
        while let Some(first) = self.jobs.first_entry().filter(|first| first.key().0 <= context.now) {
            let job = first.remove();
            // together with others, or alone
            let apart = if context.random.chance(500) { 0 } else { context.serial() };
            let commit = commits.entry((job.broker, job.partition, job.epoch, apart)).or_default();
            self.work(context, &job, commit);
        }
        for ((broker, partition, epoch, _), commit) in commits {
            let commit = v1::Commit { id: context.serial(), partition: u32::from(partition.0), epoch, ..commit };
            context.send(me, broker, Body::Commit { commit });
        }
    }

    fn work(&mut self, context: &mut Context, job: &Job, commit: &mut v1::Commit) {
        use v1::{command::Command, outcome::Verdict};
        let refuses = context.random.chance(40);
        let verdict = match refuses {
            true => Verdict::Refused(v1::Refused { delay_ms: 40, released: false }),
            false => Verdict::Acknowledged(v1::Acknowledged {}),
        };
        commit.outcomes.push(v1::Outcome { offset: job.offset.0, verdict: Some(verdict) });
        if refuses {
            return;
        }
        let id = job.record.connection;
        let mut command = |to: ConnectionId, command| {
            let connection = if to.is_none() { Bytes::new() } else { Bytes::copy_from_slice(&to.0) };
            commit.commands.push(v1::Command { connection, command: Some(command), unlogged: false });
        };
        let place = format!("{} {}", job.partition, job.offset.0);
        let push =
            |text: String| Command::Push(v1::Pushed { kind: v1::MessageKind::Text.into(), payload: text.into() });
        match job.record.kind {
            RecordKind::ConnectionOpened => {
                self.known.push(id);
                if self.known.len() > KNOWN_MAX {
                    self.known.remove(0);
                }
                let opened: v1::ConnectionOpened = job.record.decode().unwrap_or_default();
                if opened.handler_group == GROUP && id.0[15].is_multiple_of(8) {
                    command(id, Command::Reject(v1::ConnectionRejected { status: 403, ..Default::default() }));
                } else if opened.handler_group == GROUP {
                    let channels = vec![channel(u64::from(id.0[14]))];
                    command(id, Command::Accept(v1::ConnectionAccepted { channels, ..Default::default() }));
                }
                command(id, push(format!("welcome {place}")));
            }
            RecordKind::MessageReceived => {
                let message: v1::MessageReceived = job.record.decode().unwrap_or_default();
                let text = String::from_utf8_lossy(&message.payload);
                let number: u64 = text.parse().unwrap_or_default();
                let target = channel(number + u64::from(id.0[13]));
                command(id, push(format!("push {place}")));
                let payload = format!("publish {target} {place}").into();
                let kind = v1::MessageKind::Text.into();
                let publish = v1::Published { channel: target, kind, payload, ..Default::default() };
                command(ConnectionId::NONE, Command::Publish(publish));
                if number % 5 == 2 && !self.known.is_empty() {
                    let other = self.known[context.random.below(self.known.len() as u64) as usize];
                    command(other, push(format!("other {place}")));
                }
                if number % 7 == 3 {
                    let join = v1::ChannelJoined { channel: channel(number), edge: String::new() };
                    command(id, Command::Join(join));
                } else if number % 7 == 6 {
                    command(id, Command::Leave(v1::ChannelLeft { channel: channel(number) }));
                }
                if number == 25 {
                    command(id, Command::Close(v1::CloseRequested { code: 1000, reason: "enough".to_owned() }));
                }
            }
            _ => {}
        }
    }
}

fn channel(number: u64) -> String {
    CHANNELS[(number % CHANNELS.len() as u64) as usize].to_owned()
}
