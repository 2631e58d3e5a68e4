//! Runs one shard on its thread: accept, inbox, timers, pauses.

use std::{io, net::TcpListener as StdListener, rc::Rc, time::Duration};

use tokio::{net::TcpListener, time::MissedTickBehavior};

use crate::{
    accept,
    core::timers::TICK,
    inbox::{ShardInbox, ShardInput},
    shard::{Shard, ShardOptions},
    sink::RecordSink,
};

/// Most inputs taken before what they queued is sent: under load a socket gets several publishes in one write.
const INPUTS_MAX: usize = 32;
/// Most deliveries of those inputs.
const DELIVERIES_MAX: usize = 4096;
/// Paused sockets look again after so long, should a wake-up have been missed.
const PAUSE_CHECK: Duration = Duration::from_secs(1);

/// Runs one shard: accepts from `listener` (see [`accept::bind`]), serves its sockets, and takes `inbox`. Returns when the last
/// [`crate::inbox::ShardHandle`] is dropped and the last connection is over. Must run inside a `LocalSet` of a current-thread
/// runtime; fails only if the listener cannot be used.
pub async fn run<S: RecordSink>(
    options: ShardOptions,
    listener: StdListener,
    sink: S,
    mut inbox: ShardInbox,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let shard = Rc::new(Shard::new(options, sink));
    let helpers = [
        tokio::task::spawn_local(accept::serve(Rc::clone(&shard), listener)),
        tokio::task::spawn_local(keep_time(Rc::clone(&shard))),
        tokio::task::spawn_local(watch_pauses(Rc::clone(&shard))),
    ];
    while let Some(first) = inbox.inputs.recv().await {
        let inputs = take_turn(&shard, first, &mut inbox);
        shard.flush().await;
        for input in &inputs {
            if let ShardInput::Deliveries(_, deliveries) = input {
                shard.note_delay(deliveries);
            }
        }
    }
    shard.stop_accepting();
    shard.until_empty().await;
    for helper in helpers {
        helper.abort();
    }
    Ok(())
}

/// Takes an input and those that wait behind it, up to a bound.
fn take_turn<S: RecordSink>(shard: &Shard<S>, first: ShardInput, inbox: &mut ShardInbox) -> Vec<ShardInput> {
    let (mut inputs, mut next, mut deliveries) = (Vec::new(), Some(first), 0);
    while let Some(input) = next.take() {
        shard.handle(&input);
        if let ShardInput::Deliveries(_, taken) = &input {
            deliveries += taken.deliveries.len();
        }
        inputs.push(input);
        if inputs.len() < INPUTS_MAX && deliveries < DELIVERIES_MAX {
            next = inbox.inputs.try_recv().ok();
        }
    }
    inputs
}

async fn keep_time<S: RecordSink>(shard: Rc<Shard<S>>) {
    let mut ticks = tokio::time::interval(Duration::from_millis(TICK.0));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        shard.tick();
    }
}

/// Lets paused sockets go on when there is room again, or when the brokers say so.
async fn watch_pauses<S: RecordSink>(shard: Rc<Shard<S>>) {
    loop {
        shard.has_paused.notified().await;
        let is_full = !shard.sink.has_room();
        tokio::select! {
            () = shard.sink.wait_for_room(), if is_full => {}
            () = shard.sink.pause_changed() => {}
            () = tokio::time::sleep(PAUSE_CHECK) => {}
        }
        // who still may not go on is listed again, and this woken
        shard.wake_paused();
    }
}
