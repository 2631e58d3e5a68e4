//! An edge: one process after the other, each with an incarnation at a time, a link to each partition, and sockets. After
//! `edge/src/{uplink,downlink}.rs` and `edge/src/link/`.

use std::collections::{BTreeMap, BTreeSet};

use trunkline_edge::{core::resend::Outgoing, downlink::Position};
use trunkline_proto::{
    ConnectionId, Offset, PartitionId,
    link::Frame,
    v1::{self, link as pb},
};

use crate::{
    CHANNELS, GROUP, Invariant, Time, Violation,
    context::Context,
    millis,
    net::{Body, Node},
    raft::BROKERS,
    sockets::Sockets,
};

/// Unanswered for so long, a request goes to the next broker.
const ASK_AGAIN: Time = millis(400);
/// A stream that says nothing for so long is broken.
const SILENCE: Time = millis(900);
/// Batches that nothing answers for so long: the stream is broken.
const UNANSWERED: Time = millis(1500);
/// Frames that wait for an earlier one; more, and the stream is broken.
const HELD_MAX: usize = 256;
const PING: Time = millis(300);
/// Bytes beyond the budget: opened and closed records are taken whatever waits.
const OVER_BUDGET: usize = 32 << 10;

pub(crate) fn edge_name(edge: u8) -> String {
    format!("e{edge}")
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stream {
    Idle { until: Time },
    Attaching { since: Time },
    Up,
}

/// One partition of one incarnation.
#[derive(Debug)]
struct Link {
    outgoing: Outgoing<ConnectionId>,
    position: Position,
    state: Stream,
    broker: u8,
    stream: u64,
    /// The next frame's number; later ones wait.
    next: u64,
    held: BTreeMap<u64, Frame>,
    heard: Time,
    /// The last time that something was applied, or nothing waited.
    settled: Time,
}

impl Link {
    fn new(broker: u8) -> Self {
        Self {
            outgoing: Outgoing::default(),
            position: Position::default(),
            state: Stream::Idle { until: 0 },
            broker,
            stream: 0,
            next: 0,
            held: BTreeMap::new(),
            heard: 0,
            settled: 0,
        }
    }

    /// The stream is over; another broker may know better.
    fn reset(&mut self, context: &mut Context) {
        self.state = Stream::Idle { until: context.now + millis(context.random.below(100)) };
        self.broker = (self.broker + 1) % BROKERS;
        self.held.clear();
        self.stream = 0;
    }
}

#[derive(Debug)]
enum Life {
    /// Asks partition 0's leader for an incarnation.
    Asking {
        nonce: u64,
        again: Time,
    },
    Running {
        incarnation: u64,
        unattached: BTreeSet<PartitionId>,
    },
    /// The incarnation is lost, and its sockets have until then.
    Closing {
        until: Time,
    },
}

/// What a frame comes to.
enum Fate {
    Fine,
    /// The stream ends.
    Broken,
    /// The incarnation is over.
    Lost,
}

#[derive(Debug)]
pub(crate) struct Edge {
    id: u8,
    pub(crate) is_up: bool,
    life: Life,
    asks: u8,
    links: Vec<Link>,
    pub(crate) sockets: Sockets,
    pinged: Time,
}

impl Edge {
    pub(crate) fn new(id: u8, context: &mut Context) -> Self {
        let nonce = context.serial();
        Self {
            id,
            is_up: true,
            life: Life::Asking { nonce, again: 0 },
            asks: id,
            links: Vec::new(),
            sockets: Sockets::new(context),
            pinged: 0,
        }
    }

    fn send(&self, context: &mut Context, broker: u8, body: Body) {
        context.send(Node::Edge(self.id), Node::Broker(broker), body);
    }

    pub(crate) fn tick(&mut self, context: &mut Context) {
        let now = context.now;
        match &mut self.life {
            Life::Asking { nonce, again } if now >= *again => {
                *again = now + ASK_AGAIN;
                let body = Body::Grant { edge: self.id, nonce: *nonce };
                self.asks = (self.asks + 1) % BROKERS;
                self.send(context, self.asks, body);
            }
            Life::Closing { until } if self.sockets.len() == 0 || now >= *until => {
                self.life = Life::Asking { nonce: context.serial(), again: 0 };
            }
            Life::Running { incarnation, .. } => {
                let incarnation = *incarnation;
                if now >= self.pinged + PING {
                    self.pinged = now;
                    for broker in 0..BROKERS {
                        self.send(context, broker, Body::Ping { edge: self.id, incarnation });
                    }
                }
                self.tend(context, incarnation);
                self.let_in(context, incarnation);
            }
            _ => {}
        }
        let has_room = self.bytes() < context.options.budget;
        self.sockets.tick(context, has_room);
        self.pump(context);
    }

    fn bytes(&self) -> usize {
        self.links.iter().map(|link| link.outgoing.bytes()).sum()
    }

    /// Attaches what is not attached, and gives up streams that are broken; for no reason too, now and then.
    fn tend(&mut self, context: &mut Context, incarnation: u64) {
        let now = context.now;
        for (partition, link) in context.partitions().zip(&mut self.links) {
            if link.outgoing.last_applied() == link.outgoing.last_appended() {
                link.settled = now;
            }
            match link.state {
                Stream::Idle { until } if now >= until => {
                    link.stream = context.serial();
                    (link.next, link.heard, link.settled) = (0, now, now);
                    link.state = Stream::Attaching { since: now };
                    let (stream, after) = (link.stream, link.position.seen());
                    let body = Body::Attach { partition, edge: self.id, incarnation, stream, after };
                    context.send(Node::Edge(self.id), Node::Broker(link.broker), body);
                }
                Stream::Attaching { since } if now >= since + ASK_AGAIN => link.reset(context),
                Stream::Up if context.random.chance(2) && !context.healed => {
                    let broker = link.broker;
                    link.reset(context);
                    (link.broker, link.state) = (broker, Stream::Idle { until: now });
                }
                Stream::Up if now >= link.heard + SILENCE || now >= link.settled + UNANSWERED => link.reset(context),
                _ => {}
            }
        }
    }

    /// A new client, now and then.
    fn let_in(&mut self, context: &mut Context, incarnation: u64) {
        let is_open = matches!(&self.life, Life::Running { unattached, .. } if unattached.is_empty());
        let is_full = self.sockets.len() >= context.options.connections;
        if !is_open || is_full || context.hushed || !context.random.chance(60) {
            return;
        }
        let mut id = [0; 16];
        id[..8].copy_from_slice(&context.random.number().to_be_bytes());
        id[8..].copy_from_slice(&context.random.number().to_be_bytes());
        let channels = CHANNELS.iter().filter(|_| context.random.chance(350)).map(|channel| (*channel).to_owned());
        let channels = channels.collect();
        let decided = context.random.chance(300);
        let opened = v1::ConnectionOpened {
            edge: edge_name(self.id),
            incarnation,
            path: "/".to_owned(),
            channels,
            handler_group: if decided { GROUP.to_owned() } else { String::new() },
            ..Default::default()
        };
        self.sockets.open(context, ConnectionId(id), &opened);
    }

    /// Records become batches, and batches go out.
    fn pump(&mut self, context: &mut Context) {
        let is_running = matches!(self.life, Life::Running { .. });
        for append in std::mem::take(&mut self.sockets.appends) {
            let partition = append.connection.partition(context.count);
            if is_running && let Some(link) = self.links.get_mut(usize::from(partition.0)) {
                let waiter = append.opens.then_some(append.connection);
                link.outgoing.append(waiter, |out| out.extend_from_slice(&append.bytes));
            }
        }
        for (partition, link) in context.partitions().zip(&mut self.links) {
            if link.state != Stream::Up {
                continue;
            }
            while let Some(batch) = link.outgoing.take() {
                let body = Body::Batch { partition, edge: self.id, stream: link.stream, batch };
                context.send(Node::Edge(self.id), Node::Broker(link.broker), body);
            }
        }
        self.check(context);
    }

    fn check(&self, context: &mut Context) {
        if self.bytes() > context.options.budget + OVER_BUDGET {
            context.oracle.fail(Invariant::Bounded, format!("edge {} has {} bytes under way", self.id, self.bytes()));
        }
        for socket in self.sockets.iter().filter(|socket| socket.core.is_open()) {
            let partition = usize::from(socket.connection.partition(context.count).0);
            let Some(link) = self.links.get(partition) else { continue };
            let logged = context.oracle.connections.get(&socket.connection).map_or(0, |logged| logged.messages);
            if link.outgoing.last_applied() == link.outgoing.last_appended() && logged != socket.read {
                let what = format!(
                    "{} messages of connection {} were read and acknowledged, {logged} are in the log",
                    socket.read, socket.connection
                );
                context.oracle.fail(Invariant::Silent, what);
            }
        }
    }

    pub(crate) fn receive(&mut self, context: &mut Context, from: Node, body: Body) {
        match body {
            Body::Granted { nonce, incarnation } => {
                if matches!(self.life, Life::Asking { nonce: asked, .. } if asked == nonce) {
                    context.note(|| format!("edge {} begins incarnation {incarnation}", self.id));
                    let Node::Broker(broker) = from else { return };
                    self.life = Life::Running { incarnation, unattached: context.partitions().collect() };
                    self.links = context.partitions().map(|_| Link::new(broker)).collect();
                }
            }
            Body::Down { partition, stream, n, frame } => {
                let Some(link) = self.links.get_mut(usize::from(partition.0)) else { return };
                if link.stream != stream || n < link.next {
                    return;
                }
                link.held.insert(n, frame);
                if link.held.len() > HELD_MAX {
                    return link.reset(context);
                }
                self.take_frames(context, partition);
            }
            _ => {}
        }
        self.pump(context);
    }

    fn take_frames(&mut self, context: &mut Context, partition: PartitionId) {
        let at = usize::from(partition.0);
        while let Some(link) = self.links.get_mut(at)
            && let Some(frame) = link.held.remove(&link.next)
        {
            link.next += 1;
            // one that waits for a lost one is no sign of life
            link.heard = context.now;
            match self.take(context, partition, frame) {
                Fate::Fine => {}
                Fate::Broken => return self.links[at].reset(context),
                Fate::Lost => return self.lose(context),
            }
        }
    }

    fn take(&mut self, context: &mut Context, partition: PartitionId, frame: Frame) -> Fate {
        let link = &mut self.links[usize::from(partition.0)];
        let released = match frame {
            Frame::Attached(attached) => {
                if link.position.attached(Offset(attached.start)).is_err() {
                    return Fate::Lost;
                }
                link.state = Stream::Up;
                if let Life::Running { unattached, .. } = &mut self.life {
                    unattached.remove(&partition);
                }
                link.outgoing.attached(attached.last_sequence)
            }
            Frame::Applied { sequence } => link.outgoing.applied(sequence),
            Frame::Resend { last } => link.outgoing.attached(last),
            Frame::Deliveries(deliveries) => {
                let through = deliveries.through;
                let mut blank = Position::default();
                let position = if context.rules.seen { &mut link.position } else { &mut blank };
                let taken = position.take(deliveries);
                link.position.progress(through);
                return match taken {
                    Ok(fresh) => {
                        for delivery in fresh.deliveries {
                            self.sockets.deliver(context, &delivery.record);
                        }
                        Fate::Fine
                    }
                    Err(error) => {
                        context.oracle.fail(Invariant::Delivered, error.to_string());
                        Fate::Broken
                    }
                };
            }
            Frame::Progress { offset } => {
                link.position.progress(offset);
                return Fate::Fine;
            }
            Frame::Goodbye(goodbye) => {
                context.note(|| format!("edge {} hears {:?} of partition {partition}", self.id, goodbye.reason()));
                return match goodbye.reason() {
                    pb::Reason::Lost | pb::Reason::Replaced => Fate::Lost,
                    _ => Fate::Broken,
                };
            }
            _ => return Fate::Fine,
        };
        match released {
            Ok(released) => {
                if released.bytes > 0 {
                    link.settled = context.now;
                }
                for opened in released.waiters {
                    self.sockets.opened(context, opened, true);
                }
                Fate::Fine
            }
            Err(trunkline_edge::core::resend::SequenceError::Behind { .. }) => Fate::Broken,
            Err(trunkline_edge::core::resend::SequenceError::Ahead { .. }) => Fate::Lost,
        }
    }

    /// The incarnation is over: its sockets close, and the next one begins.
    fn lose(&mut self, context: &mut Context) {
        context.oracle.count("incarnations lost");
        for mut link in std::mem::take(&mut self.links) {
            for waiter in link.outgoing.reset().waiters {
                self.sockets.opened(context, waiter, false);
            }
        }
        self.sockets.abandon(context);
        self.sockets.appends.clear();
        self.life = Life::Closing { until: context.now + millis(5000) };
    }

    /// Whether all that was read is in the log and all that was applied is at the clients.
    pub(crate) fn check_rest(&self, context: &Context) -> Result<(), Violation> {
        let id = self.id;
        if !matches!(&self.life, Life::Running { unattached, .. } if unattached.is_empty()) {
            return Err(Violation::rest(format!("edge {id} is not attached everywhere: {:?}", self.life)));
        }
        if self.bytes() > 0 {
            return Err(Violation::rest(format!("edge {id} has {} bytes under way", self.bytes())));
        }
        for socket in self.sockets.iter() {
            let connection = socket.connection;
            if !socket.core.is_open() {
                return Err(Violation::rest(format!("connection {connection} neither opens nor ends")));
            }
            let state = context.oracle.state(connection.partition(context.count));
            if state.connection(&connection).is_none() {
                let what = format!("connection {connection} lives on, and the log has closed it");
                return Err(Violation::new(Invariant::Silent, what));
            }
            context.oracle.check_received(connection)?;
        }
        Ok(())
    }
}
