//! Steps 2 and 20 of the walk, between `socket.rs` and `uplink.rs` on the way up, `shard.rs` and `socket.rs` on the way down.
//! Pure: one connection's life from its complete request to its end. Bytes, deliveries and time go
//! in; records to append come out, and bytes to send wait in [`Connection::outbound`].
//!
//! Whatever happens, `Closed` comes out exactly once, and no `Message` after it.

mod deadlines;
mod ending;

use std::sync::Arc;

use trunkline_proto::{
    CloseCode,
    close::code_of,
    v1::{self, CloseCause, MessageKind},
};

use self::ending::Stop;
use super::{
    Answer, Limits, Millis,
    frame::{FrameReader, Received},
    limits::CONTROL_RATE,
    outbound::Outbound,
    pending::{Pending, Registration},
    rate::Bucket,
    senders::SharedBucket,
    server_frame::Frame,
};
use crate::metrics::HandshakeOutcome;

/// What the driver has to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Output<'a> {
    /// Append MessageReceived.
    Message(MessageKind, &'a [u8]),
    /// The end, decided: append ConnectionClosed if `record`. The socket may live on for the close handshake.
    Closed {
        /// As recorded.
        code: CloseCode,
        /// As recorded, at most 123 bytes.
        reason: &'a str,
        /// As recorded.
        cause: CloseCause,
        /// Whether to append it: brokers write it themselves for a lost incarnation.
        record: bool,
        /// Whether it had its 101.
        was_open: bool,
    },
    /// The request has its answer: 101 or a refusal waits to be sent.
    Answered(HandshakeOutcome),
}

/// Whether a delivery was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// It waits to be sent.
    Taken,
    /// The connection ends: nothing more is sent to it.
    Ignored,
    /// Too much is unsent. Try to send, then call [`Connection::handle_delivery`].
    Full,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No 101 yet.
    Pending,
    Open,
    /// Our close frame is on its way; the client's is awaited.
    Closing,
    /// All is said: send what waits, shut down, wait for the client to close TCP. What it still sends is thrown away: a socket
    /// dropped with unread bytes would reset the connection before the client has read our close frame.
    Lingering,
    Over,
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    phase: Phase,
    is_recorded: bool,
    /// The brokers write the close record.
    is_abandoned: bool,
    /// The socket takes no bytes for now.
    is_blocked: bool,
    reader: FrameReader,
    outbound: Outbound,
    pending: Option<Box<Pending>>,
    /// Reading is paused since.
    paused: Option<Millis>,
    opened: Millis,
    /// The client's last sign of life.
    heard: Millis,
    /// Its last message.
    messaged: Millis,
    /// A ping that nothing has answered.
    pinged: Option<Millis>,
    /// The unfinished message began.
    assembling: Option<Millis>,
    /// What proved who the client is holds until then.
    expires: Millis,
    /// Because it was withdrawn.
    is_revoked: bool,
    /// The edge drains: close then.
    drain: Option<(Millis, CloseCause)>,
    /// The close handshake ends then, one way or the other.
    ends: Millis,
    messages: Bucket,
    /// Those of all connections of its address, where they are bounded.
    sender: Option<Arc<SharedBucket>>,
    controls: Bucket,
}

impl Connection {
    /// A connection whose request is complete and whose ConnectionOpened is on its way.
    pub fn new(now: Millis, limits: &Limits, mut registration: Registration) -> Self {
        let expires = registration.expires.unwrap_or(Millis::NEVER);
        let sender = registration.sender.take();
        let pending = Pending::new(registration, now + limits.registration_timeout);
        Self {
            phase: Phase::Pending,
            is_recorded: false,
            is_abandoned: false,
            is_blocked: false,
            reader: FrameReader::default(),
            outbound: Outbound::default(),
            pending: Some(Box::new(pending)),
            paused: None,
            opened: now,
            heard: now,
            messaged: now,
            pinged: None,
            assembling: None,
            expires,
            is_revoked: false,
            drain: None,
            ends: now,
            messages: Bucket::default(),
            sender,
            controls: Bucket::default(),
        }
    }

    /// Whether it has its 101 and no end yet.
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether the socket is to be read: open ones for messages, pending ones to see that the client is there, ending ones to
    /// throw away what comes. Of an abandoned one nothing could be recorded.
    pub fn wants_bytes(&self) -> bool {
        match self.phase {
            Phase::Open => !self.is_abandoned,
            Phase::Pending | Phase::Closing | Phase::Lingering => true,
            Phase::Over => false,
        }
    }

    /// Whether the socket takes no bytes for now, as far as is known.
    pub fn is_blocked(&self) -> bool {
        self.is_blocked
    }

    /// Whether the socket may be dropped.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Whether the socket's sending side is to be shut down: all is said and sent.
    pub fn wants_shutdown(&self) -> bool {
        self.phase == Phase::Lingering && self.outbound.is_empty()
    }

    /// What may be sent now: nothing before the request has its answer.
    pub fn outbound(&self) -> &Outbound {
        &self.outbound
    }

    /// Bytes of unfinished messages kept.
    pub fn kept_bytes(&self) -> usize {
        self.reader.kept_bytes()
    }

    /// Bytes have come; they are unmasked in place.
    pub fn handle_bytes(&mut self, now: Millis, limits: &Limits, bytes: &mut [u8], out: &mut impl FnMut(Output<'_>)) {
        match self.phase {
            Phase::Open if self.is_abandoned => {}
            Phase::Open => self.read(now, limits, bytes, out),
            Phase::Closing => self.await_close(limits, bytes),
            Phase::Pending => self.refuse(
                now,
                &Answer::bad_request("bytes were sent before the handshake was complete"),
                HandshakeOutcome::Refused,
                (CloseCode::ABNORMAL, "bytes before the handshake was complete", CloseCause::ProtocolError),
                out,
            ),
            Phase::Lingering | Phase::Over => {}
        }
    }

    fn read(&mut self, now: Millis, limits: &Limits, bytes: &mut [u8], out: &mut impl FnMut(Output<'_>)) {
        self.heard = now;
        self.pinged = None;
        let (mut at, mut messages) = (0, 0u32);
        let stop = loop {
            match self.reader.next(bytes, &mut at, limits.message_bounds()) {
                Ok(None) => break None,
                Ok(Some(Received::Message(kind, payload))) => {
                    if !self.messages.take(now, limits.messages) {
                        break Some(Stop::Flood("too many messages"));
                    }
                    if self.sender.as_ref().is_some_and(|sender| !sender.take(now)) {
                        break Some(Stop::Flood("too many messages from this address"));
                    }
                    messages += 1;
                    out(Output::Message(kind, payload));
                }
                Ok(Some(Received::Close(code, reason))) => break Some(Stop::Close(code, reason.to_owned())),
                Ok(Some(Received::Ping(_) | Received::Pong(_))) if !self.controls.take(now, CONTROL_RATE) => {
                    break Some(Stop::Flood("too many control frames"));
                }
                Ok(Some(Received::Ping(payload))) => self.outbound.push_pong(&Frame::pong(payload), self.is_blocked),
                Ok(Some(Received::Pong(_))) => {}
                Err(violation) => break Some(Stop::Violation(violation)),
            }
        };
        if messages > 0 {
            self.messaged = now;
        }
        self.assembling = match (self.reader.is_mid_message(), self.assembling) {
            (false, _) => None,
            (true, Some(since)) if messages == 0 => Some(since),
            (true, _) => Some(now),
        };
        if let Some(stop) = stop {
            self.stop(now, stop, out);
        }
    }

    /// ConnectionOpened is applied; or never will be, because the edge has lost its incarnation or ends.
    pub fn handle_opened(&mut self, now: Millis, is_applied: bool, out: &mut impl FnMut(Output<'_>)) {
        if is_applied {
            return self.progress(now, Pending::applied, out);
        }
        self.is_abandoned = true;
        if self.phase == Phase::Pending {
            self.refuse_unavailable(now, CloseCause::EdgeLost, out);
        }
    }

    /// The handler lets it in.
    pub fn handle_accepted(&mut self, now: Millis, accepted: v1::ConnectionAccepted, out: &mut impl FnMut(Output<'_>)) {
        self.progress(now, |pending| pending.accepted(accepted), out);
    }

    /// The handler does not let it in.
    pub fn handle_rejected(&mut self, now: Millis, rejected: v1::ConnectionRejected, out: &mut impl FnMut(Output<'_>)) {
        if self.phase == Phase::Pending {
            let answer = Answer::rejected(rejected.status, rejected.body);
            let closed = (CloseCode::ABNORMAL, "", CloseCause::Rejected);
            self.refuse(now, &answer, HandshakeOutcome::Rejected, closed, out);
        }
    }

    /// It is in this channel.
    pub fn handle_joined(&mut self, now: Millis, channel: &str, out: &mut impl FnMut(Output<'_>)) {
        self.progress(now, |pending| pending.joined(channel), out);
    }

    /// Something a pending connection waits for has come.
    fn progress(&mut self, now: Millis, step: impl FnOnce(&mut Pending), out: &mut impl FnMut(Output<'_>)) {
        let Some(pending) = &mut self.pending else { return };
        step(pending);
        let Some(answer) = pending.answer() else { return };
        self.outbound = std::mem::take(&mut pending.deliveries);
        self.pending = None;
        self.phase = Phase::Open;
        (self.opened, self.heard, self.messaged) = (now, now, now);
        self.outbound.push_answer(answer);
        out(Output::Answered(HandshakeOutcome::Accepted));
    }

    /// Takes a delivery if there is room.
    pub fn offer(&mut self, limits: &Limits, frame: &Frame) -> Offer {
        let queue = match (&self.phase, &mut self.pending) {
            (Phase::Pending, Some(pending)) => &mut pending.deliveries,
            (Phase::Open, _) => &mut self.outbound,
            _ => return Offer::Ignored,
        };
        if !queue.is_empty() && queue.bytes() + frame.len() > limits.max_queue {
            return Offer::Full;
        }
        queue.push(frame);
        Offer::Taken
    }

    /// Takes a delivery, or closes a consumer that is too slow for it. What it has not been sent is dropped.
    pub fn handle_delivery(
        &mut self,
        now: Millis,
        limits: &Limits,
        frame: &Frame,
        out: &mut impl FnMut(Output<'_>),
    ) -> Offer {
        let offer = self.offer(limits, frame);
        if offer != Offer::Full {
            return offer;
        }
        let cause = CloseCause::SlowConsumer;
        if self.phase == Phase::Pending {
            self.refuse_unavailable(now, cause, out);
        } else {
            self.outbound.drop_unsent_frames();
            self.fail(now, (code_of(cause), "too slow", cause), out);
        }
        Offer::Full
    }

    /// The socket has taken so many bytes.
    pub fn handle_sent(&mut self, now: Millis, bytes: usize) {
        self.outbound.advance(bytes);
        // after a full send buffer, room means that the client's TCP has acknowledged something: also if what went was TLS's own
        if std::mem::take(&mut self.is_blocked) {
            self.pinged = self.pinged.map(|_| now);
        }
    }

    /// The socket takes nothing for now.
    pub fn handle_blocked(&mut self) {
        self.is_blocked = true;
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
