//! An edge's sockets, after `edge/src/{shard,socket}.rs`: what comes from clients goes through their cores into records, and what is
//! delivered goes through the channel index and the cores to the clients.

use std::{collections::BTreeMap, io::IoSlice};

use bytes::{Bytes, BytesMut};
use trunkline_edge::{
    channels::{ChannelIndex, Members, Memberships},
    core::{
        Limits, Millis, Rate, Registration,
        connection::{Connection, Offer, Output},
        outbound::SLICES_MAX,
        server_frame::Frame,
    },
};
use trunkline_proto::{
    CloseCode, ConnectionId, Record, RecordError, RecordKind,
    record::{encode_message_received, encode_record},
    v1::{self, CloseCause, MessageKind},
};

use crate::{API, client::Client, context::Context};

/// A record for the connection's partition, and whether it opens it.
#[derive(Debug)]
pub(crate) struct Append {
    pub(crate) connection: ConnectionId,
    pub(crate) opens: bool,
    pub(crate) bytes: BytesMut,
}

#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) connection: ConnectionId,
    pub(crate) core: Connection,
    client: Client,
    channels: Memberships,
    /// Messages that came out of the core.
    pub(crate) read: u64,
}

#[derive(Default, Debug)]
struct Slots(BTreeMap<u32, Socket>);

impl Members for Slots {
    fn memberships(&mut self, slot: u32) -> Option<&mut Memberships> {
        self.0.get_mut(&slot).map(|socket| &mut socket.channels)
    }
}

#[derive(Debug)]
pub(crate) struct Sockets {
    slots: Slots,
    by_id: BTreeMap<ConnectionId, u32>,
    index: ChannelIndex,
    next_slot: u32,
    limits: Limits,
    /// To be put on their way, in this order.
    pub(crate) appends: Vec<Append>,
}

impl Sockets {
    pub(crate) fn new(context: &Context) -> Self {
        let limits = Limits {
            max_message: 1 << 16,
            max_frame: usize::MAX,
            max_fragments: 8,
            text_only: false,
            max_queue: context.options.max_queue,
            registration_timeout: Millis::from_secs(4),
            idle_timeout: Millis::ZERO,
            ping_interval: Millis::from_secs(2),
            ping_timeout: Millis::ZERO,
            max_lifetime: Millis::ZERO,
            messages: Rate::UNBOUNDED,
        };
        Self {
            slots: Slots::default(),
            by_id: BTreeMap::new(),
            index: ChannelIndex::default(),
            next_slot: 0,
            limits: Limits { ping_timeout: Millis::from_secs(600), ..limits },
            appends: Vec::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.0.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Socket> {
        self.slots.0.values()
    }

    fn keys(&self) -> Vec<u32> {
        self.slots.0.keys().copied().collect()
    }

    /// A client's request is complete.
    pub(crate) fn open(&mut self, context: &mut Context, id: ConnectionId, opened: &v1::ConnectionOpened) {
        let registration = Registration {
            accept: "key".to_owned(),
            channels: opened.channels.clone(),
            needs_decision: !opened.handler_group.is_empty(),
            ..Registration::default()
        };
        let core = Connection::new(context.millis(), &self.limits, registration);
        let client = Client::new(id, context);
        self.next_slot += 1;
        let socket = Socket { connection: id, core, client, channels: Memberships::new(), read: 0 };
        self.slots.0.insert(self.next_slot, socket);
        self.by_id.insert(id, self.next_slot);
        let mut bytes = BytesMut::new();
        encode_record(&mut bytes, RecordKind::ConnectionOpened, id, API, opened);
        self.appends.push(Append { connection: id, opens: true, bytes });
    }

    /// The connection's record is applied, or never will be.
    pub(crate) fn opened(&mut self, context: &mut Context, id: ConnectionId, is_applied: bool) {
        if let Some(slot) = self.by_id.get(&id).copied() {
            let now = context.millis();
            self.drive(slot, |core, _, out| core.handle_opened(now, is_applied, &mut { out }));
            self.settle(context, slot);
        }
    }

    /// The incarnation is lost: closes all, and the brokers write the records.
    pub(crate) fn abandon(&mut self, context: &mut Context) {
        for slot in self.keys() {
            let now = context.millis();
            self.drive(slot, |core, limits, out| {
                core.handle_drain(now, CloseCause::EdgeLost, false);
                core.handle_timer(now, limits, &mut { out });
            });
            self.settle(context, slot);
        }
    }

    /// Clients act, and time passes.
    pub(crate) fn tick(&mut self, context: &mut Context, has_room: bool) {
        let now = context.millis();
        for slot in self.keys() {
            let Some(socket) = self.slots.0.get_mut(&slot) else { continue };
            socket.client.act(context);
            if socket.client.is_gone || socket.core.wants_shutdown() {
                self.drive(slot, |core, _, out| core.handle_gone(&mut { out }));
            } else if socket.core.is_open() && !has_room {
                socket.core.handle_pause(now);
            } else {
                self.read(context, slot, now);
            }
            let due = |socket: &Socket, limits| socket.core.deadline(limits).is_some_and(|deadline| deadline <= now);
            if self.slots.0.get(&slot).is_some_and(|socket| due(socket, &self.limits)) {
                self.drive(slot, |core, limits, out| core.handle_timer(now, limits, &mut { out }));
            }
            self.settle(context, slot);
        }
    }

    /// Some of what the client has sent reaches the core, cut anywhere.
    fn read(&mut self, context: &mut Context, slot: u32, now: Millis) {
        let Some(socket) = self.slots.0.get_mut(&slot) else { return };
        if socket.core.is_open() {
            socket.core.handle_resume(now);
        }
        if socket.client.outgoing.is_empty() || !socket.core.wants_bytes() {
            return;
        }
        let length = socket.client.outgoing.len();
        let some = if context.random.chance(200) { 1 + context.random.below(length as u64) as usize } else { length };
        let mut bytes: Vec<u8> = socket.client.outgoing.drain(..some).collect();
        self.drive(slot, |core, limits, out| core.handle_bytes(now, limits, &mut bytes, &mut { out }));
    }

    /// Calls a core, and carries out what comes out of it.
    fn drive<T>(
        &mut self,
        slot: u32,
        step: impl FnOnce(&mut Connection, &Limits, &mut dyn FnMut(Output<'_>)) -> T,
    ) -> Option<T> {
        let Self { slots, limits, appends, .. } = self;
        let Socket { connection, core, read, .. } = slots.0.get_mut(&slot)?;
        let connection = *connection;
        let mut out = |output: Output<'_>| {
            let mut bytes = BytesMut::new();
            match output {
                Output::Message(kind, payload) => {
                    *read += 1;
                    encode_message_received(&mut bytes, connection, API, kind, payload);
                }
                Output::Closed { code, reason, cause, record: true, .. } => {
                    let body = v1::ConnectionClosed {
                        code: u32::from(code.0),
                        reason: reason.to_owned(),
                        cause: cause.into(),
                    };
                    encode_record(&mut bytes, RecordKind::ConnectionClosed, connection, API, &body);
                }
                Output::Closed { .. } | Output::Answered(_) => return,
            }
            appends.push(Append { connection, opens: false, bytes });
        };
        Some(step(core, limits, &mut out))
    }

    /// Sends what waits, as far as the client takes it, and lets go of a socket that is over.
    fn settle(&mut self, context: &mut Context, slot: u32) {
        self.flush(context, slot);
        if self.slots.0.get(&slot).is_some_and(|socket| socket.core.is_over())
            && let Some(socket) = self.slots.0.remove(&slot)
        {
            self.by_id.remove(&socket.connection);
            self.index.leave_all(socket.channels, &mut self.slots);
        }
    }

    fn flush(&mut self, context: &mut Context, slot: u32) {
        let now = context.millis();
        let Some(socket) = self.slots.0.get_mut(&slot) else { return };
        while !socket.core.outbound().is_empty() {
            let mut bytes = {
                let mut slices = [IoSlice::new(&[]); SLICES_MAX];
                let count = socket.core.outbound().slices(&mut slices);
                slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect::<Vec<u8>>()
            };
            let is_stalled = context.now < socket.client.stalls_until;
            if is_stalled {
                bytes.truncate(context.random.below(4) as usize);
            }
            socket.client.receive(context, &bytes);
            socket.core.handle_sent(now, bytes.len());
            if is_stalled {
                socket.core.handle_blocked();
                return;
            }
        }
    }

    pub(crate) fn deliver(&mut self, context: &mut Context, record: &Record) {
        let delivered = match record.kind {
            RecordKind::Published => self.publish(context, record),
            _ => match self.by_id.get(&record.connection).copied() {
                Some(slot) => self.address(context, slot, record),
                None => Ok(()),
            },
        };
        if let Err(error) = delivered {
            context.oracle.fail(crate::Invariant::Delivered, error.to_string());
        }
    }

    fn publish(&mut self, context: &mut Context, record: &Record) -> Result<(), RecordError> {
        let published: v1::Published = record.decode()?;
        for slot in self.index.members(&published.channel).to_vec() {
            self.queue(context, slot, &published.payload);
        }
        Ok(())
    }

    fn queue(&mut self, context: &mut Context, slot: u32, payload: &Bytes) {
        let frame = Frame::message(MessageKind::Text, payload);
        let now = context.millis();
        let Some(socket) = self.slots.0.get_mut(&slot) else { return };
        if socket.core.offer(&self.limits, &frame) == Offer::Full {
            self.flush(context, slot);
            let offer = self.drive(slot, |core, limits, out| core.handle_delivery(now, limits, &frame, &mut { out }));
            if offer == Some(Offer::Full) {
                context.oracle.count("slow consumers");
            }
        }
        self.settle(context, slot);
    }

    fn address(&mut self, context: &mut Context, slot: u32, record: &Record) -> Result<(), RecordError> {
        let now = context.millis();
        match record.kind {
            RecordKind::Pushed => {
                let pushed: v1::Pushed = record.decode()?;
                self.queue(context, slot, &pushed.payload);
            }
            RecordKind::CloseRequested => {
                let close: v1::CloseRequested = record.decode()?;
                let (code, cause) = (CloseCode(close.code as u16), CloseCause::Handler);
                self.drive(slot, |core, _, out| core.handle_close(now, code, &close.reason, cause, &mut { out }));
            }
            RecordKind::ConnectionAccepted => {
                let accepted = record.decode()?;
                self.drive(slot, |core, _, out| core.handle_accepted(now, accepted, &mut { out }));
            }
            RecordKind::ConnectionRejected => {
                let rejected = record.decode()?;
                self.drive(slot, |core, _, out| core.handle_rejected(now, rejected, &mut { out }));
            }
            RecordKind::ChannelJoined => {
                let joined: v1::ChannelJoined = record.decode()?;
                if let Some(socket) = self.slots.0.get_mut(&slot) {
                    self.index.join(&joined.channel, slot, &mut socket.channels);
                }
                self.drive(slot, |core, _, out| core.handle_joined(now, &joined.channel, &mut { out }));
            }
            RecordKind::ChannelLeft => {
                let left: v1::ChannelLeft = record.decode()?;
                self.index.leave(&left.channel, slot, &mut self.slots);
            }
            _ => context.oracle.fail(crate::Invariant::Delivered, format!("a {} is delivered", record.kind.name())),
        }
        self.settle(context, slot);
        Ok(())
    }
}
