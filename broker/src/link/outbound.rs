//! Step 17 of the walk. Everything that goes down one edge's stream of one partition: answers to its batches, deliveries, unlogged
//! publishes, pauses. Before it `delivery.rs` (step 16), after it `edge/src/downlink.rs` (step 18).
//!
//! One frame of deliveries at a time is handed to QUIC, whose flow control waits for the edge: a slow edge holds back its own
//! cursor and its own answers, nobody else's.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ::metrics::counter;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::Instant,
};
use trunkline_proto::{LogIndex, link::Frame, v1::link as pb};

use super::{
    frames::FrameWriter, inbound::InFlight, pause::Pauses, sequencer::Sequencer, sessions::Unlogged, stream::End, view,
};
use crate::{
    append::{AppendError, Appended},
    core::Reply,
    delivery::{Cursor, Next},
    metrics::link as names,
    node::{PartitionHandle, Role},
};

/// The lag of handler groups is looked at so often at most.
const PAUSE_PERIOD: Duration = Duration::from_millis(50);

/// The writing half of an attached stream.
#[derive(Debug)]
pub(super) struct Outbound<'a> {
    /// Where frames go.
    pub(super) writer: &'a mut FrameWriter,
    /// What the edge gets.
    pub(super) cursor: Cursor,
    /// The partition.
    pub(super) partition: PartitionHandle,
    /// The edge's, as attached.
    pub(super) incarnation: u64,
    /// Follows who leads.
    pub(super) role: watch::Receiver<Role>,
    /// Shared with the reading half.
    pub(super) sequencer: Arc<Mutex<Sequencer>>,
    /// Set by the reading half when the sequencer has something to say.
    pub(super) say: Arc<Notify>,
    /// Batches on their way, in order.
    pub(super) in_flight: mpsc::Receiver<InFlight>,
    /// The oldest of them.
    pub(super) front: Option<InFlight>,
    /// Publishes that skipped the log.
    pub(super) unlogged: mpsc::Receiver<Unlogged>,
    /// Who is paused.
    pub(super) pauses: Pauses,
    /// Lags were looked at up to this entry...
    pub(super) looked: LogIndex,
    /// ... and may be looked at again from here on.
    pub(super) look_from: Instant,
    /// The cursor's position, for metrics.
    pub(super) given: Arc<AtomicU64>,
}

/// What woke the writer.
enum Wake {
    Answer(u64, Result<Appended, AppendError>),
    Say,
    Unlogged(Unlogged),
    Next(Next),
    Look,
    End(End),
}

impl Outbound<'_> {
    /// Writes until the stream ends; says why.
    pub(super) async fn run(&mut self) -> End {
        loop {
            if self.writer.flush().await.is_err() {
                return End::Gone;
            }
            let wake = self.wake().await;
            if let Err(end) = self.handle(wake) {
                return end;
            }
            if let Err(end) = self.take_answers() {
                return end;
            }
            self.queue_answers();
        }
    }

    /// Answers what is still on its way through the log, for a stream that ends in good order.
    pub(super) async fn drain(&mut self) {
        // the reading half is gone: what is queued is all there will be
        self.in_flight.close();
        while let Some((sequence, answer)) = next_answer(&mut self.front, &mut self.in_flight).await {
            if self.handle(Wake::Answer(sequence, answer)).is_err() {
                break;
            }
        }
        self.queue_answers();
    }

    async fn wake(&mut self) -> Wake {
        let look = async {
            if self.pauses.is_empty() {
                std::future::pending::<()>().await;
            }
            self.partition.tail.wait_past(self.looked).await;
            tokio::time::sleep_until(self.look_from).await;
        };
        // not biased: a flood of answers must not starve the cursor
        tokio::select! {
            role = self.role.wait_for(|role| !matches!(role, Role::Leader { .. })) => Wake::End(match role.as_deref() {
                Ok(Role::Follower { leader }) => End::NotLeader { leader: *leader },
                _ => End::Unhealthy("the partition is closed".to_owned()),
            }),
            Some((sequence, answer)) = next_answer(&mut self.front, &mut self.in_flight) => Wake::Answer(sequence, answer),
            () = self.say.notified() => Wake::Say,
            Some(unlogged) = self.unlogged.recv() => Wake::Unlogged(unlogged),
            next = self.cursor.next() => match next {
                Ok(next) => Wake::Next(next),
                Err(error) => Wake::End(End::from(error)),
            },
            () = look => Wake::Look,
        }
    }

    fn handle(&mut self, wake: Wake) -> Result<(), End> {
        match wake {
            Wake::Answer(sequence, answer) => match answer?.outcome().reply {
                Reply::Edge { last_sequence } => self.sequencer.lock().handle_applied(sequence, last_sequence),
                Reply::Fenced { current } => return Err(End::fenced(current, self.incarnation)),
                // the state machine answers an edge's batch with one of the two
                ref other => return Err(End::Invalid(format!("batch answered with {other:?}"))),
            },
            Wake::Say => {}
            Wake::Unlogged((record, _share)) => self.writer.queue(&Frame::Unlogged(record)),
            Wake::Next(Next::Deliveries(deliveries)) => {
                counter!(names::DELIVERIES_TOTAL).increment(deliveries.deliveries.len() as u64);
                self.writer.queue(&Frame::Deliveries(deliveries));
                self.given.store(self.cursor.given().0, Ordering::Relaxed);
            }
            Wake::Next(Next::Progress(offset)) => {
                self.writer.queue(&Frame::Progress { offset });
                self.given.store(offset.0, Ordering::Relaxed);
            }
            Wake::Look => self.look(),
            Wake::End(end) => return Err(end),
        }
        Ok(())
    }

    /// Takes the answers that have come meanwhile, so that one frame serves them all.
    fn take_answers(&mut self) -> Result<(), End> {
        loop {
            if self.front.is_none() {
                self.front = self.in_flight.try_recv().ok();
            }
            let Some(front) = self.front.as_mut() else { return Ok(()) };
            let Ok(answer) = front.pending.try_recv() else { return Ok(()) };
            let sequence = front.sequence;
            self.front = None;
            self.handle(Wake::Answer(sequence, answer))?;
        }
    }

    fn queue_answers(&mut self) {
        let mut sequencer = self.sequencer.lock();
        if let Some(last) = sequencer.take_resend() {
            self.writer.queue(&Frame::Resend { last });
        }
        if let Some(sequence) = sequencer.take_applied() {
            self.writer.queue(&Frame::Applied { sequence });
        }
    }

    fn look(&mut self) {
        self.looked = self.partition.tail.applied();
        self.look_from = Instant::now() + PAUSE_PERIOD;
        let paused = {
            let state = self.partition.state.read();
            self.pauses.handle_lags(|group| view::group_lag(&state, group))
        };
        if let Some(apis) = paused {
            self.writer.queue(&Frame::Pause(pb::Pause { apis }));
        }
    }
}

/// The oldest batch's answer. `None` when no more come. Cancel safe: the batch waits in `front`.
async fn next_answer(
    front: &mut Option<InFlight>,
    in_flight: &mut mpsc::Receiver<InFlight>,
) -> Option<(u64, Result<Appended, AppendError>)> {
    if front.is_none() {
        *front = in_flight.recv().await;
    }
    let batch = front.as_mut()?;
    // an appender that is gone has not said what became of the batch
    let unknown = AppendError::Unknown { waited: Duration::ZERO };
    let answer = (&mut batch.pending).await.unwrap_or(Err(unknown));
    let sequence = batch.sequence;
    *front = None;
    Some((sequence, answer))
}
