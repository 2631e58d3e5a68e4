//! What a broker does for a partition while it leads it: entries out of what waits, by `broker/src/append/assembler.rs`; edges' streams,
//! after `link/{stream,inbound,outbound}.rs`; the watch over edges, after `link/watch.rs`. All of it is lost with the leadership.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use trunkline_broker::{
    append::assembler::{Assembled, Assembler, ENTRIES_IN_FLIGHT, Offered},
    core::{AppliedEntry, Reply, Verdict},
    link::{
        grace::{Grace, Incarnation},
        sequencer::{Sequencer, Step},
    },
    retention::{Limits, Retention, decide::Facts},
};
use trunkline_proto::{
    Batch, CloseCode, LogIndex, Offset, PartitionId, Record, RecordKind, Source,
    link::{Frame, UplinkBatch},
    v1::{self, CloseCause, link as pb},
};

use crate::{
    GROUP, Time,
    context::Context,
    delivery::{Cursor, Trimmed, View},
    edge::edge_name,
    forward::Forwarder,
    millis,
    net::{Body, Node},
    oracle::Invariant,
    worker::Worker,
};

/// Batches that wait to be proposed. When full, whoever asks gets no answer and asks again.
const QUEUE_MAX: usize = 512;
/// Connections closed by one batch.
const CHUNK: usize = 3;
const GRACE: Duration = Duration::from_millis(1500);
const PERIOD: Duration = Duration::from_millis(100);
/// A stream that has nothing to say says that it is there.
const SIGN_OF_LIFE: Time = millis(200);

/// Who waits for a batch to be applied.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Nothing,
    Grant { edge: u8, nonce: u64 },
    Attach { edge: u8, incarnation: u64, stream: u64, after: Offset },
    Edge { edge: u8, stream: u64, sequence: u64 },
    Lost { lost: Incarnation },
    Closes,
    Trim,
    Forward { broker: Node, from: PartitionId, ticket: u64 },
    Assign { member: Option<u8> },
    Commit { epoch: u64 },
    Submit { id: u64 },
}

#[derive(Debug)]
struct Stream {
    id: u64,
    incarnation: u64,
    sequencer: Sequencer,
    cursor: Cursor,
    frames: u64,
    said: Time,
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Leading {
    pub(crate) term: u64,
    /// The entry that begins the term is applied: everything before it is, too.
    pub(crate) ready: bool,
    assembler: Assembler,
    queue: VecDeque<(Batch, Answer)>,
    in_flight: VecDeque<(u64, Vec<Answer>)>,
    streams: BTreeMap<u8, Stream>,
    grace: Option<Grace>,
    judged: Time,
    /// The watch waits for what it has appended.
    watching: usize,
    /// A trim is on its way.
    trimming: bool,
    pub(crate) forwarder: Forwarder,
    pub(crate) worker: Worker,
}

impl Leading {
    pub(crate) fn new(term: u64) -> Self {
        Self {
            term,
            ready: false,
            assembler: Assembler::default(),
            queue: VecDeque::new(),
            in_flight: VecDeque::new(),
            streams: BTreeMap::new(),
            grace: None,
            judged: 0,
            watching: 0,
            trimming: false,
            forwarder: Forwarder::default(),
            worker: Worker::default(),
        }
    }

    pub(crate) fn append(&mut self, batch: Batch, answer: Answer) {
        if self.queue.len() < QUEUE_MAX {
            self.queue.push_back((batch, answer));
        }
    }

    /// The next entry, if one is to be proposed: whatever waits, in order. [`Leading::proposed`] says where it stands.
    pub(crate) fn next_entry(&mut self, context: &mut Context, view: View<'_>) -> Option<(Assembled, Vec<Answer>)> {
        if !self.ready || !self.assembler.has_room() || self.queue.is_empty() {
            return None;
        }
        let times = (view.state.time(), context.clock(view.broker));
        let mut assembly = self.assembler.begin(self.term, times, false, 0);
        let mut answers = Vec::new();
        while let Some((batch, answer)) = self.queue.pop_front() {
            if assembly.offer(&batch, None) != Offered::Taken {
                self.queue.push_front((batch, answer));
                break;
            }
            answers.push(answer);
        }
        Some((assembly.finish()?, answers))
    }

    pub(crate) fn proposed(&mut self, index: u64, bytes: usize, answers: Vec<Answer>) {
        self.assembler.proposed(bytes);
        self.in_flight.push_back((index, answers));
    }

    /// The entry was applied just now: whoever waits for it is answered.
    pub(crate) fn applied(&mut self, context: &mut Context, view: View<'_>, index: u64) {
        if self.in_flight.front().is_none_or(|(first, _)| *first != index) {
            return;
        }
        let Some((_, answers)) = self.in_flight.pop_front() else { return };
        self.assembler.answered();
        let Some(entry) = view.entry(index) else { return };
        context.oracle.acknowledged.push((view.state.id(), index, self.term));
        for (batch, answer) in answers.into_iter().enumerate() {
            self.answer(context, view, entry, batch, answer);
        }
    }

    fn answer(&mut self, context: &mut Context, view: View<'_>, entry: &AppliedEntry, batch: usize, answer: Answer) {
        let outcome = &entry.applied.outcomes[batch];
        let verdict = entry.applied.verdict(outcome.first);
        let me = Node::Broker(view.broker);
        match (answer, &outcome.reply) {
            (Answer::Grant { edge, nonce }, Reply::Attached { incarnation, .. }) => {
                context.send(me, Node::Edge(edge), Body::Granted { nonce, incarnation: *incarnation });
            }
            (Answer::Attach { edge, incarnation, stream, after }, reply) => match reply {
                Reply::Attached { incarnation: granted, .. } if *granted == incarnation => {
                    self.open(context, view, edge, incarnation, stream, after);
                }
                Reply::Fenced { current } => self.refuse(context, view, edge, stream, fenced(*current, incarnation)),
                _ => {}
            },
            (Answer::Edge { edge, stream, sequence }, reply) => {
                let Some(open) = self.streams.get_mut(&edge).filter(|open| open.id == stream) else { return };
                match reply {
                    Reply::Edge { last_sequence } => open.sequencer.handle_applied(sequence, *last_sequence),
                    Reply::Fenced { current } => {
                        let reason = fenced(*current, open.incarnation);
                        self.end(context, view, edge, reason);
                    }
                    other => context.oracle.fail(Invariant::State, format!("a batch is answered with {other:?}")),
                }
            }
            (Answer::Lost { lost }, _) => {
                self.watching -= 1;
                context.oracle.count("edges lost");
                context.note(|| format!("partition {} has lost {lost:?}", view.state.id()));
                let whose = |(edge, open): (&u8, &Stream)| {
                    (edge_name(*edge) == lost.edge && open.incarnation == lost.number).then_some(*edge)
                };
                if let Some(edge) = self.streams.iter().find_map(whose) {
                    self.end(context, view, edge, pb::Reason::Lost);
                }
            }
            (Answer::Closes, _) => self.watching -= 1,
            (Answer::Trim, _) => {
                self.trimming = false;
                context.oracle.count(if verdict == Verdict::Applied { "trimmed" } else { "trims refused" });
            }
            (Answer::Forward { broker, from, ticket }, Reply::Watermark { offset }) => {
                let body = Body::Forwarded { to: view.state.id(), from, ticket, watermark: Some(*offset) };
                context.send(me, broker, body);
            }
            (Answer::Assign { member }, _) => self.worker.assigned(context, view, member, &verdict),
            (Answer::Commit { epoch }, _) => {
                self.worker.committed(context.steady(), epoch, &verdict);
            }
            (Answer::Submit { id }, _) => context.send(me, Node::Backend, Body::Submitted { id }),
            (Answer::Nothing | Answer::Grant { .. } | Answer::Forward { .. }, _) => {}
        }
    }

    // ---- edges ----

    pub(crate) fn attach(
        &mut self,
        context: &mut Context,
        view: View<'_>,
        (edge, incarnation, stream, after): (u8, u64, u64, Offset),
    ) {
        // the newest stream takes the place of the one before; one that comes after a newer one was given up long ago
        if self.streams.get(&edge).is_some_and(|open| open.id > stream) {
            return;
        }
        self.streams.remove(&edge);
        let name = edge_name(edge);
        match view.state.edge(&name) {
            Some(known) if known.incarnation > incarnation => {
                self.refuse(context, view, edge, stream, pb::Reason::Replaced);
            }
            Some(known) if known.incarnation == incarnation && known.lost => {
                self.refuse(context, view, edge, stream, pb::Reason::Lost);
            }
            Some(known) if known.incarnation == incarnation => {
                self.open(context, view, edge, incarnation, stream, after);
            }
            _ => {
                let body = v1::EdgeAttached { edge: name, incarnation, nonce: Bytes::new() };
                let record = Record::new(RecordKind::EdgeAttached, Default::default(), "", &body);
                let answer = Answer::Attach { edge, incarnation, stream, after };
                self.append(Batch::new(Source::Leader, &[record]), answer);
            }
        }
    }

    fn open(&mut self, context: &mut Context, view: View<'_>, edge: u8, incarnation: u64, id: u64, after: Offset) {
        let name = edge_name(edge);
        let known = view.state.edge(&name).zip(view.state.edge_index(&name));
        let Some((known, index)) = known.filter(|(known, _)| known.incarnation == incarnation && !known.lost) else {
            return self.refuse(context, view, edge, id, pb::Reason::Lost);
        };
        let mut start = if after == Offset::ZERO { known.attached_offset } else { after };
        // a broker may begin earlier than it was asked to: the edge drops what it has
        if context.random.chance(300) {
            let earlier = start.index().0.saturating_sub(context.random.below(8));
            let earlier = earlier.max(view.kept.trimmed());
            start = start.min(Offset::end_of(LogIndex(earlier)).max(known.attached_offset));
        }
        if start.index().0 > view.applied() {
            return self.refuse(context, view, edge, id, pb::Reason::Lost);
        }
        let last_sequence = known.last_sequence;
        let stream = Stream {
            id,
            incarnation,
            sequencer: Sequencer::new(last_sequence),
            cursor: Cursor::new(index, &name, start),
            frames: 0,
            said: context.now,
        };
        let stream = self.streams.entry(edge).insert_entry(stream).into_mut();
        stream.say(context, view, edge, Frame::Attached(pb::Attached { last_sequence, start: start.0 }));
    }

    fn refuse(&self, context: &mut Context, view: View<'_>, edge: u8, stream: u64, reason: pb::Reason) {
        let frame = Frame::Goodbye(pb::Goodbye { reason: reason.into(), ..Default::default() });
        let body = Body::Down { partition: view.state.id(), stream, n: 0, frame };
        context.send(Node::Broker(view.broker), Node::Edge(edge), body);
    }

    /// Ends an edge's stream and says why.
    fn end(&mut self, context: &mut Context, view: View<'_>, edge: u8, reason: pb::Reason) {
        if let Some(mut stream) = self.streams.remove(&edge) {
            stream.say(
                context,
                view,
                edge,
                Frame::Goodbye(pb::Goodbye { reason: reason.into(), ..Default::default() }),
            );
        }
    }

    /// The broker leads no longer.
    pub(crate) fn depose(mut self, context: &mut Context, view: View<'_>) {
        for edge in self.streams.keys().copied().collect::<Vec<_>>() {
            self.end(context, view, edge, pb::Reason::NotLeader);
        }
    }

    pub(crate) fn batch(&mut self, edge: u8, stream: u64, batch: UplinkBatch) {
        let Some(open) = self.streams.get_mut(&edge).filter(|open| open.id == stream) else { return };
        let sequence = batch.sequence;
        if open.sequencer.handle_batch(sequence) != Step::Append {
            return;
        }
        let source = v1::EdgeSource { edge: edge_name(edge), incarnation: open.incarnation, sequence };
        let batch = Batch { source: Source::Edge(source), count: batch.count, records: batch.records };
        self.append(batch, Answer::Edge { edge, stream, sequence });
    }

    /// Everything that goes down the streams.
    pub(crate) fn serve_edges(&mut self, context: &mut Context, view: View<'_>) {
        let mut behind = Vec::new();
        for (edge, stream) in &mut self.streams {
            if let Some(last) = stream.sequencer.take_resend() {
                context.oracle.count("resends");
                stream.say(context, view, *edge, Frame::Resend { last });
            }
            if let Some(sequence) = stream.sequencer.take_applied() {
                stream.say(context, view, *edge, Frame::Applied { sequence });
            }
            loop {
                match stream.cursor.next(context.rules, view) {
                    Ok(Some(frame)) => stream.say(context, view, *edge, frame),
                    Ok(None) => break,
                    Err(Trimmed) => {
                        behind.push(*edge);
                        break;
                    }
                }
            }
            if context.now >= stream.said + SIGN_OF_LIFE {
                stream.say(context, view, *edge, Frame::Ping);
            }
        }
        for edge in behind {
            context.oracle.count("edges behind the trim");
            self.end(context, view, edge, pb::Reason::Lost);
        }
    }

    /// Trims by what the state says, one trim after the other. Before there is a group nobody would hold what it is to see.
    pub(crate) fn retain(&mut self, context: &mut Context, view: View<'_>) {
        if self.trimming || view.state.group(GROUP).is_none() {
            return;
        }
        let retention = Retention(Limits {
            time: Duration::from_secs(context.options.retained_for),
            bytes: context.options.retained,
            bytes_max: 0,
            drop_unsettled: false,
            group_expiry: Duration::ZERO,
        });
        if let Some(trim) =
            retention.decide(context.clock(view.broker).max(view.state.time()), &Facts::of(view.state, false))
        {
            let body = v1::Trimmed { through: Offset::end_of(trim.through).0, ..Default::default() };
            let record = Record::new(RecordKind::Trimmed, Default::default(), "", &body);
            self.trimming = true;
            self.append(Batch::new(Source::Leader, &[record]), Answer::Trim);
        }
    }

    /// Judges silence and closes what the lost have left.
    pub(crate) fn watch(&mut self, context: &mut Context, view: View<'_>, heard: &BTreeMap<Incarnation, Time>) {
        if context.now < self.judged + PERIOD.as_micros() as u64 || self.watching > 0 {
            return;
        }
        self.judged = context.now;
        let now = context.instant(context.now);
        let grace = self.grace.get_or_insert_with(|| Grace::new(now, GRACE, PERIOD));
        let live = view.state.edges().filter(|(_, edge)| edge.incarnation > 0 && !edge.lost);
        let live = live.map(|(_, edge)| Incarnation { edge: edge.name.to_owned(), number: edge.incarnation });
        let live = live.map(|edge| {
            let at = heard.get(&edge).map(|at| context.instant(*at));
            (edge, at)
        });
        for lost in grace.handle_tick(now, live.collect()) {
            let body = v1::EdgeLost { edge: lost.edge.clone(), incarnation: lost.number };
            let record = Record::new(RecordKind::EdgeLost, Default::default(), "", &body);
            self.append(Batch::new(Source::Leader, &[record]), Answer::Lost { lost });
            self.watching += 1;
        }
        let left = view.state.obligations(CHUNK);
        if !left.is_empty() {
            let (code, cause) = (u32::from(CloseCode::ABNORMAL.0), CloseCause::EdgeLost.into());
            let body = v1::ConnectionClosed { code, reason: String::new(), cause };
            let closed = |(id, api): &(_, String)| Record::new(RecordKind::ConnectionClosed, *id, api, &body);
            let records: Vec<Record> = left.iter().map(closed).collect();
            self.append(Batch::new(Source::Leader, &records), Answer::Closes);
            self.watching += 1;
        }
    }

    pub(crate) fn is_bounded(&self) -> bool {
        self.queue.len() <= QUEUE_MAX
            && self.in_flight.len() <= ENTRIES_IN_FLIGHT
            && self.forwarder.is_bounded()
            && self.worker.is_bounded()
    }
}

/// A batch or stream was fenced: by whom?
fn fenced(current: u64, incarnation: u64) -> pb::Reason {
    if current > incarnation { pb::Reason::Replaced } else { pb::Reason::Lost }
}

impl Stream {
    fn say(&mut self, context: &mut Context, view: View<'_>, edge: u8, frame: Frame) {
        let body = Body::Down { partition: view.state.id(), stream: self.id, n: self.frames, frame };
        self.frames += 1;
        self.said = context.now;
        context.send(Node::Broker(view.broker), Node::Edge(edge), body);
    }
}
