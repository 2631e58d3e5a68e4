//! A log that stands still: what waits for it ends all the same.

use std::time::Duration;

use tokio::time::timeout;
use trunkline_proto::v1::link as pb;

use super::support::{Broker, Edge, Options, Stream, hello, until};

/// Shorter than the broker waits for its log: what ends within this did not wait for it.
const AT_ONCE: Duration = Duration::from_secs(4);

async fn broker() -> Broker {
    Broker::start(Options { partitions: 2, ..Options::default() }).await
}

#[tokio::test]
async fn an_edge_that_the_log_does_not_let_in_is_told_to_try_again() {
    let broker = broker().await;
    let edge = Edge::connect(&broker, "a", 1, 0).await;
    let (writer, node) = (broker.node.writer(), broker.node.clone());
    let stalled = writer.pause();
    let (connection, _endpoint) = Edge::dial(&broker, "b").await;
    let mut control = Stream::open(&connection).await;
    control.send(hello("b", 2, 0)).await;
    let mut stream = Stream::open(&edge.connection).await;
    stream.send(edge.attach_frame(1, 0, Vec::new())).await;
    let (greeted, attached) = tokio::join!(control.goodbye(), stream.goodbye());
    assert_eq!((greeted, attached), (pb::Reason::Unhealthy, pb::Reason::Unhealthy));
    drop(stalled);
    // and then it is let in
    until("attached", || node.partition(trunkline_proto::PartitionId(1)).unwrap().state.read().edge("a").is_some())
        .await;
    edge.attach(1, 0).await;
    assert_eq!(Edge::connect(&broker, "b", 2, 0).await.welcome.incarnation, 1);
    broker.stop().await;
}

#[tokio::test]
async fn an_edge_that_is_gone_waits_for_nothing() {
    let broker = broker().await;
    let edge = Edge::connect(&broker, "a", 1, 0).await;
    let writer = broker.node.writer();
    let stalled = writer.pause();
    let mut stream = Stream::open(&edge.connection).await;
    stream.send(edge.attach_frame(1, 0, Vec::new())).await;
    until("attaching", || broker.link.sessions.cursors().len() == 1).await;
    edge.connection.close(0u32.into(), b"");
    let gone = until("gone", || broker.link.sessions.cursors().is_empty());
    timeout(AT_ONCE, gone).await.expect("its stream has ended");
    drop(stalled);
    broker.stop().await;
}

#[tokio::test]
async fn a_shutdown_is_told_to_those_who_wait() {
    let broker = broker().await;
    let edge = Edge::connect(&broker, "a", 1, 0).await;
    let writer = broker.node.writer();
    let stalled = writer.pause();
    let (connection, _endpoint) = Edge::dial(&broker, "b").await;
    let mut control = Stream::open(&connection).await;
    control.send(hello("b", 2, 0)).await;
    let mut stream = Stream::open(&edge.connection).await;
    stream.send(edge.attach_frame(1, 0, Vec::new())).await;
    until("attaching", || broker.link.sessions.cursors().len() == 1).await;
    broker.link.shutdown.cancel();
    let told = async { tokio::join!(control.goodbye(), stream.goodbye()) };
    let told = timeout(AT_ONCE, told).await.expect("told at once");
    assert_eq!(told, (pb::Reason::Shutdown, pb::Reason::Shutdown));
    drop(stalled);
    broker.stop().await;
}
