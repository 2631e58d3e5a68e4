//! Who may call what over gRPC, and on which connections.

use std::collections::BTreeMap;

use bytes::Bytes;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Code, Request, Streaming, transport::Channel};
use trunkline_proto::{
    ConnectionId, Offset, PartitionId, RecordKind,
    token::TokenDigest,
    v1::{
        self, cluster_client::ClusterClient, connections_client::ConnectionsClient, handlers_client::HandlersClient,
        subscribe_request::Request as Asked, subscribe_response::Response as Told,
    },
};

use super::{
    status,
    tests::{Raw, Served},
};
use crate::{
    access::{Access, Role, TokenConfig},
    handlers::tests::broker::{PATIENCE, ack, codes, connection, join, join_channel, publish, push},
};

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// A token that is its owner's name.
fn token(name: &str, role: Role) -> TokenConfig {
    let sha256 = TokenDigest::of(name);
    TokenConfig { name: name.to_owned(), sha256, role, groups: vec![], apis: vec![], channels: vec![] }
}

fn bound(name: &str, role: Role) -> TokenConfig {
    TokenConfig { apis: names(&["chat"]), channels: names(&["lobby", "chat.*"]), ..token(name, role) }
}

fn with<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

fn to(connection: ConnectionId, command: v1::command::Command) -> v1::Command {
    v1::Command { connection: Bytes::copy_from_slice(&connection.0), command: Some(command), unlogged: false }
}

/// Commands of every kind for one connection.
fn all_kinds(id: ConnectionId) -> Vec<v1::Command> {
    use v1::command::Command as Body;
    vec![
        push(id, "x"),
        join_channel(id, "lobby"),
        to(id, Body::Leave(v1::ChannelLeft { channel: "lobby".into() })),
        to(
            id,
            Body::Attributes(v1::AttributesSet {
                set: BTreeMap::from([("a".into(), "b".into())]),
                ..Default::default()
            }),
        ),
        to(id, Body::Close(v1::CloseRequested::default())),
    ]
}

fn publish_api(api: &str) -> v1::Command {
    let publish = v1::Published { api: api.to_owned(), kind: 1, ..Default::default() };
    v1::Command { command: Some(v1::command::Command::Publish(publish)), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_token_of_one_api_commands_and_sees_no_connection_of_another() {
    let tokens =
        vec![bound("publisher", Role::Publisher), bound("handler", Role::Handler), token("all", Role::Publisher)];
    let served = Served::start_with(2, Access::new(tokens)).await;
    let (own, foreign, nobody) = (connection(0, 1), connection(0, 2), connection(0, 3));
    served.broker.opened(own, "chat", "").await;
    served.broker.opened(foreign, "bank", "").await;
    let mut handlers = HandlersClient::new(served.channel.clone());
    let mut submit = async |token: &str, commands: Vec<v1::Command>| {
        let request = v1::SubmitRequest { commands, ..Default::default() };
        handlers.submit(with(token, request)).await.unwrap().into_inner().results
    };
    for token in ["publisher", "handler"] {
        let (to_foreign, to_nobody) = (submit(token, all_kinds(foreign)).await, submit(token, all_kinds(nobody)).await);
        assert_eq!(codes(&to_foreign), [v1::Code::Gone; 5], "{token}");
        assert_eq!(to_foreign, to_nobody, "nothing tells a connection that is not theirs from none");
        let others =
            vec![publish_api("bank"), publish("vault", "x"), join_channel(own, "vault"), publish_api("chat,bank")];
        let refused = [v1::Code::NotAuthorized, v1::Code::NotAuthorized, v1::Code::NotAuthorized, v1::Code::Invalid];
        assert_eq!(codes(&submit(token, others).await), refused, "{token}");
        let allowed = vec![
            push(own, "x"),
            publish_api("chat"),
            publish("lobby", "x"),
            publish("chat.1", "x"),
            join_channel(own, "lobby"),
        ];
        for code in codes(&submit(token, allowed).await) {
            assert!(matches!(code, v1::Code::Applied | v1::Code::Forwarded), "{token} {code:?}");
        }
    }
    assert_eq!(codes(&submit("all", vec![push(foreign, "x"), publish("vault", "x")]).await)[0], v1::Code::Applied);

    let mut client = ConnectionsClient::new(served.channel.clone());
    let get = |id: ConnectionId| v1::GetConnectionRequest { connection: Bytes::copy_from_slice(&id.0) };
    assert!(client.get(with("publisher", get(own))).await.is_ok());
    let (of_foreign, of_nobody) =
        (client.get(with("publisher", get(foreign))).await, client.get(with("publisher", get(nobody))).await);
    let (of_foreign, of_nobody) = (of_foreign.unwrap_err(), of_nobody.unwrap_err());
    assert_eq!((of_foreign.code(), of_foreign.message()), (of_nobody.code(), of_nobody.message()));
    assert_eq!(of_foreign.metadata().get(status::CODE).unwrap(), "gone");
    assert!(client.get(with("all", get(foreign))).await.is_ok());
    let list = |api: &str, channel: &str| v1::ListConnectionsRequest {
        api: api.into(),
        channel: channel.into(),
        ..Default::default()
    };
    let listed = client.list(with("publisher", list("", ""))).await.unwrap().into_inner().connections;
    assert_eq!(listed.iter().map(|one| one.api.as_str()).collect::<Vec<_>>(), ["chat"]);
    assert_eq!(client.list(with("all", list("", ""))).await.unwrap().into_inner().connections.len(), 2);
    for (api, channel) in [("bank", ""), ("", "vault")] {
        let refused = client.list(with("publisher", list(api, channel))).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{api} {channel}");
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_commit_commands_connections_of_the_token_s_apis_alone() {
    let served = Served::start_with(1, Access::new(vec![bound("handler", Role::Handler)])).await;
    let (own, foreign) = (connection(0, 1), connection(0, 2));
    // the same group decides the registrations of both
    served.broker.opened(foreign, "bank", "chat").await;
    let opened = served.broker.opened(own, "chat", "chat").await;
    let said = served.broker.message(own, "chat", "hi").await;
    let (requests, inbound) = tokio::sync::mpsc::channel(4);
    let mut client = HandlersClient::new(served.channel.clone());
    let mut responses = client.subscribe(with("handler", ReceiverStream::new(inbound))).await.unwrap().into_inner();
    let joins = v1::Join { apis: names(&["chat"]), ..join("chat", "a") };
    requests.send(v1::SubscribeRequest { request: Some(Asked::Join(joins)) }).await.unwrap();
    let (mut epoch, mut given) = (0, 0);
    let mut commit = async |id: u64, offset: u64, mut commands: Vec<v1::Command>| {
        loop {
            if given >= offset && !commands.is_empty() {
                let commands = std::mem::take(&mut commands);
                let commit = v1::Commit { id, partition: 0, epoch, outcomes: vec![ack(offset)], commands };
                requests.send(v1::SubscribeRequest { request: Some(Asked::Commit(commit)) }).await.unwrap();
            }
            match responses.next().await.unwrap().unwrap().response.unwrap() {
                Told::Assigned(assigned) => epoch = assigned.epoch,
                Told::Events(events) => given = events.events.last().unwrap().offset,
                Told::Committed(result) => return result,
                _ => {}
            }
        }
    };
    let accept = |id| to(id, v1::command::Command::Accept(v1::ConnectionAccepted::default()));
    let mut commands = vec![accept(own), accept(foreign), push(own, "x")];
    commands.extend(all_kinds(foreign));
    let result = tokio::time::timeout(PATIENCE, commit(1, opened.0, commands)).await.unwrap();
    use v1::Code::{Applied, Gone};
    assert_eq!(codes(&result.commands), [Applied, Gone, Applied, Gone, Gone, Gone, Gone, Gone]);
    let refused = tokio::time::timeout(PATIENCE, commit(2, said.0, vec![publish_api("bank")])).await.unwrap();
    assert_eq!(refused.status.unwrap().code(), v1::Code::NotAuthorized);
    let log = served.broker.log(PartitionId(0)).await;
    let commanded = log.iter().filter(|(_, record)| record.kind.is_command() && record.connection == foreign);
    assert_eq!(commanded.count(), 0);
    assert!(log.iter().all(|(_, record)| record.kind != RecordKind::Published));
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn streams_of_a_token_that_is_good_no_more_end() {
    let access = Access::new(vec![bound("handler", Role::Handler), token("reader", Role::ReadOnly)]);
    let served = Served::start_with(1, access.clone()).await;
    let (requests, inbound) = tokio::sync::mpsc::channel(4);
    let mut client = HandlersClient::new(served.channel.clone());
    let mut responses = client.subscribe(with("handler", ReceiverStream::new(inbound))).await.unwrap().into_inner();
    let joins = v1::Join { apis: names(&["chat"]), ..join("chat", "a") };
    requests.send(v1::SubscribeRequest { request: Some(Asked::Join(joins)) }).await.unwrap();
    while !matches!(responses.next().await.unwrap().unwrap().response.unwrap(), Told::Assigned(_)) {}
    let follow = v1::ReadRequest { follow: true, ..Default::default() };
    let mut log = v1::log_client::LogClient::new(served.channel.clone());
    let mut read = log.read(with("reader", follow)).await.unwrap().into_inner();
    // another bound of the same token is another token
    access.replace(vec![token("handler", Role::Handler)]);
    let end = async {
        loop {
            if let Err(end) = responses.next().await.expect("an end that says why") {
                break end;
            }
        }
    };
    assert_eq!(tokio::time::timeout(PATIENCE, end).await.unwrap().code(), Code::Unauthenticated);
    let end = async { while read.next().await.is_some_and(|read| read.is_ok()) {} };
    tokio::time::timeout(PATIENCE, end).await.unwrap();
    let gone = async {
        while !served.broker.registry.members("chat").is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("its partitions go to others");
    served.stop().await;
}

/// A `Subscribe` stream that has joined; it lives as long as the sender.
async fn subscribed(
    channel: Channel,
    token: &str,
    join: v1::Join,
) -> (tokio::sync::mpsc::Sender<v1::SubscribeRequest>, Streaming<v1::SubscribeResponse>) {
    let (requests, inbound) = tokio::sync::mpsc::channel(4);
    let responses = HandlersClient::new(channel).subscribe(with(token, ReceiverStream::new(inbound))).await;
    requests.send(v1::SubscribeRequest { request: Some(Asked::Join(join)) }).await.unwrap();
    (requests, responses.unwrap().into_inner())
}

/// The next events that come.
async fn events(responses: &mut Streaming<v1::SubscribeResponse>) -> Vec<v1::Event> {
    let next = async {
        loop {
            if let Told::Events(events) = responses.next().await.unwrap().unwrap().response.unwrap() {
                return events.events;
            }
        }
    };
    tokio::time::timeout(PATIENCE, next).await.unwrap()
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let waited = async {
        while !is_so().await {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waited).await.expect(what);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn who_reads_no_answers_loses_its_partitions_with_its_token() {
    let access = Access::new(vec![token("handler", Role::Handler)]);
    let served = Served::start_with(1, access.clone()).await;
    // not a byte of an answer may be sent there
    let deaf = Channel::from_shared(format!("http://{}", served.address)).unwrap().initial_stream_window_size(0);
    let stream = subscribed(deaf.connect().await.unwrap(), "handler", join("chat", "a")).await;
    until("it is a member", async || !served.broker.registry.members("chat").is_empty()).await;
    access.replace(vec![token("other", Role::Handler)]);
    until("its partitions go to others", async || served.broker.registry.members("chat").is_empty()).await;
    drop(stream);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_another_member_has_left_open_is_not_read_by_a_token_of_another_api() {
    let handler = TokenConfig { groups: names(&["g"]), ..bound("handler", Role::Handler) };
    let tokens = vec![handler, token("all", Role::Handler), token("operator", Role::Operator)];
    let served = Served::start_with(1, Access::new(tokens)).await;
    let foreign = served.broker.opened(connection(0, 2), "bank", "").await;
    let mut first = subscribed(served.channel.clone(), "all", join("g", "a")).await;
    assert_eq!(events(&mut first.1).await[0].api, "bank");
    drop(first);
    until("it has gone", async || served.broker.registry.members("g").is_empty()).await;
    let own = served.broker.opened(connection(0, 1), "chat", "").await;
    let joins = v1::Join { apis: names(&["chat"]), ..join("g", "b") };
    let (_requests, mut responses) = subscribed(served.channel.clone(), "handler", joins).await;
    let given: Vec<_> =
        events(&mut responses).await.into_iter().map(|event| (event.api, Offset(event.offset))).collect();
    assert_eq!(given, [("chat".to_owned(), own)]);
    // it is not lost
    let mut cluster = ClusterClient::new(served.channel.clone());
    let mut parked = async || {
        let request = v1::ParkedRequest { group: "g".into(), ..Default::default() };
        let page = cluster.parked(with("operator", request)).await.unwrap().into_inner();
        page.events.iter().flat_map(|event| &event.record).map(|record| Offset(record.offset)).collect::<Vec<_>>()
    };
    until("it is a dead letter", async || parked().await == [foreign]).await;
    served.stop().await;
}

/// Names of services and methods as a set of descriptors has them; the rest of it is passed over.
mod described {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Set {
        #[prost(message, repeated, tag = "1")]
        pub(super) files: Vec<File>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct File {
        #[prost(string, tag = "2")]
        pub(super) package: String,
        #[prost(message, repeated, tag = "6")]
        pub(super) services: Vec<Service>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Service {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(message, repeated, tag = "2")]
        pub(super) methods: Vec<Method>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Method {
        #[prost(string, tag = "1")]
        pub(super) name: String,
    }
}

/// Paths of all methods there are.
fn methods() -> Vec<String> {
    let sets = [
        trunkline_proto::DESCRIPTORS,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let mut paths = Vec::new();
    for file in sets.iter().flat_map(|set| <described::Set as prost::Message>::decode(*set).unwrap().files) {
        for service in &file.services {
            let paths_of =
                service.methods.iter().map(|method| format!("/{}.{}/{}", file.package, service.name, method.name));
            paths.extend(paths_of);
        }
    }
    paths.sort_unstable();
    paths
}

/// Who may call each method: operators all of them, and these. `None`: everybody, for what it tells is no secret.
const ROLES: [(&str, Option<&[Role]>); 19] = {
    const LOOK: Option<&[Role]> = Some(&[Role::Handler, Role::Publisher, Role::ReadOnly]);
    const READ: Option<&[Role]> = Some(&[Role::ReadOnly]);
    const OPERATE: Option<&[Role]> = Some(&[]);
    [
        ("/grpc.health.v1.Health/Check", None),
        ("/grpc.health.v1.Health/Watch", None),
        ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", None),
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", None),
        ("/trunkline.v1.Cluster/AddMember", OPERATE),
        ("/trunkline.v1.Cluster/Describe", LOOK),
        ("/trunkline.v1.Cluster/Groups", READ),
        ("/trunkline.v1.Cluster/Parked", READ),
        ("/trunkline.v1.Cluster/ReleaseParked", OPERATE),
        ("/trunkline.v1.Cluster/RemoveMember", OPERATE),
        ("/trunkline.v1.Cluster/ResetGroup", OPERATE),
        ("/trunkline.v1.Cluster/TransferLeader", OPERATE),
        ("/trunkline.v1.Connections/Get", LOOK),
        ("/trunkline.v1.Connections/GetOpening", Some(&[Role::Handler])),
        ("/trunkline.v1.Connections/List", LOOK),
        ("/trunkline.v1.Connections/StateAt", READ),
        ("/trunkline.v1.Handlers/Submit", Some(&[Role::Handler, Role::Publisher])),
        ("/trunkline.v1.Handlers/Subscribe", Some(&[Role::Handler])),
        ("/trunkline.v1.Log/Read", READ),
    ]
};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_method_is_judged_and_asks_who_comes() {
    let listed: Vec<&str> = ROLES.iter().map(|(path, _)| *path).collect();
    assert_eq!(methods(), listed, "a new method is judged here: who may call it?");
    let roles = [Role::Operator, Role::Handler, Role::Publisher, Role::ReadOnly];
    let name = |role: Role| format!("{role:?}");
    let served = Served::start_with(1, Access::new(roles.map(|role| token(&name(role), role)).to_vec())).await;
    let mut raw = tonic::client::Grpc::new(served.channel.clone());
    let mut call = async |path: &'static str, token: Option<String>| {
        let request = match &token {
            Some(token) => with(token, Bytes::new()),
            None => Request::new(Bytes::new()),
        };
        raw.ready().await.unwrap();
        let answered = raw.server_streaming(request, http::uri::PathAndQuery::from_static(path), Raw);
        tokio::time::timeout(PATIENCE, answered).await.unwrap().err().map(|status| status.code())
    };
    for (path, allowed) in ROLES {
        for stranger in [None, Some("guess".to_owned()), Some(String::new())] {
            let code = call(path, stranger).await;
            assert_eq!(code == Some(Code::Unauthenticated), allowed.is_some(), "{path}: {code:?}");
        }
        for role in roles {
            let is_allowed = role == Role::Operator || allowed.is_none_or(|allowed| allowed.contains(&role));
            let code = call(path, Some(name(role))).await;
            assert_eq!(code != Some(Code::PermissionDenied), is_allowed, "{path} {role:?}: {code:?}");
            assert_ne!(code, Some(Code::Unauthenticated), "{path} {role:?}");
            assert_ne!(code, Some(Code::Unimplemented), "{path} is served");
        }
    }
    served.stop().await;
}
