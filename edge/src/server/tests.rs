//! A whole edge: real sockets, real shards, a broker of these tests.

use std::{sync::Arc, time::Duration};

use bytes::BufMut;
use futures_util::{SinkExt, StreamExt};
use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, protocol::CloseFrame},
};
use tokio_util::sync::CancellationToken;
use trunkline_proto::{
    ConnectionId, LogIndex, Offset, PartitionCount, Record, RecordKind, Timestamp,
    link::{Deliveries, Delivery, Frame},
    units::HumanDuration,
    v1::{self, CloseCause, MessageKind, link as pb},
};

use super::{drain::Drain, *};
use crate::{
    config::{BrokerAddress, Registration},
    link::fake::{Automatic, Pki, soon},
    uplink,
};

type Client = WebSocketStream<TcpStream>;

struct Edge {
    ws: SocketAddr,
    http: SocketAddr,
    ready: Option<oneshot::Receiver<()>>,
    shutdown: CancellationToken,
    running: JoinHandle<Result<(), ServeError>>,
}

/// An edge with one API whose connections nobody is asked about.
fn start(pki: &Pki, broker: BrokerAddress) -> Edge {
    let mut config = EdgeConfig::new("e1", vec![broker], pki.path().to_owned());
    (config.ws, config.http) = (SocketAddr::from(([127, 0, 0, 1], 0)), SocketAddr::from(([127, 0, 0, 1], 0)));
    config.shards = std::num::NonZeroUsize::new(2).unwrap();
    config.drain_window = HumanDuration::from_millis(50);
    let mut api = ApiConfig::new("news", "/news".parse().unwrap());
    api.registration = Registration::Accept;
    let listeners = bind(&config).unwrap();
    let (ws, http) = (listeners.ws_address(), listeners.http_address());
    let prometheus = PrometheusBuilder::new().build_recorder().handle();
    let (say_ready, ready) = oneshot::channel();
    let shutdown = CancellationToken::new();
    let until = shutdown.clone().cancelled_owned();
    let running = run(config, vec![api], listeners, prometheus, move || say_ready.send(()).unwrap(), until);
    Edge { ws, http, ready: Some(ready), shutdown, running: tokio::spawn(running) }
}

impl Edge {
    async fn ready(&mut self) {
        soon("ready", self.ready.take().unwrap()).await.unwrap();
    }

    async fn connect(&self) -> Client {
        let stream = soon("TCP", TcpStream::connect(self.ws)).await.unwrap();
        soon("101", client_async(format!("ws://{}/news", self.ws), stream)).await.unwrap().0
    }

    /// As soon as sockets are taken again.
    async fn connect_again(&self) -> Client {
        let again = async {
            loop {
                let stream = TcpStream::connect(self.ws).await.unwrap();
                match client_async(format!("ws://{}/news", self.ws), stream).await {
                    Ok((client, _)) => return client,
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        soon("101 again", again).await
    }

    /// Status and body.
    async fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: edge\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        soon("an answer", stream.read_to_string(&mut answer)).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    async fn end(self) -> Result<(), ServeError> {
        soon("the end", self.running).await.unwrap()
    }
}

async fn next(client: &mut Client) -> Message {
    soon("a message", client.next()).await.unwrap().unwrap()
}

async fn closed(client: &mut Client) -> u16 {
    match next(client).await {
        Message::Close(Some(CloseFrame { code, .. })) => code.into(),
        other => panic!("{other:?}"),
    }
}

fn pushed(connection: ConnectionId, index: u64, text: &str) -> Frame {
    let body = v1::Pushed { kind: MessageKind::Text.into(), payload: text.to_owned().into() };
    let offset = Offset::new(LogIndex(index), 0);
    let record = Record::new(RecordKind::Pushed, connection, "news", &body);
    Frame::Deliveries(Deliveries {
        applied_at: Timestamp(1),
        through: offset,
        deliveries: vec![Delivery { offset, record }],
    })
}

#[tokio::test]
async fn a_message_goes_up_a_push_comes_down_and_a_drain_leaves_nothing_behind() {
    let pki = Pki::new();
    let broker = Automatic::start(&pki);
    let mut edge = start(&pki, broker.address.clone());
    edge.ready().await;
    let mut client = edge.connect().await;
    client.send(Message::text("hello")).await.unwrap();
    let opened = broker.record(RecordKind::ConnectionOpened, 0).await;
    let body: v1::ConnectionOpened = opened.decode().unwrap();
    assert_eq!((body.edge.as_str(), body.incarnation, opened.api()), ("e1", 1, "news"));
    let message = broker.record(RecordKind::MessageReceived, 0).await;
    assert_eq!(message.connection, opened.connection);
    broker.send(pushed(opened.connection, 9, "hi"));
    broker.send(pushed(opened.connection, 9, "the same again"));
    broker.send(pushed(opened.connection, 10, "and again"));
    assert_eq!([next(&mut client).await, next(&mut client).await], ["hi", "and again"].map(Message::text));

    let others = [edge.connect().await, edge.connect().await, edge.connect().await];
    edge.shutdown.cancel();
    assert_eq!(closed(&mut client).await, 1012);
    for mut other in others {
        assert_eq!(closed(&mut other).await, 1012);
    }
    let ws = edge.ws;
    edge.end().await.unwrap();
    for n in 0..4 {
        let closed: v1::ConnectionClosed = broker.record(RecordKind::ConnectionClosed, n).await.decode().unwrap();
        assert_eq!(closed.cause(), CloseCause::EdgeDrained);
    }
    assert!(TcpStream::connect(ws).await.is_err(), "nothing listens any more");
}

#[tokio::test]
async fn health_says_whether_new_connections_can_be_served() {
    let pki = Pki::new();
    let broker = Automatic::start(&pki);
    let mut edge = start(&pki, broker.address.clone());
    edge.ready().await;
    assert_eq!(edge.get("/healthz").await, (200, "ok\n".to_owned()));
    let ready = async {
        while edge.get("/readyz").await.0 != 200 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon("readiness", ready).await;
    assert_eq!(edge.get("/metrics").await.0, 200);
    assert_eq!(edge.get("/nothing").await.0, 404);
    edge.shutdown.cancel();
    edge.end().await.unwrap();
}

#[tokio::test]
async fn a_lost_edge_closes_its_sockets_and_takes_new_ones_under_the_next_incarnation() {
    let pki = Pki::new();
    let broker = Automatic::start(&pki);
    let mut edge = start(&pki, broker.address.clone());
    edge.ready().await;
    let mut client = edge.connect().await;
    broker.send(Frame::Goodbye(pb::Goodbye { reason: pb::Reason::Lost.into(), ..Default::default() }));
    assert_eq!(closed(&mut client).await, 1012);
    let mut client = edge.connect_again().await;
    let opened: v1::ConnectionOpened = broker.record(RecordKind::ConnectionOpened, 1).await.decode().unwrap();
    assert_eq!(opened.incarnation, 2);
    edge.shutdown.cancel();
    assert_eq!(closed(&mut client).await, 1012);
    edge.end().await.unwrap();
    let closed: v1::ConnectionClosed = broker.record(RecordKind::ConnectionClosed, 0).await.decode().unwrap();
    assert_eq!(closed.cause(), CloseCause::EdgeDrained, "the brokers write the lost incarnation's close records");
}

#[tokio::test]
async fn no_socket_is_served_before_every_partition_is_attached() {
    let pki = Pki::new();
    let broker = Automatic::start_with(&pki, 2, Some(1));
    let mut edge = start(&pki, broker.address.clone());
    broker.asked(1, 0).await;
    broker.asked(1, 1).await;
    let mut ready = edge.ready.take().unwrap();
    let mut waiting = Box::pin(edge.connect());
    let early = tokio::time::timeout(Duration::from_millis(300), &mut waiting).await;
    assert!(early.is_err(), "a socket was served");
    assert!(ready.try_recv().is_err(), "ready was said");
    assert_eq!(edge.get("/readyz").await, (503, "1 of 2 partitions attached\n".to_owned()));
    broker.hold(None);
    // the system kept it
    drop(waiting.await);
    soon("ready", ready).await.unwrap();

    // the next incarnation likewise, with an answer to those who come meanwhile
    let mut client = edge.connect().await;
    broker.hold(Some(1));
    broker.send(Frame::Goodbye(pb::Goodbye { reason: pb::Reason::Lost.into(), ..Default::default() }));
    assert_eq!(closed(&mut client).await, 1012);
    broker.asked(2, 0).await;
    broker.asked(2, 1).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let stream = TcpStream::connect(edge.ws).await.unwrap();
    let refused = soon("503", client_async(format!("ws://{}/news", edge.ws), stream)).await;
    assert!(refused.unwrap_err().to_string().contains("503"));
    broker.hold(None);
    drop(edge.connect_again().await);
    edge.shutdown.cancel();
    edge.end().await.unwrap();
}

#[tokio::test]
async fn a_replaced_edge_closes_its_sockets_and_ends_with_an_error() {
    let pki = Pki::new();
    let broker = Automatic::start(&pki);
    let mut edge = start(&pki, broker.address.clone());
    edge.ready().await;
    let mut client = edge.connect().await;
    broker.send(Frame::Goodbye(pb::Goodbye { reason: pb::Reason::Replaced.into(), ..Default::default() }));
    assert_eq!(closed(&mut client).await, 1012);
    assert!(matches!(edge.end().await, Err(ServeError::Link(LinkError::Replaced))));
}

#[tokio::test]
async fn an_edge_that_finds_no_broker_says_so_and_can_be_stopped() {
    let pki = Pki::new();
    let edge = start(&pki, "1@127.0.0.1:9".parse().unwrap());
    assert_eq!(edge.get("/healthz").await, (200, "ok\n".to_owned()));
    assert_eq!(edge.get("/readyz").await, (503, "no broker has granted this edge an incarnation yet\n".to_owned()));
    assert_eq!(edge.get("/metrics").await.0, 200);
    edge.shutdown.cancel();
    let mut ready = edge.ready.unwrap();
    soon("the end", edge.running).await.unwrap().unwrap();
    assert!(ready.try_recv().is_err(), "never ready");
}

#[tokio::test]
async fn a_missing_certificate_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = EdgeConfig::new("e1", vec!["1@127.0.0.1:9".parse().unwrap()], folder.path().to_owned());
    (config.ws, config.http) = ("127.0.0.1:0".parse().unwrap(), "127.0.0.1:0".parse().unwrap());
    let listeners = bind(&config).unwrap();
    let prometheus = PrometheusBuilder::new().build_recorder().handle();
    let ended = run(config, Vec::new(), listeners, prometheus, || {}, std::future::pending()).await;
    let error = ended.unwrap_err().to_string();
    assert!(error.contains("ca.pem"), "{error}");
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = EdgeConfig::new("e1", vec!["1@127.0.0.1:9".parse().unwrap()], "pki".into());
    (config.ws, config.http) = ("127.0.0.1:0".parse().unwrap(), taken.local_addr().unwrap());
    let error = bind(&config).unwrap_err().to_string();
    assert!(error.starts_with(&format!("http {}: ", config.http)), "{error}");
}

#[tokio::test]
async fn a_drain_that_runs_out_of_time_says_what_it_leaves_behind() {
    let config = EdgeConfig::new("e1", Vec::new(), "pki".into());
    let apis: Arc<[Arc<Api>]> = [].into();
    let threads = Threads::new(&config, None, &apis, Vec::new(), Vec::new());
    let uplink = uplink::Handle::new(PartitionCount::new(1).unwrap(), 1, 1000);
    uplink.append(ConnectionId::NONE, |out| out.put_bytes(0, 40));
    let drain = Drain {
        apis: &apis,
        downlink: &Downlink::new(Vec::new()),
        uplink: &uplink,
        window: Duration::ZERO,
        timeout: Duration::from_millis(50),
    };
    let left = drain.run(threads, CancellationToken::new()).await.unwrap_err();
    assert_eq!(left, Left { connections: 0, bytes: 40 });
    let message = ServeError::NotFlushed { left }.to_string();
    assert_eq!(message, "drained for 30 s, and 0 connections and 40 bytes of unacknowledged records were left behind");
}
