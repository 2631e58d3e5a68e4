//! The link against a broker of these tests that speaks the frames over real QUIC.

use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};
use trunkline_proto::{
    ConnectionId, LogIndex, Offset, Record, RecordKind, Timestamp,
    link::{Deliveries, Delivery, Frame, UplinkBatch},
    record::encode_message_received,
    v1,
};

use super::{
    fake::{Broker, Hello, Pki, soon},
    *,
};
use crate::{
    config::ApiConfig,
    inbox::{self, SHARD_INBOX_MAX, ShardInbox, ShardInput},
};

/// An edge's link with one shard that this test plays.
struct Edge {
    apis: Arc<[Arc<Api>]>,
    uplink: uplink::Handle,
    inbox: ShardInbox,
    status: Arc<Status>,
    stop: CancellationToken,
    running: JoinHandle<Result<(), LinkError>>,
}

fn settings(pki: &Pki, brokers: &[&Broker]) -> Settings {
    let api = Api::load(ApiConfig::new("chat", "/chat".parse().unwrap())).unwrap();
    Settings {
        edge: "e1".to_owned(),
        brokers: brokers.iter().map(|broker| broker.address()).collect(),
        pki: pki.path().to_owned(),
        apis: [Arc::new(api)].into(),
    }
}

/// Starts the edge; its first incarnation is 7.
async fn start(pki: &Pki, brokers: &[&Broker]) -> (Edge, Hello) {
    let status = Arc::new(Status::new());
    let settings = settings(pki, brokers);
    let apis = Arc::clone(&settings.apis);
    let link = Link::open(settings, Arc::clone(&status)).unwrap();
    let welcomed = async {
        let mut hello = brokers[0].hello().await;
        hello.welcome(7, 1).await;
        hello
    };
    let (granted, hello) = tokio::join!(soon("a grant", link.grant()), welcomed);
    let granted = granted.unwrap();
    assert_eq!((granted.incarnation(), granted.partition_count().get()), (7, 1));
    let (handle, inbox) = inbox::inbox();
    let uplink = uplink::Handle::new(granted.partition_count(), granted.incarnation(), 1 << 20);
    let stop = CancellationToken::new();
    let running = link.run(granted, uplink.clone(), Downlink::new(vec![handle]), stop.clone());
    (Edge { apis, uplink, inbox, status, stop, running: tokio::spawn(running) }, hello)
}

impl Edge {
    fn say(&self, text: &str) -> tokio::sync::oneshot::Receiver<Result<(), uplink::UplinkError>> {
        self.uplink.append_tracked(connection(), |out| {
            encode_message_received(out, connection(), "chat", v1::MessageKind::Text, text.as_bytes());
        })
    }

    async fn input(&mut self) -> ShardInput {
        soon("an input of the shard", self.inbox.inputs.recv()).await.unwrap()
    }

    /// Entry indexes of the next deliveries.
    async fn delivered(&mut self) -> Vec<u64> {
        match self.input().await {
            ShardInput::Deliveries(_, deliveries) => {
                deliveries.deliveries.iter().map(|delivery| delivery.offset.index().0).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    async fn attached(&self) {
        while self.status.attached_partitions() == 0 {
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn stop(self) {
        self.stop.cancel();
        soon("the end", self.running).await.unwrap().unwrap();
        assert_eq!(self.status.attached_partitions(), 0);
    }
}

fn connection() -> ConnectionId {
    ConnectionId([3; 16])
}

fn texts(batch: &UplinkBatch) -> Vec<String> {
    let batch = trunkline_proto::Batch::checked(trunkline_proto::Source::Leader, batch.count, batch.records.clone());
    let text = |record: Record| record.decode::<v1::MessageReceived>().unwrap().payload;
    batch.unwrap().iter().map(|record| String::from_utf8(text(record.unwrap()).to_vec()).unwrap()).collect()
}

fn at(index: u64) -> Offset {
    Offset::new(LogIndex(index), 0)
}

fn deliveries(indexes: impl IntoIterator<Item = u64>) -> Frame {
    let record = Record::new(RecordKind::Pushed, connection(), "chat", &v1::Pushed::default());
    let deliveries: Vec<_> =
        indexes.into_iter().map(|index| Delivery { offset: at(index), record: record.clone() }).collect();
    let through = deliveries.last().map_or(Offset::ZERO, |delivery| delivery.offset);
    Frame::Deliveries(Deliveries { applied_at: Timestamp(1), through, deliveries })
}

#[tokio::test]
async fn attach_send_applied() {
    let pki = Pki::new();
    let broker = Broker::start(&pki, 1);
    let (edge, hello) = start(&pki, &[&broker]).await;
    assert_eq!((hello.hello.edge.as_str(), hello.hello.incarnation, hello.hello.nonce.len()), ("e1", 0, 16));
    let early = edge.say("before the stream is there");
    let mut stream = hello.stream().await;
    let api = pb::Api { name: "chat".to_owned(), handler_group: "chat".to_owned(), max_handler_lag: 0 };
    let expected = pb::Attach { partition: 0, edge: "e1".to_owned(), incarnation: 7, after: 0, apis: vec![api] };
    assert_eq!(stream.attach, expected);
    stream.attached(0, at(40)).await;
    let batch = stream.batch().await;
    assert_eq!((batch.sequence, texts(&batch)), (1, vec!["before the stream is there".to_owned()]));
    stream.send(Frame::Applied { sequence: 1 }).await;
    soon("applied", early).await.unwrap().unwrap();
    let (one, large) = (edge.say("one"), edge.say(&"x".repeat(300_000)));
    for sequence in [2, 3] {
        assert_eq!(stream.batch().await.sequence, sequence);
    }
    stream.send(Frame::Applied { sequence: 3 }).await;
    soon("applied", one).await.unwrap().unwrap();
    soon("applied", large).await.unwrap().unwrap();
    assert_eq!((edge.uplink.inflight_bytes(), edge.status.attached_partitions()), (0, 1));
    edge.stop().await;
}

#[tokio::test]
async fn a_broken_stream_is_resumed_after_what_is_applied() {
    let pki = Pki::new();
    let broker = Broker::start(&pki, 1);
    let (edge, hello) = start(&pki, &[&broker]).await;
    let mut stream = hello.stream().await;
    stream.attached(0, at(1)).await;
    let mut sent = Vec::new();
    for text in ["a", "b", "c"] {
        drop(edge.say(text));
        sent.push(stream.batch().await);
    }
    drop(stream);
    let mut stream = hello.stream().await;
    stream.attached(1, at(1)).await;
    assert_eq!([stream.batch().await, stream.batch().await], [sent[1].clone(), sent[2].clone()], "unchanged");
    stream.send(Frame::Resend { last: 2 }).await;
    assert_eq!(stream.batch().await, sent[2], "a gap is filled on the same stream");
    stream.send(Frame::Applied { sequence: 3 }).await;
    soon("flush", edge.uplink.flushed()).await;
    edge.stop().await;
}

#[tokio::test]
async fn a_broken_connection_keeps_incarnation_and_place() {
    let pki = Pki::new();
    let broker = Broker::start(&pki, 1);
    let (mut edge, hello) = start(&pki, &[&broker]).await;
    let mut stream = hello.stream().await;
    stream.attached(0, at(10)).await;
    stream.send(deliveries([11, 12])).await;
    assert_eq!(edge.delivered().await, [11, 12]);
    stream.send(Frame::Progress { offset: at(20) }).await;
    stream.seen(at(20)).await;
    drop(edge.say("a"));
    let sent = stream.batch().await;
    hello.connection.close(quinn::VarInt::from_u32(9), b"gone");

    let (again, mut stream) = broker.link(7).await;
    assert_eq!((again.hello.incarnation, &again.hello.nonce), (7, &hello.hello.nonce));
    assert_eq!((stream.attach.incarnation, stream.attach.after), (7, at(20).0));
    stream.attached(0, at(20)).await;
    assert_eq!(stream.batch().await, sent);
    stream.send(deliveries([12, 20, 21])).await;
    assert_eq!(edge.delivered().await, [21], "the rest has been seen");
    edge.stop().await;
}

#[tokio::test]
async fn a_lost_incarnation_closes_all_and_the_next_begins() {
    let pki = Pki::new();
    let broker = Broker::start(&pki, 1);
    let (mut edge, hello) = start(&pki, &[&broker]).await;
    let mut stream = hello.stream().await;
    stream.attached(0, at(10)).await;
    let never = edge.say("never applied");
    stream.batch().await;
    stream.goodbye(pb::Reason::Lost, 0, "").await;
    match edge.input().await {
        ShardInput::CloseAll { cause: CloseCause::EdgeLost, spread: Duration::ZERO, record: false, .. } => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(soon("an answer", never).await.unwrap(), Err(uplink::UplinkError::Fenced));

    let mut again = broker.hello().await;
    assert_eq!(again.hello.incarnation, 0);
    assert_ne!(again.hello.nonce, hello.hello.nonce, "the old nonce would get the lost incarnation again");
    again.welcome(8, 1).await;
    let mut stream = again.stream().await;
    assert_eq!((stream.attach.incarnation, stream.attach.after), (8, 0));
    assert_eq!(soon("an answer", edge.say("too early")).await.unwrap(), Err(uplink::UplinkError::Fenced));
    stream.attached(0, at(50)).await;
    soon("the stream", edge.attached()).await;
    drop(edge.say("first of the next"));
    let batch = stream.batch().await;
    assert_eq!((batch.sequence, texts(&batch)), (1, vec!["first of the next".to_owned()]));
    assert_eq!(edge.uplink.incarnation(), 8);
    edge.stop().await;
}

#[tokio::test]
async fn the_next_incarnation_waits_for_every_shard_and_for_no_client() {
    let pki = Pki::new();
    let broker = Broker::start(&pki, 1);
    let (mut edge, hello) = start(&pki, &[&broker]).await;
    assert!(edge.apis[0].take_place(), "a client that does not answer its close frame");
    let mut stream = hello.stream().await;
    stream.attached(0, at(10)).await;
    let began = std::time::Instant::now();
    stream.goodbye(pb::Reason::Lost, 0, "").await;
    // asked for before the shard has closed anything
    let mut again = broker.hello().await;
    again.welcome(8, 1).await;
    assert!(timeout(Duration::from_millis(300), again.stream()).await.is_err(), "a socket may still append");
    assert_eq!(edge.uplink.incarnation(), 7);
    assert!(matches!(edge.input().await, ShardInput::CloseAll { record: false, .. }));
    assert_eq!(again.stream().await.attach.incarnation, 8);
    assert!(began.elapsed() < CLOSE_TIMEOUT, "{:?}", began.elapsed());
    edge.stop().await;
}

#[tokio::test]
async fn deliveries_that_were_missed_end_the_incarnation() {
    let pki = Pki::new();
    let broker = Broker::start(&pki, 1);
    let (mut edge, hello) = start(&pki, &[&broker]).await;
    let mut stream = hello.stream().await;
    stream.attached(0, at(10)).await;
    soon("the stream", edge.attached()).await;
    drop(stream);
    let mut stream = hello.stream().await;
    stream.attached(0, at(11)).await;
    assert!(matches!(edge.input().await, ShardInput::CloseAll { cause: CloseCause::EdgeLost, record: false, .. }));
    edge.stop().await;
}

#[tokio::test]
async fn a_replaced_edge_closes_all_and_ends() {
    let pki = Pki::new();
    let broker = Broker::start(&pki, 1);
    let (mut edge, mut hello) = start(&pki, &[&broker]).await;
    let mut stream = hello.stream().await;
    stream.attached(0, at(10)).await;
    let goodbye = pb::Goodbye { reason: pb::Reason::Replaced.into(), ..Default::default() };
    hello.writer.send(&Frame::Goodbye(goodbye)).await.unwrap();
    assert!(matches!(edge.input().await, ShardInput::CloseAll { record: false, .. }));
    assert_eq!(soon("the end", edge.running).await.unwrap(), Err(LinkError::Replaced));
}

#[tokio::test]
async fn another_cluster_is_not_joined_in_mid_life() {
    let pki = Pki::new();
    let broker = Broker::start(&pki, 1);
    let (edge, hello) = start(&pki, &[&broker]).await;
    hello.connection.close(quinn::VarInt::from_u32(9), b"gone");
    let mut again = broker.hello().await;
    again.welcome_to("made anew", 7, 1).await;
    let ended = soon("the end", edge.running).await.unwrap();
    assert!(matches!(&ended, Err(LinkError::Cluster { known, found }) if known != found), "{ended:?}");
}

#[tokio::test]
async fn leadership_is_followed_to_brokers_not_known_before() {
    let pki = Pki::new();
    let (first, second) = (Broker::start(&pki, 1), Broker::start(&pki, 2));
    let (edge, hello) = start(&pki, &[&first]).await;
    let mut stream = hello.stream().await;
    stream.goodbye(pb::Reason::NotLeader, 2, &second.address().link).await;
    let (other, mut stream) = second.link(7).await;
    assert_eq!((other.hello.incarnation, stream.attach.incarnation), (7, 7));
    stream.attached(0, at(10)).await;
    drop(edge.say("a"));
    assert_eq!(stream.batch().await.sequence, 1);
    // and back, after it steps down without knowing who follows
    stream.goodbye(pb::Reason::NotLeader, 0, "").await;
    let mut stream = hello.stream().await;
    stream.attached(0, at(10)).await;
    assert_eq!(stream.batch().await.sequence, 1);
    edge.stop().await;
}

#[tokio::test]
async fn brokers_that_lead_nothing_are_known_when_the_only_one_given_is_gone() {
    let pki = Pki::new();
    let (mut first, second) = (Broker::start(&pki, 1), Broker::start(&pki, 2));
    first.brokers = vec![pb::BrokerLink { broker: 2, address: second.address().link }];
    let (edge, hello) = start(&pki, &[&first]).await;
    drop((hello, first));
    let (other, _) = second.link(7).await;
    assert_eq!(other.hello.incarnation, 7);
    edge.stop().await;
}

#[tokio::test]
async fn a_broker_that_moves_is_found_where_the_others_say_it_is() {
    let pki = Pki::new();
    let (first, second) = (Broker::start(&pki, 1), Broker::start(&pki, 2));
    // packets to it are lost, as to a host that is gone
    let gone = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let (edge, hello) = start(&pki, &[&first]).await;
    let mut stream = hello.stream().await;
    stream.goodbye(pb::Reason::NotLeader, 2, &gone.local_addr().unwrap().to_string()).await;
    // found nowhere, so the first is asked again, which knows better by now
    let mut stream = hello.stream().await;
    stream.goodbye(pb::Reason::NotLeader, 2, &second.address().link).await;
    let (other, stream) = second.link(7).await;
    assert_eq!((other.hello.incarnation, stream.attach.incarnation), (7, 7));
    edge.stop().await;
}

#[tokio::test]
async fn a_broker_that_welcomes_and_ends_at_once_is_asked_less_and_less() {
    let pki = Pki::new();
    let broker = Broker::start(&pki, 1);
    let (edge, hello) = start(&pki, &[&broker]).await;
    let began = std::time::Instant::now();
    hello.connection.close(quinn::VarInt::from_u32(9), b"gone");
    for _ in 0..6 {
        let mut again = broker.hello().await;
        again.welcome(7, 1).await;
        again.pinged().await;
        again.connection.close(quinn::VarInt::from_u32(9), b"gone");
    }
    // at least half of 50, 100, 200, 400, 800 and 1600 ms; without growth it would be 300 ms
    assert!(began.elapsed() > Duration::from_millis(1500), "{:?}", began.elapsed());
    edge.stop().await;
}

#[tokio::test]
async fn an_unhealthy_broker_is_asked_again_and_sockets_stay() {
    let pki = Pki::new();
    let broker = Broker::start(&pki, 1);
    let (mut edge, hello) = start(&pki, &[&broker]).await;
    for reason in [pb::Reason::Unhealthy, pb::Reason::Shutdown] {
        let mut stream = hello.stream().await;
        stream.attached(0, at(10)).await;
        stream.goodbye(reason, 0, "").await;
    }
    let _stream = hello.stream().await;
    assert!(edge.inbox.inputs.try_recv().is_err(), "nothing was closed");
    edge.stop().await;
}

#[tokio::test]
async fn backpressure_of_a_slow_shard_reaches_the_stream() {
    let pki = Pki::new();
    let broker = Broker::start(&pki, 1);
    let (mut edge, hello) = start(&pki, &[&broker]).await;
    let mut stream = hello.stream().await;
    stream.attached(0, at(0)).await;
    let frames = SHARD_INBOX_MAX as u64 * 4;
    for index in 1..=frames {
        stream.send(deliveries([index])).await;
    }
    let full = async {
        while edge.inbox.inputs.len() < SHARD_INBOX_MAX {
            sleep(Duration::from_millis(5)).await;
        }
        sleep(Duration::from_millis(100)).await;
    };
    soon("a full inbox", full).await;
    assert_eq!(edge.inbox.inputs.len(), SHARD_INBOX_MAX);
    // what goes up does not wait for what comes down
    drop(edge.say("a"));
    stream.batch().await;
    for index in 1..=frames {
        assert_eq!(edge.delivered().await, [index]);
    }
    stream.seen(at(frames)).await;
    edge.stop().await;
}

#[tokio::test]
async fn pauses_are_of_their_stream() {
    let pki = Pki::new();
    let broker = Broker::start(&pki, 1);
    let (edge, hello) = start(&pki, &[&broker]).await;
    let mut stream = hello.stream().await;
    stream.attached(0, at(0)).await;
    stream.send(Frame::Pause(pb::Pause { apis: vec!["chat".to_owned()] })).await;
    soon("the pause", edge.uplink.pause_changed()).await;
    assert!(edge.uplink.is_paused(connection(), "chat"));
    drop(stream);
    soon("its end", edge.uplink.pause_changed()).await;
    assert!(!edge.uplink.is_paused(connection(), "chat"));
    edge.stop().await;
}

#[tokio::test]
async fn a_killed_broker_that_is_back_is_found_long_before_the_idle_timeout() {
    let pki = Pki::new();
    let address = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // a runtime that stops sends no goodbye, as a killed process
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let broker = {
        let _inside = runtime.enter();
        Broker::start_at(&pki, 1, address)
    };
    let (edge, hello) = start(&pki, &[&broker]).await;
    let mut stream = hello.stream().await;
    stream.attached(0, at(0)).await;
    runtime.shutdown_background();
    // they hold the port; nobody is left to send what dropping them would say
    drop((stream, hello, broker));
    drop(edge.say("while it is dead"));
    let killed = std::time::Instant::now();
    let broker = soon("the port", async {
        loop {
            match quinn::Endpoint::server(pki.server(1), address) {
                Ok(endpoint) => return Broker { id: 1, brokers: Vec::new(), endpoint },
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    });
    let broker = broker.await;
    let (again, mut stream) = broker.link(7).await;
    assert_eq!(again.hello.incarnation, 7);
    stream.attached(0, at(0)).await;
    assert_eq!(texts(&stream.batch().await), ["while it is dead"]);
    assert!(killed.elapsed() < Duration::from_secs(10), "{:?}", killed.elapsed());
    edge.stop().await;
}

#[tokio::test]
async fn a_broker_under_another_name_is_not_spoken_to() {
    let pki = Pki::new();
    let impostor = Broker::start(&pki, 2);
    let mut settings = settings(&pki, &[&impostor]);
    settings.brokers[0].id = 1;
    let link = Link::open(settings, Arc::new(Status::new())).unwrap();
    let attempt = async { impostor.endpoint.accept().await.unwrap().await.map(|_| ()) };
    tokio::select! {
        _ = link.grant() => panic!("granted by an impostor"),
        attempt = soon("an attempt", attempt) => assert!(attempt.is_err()),
    }
}

#[tokio::test]
async fn a_broker_that_does_not_grant_sends_to_the_others() {
    let pki = Pki::new();
    let (first, second) = (Broker::start(&pki, 1), Broker::start(&pki, 2));
    let link = Link::open(settings(&pki, &[&first, &second]), Arc::new(Status::new())).unwrap();
    let welcomed = async {
        first.hello().await.welcome(0, 4).await;
        let mut hello = second.hello().await;
        hello.welcome(3, 4).await;
        hello
    };
    let (granted, _hello) = tokio::join!(soon("a grant", link.grant()), welcomed);
    assert_eq!(granted.unwrap().incarnation(), 3);
}

#[tokio::test]
async fn a_broker_that_hangs_keeps_nobody_from_a_grant() {
    let pki = Pki::new();
    let (first, second) = (Broker::start(&pki, 1), Broker::start(&pki, 2));
    let link = Link::open(settings(&pki, &[&first, &second]), Arc::new(Status::new())).unwrap();
    let began = std::time::Instant::now();
    let welcomed = async {
        let hangs = first.hello().await;
        let mut hello = second.hello().await;
        assert_eq!(hello.hello.nonce, hangs.hello.nonce, "both grant the same one, should both grant");
        hello.welcome(3, 1).await;
        (hangs, hello)
    };
    let (granted, _hellos) = tokio::join!(soon("a grant", link.grant()), welcomed);
    assert_eq!(granted.unwrap().incarnation(), 3);
    // a broker waits for 5 s for a leader
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}
