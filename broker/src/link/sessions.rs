//! Which edges are linked to this broker, when each was last heard, and which of them are lost: the driver of `grace.rs`.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ::metrics::{counter, gauge};
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{Instant, MissedTickBehavior},
};
use trunkline_proto::{Offset, PartitionId, Record};

use super::grace::Incarnation;
use crate::{controls, metrics::link as names};

/// Unlogged publishes that may wait for one stream, records. Full: the newest is dropped (they are delivered at most once).
const UNLOGGED_RECORDS: usize = 256;
/// And their bytes.
const UNLOGGED_BYTES: usize = 4 << 20;

/// Why a stream or a session is ended from outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kick {
    /// Its incarnation is lost.
    Lost,
    /// A higher incarnation of the same edge has come.
    Replaced,
    /// The same incarnation has opened a newer stream.
    Superseded,
}

/// When one incarnation of an edge was last heard. Shared by everything that reads from it.
#[derive(Debug)]
pub struct Heard {
    epoch: Instant,
    /// Milliseconds since `epoch`.
    at: AtomicU64,
}

impl Heard {
    fn new(now: Instant) -> Arc<Self> {
        Arc::new(Self { epoch: now, at: AtomicU64::new(0) })
    }

    /// It was heard now.
    pub fn now(&self) {
        let elapsed = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.at.fetch_max(elapsed, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.epoch + Duration::from_millis(self.at.load(Ordering::Relaxed))
    }
}

/// An unlogged publish on its way to one stream, with its share of the stream's bytes.
pub type Unlogged = (Record, OwnedSemaphorePermit);

#[derive(Debug)]
struct Stream {
    id: u64,
    incarnation: u64,
    kick: watch::Sender<Option<Kick>>,
    unlogged: mpsc::Sender<Unlogged>,
    unlogged_bytes: Arc<Semaphore>,
    given: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Control {
    id: u64,
    incarnation: u64,
    kick: watch::Sender<Option<Kick>>,
}

#[derive(Default, Debug)]
struct Inner {
    next_id: u64,
    heard: BTreeMap<Incarnation, Arc<Heard>>,
    /// One control stream an edge: the newest.
    controls: BTreeMap<String, Control>,
    /// One stream a partition and edge: the newest.
    streams: BTreeMap<(PartitionId, String), Stream>,
}

/// Every edge that is linked to this broker. Bounded by the link's limit on edges, times partitions.
#[derive(Default, Debug)]
pub struct Sessions {
    inner: Mutex<Inner>,
}

/// A control stream's place among the sessions; leaving it gives the place up.
#[derive(Debug)]
pub struct ControlGuard {
    sessions: Arc<Sessions>,
    edge: String,
    id: u64,
    /// Set when the session must end.
    pub kick: watch::Receiver<Option<Kick>>,
    /// To be told of every frame.
    pub heard: Arc<Heard>,
}

/// A partition stream's place among the sessions; leaving it gives the place up.
#[derive(Debug)]
pub struct StreamGuard {
    sessions: Arc<Sessions>,
    key: (PartitionId, String),
    id: u64,
}

/// What reaches an attached stream from outside.
#[derive(Debug)]
pub struct StreamInputs {
    /// Set when the stream must end.
    pub kick: watch::Receiver<Option<Kick>>,
    /// Publishes that skipped the log.
    pub unlogged: mpsc::Receiver<Unlogged>,
    /// The stream's cursor says here how far it is.
    pub given: Arc<AtomicU64>,
    /// To be told of every frame.
    pub heard: Arc<Heard>,
}

impl Drop for ControlGuard {
    fn drop(&mut self) {
        let mut inner = self.sessions.inner.lock();
        if inner.controls.get(&self.edge).is_some_and(|control| control.id == self.id) {
            inner.controls.remove(&self.edge);
        }
        gauge!(names::LINK_EDGES).set(inner.controls.len() as f64);
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        let mut inner = self.sessions.inner.lock();
        if inner.streams.get(&self.key).is_some_and(|stream| stream.id == self.id) {
            inner.streams.remove(&self.key);
        }
    }
}

impl Inner {
    fn heard(&mut self, edge: &str, incarnation: u64) -> Arc<Heard> {
        let key = Incarnation { edge: edge.to_owned(), number: incarnation };
        let heard = self.heard.entry(key).or_insert_with(|| Heard::new(Instant::now()));
        heard.now();
        heard.clone()
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

/// The first reason stands: an edge that is told that it is lost must not hear that a twin, which is itself, has replaced it.
fn end(sender: &watch::Sender<Option<Kick>>, kick: Kick) {
    sender.send_if_modified(|current| current.is_none() && current.replace(kick).is_none());
}

fn supersede(sender: &watch::Sender<Option<Kick>>, older: u64, newer: u64) {
    end(sender, if older < newer { Kick::Replaced } else { Kick::Superseded });
}

impl Sessions {
    /// An edge's control stream is up. Ends an older one, and the streams of lower incarnations. `None` if a higher incarnation is
    /// here already.
    pub fn enter(self: &Arc<Self>, edge: &str, incarnation: u64) -> Option<ControlGuard> {
        let mut inner = self.inner.lock();
        if inner.controls.get(edge).is_some_and(|control| control.incarnation > incarnation) {
            return None;
        }
        let (id, heard) = (inner.id(), inner.heard(edge, incarnation));
        let (sender, receiver) = watch::channel(None);
        let control = Control { id, incarnation, kick: sender };
        if let Some(older) = inner.controls.insert(edge.to_owned(), control) {
            supersede(&older.kick, older.incarnation, incarnation);
        }
        for ((_, name), stream) in &inner.streams {
            if name == edge && stream.incarnation < incarnation {
                supersede(&stream.kick, stream.incarnation, incarnation);
            }
        }
        gauge!(names::LINK_EDGES).set(inner.controls.len() as f64);
        drop(inner);
        Some(ControlGuard { sessions: self.clone(), edge: edge.to_owned(), id, kick: receiver, heard })
    }

    /// A partition's stream is attached. Ends an older one; `None` if a higher incarnation is attached already.
    pub fn attach(
        self: &Arc<Self>,
        partition: PartitionId,
        edge: &str,
        incarnation: u64,
        after: Offset,
    ) -> Option<(StreamGuard, StreamInputs)> {
        let mut inner = self.inner.lock();
        let key = (partition, edge.to_owned());
        if inner.streams.get(&key).is_some_and(|stream| stream.incarnation > incarnation) {
            return None;
        }
        let (id, heard) = (inner.id(), inner.heard(edge, incarnation));
        let (kicks, kicked) = watch::channel(None);
        let (unlogged, unlogged_receiver) = mpsc::channel(UNLOGGED_RECORDS);
        let given = Arc::new(AtomicU64::new(after.0));
        let stream = Stream {
            id,
            incarnation,
            kick: kicks,
            unlogged,
            unlogged_bytes: Arc::new(Semaphore::new(UNLOGGED_BYTES)),
            given: given.clone(),
        };
        if let Some(older) = inner.streams.insert(key.clone(), stream) {
            supersede(&older.kick, older.incarnation, incarnation);
        }
        drop(inner);
        let inputs = StreamInputs { kick: kicked, unlogged: unlogged_receiver, given, heard };
        Some((StreamGuard { sessions: self.clone(), key, id }, inputs))
    }

    /// An incarnation has been declared lost in a partition: its stream there ends, and its session, for the edge is to begin anew.
    pub fn lost(&self, partition: PartitionId, lost: &Incarnation) {
        if controls::NO_FENCING.is_on() {
            return;
        }
        let inner = self.inner.lock();
        if let Some(stream) = inner.streams.get(&(partition, lost.edge.clone()))
            && stream.incarnation <= lost.number
        {
            end(&stream.kick, Kick::Lost);
        }
        if let Some(control) = inner.controls.get(&lost.edge)
            && control.incarnation <= lost.number
        {
            end(&control.kick, Kick::Lost);
        }
    }

    /// When an incarnation was last heard.
    pub fn heard(&self, incarnation: &Incarnation) -> Option<Instant> {
        self.inner.lock().heard.get(incarnation).map(|heard| heard.last())
    }

    /// Gives an unlogged publish to the edges of one partition that `wants` names. Never waits: a full queue drops it.
    pub fn publish_unlogged(&self, partition: PartitionId, record: &Record, wants: impl Fn(&str) -> bool) {
        let inner = self.inner.lock();
        let size = u32::try_from(record.bytes().len()).unwrap_or(u32::MAX);
        let streams = inner.streams.range((partition, String::new())..).take_while(|((id, _), _)| *id == partition);
        for ((_, edge), stream) in streams.filter(|((_, edge), _)| wants(edge)) {
            let sent = stream
                .unlogged_bytes
                .clone()
                .try_acquire_many_owned(size)
                .ok()
                .is_some_and(|permit| stream.unlogged.try_send((record.clone(), permit)).is_ok());
            if !sent {
                counter!(names::UNLOGGED_DROPPED_TOTAL, "edge" => edge.clone()).increment(1);
            }
        }
    }

    /// The edges linked now, by name, each with its incarnation.
    pub fn edges(&self) -> Vec<(String, u64)> {
        let inner = self.inner.lock();
        inner.controls.iter().map(|(edge, control)| (edge.clone(), control.incarnation)).collect()
    }

    /// How far each attached stream's cursor is.
    pub fn cursors(&self) -> Vec<(PartitionId, String, Offset)> {
        let inner = self.inner.lock();
        let streams = inner.streams.iter();
        streams
            .map(|((partition, edge), stream)| (*partition, edge.clone(), Offset(stream.given.load(Ordering::Relaxed))))
            .collect()
    }

    /// Forgets who has been gone for `age`: their silence has been judged.
    pub fn prune(&self, age: Duration) {
        self.inner.lock().heard.retain(|_, heard| Arc::strong_count(heard) > 1 || heard.last().elapsed() < age);
    }
}

/// A ticker that does not try to catch up: a late tick is a fact that `grace.rs` uses.
pub fn ticker(period: Duration) -> tokio::time::Interval {
    let mut ticker = tokio::time::interval(period);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticker
}
