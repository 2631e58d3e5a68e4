//! The sockets of a shard: their slots, what they keep, their timers, and which of them have something to send.

use std::sync::Arc;

use hashbrown::HashMap;
use slab::Slab;
use trunkline_proto::ConnectionId;

use crate::{
    api::Api,
    channels::{ChannelIndex, Members, Memberships},
    core::{auth::Proof, timers::TimerWheel},
    sink::RecordSink,
    socket::{Socket, Surroundings},
};

/// The buffer every socket of a shard is read into.
const READ_BUFFER_BYTES: usize = 64 << 10;
/// Most bytes of unfinished messages over all sockets of a shard. Who needs more is closed with "try later" (1013).
const KEPT_BYTES_MAX: usize = 256 << 20;
/// A shard's sockets, and what is kept of them.
pub(super) struct State {
    // boxed, so that a slab that grows does not copy sockets
    pub(super) sockets: Sockets,
    pub(super) by_id: HashMap<ConnectionId, u32, foldhash::fast::RandomState>,
    pub(super) channels: ChannelIndex,
    pub(super) timers: TimerWheel,
    pub(super) buffer: Box<[u8]>,
    /// Slots with something queued since the last flush.
    pub(super) dirty: Vec<u32>,
    /// Slots whose reading is paused.
    pub(super) paused: Vec<u32>,
    /// Deliveries not counted yet, all of one API: counters are shared by the shards.
    pub(super) delivered: Option<(Arc<Api>, u64)>,
    /// Whom a publish is for; kept for its memory only.
    pub(super) members: Vec<u32>,
    /// Bytes of unfinished messages over all sockets.
    kept_bytes: usize,
    next_generation: u32,
}

/// By slot.
#[derive(Default)]
pub(super) struct Sockets(Slab<Box<Socket>>);

impl Sockets {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The slots of an API's sockets.
    pub(super) fn of_api<'a>(&'a self, api: &'a str) -> impl Iterator<Item = u32> + 'a {
        self.0.iter().filter(move |(_, socket)| socket.api.name() == api).map(|(slot, _)| slot as u32)
    }

    /// The slots of an API's sockets that came by something which it `holds` no more.
    pub(super) fn revoked(&self, api: &Arc<Api>, holds: impl Fn(Proof) -> bool) -> Vec<u32> {
        let of_api = self.0.iter().filter(|(_, socket)| Arc::ptr_eq(&socket.api, api));
        of_api
            .filter(|(_, socket)| socket.proof.is_some_and(|proof| !holds(proof)))
            .map(|(slot, _)| slot as u32)
            .collect()
    }

    pub(super) fn get(&mut self, slot: u32) -> Option<&mut Socket> {
        self.0.get_mut(slot as usize).map(|socket| &mut **socket)
    }
}

impl Members for Sockets {
    fn memberships(&mut self, slot: u32) -> Option<&mut Memberships> {
        self.get(slot).map(|socket| &mut socket.channels)
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            sockets: Sockets::default(),
            by_id: HashMap::default(),
            channels: ChannelIndex::default(),
            timers: TimerWheel::default(),
            buffer: vec![0; READ_BUFFER_BYTES].into_boxed_slice(),
            dirty: Vec::new(),
            paused: Vec::new(),
            delivered: None,
            members: Vec::new(),
            kept_bytes: 0,
            next_generation: 0,
        }
    }
}

impl State {
    /// Takes in a socket: its slot, and this use of it.
    pub(super) fn insert(&mut self, mut socket: Socket) -> (u32, u32) {
        self.next_generation = self.next_generation.wrapping_add(1);
        socket.generation = self.next_generation;
        let connection = socket.connection;
        let slot = self.sockets.0.insert(Box::new(socket)) as u32;
        self.by_id.insert(connection, slot);
        (slot, self.next_generation)
    }

    pub(super) fn slots(&self) -> Vec<u32> {
        self.sockets.0.iter().map(|(slot, _)| slot as u32).collect()
    }

    /// After anything has happened to a socket: counts what it keeps, moves its timer, and drops it when it is over. Says
    /// whether it lives on.
    pub(super) fn settle<S: RecordSink>(&mut self, slot: u32, around: &Surroundings<'_, S>) -> bool {
        let Some(socket) = self.sockets.get(slot) else { return false };
        let kept = socket.core.kept_bytes();
        if kept != socket.kept_bytes {
            self.kept_bytes = self.kept_bytes - socket.kept_bytes + kept;
            socket.kept_bytes = kept;
            if self.kept_bytes > KEPT_BYTES_MAX && kept > 0 {
                socket.drive(around, |core, _, mut out| {
                    core.handle_overload(around.now, "too many unfinished messages", &mut out);
                });
                self.kept_bytes = self.kept_bytes - socket.kept_bytes + socket.core.kept_bytes();
                socket.kept_bytes = socket.core.kept_bytes();
                socket.flush_now(around);
            }
        }
        if !socket.core.is_over() {
            match socket.core.deadline(&socket.api.limits) {
                Some(deadline) => self.timers.set(slot, deadline),
                None => self.timers.cancel(slot),
            }
            return true;
        }
        self.timers.cancel(slot);
        self.by_id.remove(&socket.connection);
        socket.wake();
        socket.api.leave_place();
        let channels = std::mem::take(&mut socket.channels);
        self.sockets.0.remove(slot as usize);
        self.channels.leave_all(channels, &mut self.sockets);
        false
    }

    pub(super) fn flush<S: RecordSink>(&mut self, slot: u32, around: &Surroundings<'_, S>) {
        let Some(socket) = self.sockets.get(slot).filter(|socket| socket.is_dirty) else { return };
        socket.is_dirty = false;
        // a blocked socket has bytes waiting, so its task waits for room and sends these too
        if !socket.core.is_blocked() {
            socket.flush_now(around);
        }
        self.settle(slot, around);
    }

    /// Something is queued: it is sent at the next flush.
    pub(super) fn mark_dirty(&mut self, slot: u32) {
        let Some(socket) = self.sockets.get(slot) else { return };
        if !std::mem::replace(&mut socket.is_dirty, true) {
            self.dirty.push(slot);
        }
    }
}
