//! The services over a socket: what they answer, and that bad input gets a clear answer and changes nothing.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Request, Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::Channel,
};
use trunkline_proto::{
    LogIndex, Offset, PartitionId, limits,
    token::TokenDigest,
    v1::{
        self, cluster_client::ClusterClient, connections_client::ConnectionsClient, handlers_client::HandlersClient,
        log_client::LogClient, subscribe_request::Request as Asked, subscribe_response::Response as Told,
    },
};

use super::{About, Services, serve, status};
use crate::{
    access::{Access, Caller, Role, TokenConfig},
    handlers::tests::broker::{Broker, PATIENCE, codes, connection, join, join_channel, push},
    tcp::{Doors, Limits},
};

const HANDLER_STREAMS: usize = 4;

pub(super) struct Served {
    pub(super) broker: Broker,
    pub(super) channel: Channel,
    pub(super) address: std::net::SocketAddr,
    shutdown: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
}

impl Served {
    pub(super) async fn start(partitions: u16) -> Self {
        Self::start_with(partitions, Access::default()).await
    }

    pub(super) async fn start_with(partitions: u16, access: Access) -> Self {
        Self::start_within(partitions, access, Limits::default(), Duration::from_secs(10)).await
    }

    pub(super) async fn start_within(partitions: u16, access: Access, limits: Limits, lease: Duration) -> Self {
        let broker = Broker::start(partitions).await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let about = About {
            cluster: "test".into(),
            broker: 1,
            grpc: address.to_string(),
            link: String::new(),
            edge_lag: std::sync::Arc::new(|_| 0),
        };
        let shutdown = broker.shutdown.clone();
        let services = Services::new(
            broker.node.clone(),
            broker.registry.clone(),
            broker.submitter.clone(),
            about,
            access,
            HANDLER_STREAMS,
            shutdown.clone(),
        );
        let doors = Doors::new("grpc", limits);
        let serving = serve(listener, None, doors, services, lease, shutdown.clone());
        let serving = tokio::spawn(async move { serving.await.unwrap() });
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        Self { broker, channel, address, shutdown, serving }
    }

    pub(super) async fn stop(self) {
        drop(self.channel);
        self.broker.stop().await;
        assert!(self.shutdown.is_cancelled());
        tokio::time::timeout(PATIENCE, self.serving).await.expect("serving ends").unwrap();
    }

    async fn read(&self, request: v1::ReadRequest) -> Result<Vec<v1::LoggedRecord>, Status> {
        let mut log = LogClient::new(self.channel.clone()).max_decoding_message_size(limits::FRAME_BYTES_MAX);
        let mut responses = log.read(request).await?.into_inner();
        let mut records = Vec::new();
        while let Some(response) = responses.next().await {
            records.extend(response?.records);
        }
        Ok(records)
    }

    pub(super) async fn works(&self) {
        let described = ClusterClient::new(self.channel.clone()).describe(v1::DescribeRequest {}).await.unwrap();
        assert_eq!(described.into_inner().cluster, "test");
    }
}

fn at(at: v1::start::At) -> Option<v1::Start> {
    Some(v1::Start { at: Some(at) })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn log_is_read_from_anywhere_with_filters_and_followed() {
    let served = Served::start(1).await;
    let (one, other) = (connection(0, 1), connection(0, 2));
    let first = served.broker.opened(one, "chat", "").await;
    served.broker.opened(other, "news", "").await;
    let said = served.broker.message(one, "chat", "hi").await;
    let pushes = [push(one, "x"), push(connection(0, 9), "x")];
    let pushed = served.broker.submitter.submit(&Caller::default(), "", &pushes).await.unwrap();
    assert_eq!(codes(&pushed), [v1::Code::Applied, v1::Code::Gone]);
    let kinds = |records: &[v1::LoggedRecord]| records.iter().map(|record| record.kind).collect::<Vec<_>>();

    let all = served.read(v1::ReadRequest::default()).await.unwrap();
    assert_eq!(kinds(&all), [34, 1, 1, 2, 18]);
    assert!(all.iter().is_sorted_by_key(|record| record.offset) && all.iter().all(|record| record.time > 0));
    assert_eq!((all[1].source.as_str(), all[4].source.as_str()), ("edge", "submit"));
    let raw = served.read(v1::ReadRequest { raw: true, ..Default::default() }).await.unwrap();
    assert_eq!(raw.iter().map(|record| record.refused.as_str()).collect::<Vec<_>>(), ["", "", "", "", "", "gone"]);
    let chat = v1::ReadRequest { api: "chat".into(), ..Default::default() };
    assert_eq!(kinds(&served.read(chat).await.unwrap()), [1, 2, 18]);
    let of_one = v1::ReadRequest { connection: Bytes::copy_from_slice(&other.0), ..Default::default() };
    assert_eq!(kinds(&served.read(of_one).await.unwrap()), [1]);
    let from = v1::ReadRequest { from: at(v1::start::At::Offset(said.0)), limit: 1, ..Default::default() };
    assert_eq!(served.read(from).await.unwrap()[0].offset, said.0);
    let until = v1::ReadRequest { until: first.0, ..Default::default() };
    assert_eq!(kinds(&served.read(until).await.unwrap()), [34, 1]);
    let by_time = v1::ReadRequest { from: at(v1::start::At::Time(all[3].time)), ..Default::default() };
    assert!(kinds(&served.read(by_time).await.unwrap()).ends_with(&[2, 18]));

    let follow = v1::ReadRequest { from: at(v1::start::At::Latest(true)), follow: true, ..Default::default() };
    let mut log = LogClient::new(served.channel.clone());
    let mut responses = log.read(follow).await.unwrap().into_inner();
    let next = served.broker.message(one, "chat", "later").await;
    let response = tokio::time::timeout(PATIENCE, responses.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(response.records[0].offset, next.0);
    served.stop().await; // with a follower
    assert!(tokio::time::timeout(PATIENCE, responses.next()).await.unwrap().is_none_or(|end| end.is_err()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn connections_are_listed_by_page_api_and_channel_now_and_then() {
    let served = Served::start(4).await;
    let mut ids = Vec::new();
    for n in 1..=20 {
        let id = connection(u16::from(n) % 4, n);
        served.broker.opened(id, if n % 2 == 0 { "chat" } else { "news" }, "").await;
        ids.push(id);
    }
    ids.sort_unstable();
    let mut client = ConnectionsClient::new(served.channel.clone());
    let (mut found, mut after) = (Vec::new(), Bytes::new());
    loop {
        let request = v1::ListConnectionsRequest { limit: 7, after, ..Default::default() };
        let page = client.list(request).await.unwrap().into_inner();
        assert!(page.connections.len() <= 7);
        found.extend(page.connections.into_iter().map(|connection| connection.connection));
        after = page.next;
        if after.is_empty() {
            break;
        }
    }
    assert_eq!(found, ids.iter().map(|id| Bytes::copy_from_slice(&id.0)).collect::<Vec<_>>());
    let chat = v1::ListConnectionsRequest { api: "chat".into(), ..Default::default() };
    assert_eq!(client.list(chat).await.unwrap().into_inner().connections.len(), 10);

    let id = ids[3];
    let before = served.broker.node.partition(id.partition(served.broker.node.partition_count())).unwrap().clone();
    let then = before.tail.applied();
    served.broker.submitter.submit(&Caller::default(), "", &[join_channel(id, "lobby")]).await.unwrap();
    let get = v1::GetConnectionRequest { connection: Bytes::copy_from_slice(&id.0) };
    assert_eq!(client.get(get.clone()).await.unwrap().into_inner().channels, ["lobby"]);
    let begun = tokio::time::Instant::now();
    loop {
        let lobby = v1::ListConnectionsRequest { channel: "lobby".into(), ..Default::default() };
        if client.list(lobby).await.unwrap().into_inner().connections.len() == 1 {
            break;
        }
        assert!(begun.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let request = v1::StateAtRequest {
        partition: u32::from(before.id.0),
        at: Some(v1::state_at_request::At::Offset(Offset::end_of(then).0)),
    };
    let states: Vec<_> = client.state_at(request).await.unwrap().into_inner().collect().await;
    let states: Vec<_> = states.into_iter().map(Result::unwrap).collect();
    let connection = states.iter().flat_map(|state| &state.connections).find(|found| found.connection[..] == id.0);
    assert!(connection.unwrap().channels.is_empty(), "it had not joined then");
    assert!(states.iter().all(|state| state.digest != 0 && Offset(state.through).index() == then));
    served.broker.closed(id, "chat").await;
    let gone = client.get(get).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    assert_eq!(gone.metadata().get(status::CODE).unwrap(), "gone");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn bad_requests_are_answered_and_change_nothing() {
    let served = Served::start(2).await;
    let mut client = ConnectionsClient::new(served.channel.clone());
    let digest = || served.broker.node.partition(trunkline_proto::PartitionId(0)).unwrap().state.read().digest();
    let before = digest();
    let bad_reads = [
        (v1::ReadRequest { partition: 2, ..Default::default() }, Code::InvalidArgument),
        (v1::ReadRequest { partition: u32::MAX, ..Default::default() }, Code::InvalidArgument),
        (v1::ReadRequest { api: "a b".into(), ..Default::default() }, Code::InvalidArgument),
        (v1::ReadRequest { connection: Bytes::from_static(b"x"), ..Default::default() }, Code::InvalidArgument),
        (v1::ReadRequest { from: at(v1::start::At::Offset(u64::MAX)), ..Default::default() }, Code::OutOfRange),
        (
            v1::ReadRequest { from: at(v1::start::At::Offset(1 << 40)), follow: true, ..Default::default() },
            Code::OutOfRange,
        ),
    ];
    for (request, expected) in bad_reads {
        let refused = served.read(request.clone()).await.unwrap_err();
        assert_eq!(refused.code(), expected, "{request:?}: {refused}");
        assert!(refused.metadata().contains_key(status::CODE) && refused.metadata().contains_key(status::RETRY));
    }
    let id = v1::GetConnectionRequest { connection: Bytes::from_static(&[1; 17]) };
    assert_eq!(client.get(id).await.unwrap_err().code(), Code::InvalidArgument);
    let none = v1::StateAtRequest { partition: 0, at: None };
    assert_eq!(client.state_at(none).await.unwrap_err().code(), Code::InvalidArgument);
    let future = v1::StateAtRequest { partition: 0, at: Some(v1::state_at_request::At::Offset(u64::MAX)) };
    assert_eq!(client.state_at(future).await.unwrap_err().code(), Code::OutOfRange);
    let mut cluster = ClusterClient::new(served.channel.clone());
    let no_group = v1::ResetGroupRequest { group: "nobody".into(), to: at(v1::start::At::Earliest(true)) };
    assert_eq!(cluster.reset_group(no_group).await.unwrap_err().code(), Code::NotFound);
    let nowhere = v1::ResetGroupRequest { group: "nobody".into(), to: None };
    assert_eq!(cluster.reset_group(nowhere).await.unwrap_err().code(), Code::InvalidArgument);
    let mut handlers = HandlersClient::new(served.channel.clone());
    let many = v1::SubmitRequest { commands: vec![v1::Command::default(); 1025], ..Default::default() };
    assert_eq!(handlers.submit(many).await.unwrap_err().code(), Code::InvalidArgument);
    let long = v1::SubmitRequest { idempotency_key: "k".repeat(256), ..Default::default() };
    assert_eq!(handlers.submit(long).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(digest(), before);
    served.works().await;
    served.stop().await;
}

#[derive(Clone, Default)]
pub(super) struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn bad_bytes_harm_nobody() {
    let served = Served::start(1).await;
    let mut raw = tonic::client::Grpc::new(served.channel.clone());
    let deep: Vec<u8> = std::iter::repeat_n([0x0a, 0x7f], 1000).flatten().collect();
    let bad = [
        ("truncated", Bytes::from_static(&[0x0a, 0x50, 1, 2])),
        ("overlong varint", Bytes::from_static(&[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1])),
        ("group", Bytes::from_static(&[0x0b, 0x0b, 0x0b])),
        ("depth", Bytes::from(deep)),
        ("too large", Bytes::from(vec![0; limits::FRAME_BYTES_MAX + 1])),
    ];
    for (what, bytes) in bad {
        raw.ready().await.unwrap();
        let path = http::uri::PathAndQuery::from_static("/trunkline.v1.Handlers/Submit");
        let answered = raw.unary(Request::new(bytes), path, Raw).await;
        let refused = answered.expect_err(what);
        let expected = [Code::InvalidArgument, Code::Internal, Code::OutOfRange, Code::ResourceExhausted];
        assert!(expected.contains(&refused.code()), "{what}: {refused}");
    }
    for garbage in [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        &[0xff; 4096],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        let mut socket = tokio::net::TcpStream::connect(served.address).await.unwrap();
        let _ = socket.write_all(garbage).await;
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "the connection is ended");
    }
    served.works().await;
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn subscription_over_the_wire_answers_at_once_and_ends_with_the_broker() {
    let served = Served::start(1).await;
    let id = connection(0, 1);
    let opened = served.broker.opened(id, "chat", "").await;
    let mut client = HandlersClient::new(served.channel.clone());
    let (requests, inbound) = tokio::sync::mpsc::channel(4);
    // the join follows the response's head
    let mut responses = client.subscribe(ReceiverStream::new(inbound)).await.unwrap().into_inner();
    let ask = |request| v1::SubscribeRequest { request: Some(request) };
    let told = |response: Option<Result<v1::SubscribeResponse, Status>>| response.unwrap().unwrap().response.unwrap();
    let Told::Brokers(brokers) = told(responses.next().await) else { panic!("no greeting") };
    assert_eq!(brokers.broker, 1);
    requests.send(ask(Asked::Join(join("chat", "a")))).await.unwrap();
    assert!(matches!(told(responses.next().await), Told::Joined(v1::Joined { partitions: 1, broker: 1 })));
    let Told::Assigned(assigned) = told(responses.next().await) else { panic!("not assigned") };
    let Told::Events(events) = told(responses.next().await) else { panic!("no events") };
    assert_eq!((events.events[0].offset, events.epoch), (opened.0, assigned.epoch));
    let groups = ClusterClient::new(served.channel.clone()).groups(v1::GroupsRequest::default()).await.unwrap();
    let groups = groups.into_inner().groups;
    assert_eq!((groups[0].group.as_str(), &groups[0].members[..], groups[0].lag), ("chat", &["a".to_owned()][..], 1));

    let (bad, inbound) = tokio::sync::mpsc::channel(4);
    bad.send(ask(Asked::Credit(v1::Credit { amount: 1 }))).await.unwrap();
    let mut ended = client.subscribe(ReceiverStream::new(inbound)).await.unwrap().into_inner();
    assert!(matches!(told(ended.next().await), Told::Brokers(_)));
    assert_eq!(ended.next().await.unwrap().unwrap_err().code(), Code::InvalidArgument);

    served.stop().await;
    let end = tokio::time::timeout(PATIENCE, responses.next()).await.unwrap();
    assert_eq!(end.unwrap().unwrap_err().metadata().get(status::CODE).unwrap(), "shutdown");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn health_is_of_the_whole_while_anything_is_served_and_of_each_partition() {
    use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
    let served = Served::start(2).await;
    let asked = async |service: &str| {
        let mut client = HealthClient::new(served.channel.clone());
        let answer = client.check(HealthCheckRequest { service: service.to_owned() }).await;
        answer.map(|answer| answer.into_inner().status())
    };
    let until = async |service: &str, status: ServingStatus| {
        let told = async {
            while asked(service).await.ok() != Some(status) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, told).await.unwrap_or_else(|_| panic!("{service:?} is not {status:?}"));
    };
    until("trunkline.v1.partition.0", ServingStatus::Serving).await;
    let node = &served.broker.node;
    node.spoil(PartitionId(0), LogIndex(1));
    assert!(node.read_log(PartitionId(0), LogIndex(0), 1 << 20).await.is_err());
    until("trunkline.v1.partition.0", ServingStatus::NotServing).await;
    for service in ["", "trunkline.v1.Handlers", "trunkline.v1.partition.1"] {
        assert_eq!(asked(service).await.unwrap(), ServingStatus::Serving, "{service:?}");
    }
    assert_eq!(asked("trunkline.v1.partition.2").await.unwrap_err().code(), Code::NotFound);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn describe_names_partitions_and_edges() {
    let served = Served::start(3).await;
    served.broker.opened(connection(2, 1), "chat", "").await;
    let described = ClusterClient::new(served.channel.clone()).describe(v1::DescribeRequest {}).await.unwrap();
    let described = described.into_inner();
    assert_eq!((described.partition_count, described.partitions.len()), (3, 3));
    assert!(described.partitions.iter().all(|partition| partition.leader == 1 && partition.term > 0));
    assert_eq!(described.partitions[2].connections, 1);
    assert_eq!((described.edges.len(), described.edges[0].attached, described.edges[0].connections), (1, true, 1));
    assert!(described.brokers[0].healthy);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn subscribe_streams_have_a_bound_and_make_room_when_they_end() {
    let served = Served::start(1).await;
    let mut handlers = HandlersClient::new(served.channel.clone());
    let mut open = Vec::new();
    for _ in 0..HANDLER_STREAMS {
        let (requests, inbound) = tokio::sync::mpsc::channel::<v1::SubscribeRequest>(1);
        let responses = handlers.subscribe(ReceiverStream::new(inbound)).await.unwrap();
        open.push((requests, responses));
    }
    let refused = handlers.subscribe(tokio_stream::pending()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("broker.limits.handler_streams"), "{refused:?}");
    open.pop();
    let begun = tokio::time::Instant::now();
    while let Err(status) = handlers.subscribe(tokio_stream::pending()).await {
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(begun.elapsed() < PATIENCE, "a stream that ends makes room");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    served.works().await;
    drop((open, handlers));
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn tokens_open_what_their_role_allows() {
    let token = |name: &str, role, groups: &[&str]| TokenConfig {
        name: name.to_owned(),
        sha256: TokenDigest::of(name),
        role,
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        apis: if role == Role::Handler { vec!["chat".to_owned()] } else { Vec::new() },
        channels: Vec::new(),
    };
    let tokens = vec![token("handler", Role::Handler, &["chat"]), token("reader", Role::ReadOnly, &[])];
    let served = Served::start_with(1, Access::new(tokens)).await;
    let request = |token: &str| {
        let mut request = tonic::Request::new(v1::DescribeRequest {});
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        request
    };
    let mut cluster = ClusterClient::new(served.channel.clone());
    let refused = cluster.describe(v1::DescribeRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
    assert_eq!(refused.metadata().get(status::CODE).unwrap(), "unauthenticated");
    assert_eq!(cluster.describe(request("guess")).await.unwrap_err().code(), tonic::Code::Unauthenticated);
    assert!(cluster.describe(request("reader")).await.is_ok());
    let removing = |token: &str| request(token).map(|_| v1::RemoveMemberRequest { id: 1 });
    for name in ["handler", "reader"] {
        let refused = cluster.remove_member(removing(name)).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{name}");
    }
    // dead letters are payloads, and forgetting them is a loss
    let parked =
        |token: &str| request(token).map(|_| v1::ParkedRequest { group: "g".to_owned(), ..Default::default() });
    let release = |token: &str| {
        request(token).map(|_| v1::ReleaseParkedRequest { group: "g".to_owned(), discard: true, ..Default::default() })
    };
    for (name, expected) in [("guess", tonic::Code::Unauthenticated), ("handler", tonic::Code::PermissionDenied)] {
        assert_eq!(cluster.parked(parked(name)).await.unwrap_err().code(), expected, "{name}");
        assert_eq!(cluster.release_parked(release(name)).await.unwrap_err().code(), expected, "{name}");
    }
    assert!(cluster.parked(parked("reader")).await.is_ok());
    assert_eq!(cluster.release_parked(release("reader")).await.unwrap_err().code(), tonic::Code::PermissionDenied);
    // how a connection came to be holds its headers: only for those who get its events
    served.broker.opened(connection(0, 1), "chat", "").await;
    let said = served.broker.message(connection(0, 1), "chat", "hi").await;
    served.broker.closed(connection(0, 1), "chat").await;
    served.broker.opened(connection(0, 2), "bank", "").await;
    let mut connections = ConnectionsClient::new(served.channel.clone());
    for (name, n, expected) in [
        ("guess", 1, Some(tonic::Code::Unauthenticated)),
        ("reader", 1, Some(tonic::Code::PermissionDenied)),
        ("handler", 1, None),
        ("handler", 2, Some(tonic::Code::NotFound)),
        ("handler", 3, Some(tonic::Code::NotFound)),
    ] {
        let id = Bytes::copy_from_slice(&connection(0, n).0);
        let asked = request(name).map(|_| v1::GetOpeningRequest { connection: id, offset: said.0 });
        let told = connections.get_opening(asked).await.map(tonic::Response::into_inner);
        assert_eq!(told.as_ref().err().map(Status::code), expected, "{name} {n}");
        if let Ok(opening) = told {
            assert_eq!((opening.api.as_str(), opening.trimmed, opening.time > 0), ("chat", false, true));
            assert!(opening.opened.is_some_and(|opened| !opened.edge.is_empty()));
        }
    }
    let mut handlers = HandlersClient::new(served.channel.clone());
    for (name, group, expected) in [
        ("reader", "chat", Some(tonic::Code::PermissionDenied)),
        ("handler", "bank", Some(tonic::Code::PermissionDenied)),
        ("handler", "chat", None),
    ] {
        let apis = vec!["chat".to_owned()];
        let join = v1::Join { group: group.to_owned(), member: "m".to_owned(), apis, credit: 1, ..Default::default() };
        let join = v1::SubscribeRequest { request: Some(v1::subscribe_request::Request::Join(join)) };
        let stream = tokio_stream::iter([join]).chain(tokio_stream::pending());
        let outcome = async {
            let mut responses = handlers.subscribe(request(name).map(|_| stream)).await?.into_inner();
            loop {
                let response = responses.next().await.expect("joined, or refused")?.response;
                if let Some(v1::subscribe_response::Response::Joined(_)) = response {
                    return Ok(());
                }
            }
        };
        let outcome: Result<(), Status> = tokio::time::timeout(PATIENCE, outcome).await.unwrap();
        assert_eq!(outcome.err().map(|status| status.code()), expected, "{name} {group}");
    }
    served.stop().await;
}
