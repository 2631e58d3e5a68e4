//! Steps 1 and 21 of the walk, before and after `core/connection.rs`: bytes off a socket into the core, and the core's bytes to
//! the socket. Neither waits: what is not ready has the socket's task woken.

use std::{
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use tokio::{io::ReadBuf, sync::oneshot};
use trunkline_proto::{
    ConnectionId, RecordKind,
    record::{encode_message_received, encode_record},
    v1,
};

use crate::{
    api::Api,
    channels::Memberships,
    core::{
        Limits, Millis,
        auth::Proof,
        connection::{Connection, Output},
        outbound::SLICES_MAX,
    },
    gate::Place,
    metrics::{HandshakeOutcome, SocketMetrics},
    sink::RecordSink,
    stream::Stream,
    uplink::UplinkError,
};

/// Most reads of one socket before others have their turn.
const READS_MAX: usize = 8;

/// Resolves when the connection's ConnectionOpened is applied.
pub(crate) type OpenedReceiver = oneshot::Receiver<Result<(), UplinkError>>;

/// One socket of a shard, its connection's core with it.
pub(crate) struct Socket {
    pub(crate) core: Connection,
    stream: Stream,
    pub(crate) connection: ConnectionId,
    pub(crate) api: Arc<Api>,
    pub(crate) channels: Memberships,
    /// Tells this use of the slot from earlier ones.
    pub(crate) generation: u32,
    /// Something was queued since the last flush.
    pub(crate) is_dirty: bool,
    /// It stands in the list of those to be woken when reading may go on.
    pub(crate) is_listed: bool,
    is_shut: bool,
    opened: Option<Box<OpenedReceiver>>,
    /// Of the socket's task.
    waker: Option<Waker>,
    /// As last counted by the shard.
    pub(crate) kept_bytes: usize,
    /// What its client has proved who it is with.
    pub(crate) proof: Option<Proof>,
    /// Given back with the socket.
    _place: Option<Box<Place>>,
}

/// What a socket needs of its shard.
pub(crate) struct Surroundings<'a, S> {
    pub(crate) sink: &'a S,
    pub(crate) metrics: &'a SocketMetrics,
    pub(crate) now: Millis,
}

/// What became of a poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Polled {
    /// Nothing more to do until it is woken.
    Waiting,
    /// Reading must pause: no room, the handlers lag, or the API's clients send too fast together.
    Paused,
}

impl Socket {
    pub(crate) fn new(
        core: Connection,
        stream: Stream,
        connection: ConnectionId,
        api: Arc<Api>,
        opened: OpenedReceiver,
    ) -> Self {
        Self {
            core,
            stream,
            connection,
            api,
            channels: Memberships::new(),
            generation: 0,
            is_dirty: false,
            is_listed: false,
            is_shut: false,
            opened: Some(Box::new(opened)),
            waker: None,
            kept_bytes: 0,
            proof: None,
            _place: None,
        }
    }

    /// With its address's place, and what let it in.
    pub(crate) fn holding(self, place: Option<Box<Place>>, proof: Option<Proof>) -> Self {
        Self { _place: place, proof, ..self }
    }

    /// Calls the core, and carries out what comes out of it.
    pub(crate) fn drive<S: RecordSink, T>(
        &mut self,
        around: &Surroundings<'_, S>,
        step: impl FnOnce(&mut Connection, &Limits, &mut dyn FnMut(Output<'_>)) -> T,
    ) -> T {
        let (connection, api) = (self.connection, &*self.api);
        // counted once for many: the counters are shared by the shards
        let (mut messages, mut bytes) = (0u64, 0u64);
        let mut out = |output: Output<'_>| match output {
            Output::Message(kind, payload) => {
                messages += 1;
                bytes += payload.len() as u64;
                around
                    .sink
                    .append(connection, |out| encode_message_received(out, connection, api.name(), kind, payload));
            }
            other => carry_out(around, connection, api, &other),
        };
        let result = step(&mut self.core, &api.limits, &mut out);
        if messages > 0 {
            if let Some(received) = &api.received {
                received.spend(around.now, messages);
            }
            api.metrics.messages_received.increment(messages);
            around.metrics.bytes_received.increment(bytes);
        }
        result
    }

    /// Wakes the socket's task.
    pub(crate) fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    /// Does whatever can be done now, from the socket's own task.
    pub(crate) fn poll<S: RecordSink>(
        &mut self,
        cx: &mut Context<'_>,
        around: &Surroundings<'_, S>,
        buffer: &mut [u8],
    ) -> Polled {
        if !self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
        }
        self.poll_opened(cx, around);
        self.poll_flush(cx, around);
        let polled = self.poll_read(cx, around, buffer);
        // answers of the core to what was read
        self.poll_flush(cx, around);
        polled
    }

    fn poll_opened<S: RecordSink>(&mut self, cx: &mut Context<'_>, around: &Surroundings<'_, S>) {
        let Some(opened) = &mut self.opened else { return };
        if let Poll::Ready(result) = Pin::new(&mut **opened).poll(cx) {
            self.opened = None;
            // a sender that was dropped never will say
            let is_applied = matches!(result, Ok(Ok(())));
            self.drive(around, |core, _, mut out| core.handle_opened(around.now, is_applied, &mut out));
        }
    }

    /// Reads what has come, a few buffers at most.
    fn poll_read<S: RecordSink>(
        &mut self,
        cx: &mut Context<'_>,
        around: &Surroundings<'_, S>,
        buffer: &mut [u8],
    ) -> Polled {
        for _ in 0..READS_MAX {
            if !self.core.wants_bytes() {
                return Polled::Waiting;
            }
            if self.core.is_open() {
                let is_spent = self.api.received.as_ref().is_some_and(|received| received.is_spent(around.now));
                if is_spent || !around.sink.has_room() || around.sink.is_paused(self.connection, self.api.name()) {
                    self.core.handle_pause(around.now);
                    return Polled::Paused;
                }
                self.core.handle_resume(around.now);
            }
            let mut read = ReadBuf::new(buffer);
            match self.stream.poll_read(cx, &mut read) {
                Poll::Pending => return Polled::Waiting,
                Poll::Ready(Ok(())) if !read.filled().is_empty() => {
                    let filled = read.filled_mut();
                    self.drive(around, |core, limits, mut out| core.handle_bytes(around.now, limits, filled, &mut out));
                    // before the next read may find that the client has closed
                    self.flush(around);
                }
                Poll::Ready(Ok(()) | Err(_)) => self.gone(around),
            }
        }
        // others first
        cx.waker().wake_by_ref();
        Polled::Waiting
    }

    fn poll_flush<S: RecordSink>(&mut self, cx: &mut Context<'_>, around: &Surroundings<'_, S>) {
        while self.has_unsent() {
            match self.stream.poll_write_ready(cx) {
                Poll::Pending => {
                    self.core.handle_blocked();
                    return;
                }
                Poll::Ready(Ok(())) => self.flush(around),
                // the runtime ends
                Poll::Ready(Err(_)) => self.gone(around),
            }
        }
        self.shut(around);
    }

    /// As [`Socket::flush`], from outside the socket's task: it is woken to send what is left.
    pub(crate) fn flush_now<S: RecordSink>(&mut self, around: &Surroundings<'_, S>) {
        self.flush(around);
        if self.has_unsent() {
            self.wake();
        }
    }

    /// Sends what waits, as far as the socket takes it.
    fn flush<S: RecordSink>(&mut self, around: &Surroundings<'_, S>) {
        while self.has_unsent() {
            match self.try_write() {
                Ok(sent) => self.core.handle_sent(around.now, sent),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.core.handle_blocked();
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.gone(around),
            }
        }
        self.shut(around);
    }

    /// Whether anything waits for the socket: here, or within TLS.
    fn has_unsent(&self) -> bool {
        !self.core.outbound().is_empty() || (self.stream.holds_bytes() && !self.core.is_over())
    }

    fn try_write(&mut self) -> io::Result<usize> {
        if self.core.outbound().is_empty() {
            return self.stream.try_flush().map(|()| 0);
        }
        if let Some(bytes) = self.core.outbound().single() {
            return self.stream.try_write(bytes);
        }
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let count = self.core.outbound().slices(&mut slices);
        self.stream.try_write_vectored(&slices[..count])
    }

    /// Once all is said and sent, the client hears it from TCP too (RFC 6455 §7.1.1: the server closes first).
    fn shut<S: RecordSink>(&mut self, around: &Surroundings<'_, S>) {
        if !self.core.wants_shutdown() || std::mem::replace(&mut self.is_shut, true) {
            return;
        }
        // for TCP this is shutdown(2), which does not wait
        let shut = self.stream.poll_shutdown(&mut Context::from_waker(Waker::noop()));
        if matches!(shut, Poll::Ready(Err(_))) {
            self.gone(around);
        }
    }

    fn gone<S: RecordSink>(&mut self, around: &Surroundings<'_, S>) {
        self.drive(around, |core, _, mut out| core.handle_gone(&mut out));
    }
}

/// Carries out what the core has decided, but for messages.
fn carry_out<S: RecordSink>(around: &Surroundings<'_, S>, connection: ConnectionId, api: &Api, output: &Output<'_>) {
    match *output {
        Output::Message(..) => {}
        Output::Closed { code, reason, cause, record, was_open } => {
            if record {
                let closed =
                    v1::ConnectionClosed { code: u32::from(code.0), reason: reason.to_owned(), cause: cause.into() };
                around.sink.append(connection, |out| {
                    encode_record(out, RecordKind::ConnectionClosed, connection, api.name(), &closed);
                });
            }
            api.metrics.closed(cause);
            if was_open {
                api.metrics.connections.decrement(1.0);
            }
        }
        Output::Answered(outcome) => {
            api.metrics.handshake(outcome);
            if outcome == HandshakeOutcome::Accepted {
                api.metrics.connections.increment(1.0);
            }
        }
    }
}
