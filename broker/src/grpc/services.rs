//! The gRPC services: each call checks its request and hands it on.

use std::{pin::Pin, sync::Arc, time::Duration};

use tokio::sync::{Semaphore, mpsc};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataValue};
use trunkline_proto::{ConnectionId, Offset, PartitionId, Timestamp, limits, v1};

use super::{
    cluster::{self, About},
    connections, describe, log, status,
    until::Until,
};
use crate::{
    access::{Access, Caller, Need},
    handlers::{Registry, member::OUTGOING_MAX, session},
    node::{Moment, Node},
    release, reset,
    submit::Submitter,
};

/// States of the past that are being rebuilt at once: each may need as much memory as a partition's state.
const STATES_AT_MAX: usize = 2;
/// How long a new member may take to catch up, unless the caller says otherwise, and at most.
const MEMBER_PATIENCE: Duration = Duration::from_secs(60);
const MEMBER_PATIENCE_SECONDS_MAX: u32 = 24 * 3600;
/// Dead letters of a page, unless the caller says otherwise.
const PARKED_PAGE: usize = 100;
/// Messages that wait for a reader of the log.
const READ_MESSAGES_MAX: usize = 4;

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Everything the services need. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Services {
    node: Node,
    registry: Arc<Registry>,
    submitter: Submitter,
    about: Arc<About>,
    access: Access,
    states_at: Arc<Semaphore>,
    /// One for each `Subscribe` stream; when none is left a new stream is refused.
    handler_streams: Arc<Semaphore>,
    shutdown: CancellationToken,
}

impl Services {
    /// At most `handler_streams` handlers subscribe at once. Streams end when `shutdown` is cancelled.
    pub fn new(
        node: Node,
        registry: Arc<Registry>,
        submitter: Submitter,
        about: About,
        access: Access,
        handler_streams: usize,
        shutdown: CancellationToken,
    ) -> Self {
        let states_at = Arc::new(Semaphore::new(STATES_AT_MAX));
        let handler_streams = Arc::new(Semaphore::new(handler_streams));
        Self { node, registry, submitter, about: Arc::new(about), access, states_at, handler_streams, shutdown }
    }

    /// The broker's partitions.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Who calls, if that one may.
    #[allow(clippy::result_large_err)] // tonic's own error
    fn allow<T>(&self, request: &Request<T>, need: Need) -> Result<Caller, Status> {
        let authorization = request.metadata().get("authorization").map(MetadataValue::as_bytes);
        self.access.judge(authorization, need).map_err(|denied| status::of_denied(&denied))
    }

    #[allow(clippy::result_large_err)] // tonic's own error
    fn partition(&self, number: u32) -> Result<PartitionId, Status> {
        let partition = u16::try_from(number).ok().filter(|number| *number < self.node.partition_count().get());
        partition.map(PartitionId).ok_or_else(|| {
            let count = self.node.partition_count().get();
            status::invalid(format!("there is no partition {number}: the cluster has {count}"))
        })
    }
}

impl Services {
    /// Waits until an answer from this broker's replicas is as new as the question.
    async fn current(&self, partitions: impl IntoIterator<Item = PartitionId>) -> Result<(), Status> {
        let current = self.node.current(partitions).await;
        current.map_err(|error| status::of_code(v1::Code::NoLeader, error.to_string()))
    }
}

#[allow(clippy::result_large_err)] // tonic's own error
fn connection_id(bytes: &[u8]) -> Result<ConnectionId, Status> {
    ConnectionId::from_slice(bytes).map_err(|error| status::invalid(error.to_string()))
}

#[allow(clippy::result_large_err)] // tonic's own error
fn name(what: &str, name: &str) -> Result<(), Status> {
    if name.is_empty() || limits::is_name(name) {
        return Ok(());
    }
    Err(status::invalid(format!("{what} names are 1 to 64 of [A-Za-z0-9._-]")))
}

#[tonic::async_trait]
impl v1::handlers_server::Handlers for Services {
    type SubscribeStream = Responses<v1::SubscribeResponse>;

    async fn subscribe(
        &self,
        request: Request<Streaming<v1::SubscribeRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let caller = self.allow(&request, Need::Handle)?;
        let full = |_| {
            let message =
                "this broker serves as many Subscribe streams as broker.limits.handler_streams allows: try again later";
            status::of_code(v1::Code::Throttled, message)
        };
        let permit = Arc::clone(&self.handler_streams).try_acquire_owned().map_err(full)?;
        let (outgoing, responses) = mpsc::channel(OUTGOING_MAX);
        let revoked = self.access.revoked(&caller);
        // whoever reads no answers is not asked for any, and would never be told
        let unread = self.access.revoked(&caller);
        let (registry, requests) = (self.registry.clone(), request.into_inner());
        let session = session::serve(registry, self.about.broker, requests, outgoing, caller, unread);
        // not awaited: a client may send its join only after it has seen the response's head
        tokio::spawn(async move {
            session.await;
            drop(permit);
        });
        let responses = ReceiverStream::new(responses).map(|item| item.map_err(|end| status::of_session(&end)));
        Ok(Response::new(Box::pin(Until::new(responses, revoked))))
    }

    async fn submit(&self, request: Request<v1::SubmitRequest>) -> Result<Response<v1::SubmitResponse>, Status> {
        let caller = self.allow(&request, Need::Command)?;
        let request = request.into_inner();
        let submitted = self.submitter.submit(&caller, &request.idempotency_key, &request.commands).await;
        let results = submitted.map_err(|error| status::of_submit(&error))?;
        Ok(Response::new(v1::SubmitResponse { results }))
    }
}

#[tonic::async_trait]
impl v1::log_server::Log for Services {
    type ReadStream = Responses<v1::ReadResponse>;

    async fn read(&self, request: Request<v1::ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let caller = self.allow(&request, Need::Read)?;
        let request = request.into_inner();
        name("API", &request.api)?;
        let partition = self.partition(request.partition)?;
        if !request.local {
            self.current([partition]).await?;
        }
        let query = log::Query {
            partition,
            from: request.from,
            limit: request.limit as usize,
            follow: request.follow,
            raw: request.raw,
            api: request.api,
            connection: match request.connection.is_empty() {
                true => None,
                false => Some(connection_id(&request.connection)?),
            },
            until: if request.until == 0 { Offset::MAX } else { Offset(request.until) },
        };
        let reading = log::Reading::open(&self.node, query).await.map_err(|error| status::of_read(&error))?;
        let (out, responses) = mpsc::channel(READ_MESSAGES_MAX);
        let shutdown = self.shutdown.clone();
        tokio::spawn(async move { shutdown.run_until_cancelled(reading.run(out)).await });
        let responses = ReceiverStream::new(responses).map(|item| item.map_err(|error| status::of_read(&error)));
        Ok(Response::new(Box::pin(Until::new(responses, self.access.revoked(&caller)))))
    }
}

#[tonic::async_trait]
impl v1::connections_server::Connections for Services {
    async fn get(&self, request: Request<v1::GetConnectionRequest>) -> Result<Response<v1::Connection>, Status> {
        let caller = self.allow(&request, Need::Look)?;
        let id = connection_id(&request.into_inner().connection)?;
        self.current([id.partition(self.node.partition_count())]).await?;
        let gone = || status::of_code(v1::Code::Gone, "no such connection, or it is closed");
        let found = connections::get(&self.node, &id).filter(|found| caller.sees(&found.api));
        found.map(Response::new).ok_or_else(gone)
    }

    async fn get_opening(&self, request: Request<v1::GetOpeningRequest>) -> Result<Response<v1::Opening>, Status> {
        let caller = self.allow(&request, Need::Handle)?;
        let request = request.into_inner();
        let id = connection_id(&request.connection)?;
        self.current([id.partition(self.node.partition_count())]).await?;
        let opening = self.node.opening(id, Offset(request.offset)).await.map_err(|error| status::of_read(&error))?;
        let gone = || status::of_code(v1::Code::Gone, "no such connection, or retention has taken its end");
        opening.filter(|opening| caller.sees(&opening.api)).map(Response::new).ok_or_else(gone)
    }

    async fn list(
        &self,
        request: Request<v1::ListConnectionsRequest>,
    ) -> Result<Response<v1::ListConnectionsResponse>, Status> {
        let caller = self.allow(&request, Need::Look)?;
        let request = request.into_inner();
        name("API", &request.api)?;
        if !request.api.is_empty() {
            caller.may_use_api(&request.api).map_err(|denied| status::of_denied(&denied))?;
        }
        if !request.channel.is_empty() && !limits::is_channel(&request.channel) {
            return Err(status::invalid("a channel name has 1 to 255 bytes and no control characters"));
        }
        if !request.channel.is_empty() {
            caller.may_use_channel(&request.channel).map_err(|denied| status::of_denied(&denied))?;
        }
        let query = connections::Query {
            api: request.api,
            channel: request.channel,
            limit: request.limit as usize,
            after: if request.after.is_empty() { None } else { Some(connection_id(&request.after)?) },
        };
        self.current(self.node.partition_count().iter()).await?;
        let (connections, more) = connections::list(&self.node, &query, |api| caller.sees(api));
        let next = connections.last().filter(|_| more).map(|last| last.connection.clone()).unwrap_or_default();
        Ok(Response::new(v1::ListConnectionsResponse { connections, next }))
    }

    type StateAtStream = Responses<v1::StateAtResponse>;

    async fn state_at(&self, request: Request<v1::StateAtRequest>) -> Result<Response<Self::StateAtStream>, Status> {
        self.allow(&request, Need::Read)?;
        let request = request.into_inner();
        let partition = self.partition(request.partition)?;
        let moment = match request.at {
            Some(v1::state_at_request::At::Offset(offset)) => Moment::Offset(Offset(offset)),
            Some(v1::state_at_request::At::Time(time)) => Moment::Time(Timestamp(time)),
            None => return Err(status::invalid("a moment is missing: an offset or a time")),
        };
        // a state of the past needs nobody's word that it is the newest
        let held = self.node.partition(partition).map(|handle| Offset::end_of(handle.tail.applied()));
        if !matches!(moment, Moment::Offset(offset) if held.is_some_and(|held| offset <= held)) {
            self.current([partition]).await?;
        }
        let busy =
            |_| status::of_code(v1::Code::Throttled, "other states of the past are being rebuilt: try again later");
        let permit = Arc::clone(&self.states_at).try_acquire_owned().map_err(busy)?;
        let chunks = connections::state_at(&self.node, partition, moment).await;
        let chunks = chunks.map_err(|error| status::of_read(&error))?;
        let responses = tokio_stream::iter(chunks).map(move |response| {
            let _held = &permit;
            Ok(response)
        });
        Ok(Response::new(Box::pin(responses)))
    }
}

#[tonic::async_trait]
impl v1::cluster_server::Cluster for Services {
    async fn describe(&self, request: Request<v1::DescribeRequest>) -> Result<Response<v1::DescribeResponse>, Status> {
        self.allow(&request, Need::Look)?;
        Ok(Response::new(describe::cluster(&self.node, &self.about).await))
    }

    async fn groups(&self, request: Request<v1::GroupsRequest>) -> Result<Response<v1::GroupsResponse>, Status> {
        self.allow(&request, Need::Read)?;
        let request = request.into_inner();
        name("group", &request.group)?;
        self.current(self.node.partition_count().iter()).await?;
        let groups = cluster::groups(&self.node, &self.registry, &request.group);
        Ok(Response::new(v1::GroupsResponse { groups }))
    }

    async fn add_member(
        &self,
        request: Request<v1::AddMemberRequest>,
    ) -> Result<Response<v1::AddMemberResponse>, Status> {
        self.allow(&request, Need::Operate)?;
        let request = request.into_inner();
        let patience = match request.patience_seconds {
            0 => MEMBER_PATIENCE,
            seconds => Duration::from_secs(seconds.min(MEMBER_PATIENCE_SECONDS_MAX).into()),
        };
        let added = self.node.add_member(request.id, &request.link, patience).await;
        added.map_err(|error| status::of_admin(&error))?;
        Ok(Response::new(v1::AddMemberResponse {}))
    }

    async fn remove_member(
        &self,
        request: Request<v1::RemoveMemberRequest>,
    ) -> Result<Response<v1::RemoveMemberResponse>, Status> {
        self.allow(&request, Need::Operate)?;
        let removed = self.node.remove_member(request.into_inner().id).await;
        removed.map_err(|error| status::of_admin(&error))?;
        Ok(Response::new(v1::RemoveMemberResponse {}))
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderResponse>, Status> {
        self.allow(&request, Need::Operate)?;
        let request = request.into_inner();
        let moved = self.node.transfer_leader(self.partition(request.partition)?, request.to).await;
        moved.map_err(|error| status::of_admin(&error))?;
        Ok(Response::new(v1::TransferLeaderResponse {}))
    }

    async fn reset_group(
        &self,
        request: Request<v1::ResetGroupRequest>,
    ) -> Result<Response<v1::ResetGroupResponse>, Status> {
        self.allow(&request, Need::Operate)?;
        let request = request.into_inner();
        let moved = reset::reset_group(&self.node, &request.group, request.to).await;
        moved.map_err(|error| status::of_code(error.code(), error.to_string()))?;
        let groups = cluster::groups(&self.node, &self.registry, &request.group);
        Ok(Response::new(v1::ResetGroupResponse { groups }))
    }

    async fn parked(&self, request: Request<v1::ParkedRequest>) -> Result<Response<v1::ParkedResponse>, Status> {
        self.allow(&request, Need::Read)?;
        let request = request.into_inner();
        name("group", &request.group)?;
        let partition = self.partition(request.partition)?;
        let limit = match request.limit as usize {
            0 => PARKED_PAGE,
            limit => limit.min(release::RELEASE_MAX),
        };
        self.current([partition]).await?;
        let (events, more) = release::page(&self.node, partition, &request.group, Offset(request.after), limit);
        Ok(Response::new(v1::ParkedResponse { events, more }))
    }

    async fn release_parked(
        &self,
        request: Request<v1::ReleaseParkedRequest>,
    ) -> Result<Response<v1::ReleaseParkedResponse>, Status> {
        self.allow(&request, Need::Operate)?;
        let v1::ReleaseParkedRequest { group, partition, offsets, discard } = request.into_inner();
        let partition = self.partition(partition)?;
        let wish = v1::ParkedReleased { group, offsets, discard };
        let released = release::release(&self.node, partition, wish).await;
        match released.code() {
            v1::Code::Applied => Ok(Response::new(v1::ReleaseParkedResponse {})),
            code => Err(status::of_code(code, released.message)),
        }
    }
}
