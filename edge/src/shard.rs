//! Step 19 of the walk, after `downlink.rs` and before `core/connection.rs`. A shard owns its sockets and its part of the channel index on one thread: a publish is encoded once and
//! written to each member. What came in one turn for a socket goes out in one write.

mod sockets;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio_rustls::rustls::ServerConfig;
use trunkline_proto::{
    CloseCode, ConnectionId, Record, RecordError, RecordKind,
    link::Deliveries,
    v1::{self, CloseCause, MessageKind},
};

use self::sockets::State;
use crate::{
    api::Api,
    core::{Millis, connection::Offer, server_frame::Frame},
    gate::Gate,
    inbox::{ShardInput, shard_of},
    metrics::{ApiMetrics, SocketMetrics},
    sink::RecordSink,
    socket::{Polled, Socket, Surroundings},
};

/// Most sockets written to before others have their turn: at 7 µs a write, about 2 ms.
const FLUSHES_MAX: usize = 256;

/// Connections whose key or token is no more are closed over so long for each, so that they do not all come back at once,
const REVOCATION_STEP: Duration = Duration::from_millis(1);
/// and over so long at most.
const REVOCATION_SPREAD_MAX: Duration = Duration::from_secs(30);

/// A fit value of [`ShardOptions::handshakes_max`]: an idle stranger costs about 1 KiB and a file descriptor for ten seconds.
pub const HANDSHAKES_MAX: usize = 8192;

/// What a shard is made of, besides its sockets.
#[derive(Clone, Debug)]
pub struct ShardOptions {
    /// The edge's id, as ConnectionOpened names it.
    pub edge: Arc<str>,
    /// Which shard this is, from 0.
    pub index: usize,
    /// How many there are, 1 to 256.
    pub shards: usize,
    /// The front doors, the same list for every shard (it holds their connection counts).
    pub apis: Arc<[Arc<Api>]>,
    /// Who may come, by address; the same for every shard.
    pub gate: Arc<Gate>,
    /// Request headers that become part of ConnectionOpened, lower case. Not credentials: records are kept.
    pub headers: Arc<[String]>,
    /// Sockets speak TLS, with this.
    pub tls: Option<Arc<ServerConfig>>,
    /// Most sockets of this shard whose request has no answer yet and no connection; beyond it 503 is answered at once.
    pub handshakes_max: usize,
}

/// One shard. Everything runs on its thread.
pub(crate) struct Shard<S> {
    pub(crate) options: ShardOptions,
    pub(crate) sink: S,
    /// Of requests that no API answers.
    pub(crate) unmatched: ApiMetrics,
    metrics: SocketMetrics,
    started: Instant,
    state: RefCell<State>,
    pub(crate) is_accepting: Cell<bool>,
    /// [`Shard::is_accepting`] has become false.
    pub(crate) stops_accepting: Notify,
    /// Sockets wait for reading to go on.
    pub(crate) has_paused: Notify,
    /// The last socket is gone.
    emptied: Notify,
}

impl<S: RecordSink> Shard<S> {
    pub(crate) fn new(options: ShardOptions, sink: S) -> Self {
        Self {
            started: options.gate.started(),
            options,
            sink,
            unmatched: ApiMetrics::new(""),
            metrics: SocketMetrics::new(),
            state: RefCell::default(),
            is_accepting: Cell::new(true),
            stops_accepting: Notify::new(),
            has_paused: Notify::new(),
            emptied: Notify::new(),
        }
    }

    /// Milliseconds since the edge started, the same on every shard.
    pub(crate) fn now(&self) -> Millis {
        Millis(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    fn around(&self) -> Surroundings<'_, S> {
        Surroundings { sink: &self.sink, metrics: &self.metrics, now: self.now() }
    }

    /// Takes in a socket and starts its task.
    pub(crate) fn insert(self: &Rc<Self>, socket: Socket) {
        let around = self.around();
        let state = &mut *self.state.borrow_mut();
        let (slot, generation) = state.insert(socket);
        state.settle(slot, &around);
        tokio::task::spawn_local(self.serve(slot, generation));
    }

    /// A socket's task: a few words, woken by the socket or by who has queued what it does not take.
    pub(crate) fn serve(self: &Rc<Self>, slot: u32, generation: u32) -> impl Future<Output = ()> + use<S> {
        let shard = Rc::clone(self);
        std::future::poll_fn(move |cx| shard.poll_socket(slot, generation, cx))
    }

    fn poll_socket(&self, slot: u32, generation: u32, cx: &mut Context<'_>) -> Poll<()> {
        let around = self.around();
        let state = &mut *self.state.borrow_mut();
        let Some(socket) = state.sockets.get(slot).filter(|socket| socket.generation == generation) else {
            return Poll::Ready(());
        };
        let polled = socket.poll(cx, &around, &mut state.buffer);
        if polled == Polled::Paused && !std::mem::replace(&mut socket.is_listed, true) {
            state.paused.push(slot);
            self.has_paused.notify_one();
        }
        if state.settle(slot, &around) {
            return Poll::Pending;
        }
        self.check_empty(state);
        Poll::Ready(())
    }

    /// Wakes every socket whose reading is paused: each looks for itself whether it may go on. Says whether there were any.
    pub(crate) fn wake_paused(&self) -> bool {
        let state = &mut *self.state.borrow_mut();
        let mut paused = std::mem::take(&mut state.paused);
        // who is first takes what there is to take: anybody's turn
        let turn = rand::random_range(0..paused.len().max(1));
        paused.rotate_left(turn);
        for slot in &paused {
            if let Some(socket) = state.sockets.get(*slot) {
                socket.is_listed = false;
                socket.wake();
            }
        }
        !paused.is_empty()
    }

    /// Fires the deadlines that are due.
    pub(crate) fn tick(&self) {
        let around = self.around();
        let state = &mut *self.state.borrow_mut();
        let mut due = Vec::new();
        state.timers.advance(around.now, &mut due);
        for slot in due {
            let Some(socket) = state.sockets.get(slot) else { continue };
            socket.drive(&around, |core, limits, mut out| core.handle_timer(around.now, limits, &mut out));
            socket.flush_now(&around);
            state.settle(slot, &around);
        }
        self.check_empty(state);
    }

    /// Takes one input. What it queues is sent by [`Shard::flush`].
    pub(crate) fn handle(&self, input: &ShardInput) {
        let around = self.around();
        let state = &mut *self.state.borrow_mut();
        match input {
            ShardInput::Deliveries(_, deliveries) => {
                for delivery in &deliveries.deliveries {
                    self.deliver(state, &around, &delivery.record);
                }
            }
            ShardInput::Unlogged(record) => self.deliver(state, &around, record),
            ShardInput::CloseAll { cause, spread, record, decided: _ } => {
                for slot in state.slots() {
                    let Some(socket) = state.sockets.get(slot) else { continue };
                    let at = around.now + rand::random_range(Duration::ZERO..=*spread).into();
                    socket.core.handle_drain(at, *cause, *record);
                    state.settle(slot, &around);
                }
            }
            ShardInput::AuthChanged(api) => state.revoke(api, &around),
            ShardInput::StopAccepting => self.stop_accepting(),
        }
    }

    /// No new sockets from now on.
    pub(crate) fn stop_accepting(&self) {
        self.is_accepting.set(false);
        self.stops_accepting.notify_one();
    }

    fn deliver(&self, state: &mut State, around: &Surroundings<'_, S>, record: &Record) {
        let result = if record.kind == RecordKind::Published {
            state.publish(record, around)
        } else if shard_of(record.connection, self.options.shards) == self.options.index {
            // a connection that is gone closed on its own: its close record is on the way
            state.by_id.get(&record.connection).copied().map_or(Ok(()), |slot| state.address(slot, record, around))
        } else {
            Ok(())
        };
        if let Err(error) = result {
            tracing::error!(kind = record.kind.name(), connection = %record.connection, %error, "delivery does not decode");
        }
    }

    /// Sends what is queued, a few hundred sockets at a time.
    pub(crate) async fn flush(&self) {
        loop {
            {
                let around = self.around();
                let state = &mut *self.state.borrow_mut();
                count_delivered(state.delivered.take());
                let count = state.dirty.len().min(FLUSHES_MAX);
                // the order is kept: members are walked as they lie in memory
                let chunk: Vec<u32> = state.dirty.drain(..count).collect();
                for slot in chunk {
                    state.flush(slot, &around);
                }
                if state.dirty.is_empty() {
                    self.check_empty(state);
                    return;
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// Notes how long the newest of these deliveries took from applied to written.
    pub(crate) fn note_delay(&self, deliveries: &Deliveries) {
        if deliveries.deliveries.is_empty() {
            return;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let delay = now.saturating_sub(Duration::from_micros(deliveries.applied_at.0));
        self.metrics.delivery_seconds.record(delay.as_secs_f64());
    }

    fn check_empty(&self, state: &State) {
        if state.sockets.is_empty() {
            self.emptied.notify_one();
        }
    }

    /// Waits until the last socket is gone.
    pub(crate) async fn until_empty(&self) {
        while !self.state.borrow().sockets.is_empty() {
            self.emptied.notified().await;
        }
    }
}

impl State {
    /// Closes what came to the API by a key or a token that it holds no more: one at once, many one after the other.
    fn revoke<S: RecordSink>(&mut self, api: &Arc<Api>, around: &Surroundings<'_, S>) {
        let proofs = api.auth().proofs();
        let revoked = self.sockets.revoked(api, |proof| proofs.contains(&proof));
        if !revoked.is_empty() {
            tracing::info!(
                api = api.name(),
                connections = revoked.len(),
                "their key or token is no more: they are closed"
            );
        }
        let spread = REVOCATION_SPREAD_MAX
            .min(REVOCATION_STEP * u32::try_from(revoked.len() - revoked.len().min(1)).unwrap_or(u32::MAX));
        for slot in revoked {
            let Some(socket) = self.sockets.get(slot) else { continue };
            socket.core.handle_revoked(around.now + rand::random_range(Duration::ZERO..=spread).into());
            self.settle(slot, around);
        }
    }

    /// A publish, to whoever of this shard it is for.
    fn publish<S: RecordSink>(&mut self, record: &Record, around: &Surroundings<'_, S>) -> Result<(), RecordError> {
        let published: v1::Published = record.decode()?;
        let mut members = std::mem::take(&mut self.members);
        if published.channel.is_empty() {
            members.extend(self.sockets.of_api(&published.api));
        } else {
            members.extend_from_slice(self.channels.members(&published.channel));
        }
        if !members.is_empty() {
            let frame = Frame::message(kind_of(published.kind), &published.payload);
            let except = self.slots_of(&published.except);
            for slot in &members {
                if except.is_empty() || !except.contains(slot) {
                    self.queue(*slot, &frame, around);
                }
            }
        }
        members.clear();
        self.members = members;
        Ok(())
    }

    fn slots_of(&self, connections: &[Bytes]) -> BTreeSet<u32> {
        let ids = connections.iter().filter_map(|id| ConnectionId::from_slice(id).ok());
        ids.filter_map(|id| self.by_id.get(&id).copied()).collect()
    }

    /// Queues a frame; a socket that has too much unsent gets one chance to take some.
    fn queue<S: RecordSink>(&mut self, slot: u32, frame: &Frame, around: &Surroundings<'_, S>) {
        let Some(socket) = self.sockets.get(slot) else { return };
        let mut offer = socket.core.offer(&socket.api.limits, frame);
        if offer == Offer::Full {
            socket.flush_now(around);
            offer =
                socket.drive(around, |core, limits, mut out| core.handle_delivery(around.now, limits, frame, &mut out));
        }
        match offer {
            Offer::Ignored => return,
            Offer::Taken => match &mut self.delivered {
                Some((api, count)) if Arc::ptr_eq(api, &socket.api) => *count += 1,
                other => {
                    let before = other.replace((Arc::clone(&socket.api), 1));
                    count_delivered(before);
                }
            },
            // its close frame waits
            Offer::Full => {}
        }
        self.mark_dirty(slot);
    }

    /// A delivery for one connection.
    fn address<S: RecordSink>(
        &mut self,
        slot: u32,
        record: &Record,
        around: &Surroundings<'_, S>,
    ) -> Result<(), RecordError> {
        let Some(socket) = self.sockets.get(slot) else { return Ok(()) };
        let now = around.now;
        match record.kind {
            RecordKind::Pushed => {
                let pushed: v1::Pushed = record.decode()?;
                self.queue(slot, &Frame::message(kind_of(pushed.kind), &pushed.payload), around);
            }
            RecordKind::CloseRequested => {
                let close: v1::CloseRequested = record.decode()?;
                let code = u16::try_from(close.code).map(CloseCode).ok().filter(|code| code.may_be_requested());
                let code = code.unwrap_or(CloseCode::NORMAL);
                socket.drive(around, |core, _, mut out| {
                    core.handle_close(now, code, &close.reason, CloseCause::Handler, &mut out);
                });
            }
            RecordKind::ConnectionAccepted => {
                let accepted = record.decode()?;
                socket.drive(around, |core, _, mut out| core.handle_accepted(now, accepted, &mut out));
            }
            RecordKind::ConnectionRejected => {
                let rejected = record.decode()?;
                socket.drive(around, |core, _, mut out| core.handle_rejected(now, rejected, &mut out));
            }
            RecordKind::ChannelJoined => {
                let joined: v1::ChannelJoined = record.decode()?;
                self.channels.join(&joined.channel, slot, &mut socket.channels);
                socket.drive(around, |core, _, mut out| core.handle_joined(now, &joined.channel, &mut out));
            }
            RecordKind::ChannelLeft => {
                let left: v1::ChannelLeft = record.decode()?;
                self.channels.leave(&left.channel, slot, &mut self.sockets);
            }
            _ => tracing::warn!(kind = record.kind.name(), "delivery of an unexpected kind"),
        }
        self.mark_dirty(slot);
        Ok(())
    }
}

fn count_delivered(delivered: Option<(Arc<Api>, u64)>) {
    if let Some((api, count)) = delivered {
        api.metrics.deliveries.increment(count);
    }
}

fn kind_of(kind: i32) -> MessageKind {
    if kind == MessageKind::Text as i32 { MessageKind::Text } else { MessageKind::Binary }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::ApiConfig, uplink};

    #[test]
    fn idle_connection_is_small() {
        // a connection may cost at most 1.1 KiB with tokio's own parts (a task of 256 bytes, an IO registration of 256)
        assert!(size_of::<Socket>() <= 480, "{}", size_of::<Socket>());
        let apis: Arc<[Arc<Api>]> =
            Arc::new([Arc::new(Api::load(ApiConfig::new("a", "/a".parse().unwrap())).unwrap())]);
        let gate = Arc::new(Gate::new(&crate::config::EdgeConfig::new("e", Vec::new(), "pki".into())));
        let options = ShardOptions {
            edge: "e".into(),
            index: 0,
            shards: 1,
            apis,
            gate,
            headers: Arc::default(),
            tls: None,
            handshakes_max: 1,
        };
        let count = trunkline_proto::PartitionCount::new(1).unwrap();
        let shard = Rc::new(Shard::new(options, uplink::Handle::new(count, 1, 1 << 20)));
        assert!(size_of_val(&shard.serve(0, 0)) <= 32);
    }
}
