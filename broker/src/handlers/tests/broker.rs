//! A broker without its network: partitions on disk, an edge that appends events, members over channels.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use trunkline_proto::{
    Batch, ConnectionId, Offset, PartitionCount, PartitionId, Record, RecordKind, Source,
    v1::{self, subscribe_request::Request as Asked, subscribe_response::Response},
};

use crate::{
    append::Appended,
    core::Reply,
    forward,
    handlers::{
        Registry,
        member::{OUTGOING_MAX, Outgoing, SessionEnd},
        session,
    },
    node::{Node, NodeConfig},
    submit::{Submitter, UnloggedSink},
};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
pub(crate) struct Unlogged(pub Mutex<Vec<Record>>);

impl UnloggedSink for Unlogged {
    fn publish(&self, record: Record) {
        self.0.lock().push(record);
    }
}

pub(crate) struct Broker {
    pub(crate) node: Node,
    pub(crate) registry: Arc<Registry>,
    pub(crate) submitter: Submitter,
    pub(crate) unlogged: Arc<Unlogged>,
    pub(crate) shutdown: CancellationToken,
    forwarder: tokio::task::JoinHandle<()>,
    sequences: Mutex<BTreeMap<PartitionId, u64>>,
    incarnation: u64,
    pub(crate) dir: Arc<tempfile::TempDir>,
}

impl Broker {
    pub(crate) async fn start(partitions: u16) -> Self {
        Self::open(Arc::new(tempfile::tempdir().unwrap()), partitions, Duration::from_secs(60)).await
    }

    pub(crate) async fn open(dir: Arc<tempfile::TempDir>, partitions: u16, deadline: Duration) -> Self {
        let config = NodeConfig::new(dir.path(), "test", PartitionCount::new(partitions).unwrap());
        let node = Node::open(config).await.unwrap();
        node.wait_ready().await.unwrap();
        let shutdown = CancellationToken::new();
        let registry = Registry::new(node.clone(), deadline, shutdown.clone());
        let unlogged = Arc::new(Unlogged::default());
        let submitter = Submitter::new(node.clone(), unlogged.clone());
        let forwarder = tokio::spawn(forward::run(node.clone(), shutdown.clone()));
        let mut broker = Self {
            node,
            registry,
            submitter,
            unlogged,
            shutdown,
            forwarder,
            sequences: Mutex::default(),
            incarnation: 0,
            dir,
        };
        broker.attach().await;
        broker
    }

    /// A fresh edge process each time.
    async fn attach(&mut self) {
        let nonce = Bytes::copy_from_slice(&rand::random::<[u8; 16]>());
        for id in self.node.partition_count().iter() {
            let body = v1::EdgeAttached { edge: "edge".into(), incarnation: self.incarnation, nonce: nonce.clone() };
            let appended = self.lead(id, RecordKind::EdgeAttached, &body).await;
            let Reply::Attached { incarnation, .. } = appended.outcome().reply else { panic!("not attached") };
            self.incarnation = incarnation;
        }
    }

    pub(crate) async fn stop(self) -> Arc<tempfile::TempDir> {
        self.shutdown.cancel();
        self.registry.drain().await;
        self.forwarder.await.unwrap();
        self.node.shutdown().await;
        self.dir
    }

    pub(crate) async fn lead(&self, id: PartitionId, kind: RecordKind, body: &impl prost::Message) -> Appended {
        let record = Record::new(kind, ConnectionId::NONE, "", body);
        self.node.partition(id).unwrap().append.append(Batch::new(Source::Leader, &[record])).await.unwrap()
    }

    /// What an edge does: one batch, in sequence.
    pub(crate) async fn event(&self, record: Record) -> Offset {
        let id = record.connection.partition(self.node.partition_count());
        let pending = {
            let mut sequences = self.sequences.lock();
            let sequence = sequences.entry(id).or_default();
            *sequence += 1;
            let source = v1::EdgeSource { edge: "edge".into(), incarnation: self.incarnation, sequence: *sequence };
            self.node.partition(id).unwrap().append.try_enqueue(Batch::new(Source::Edge(source), &[record])).unwrap()
        };
        let appended = pending.await.unwrap().unwrap();
        assert_eq!(appended.verdict(0), crate::core::Verdict::Applied);
        appended.offset(0)
    }

    pub(crate) async fn opened(&self, id: ConnectionId, api: &str, group: &str) -> Offset {
        let body = v1::ConnectionOpened {
            edge: "edge".into(),
            incarnation: self.incarnation,
            handler_group: group.into(),
            ..Default::default()
        };
        self.event(Record::new(RecordKind::ConnectionOpened, id, api, &body)).await
    }

    pub(crate) async fn message(&self, id: ConnectionId, api: &str, text: &str) -> Offset {
        let body = v1::MessageReceived { kind: 1, payload: Bytes::copy_from_slice(text.as_bytes()) };
        self.event(Record::new(RecordKind::MessageReceived, id, api, &body)).await
    }

    pub(crate) async fn closed(&self, id: ConnectionId, api: &str) -> Offset {
        let body = v1::ConnectionClosed { code: 1000, cause: 1, ..Default::default() };
        self.event(Record::new(RecordKind::ConnectionClosed, id, api, &body)).await
    }

    pub(crate) fn join(&self, join: v1::Join) -> Member {
        let (requests, inbound) = mpsc::channel(16);
        let (outgoing, responses) = mpsc::channel(OUTGOING_MAX);
        let inbound = tokio_stream::StreamExt::map(ReceiverStream::new(inbound), Ok::<_, std::convert::Infallible>);
        let never = std::future::pending();
        tokio::spawn(session::serve(self.registry.clone(), 1, inbound, outgoing, Default::default(), never));
        requests.try_send(v1::SubscribeRequest { request: Some(Asked::Join(join)) }).unwrap();
        Member {
            requests,
            responses,
            epochs: BTreeMap::new(),
            trimmed: BTreeMap::new(),
            results: Vec::new(),
            events: Default::default(),
            ids: 0,
        }
    }

    /// Every record of a partition's log that was not refused.
    pub(crate) async fn log(&self, id: PartitionId) -> Vec<(Offset, Record)> {
        let (mut records, mut after) =
            (Vec::new(), trunkline_proto::LogIndex(self.node.earliest(id).index().0.max(1) - 1));
        loop {
            let entries = self.node.read_log(id, after, 1 << 20).await.unwrap().entries;
            let Some(last) = entries.last() else { return records };
            after = last.index;
            records.extend(entries.iter().flat_map(|entry| entry.records().collect::<Vec<_>>()));
        }
    }
}

/// One connection in partition `n` of `count`.
pub(crate) fn connection(partition: u16, n: u8) -> ConnectionId {
    let mut id = [n; 16];
    id[..2].copy_from_slice(&partition.to_be_bytes());
    ConnectionId(id)
}

pub(crate) fn join(group: &str, member: &str) -> v1::Join {
    v1::Join {
        group: group.into(),
        member: member.into(),
        start: Some(v1::Start { at: Some(v1::start::At::Earliest(true)) }),
        credit: 100,
        ..Default::default()
    }
}

#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) requests: mpsc::Sender<v1::SubscribeRequest>,
    responses: mpsc::Receiver<Outgoing>,
    pub(crate) epochs: BTreeMap<u32, u64>,
    /// What it was told with its assignments.
    pub(crate) trimmed: BTreeMap<u32, Option<v1::TrimmedRange>>,
    results: Vec<v1::CommitResult>,
    events: std::collections::VecDeque<(u32, v1::Event)>,
    ids: u64,
}

impl Member {
    /// Takes one response in; `Err` when the stream ends.
    pub(crate) async fn step(&mut self) -> Result<(), Option<SessionEnd>> {
        let response = tokio::time::timeout(PATIENCE, self.responses.recv()).await.expect("the broker says something");
        match response {
            Some(Ok(response)) => match response.response.unwrap() {
                Response::Joined(_) | Response::Brokers(_) => {}
                Response::Assigned(assigned) => {
                    self.epochs.insert(assigned.partition, assigned.epoch);
                    self.trimmed.insert(assigned.partition, assigned.trimmed);
                }
                Response::Revoked(revoked) => {
                    self.epochs.remove(&revoked.partition);
                    self.events.retain(|(partition, _)| *partition != revoked.partition);
                }
                Response::Events(events) => {
                    assert_eq!(self.epochs.get(&events.partition), Some(&events.epoch));
                    self.events.extend(events.events.into_iter().map(|event| (events.partition, event)));
                }
                Response::Committed(result) => self.results.push(result),
            },
            Some(Err(end)) => return Err(Some(end)),
            None => return Err(None),
        }
        Ok(())
    }

    pub(crate) async fn assigned(&mut self, partitions: usize) {
        while self.epochs.len() != partitions {
            self.step().await.unwrap();
        }
    }

    pub(crate) async fn event(&mut self) -> v1::Event {
        loop {
            if let Some((_, event)) = self.events.pop_front() {
                return event;
            }
            self.step().await.unwrap();
        }
    }

    pub(crate) async fn events(&mut self, count: usize) -> Vec<v1::Event> {
        let mut events = Vec::new();
        while events.len() < count {
            events.push(self.event().await);
        }
        events
    }

    /// Nothing comes for a while.
    pub(crate) async fn quiet(&mut self, millis: u64) {
        let waited = tokio::time::timeout(Duration::from_millis(millis), self.event()).await;
        assert!(waited.is_err(), "unexpected event: {waited:?}");
    }

    pub(crate) async fn ask(&self, request: Asked) {
        let sent = self.requests.send(v1::SubscribeRequest { request: Some(request) });
        tokio::time::timeout(PATIENCE, sent).await.expect("the broker reads").unwrap();
    }

    pub(crate) async fn send_commit(
        &mut self,
        partition: u32,
        outcomes: Vec<v1::Outcome>,
        commands: Vec<v1::Command>,
    ) -> u64 {
        self.ids += 1;
        let epoch = self.epochs.get(&partition).copied().unwrap_or(999);
        self.ask(Asked::Commit(v1::Commit { id: self.ids, partition, epoch, outcomes, commands })).await;
        self.ids
    }

    pub(crate) async fn result(&mut self, id: u64) -> v1::CommitResult {
        loop {
            if let Some(at) = self.results.iter().position(|result| result.id == id) {
                return self.results.remove(at);
            }
            self.step().await.unwrap();
        }
    }

    pub(crate) async fn commit(
        &mut self,
        partition: u32,
        outcomes: Vec<v1::Outcome>,
        commands: Vec<v1::Command>,
    ) -> v1::CommitResult {
        let id = self.send_commit(partition, outcomes, commands).await;
        self.result(id).await
    }

    pub(crate) async fn ended(&mut self) -> Option<SessionEnd> {
        loop {
            if let Err(end) = self.step().await {
                return end;
            }
        }
    }
}

pub(crate) fn ack(offset: u64) -> v1::Outcome {
    v1::Outcome { offset, verdict: Some(v1::outcome::Verdict::Acknowledged(v1::Acknowledged {})) }
}

pub(crate) fn refuse(offset: u64, delay_ms: u32) -> v1::Outcome {
    let refused = v1::Refused { delay_ms, released: false };
    v1::Outcome { offset, verdict: Some(v1::outcome::Verdict::Refused(refused)) }
}

pub(crate) fn push(to: ConnectionId, text: &str) -> v1::Command {
    v1::Command {
        connection: Bytes::copy_from_slice(&to.0),
        command: Some(v1::command::Command::Push(v1::Pushed {
            kind: 1,
            payload: Bytes::copy_from_slice(text.as_bytes()),
        })),
        unlogged: false,
    }
}

pub(crate) fn join_channel(to: ConnectionId, channel: &str) -> v1::Command {
    v1::Command {
        connection: Bytes::copy_from_slice(&to.0),
        command: Some(v1::command::Command::Join(v1::ChannelJoined { channel: channel.into(), edge: String::new() })),
        unlogged: false,
    }
}

pub(crate) fn publish(channel: &str, text: &str) -> v1::Command {
    v1::Command {
        connection: Bytes::new(),
        command: Some(v1::command::Command::Publish(v1::Published {
            channel: channel.into(),
            kind: 1,
            payload: Bytes::copy_from_slice(text.as_bytes()),
            ..Default::default()
        })),
        unlogged: false,
    }
}

pub(crate) fn codes(results: &[v1::CommandResult]) -> Vec<v1::Code> {
    results.iter().map(|result| result.status.as_ref().unwrap().code()).collect()
}

pub(crate) fn code(result: &v1::CommitResult) -> v1::Code {
    result.status.as_ref().unwrap().code()
}
