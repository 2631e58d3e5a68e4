//! One shard on a thread of its own, a stand-in for the uplink, and raw and proper WebSocket clients.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Notify, oneshot},
    time::timeout,
};
use tokio_tungstenite::{WebSocketStream, client_async};
use trunkline_edge::{
    accept,
    api::Api,
    config::{ApiConfig, EdgeConfig, Registration},
    gate::Gate,
    inbox::{ShardHandle, ShardInput, inbox},
    shard::ShardOptions,
    sink::RecordSink,
    uplink::UplinkError,
    worker,
};
use trunkline_proto::{
    ConnectionId, Offset, PartitionId, Record, RecordKind, Timestamp,
    link::{Deliveries, Delivery},
    v1::{self, MessageKind},
};

/// Nothing here takes longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Stands in for the uplink: keeps every record, and says "applied" when told to (at once by default).
#[derive(Clone)]
pub(crate) struct FakeLog(Arc<Log>);

struct Log {
    records: Mutex<VecDeque<Record>>,
    /// Tracked records that nobody has decided about, if not at once.
    held: Mutex<Vec<oneshot::Sender<Result<(), UplinkError>>>>,
    holds: AtomicBool,
    has_room: AtomicBool,
    paused: AtomicBool,
    arrived: Notify,
    changed: Notify,
}

impl FakeLog {
    fn new() -> Self {
        Self(Arc::new(Log {
            records: Mutex::default(),
            held: Mutex::default(),
            holds: AtomicBool::new(false),
            has_room: AtomicBool::new(true),
            paused: AtomicBool::new(false),
            arrived: Notify::new(),
            changed: Notify::new(),
        }))
    }

    pub(crate) fn hold(&self) {
        self.0.holds.store(true, Ordering::SeqCst);
    }

    pub(crate) fn decide(&self, result: Result<(), UplinkError>) {
        for waiter in self.0.held.lock().drain(..) {
            let _ = waiter.send(result);
        }
    }

    pub(crate) fn set_room(&self, has_room: bool) {
        self.0.has_room.store(has_room, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }

    pub(crate) fn set_paused(&self, paused: bool) {
        self.0.paused.store(paused, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }

    /// The next record, in order.
    pub(crate) async fn next(&self) -> Record {
        let next = async {
            loop {
                let arrived = self.0.arrived.notified();
                if let Some(record) = self.0.records.lock().pop_front() {
                    return record;
                }
                arrived.await;
            }
        };
        timeout(PATIENCE, next).await.expect("a record")
    }

    pub(crate) async fn next_of<M: prost::Message + Default>(&self, kind: RecordKind) -> (ConnectionId, M) {
        let record = self.next().await;
        assert_eq!(record.kind, kind);
        (record.connection, record.decode().unwrap())
    }

    pub(crate) async fn opened(&self) -> (ConnectionId, v1::ConnectionOpened) {
        self.next_of(RecordKind::ConnectionOpened).await
    }

    pub(crate) async fn message(&self) -> Bytes {
        self.next_of::<v1::MessageReceived>(RecordKind::MessageReceived).await.1.payload
    }

    pub(crate) async fn closed(&self) -> (u32, String, v1::CloseCause) {
        let (_, closed) = self.next_of::<v1::ConnectionClosed>(RecordKind::ConnectionClosed).await;
        (closed.code, closed.reason.clone(), closed.cause())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.records.lock().is_empty()
    }
}

impl RecordSink for FakeLog {
    fn incarnation(&self) -> u64 {
        7
    }

    fn append(&self, _connection: ConnectionId, encode: impl FnOnce(&mut BytesMut)) {
        let mut bytes = BytesMut::new();
        encode(&mut bytes);
        let record = Record::split_from(&mut bytes.freeze()).unwrap();
        self.0.records.lock().push_back(record);
        self.0.arrived.notify_waiters();
    }

    fn append_tracked(
        &self,
        connection: ConnectionId,
        encode: impl FnOnce(&mut BytesMut),
    ) -> oneshot::Receiver<Result<(), UplinkError>> {
        let (waiter, receiver) = oneshot::channel();
        if self.0.holds.load(Ordering::SeqCst) {
            self.0.held.lock().push(waiter);
        } else {
            let _ = waiter.send(Ok(()));
        }
        self.append(connection, encode);
        receiver
    }

    fn has_room(&self) -> bool {
        self.0.has_room.load(Ordering::SeqCst)
    }

    async fn wait_for_room(&self) {
        while !self.has_room() {
            self.0.changed.notified().await;
        }
    }

    fn is_paused(&self, _connection: ConnectionId, _api: &str) -> bool {
        self.0.paused.load(Ordering::SeqCst)
    }

    async fn pause_changed(&self) {
        self.0.changed.notified().await;
    }
}

/// A running shard.
pub(crate) struct Edge {
    pub(crate) address: SocketAddr,
    pub(crate) log: FakeLog,
    pub(crate) apis: Arc<[Arc<Api>]>,
    shard: Option<ShardHandle>,
    thread: Option<JoinHandle<()>>,
    offset: Mutex<u64>,
}

/// An API that lets everybody in, after `change`.
pub(crate) fn api(name: &str, change: impl FnOnce(&mut ApiConfig)) -> ApiConfig {
    let mut api = ApiConfig::new(name, format!("/{name}").parse().unwrap());
    api.registration = Registration::Accept;
    change(&mut api);
    api
}

impl Edge {
    pub(crate) fn start(apis: Vec<ApiConfig>) -> Self {
        Self::start_with(apis, |_| ())
    }

    /// With other bounds on addresses.
    pub(crate) fn start_with(apis: Vec<ApiConfig>, change: impl FnOnce(&mut EdgeConfig)) -> Self {
        let mut config = EdgeConfig::new("e1", Vec::new(), "pki".into());
        change(&mut config);
        let apis: Arc<[Arc<Api>]> = apis.into_iter().map(|api| Arc::new(Api::load(api).unwrap())).collect();
        let log = FakeLog::new();
        let listener = accept::bind("127.0.0.1:0".parse().unwrap(), 1).unwrap().remove(0);
        let address = listener.local_addr().unwrap();
        let (shard, inputs) = inbox();
        let options = ShardOptions {
            edge: "e1".into(),
            index: 0,
            shards: 1,
            apis: Arc::clone(&apis),
            gate: Arc::new(Gate::new(&config)),
            headers: ["host", "user-agent"].map(str::to_owned).into(),
            tls: None,
            handshakes_max: 100,
        };
        let sink = log.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, worker::run(options, listener, sink, inputs)).unwrap();
        });
        Self { address, log, apis, shard: Some(shard), thread: Some(thread), offset: Mutex::new(0) }
    }

    pub(crate) fn echo() -> Self {
        Self::start(vec![api("echo", |_| ())])
    }

    pub(crate) async fn send(&self, input: ShardInput) {
        self.shard.as_ref().unwrap().send(input).await.unwrap();
    }

    /// Delivers records, in one frame.
    pub(crate) async fn deliver(&self, records: Vec<Record>) {
        let deliveries: Vec<Delivery> = {
            let mut offset = self.offset.lock();
            let mut next = || {
                *offset += 1;
                Offset(*offset)
            };
            records.into_iter().map(|record| Delivery { offset: next(), record }).collect()
        };
        let through = deliveries.last().map_or(Offset::ZERO, |delivery| delivery.offset);
        let deliveries = Arc::new(Deliveries { applied_at: Timestamp(0), through, deliveries });
        self.send(ShardInput::Deliveries(PartitionId(0), deliveries)).await;
    }

    pub(crate) async fn push(&self, connection: ConnectionId, payload: &str) {
        self.deliver(vec![pushed(connection, payload)]).await;
    }

    /// A client that has seen 101, and its id.
    pub(crate) async fn connect(&self, path: &str) -> (WebSocketStream<TcpStream>, ConnectionId) {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let url = format!("ws://{}{path}", self.address);
        let (client, _) = timeout(PATIENCE, client_async(url, stream)).await.expect("101").unwrap();
        (client, self.log.opened().await.0)
    }

    /// A raw client that has seen 101.
    pub(crate) async fn connect_raw(&self, path: &str) -> (RawClient, ConnectionId) {
        let mut client = RawClient::dial(self.address).await;
        client.send(request(path).as_bytes()).await;
        assert!(client.head().await.starts_with("HTTP/1.1 101 "));
        (client, self.log.opened().await.0)
    }

    /// Drops the shard's last handle; it must end once its connections have.
    pub(crate) async fn stop(mut self) {
        self.shard = None;
        let thread = self.thread.take().unwrap();
        let joined = tokio::task::spawn_blocking(move || thread.join());
        timeout(PATIENCE, joined).await.expect("the shard ends").unwrap().unwrap();
    }
}

pub(crate) fn pushed(connection: ConnectionId, payload: &str) -> Record {
    let body = v1::Pushed { kind: MessageKind::Text.into(), payload: Bytes::copy_from_slice(payload.as_bytes()) };
    Record::new(RecordKind::Pushed, connection, "echo", &body)
}

pub(crate) fn published(channel: &str, api: &str, payload: &str, except: &[ConnectionId]) -> Record {
    let body = v1::Published {
        channel: channel.to_owned(),
        api: api.to_owned(),
        kind: MessageKind::Text.into(),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        except: except.iter().map(|id| Bytes::copy_from_slice(&id.0)).collect(),
    };
    Record::new(RecordKind::Published, ConnectionId::NONE, api, &body)
}

pub(crate) fn joined(connection: ConnectionId, channel: &str) -> Record {
    let body = v1::ChannelJoined { channel: channel.to_owned(), edge: "e1".to_owned() };
    Record::new(RecordKind::ChannelJoined, connection, "echo", &body)
}

pub(crate) fn left(connection: ConnectionId, channel: &str) -> Record {
    let body = v1::ChannelLeft { channel: channel.to_owned() };
    Record::new(RecordKind::ChannelLeft, connection, "echo", &body)
}

pub(crate) fn record(kind: RecordKind, connection: ConnectionId, body: &impl prost::Message) -> Record {
    Record::new(kind, connection, "echo", body)
}

/// A correct request.
pub(crate) fn request(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
}

/// A client's frame, masked with zeros.
pub(crate) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..=125 => frame.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload);
    frame
}

/// Bytes on a socket, without anybody's WebSocket rules.
pub(crate) struct RawClient {
    pub(crate) stream: TcpStream,
    read: BytesMut,
}

impl RawClient {
    pub(crate) async fn dial(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, read: BytesMut::new() }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        // the edge may have closed on the way
        let _ = self.stream.write_all(bytes).await;
    }

    /// Reads up to the end of a response's head.
    pub(crate) async fn head(&mut self) -> String {
        loop {
            if let Some(end) = self.read.windows(4).position(|window| window == b"\r\n\r\n") {
                return String::from_utf8(self.read.split_to(end + 4).to_vec()).unwrap();
            }
            assert!(self.more().await, "closed before the end of the head: {:?}", self.read);
        }
    }

    /// The next frame: its first byte and its payload; none at the end.
    pub(crate) async fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let [first, length @ 0..=125, rest @ ..] = &self.read[..] {
                if rest.len() >= usize::from(*length) {
                    let (first, length) = (*first, usize::from(*length));
                    return Some((first, self.read.split_to(2 + length)[2..].to_vec()));
                }
            } else if let [first, 126, a, b, rest @ ..] = &self.read[..] {
                let length = usize::from(u16::from_be_bytes([*a, *b]));
                if rest.len() >= length {
                    let first = *first;
                    return Some((first, self.read.split_to(4 + length)[4..].to_vec()));
                }
            }
            if !self.more().await {
                return None;
            }
        }
    }

    /// Everything up to the end.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        while self.more().await {}
        self.read.split().to_vec()
    }

    async fn more(&mut self) -> bool {
        let read = timeout(PATIENCE, self.stream.read_buf(&mut self.read)).await;
        read.expect("bytes or the end in time").is_ok_and(|length| length > 0)
    }
}

/// The close code in a close frame's payload.
pub(crate) fn code(payload: &[u8]) -> u16 {
    u16::from_be_bytes([payload[0], payload[1]])
}
