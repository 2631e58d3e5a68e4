//! Commands without a subscription, the log, connections, the cluster.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use tonic::Streaming;
use trunkline_proto::{
    CloseCode, ConnectionId, Offset, PartitionId, limits,
    v1::{
        self, cluster_client::ClusterClient, connections_client::ConnectionsClient, handlers_client::HandlersClient,
        log_client::LogClient,
    },
};

use crate::{
    backoff::Backoff,
    command::Command,
    error::{ClientError, CommandFailure, Retry, outcome},
    event::Message,
    subscription::{IntoEndpoints, StartAt},
    wire::{Credentials, Wire},
};

/// How long a change of members or leaders may take, over all partitions.
const MEMBER_TIMEOUT: Duration = Duration::from_secs(120);

/// A client of a cluster by one of its brokers, which forwards to the leaders, or by several: then the next one is asked where one is
/// away or cannot answer. Cheap to clone; connects when first used and again when needed.
///
/// ```no_run
/// use trunkline_sdk::{Client, Command};
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let client = Client::new("http://127.0.0.1:7070")?;
/// let applied = client.publish("lobby", "the kitchen closes").await?;
/// println!("at offset {} of partition {}", applied.offset, applied.partition);
///
/// // an answer that got lost is asked for again with the same key: done once
/// let bill = client.submission().command(Command::publish("till", "{\"total\": 12}")).key("bill-4711").send().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    channels: Arc<[Wire]>,
    /// Which of them answered last.
    turn: Arc<AtomicUsize>,
    timeout: Duration,
}

/// How a [`Client`] is made.
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    addresses: Vec<String>,
    timeout: Duration,
    credentials: Credentials,
}

impl ClientBuilder {
    /// How long one call may take, attempts included. Default 15 s.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Proves who calls: a token that `trunkline token new` has made.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.credentials.token = Some(token.into());
        self
    }

    /// Brokers are reached by TLS and must prove who they are by a certificate of this authority, PEM.
    #[must_use]
    pub fn ca_pem(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.credentials.ca = Some(pem.into());
        self
    }

    /// The client; must be called within a tokio runtime.
    pub fn build(self) -> Result<Client, ClientError> {
        let channels = self.addresses.iter().map(|address| self.credentials.connect_lazy(address));
        let channels: Vec<Wire> = channels.collect::<Result<_, _>>()?;
        if channels.is_empty() {
            return Err(ClientError::Address { address: String::new(), reason: "none was given".to_owned() });
        }
        Ok(Client { channels: channels.into(), turn: Arc::default(), timeout: self.timeout })
    }
}

/// A command that is in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Applied {
    /// The partition whose log it is in.
    pub partition: PartitionId,
    /// Where in it; zero for an unlogged publish.
    pub offset: Offset,
    /// Another partition carries it out: it is on its way there, and cannot be lost.
    pub forwarded: bool,
}

impl Client {
    /// A client of the broker at this address, or of those at several, with the defaults. Call it within a tokio runtime.
    pub fn new(addresses: impl IntoEndpoints) -> Result<Self, ClientError> {
        Self::builder(addresses).build()
    }

    /// A client of the broker at this address, or of those at several.
    pub fn builder(addresses: impl IntoEndpoints) -> ClientBuilder {
        let credentials = Credentials::default();
        ClientBuilder { addresses: addresses.into_endpoints(), timeout: Duration::from_secs(15), credentials }
    }

    /// The broker that answered last.
    fn channel(&self) -> (usize, Wire) {
        let turn = self.turn.load(Ordering::Relaxed) % self.channels.len();
        // never empty
        #[allow(clippy::indexing_slicing)]
        (turn, self.channels[turn].clone())
    }

    /// From now on the one after `turn` is asked, unless somebody has seen to that already.
    fn next_channel(&self, turn: usize) {
        let next = (turn + 1) % self.channels.len();
        // what another call has found out meanwhile is newer
        let _ = self.turn.compare_exchange(turn, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Asks one broker after another, each once, until one answers. Only for what may be asked twice.
    async fn ask<T, F>(&self, call: impl Fn(Wire) -> F) -> Result<T, ClientError>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let mut left = self.channels.len();
        loop {
            let (turn, channel) = self.channel();
            let error = match call(channel).await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => ClientError::from(status),
            };
            left -= 1;
            if left == 0 || error.retry() == Retry::No {
                return Err(error);
            }
            self.next_channel(turn);
        }
    }

    /// Several commands at once, or one with a key.
    pub fn submission(&self) -> Submission {
        Submission { client: self.clone(), commands: Vec::new(), key: String::new() }
    }

    /// Sends a message to a connection.
    pub async fn push(&self, connection: ConnectionId, message: impl Into<Message>) -> Result<Applied, ClientError> {
        self.submit(Command::push(connection, message)).await
    }

    /// Sends a message to a channel; see [`crate::Publish`] and [`Client::submit`] for more.
    pub async fn publish(
        &self,
        channel: impl Into<String>,
        message: impl Into<Message>,
    ) -> Result<Applied, ClientError> {
        self.submit(Command::publish(channel, message)).await
    }

    /// Closes a connection.
    pub async fn close(
        &self,
        connection: ConnectionId,
        code: CloseCode,
        reason: impl Into<String>,
    ) -> Result<Applied, ClientError> {
        self.submit(Command::close(connection, code, reason)).await
    }

    /// Puts a connection into a channel.
    pub async fn join(&self, connection: ConnectionId, channel: impl Into<String>) -> Result<Applied, ClientError> {
        self.submit(Command::join(connection, channel)).await
    }

    /// Takes a connection out of a channel.
    pub async fn leave(&self, connection: ConnectionId, channel: impl Into<String>) -> Result<Applied, ClientError> {
        self.submit(Command::leave(connection, channel)).await
    }

    /// Sets attributes of a connection and removes others.
    pub async fn set_attributes(
        &self,
        connection: ConnectionId,
        set: impl IntoIterator<Item = (impl Into<String>, impl Into<String>)>,
        removed: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<Applied, ClientError> {
        self.submit(Command::attributes(connection, set, removed)).await
    }

    /// One command.
    pub async fn submit(&self, command: impl Into<Command>) -> Result<Applied, ClientError> {
        self.submission().command(command).send_one().await
    }

    // ---- the log ----------------------------------------------------------------------------------------------------

    /// Reads a partition's log. With `follow` it goes on at the end.
    pub async fn read(&self, request: v1::ReadRequest) -> Result<LogPages, ClientError> {
        let request = &request;
        let stream = self.ask(|channel| async move {
            let mut client = LogClient::new(channel).max_decoding_message_size(limits::FRAME_BYTES_MAX);
            client.read(request.clone()).await
        });
        Ok(Pages { stream: stream.await? })
    }

    // ---- connections ------------------------------------------------------------------------------------------------

    /// A connection as it is now.
    pub async fn connection(&self, id: ConnectionId) -> Result<v1::Connection, ClientError> {
        let request = &v1::GetConnectionRequest { connection: id.0.to_vec().into() };
        self.ask(|channel| async move { connections(channel).get(self.timed(request.clone())).await }).await
    }

    /// How a connection came to be, open or closed: for handlers of its API. `event` is of one of its events, where a closed one is looked
    /// for from; zero looks through all of the log.
    pub async fn opening(&self, connection: ConnectionId, event: Offset) -> Result<v1::Opening, ClientError> {
        let request = &v1::GetOpeningRequest { connection: connection.0.to_vec().into(), offset: event.0 };
        self.ask(|channel| async move { connections(channel).get_opening(self.timed(request.clone())).await }).await
    }

    /// A page of connections, by API or channel.
    pub async fn list(&self, request: v1::ListConnectionsRequest) -> Result<v1::ListConnectionsResponse, ClientError> {
        let request = &request;
        self.ask(|channel| async move { connections(channel).list(self.timed(request.clone())).await }).await
    }

    /// A partition's connections and channels at a moment of the past.
    pub async fn state_at(&self, request: v1::StateAtRequest) -> Result<StatePages, ClientError> {
        let stream = self.ask(|channel| async move { connections(channel).state_at(request).await });
        Ok(Pages { stream: stream.await? })
    }

    // ---- the cluster ------------------------------------------------------------------------------------------------

    /// Brokers, partitions, edges.
    pub async fn describe(&self) -> Result<v1::DescribeResponse, ClientError> {
        self.ask(|channel| async move { cluster(channel).describe(self.timed(v1::DescribeRequest {})).await }).await
    }

    /// Handler groups, a row for each partition; all of them if `group` is empty.
    pub async fn groups(&self, group: impl Into<String>) -> Result<Vec<v1::Group>, ClientError> {
        let request = &v1::GroupsRequest { group: group.into() };
        let asked = self.ask(|channel| async move { cluster(channel).groups(self.timed(request.clone())).await });
        Ok(asked.await?.groups)
    }

    /// Moves a handler group: what is before `to` counts as settled, what is after it as open.
    pub async fn reset_group(&self, group: impl Into<String>, to: StartAt) -> Result<Vec<v1::Group>, ClientError> {
        let request = &v1::ResetGroupRequest { group: group.into(), to: Some(to.into()) };
        let asked = self.ask(|channel| async move { cluster(channel).reset_group(self.timed(request.clone())).await });
        Ok(asked.await?.groups)
    }

    /// A page of a handler group's dead letters in one partition.
    pub async fn parked(&self, request: v1::ParkedRequest) -> Result<v1::ParkedResponse, ClientError> {
        let request = &request;
        self.ask(|channel| async move {
            let mut client = cluster(channel).max_decoding_message_size(limits::FRAME_BYTES_MAX);
            client.parked(self.timed(request.clone())).await
        })
        .await
    }

    /// Takes dead letters out of a handler group: open again, or with `discard` forgotten. All of them or, if one is not there, none.
    pub async fn release_parked(&self, request: v1::ReleaseParkedRequest) -> Result<(), ClientError> {
        cluster(self.channel().1).release_parked(self.timed(request)).await?;
        Ok(())
    }

    /// Makes a broker a member of every partition; it votes once it has caught up, for which it is given `patience`.
    pub async fn add_member(&self, id: u64, link: impl Into<String>, patience: Duration) -> Result<(), ClientError> {
        let patience_seconds = u32::try_from(patience.as_secs().max(1)).unwrap_or(u32::MAX);
        let message = v1::AddMemberRequest { id, link: link.into(), patience_seconds };
        let mut request = tonic::Request::new(message);
        request.set_timeout(patience + MEMBER_TIMEOUT);
        cluster(self.channel().1).add_member(request).await?;
        Ok(())
    }

    /// Takes a broker out of every partition.
    pub async fn remove_member(&self, id: u64) -> Result<(), ClientError> {
        let mut request = tonic::Request::new(v1::RemoveMemberRequest { id });
        request.set_timeout(MEMBER_TIMEOUT);
        cluster(self.channel().1).remove_member(request).await?;
        Ok(())
    }

    /// Has another broker lead a partition; returns once it does.
    pub async fn transfer_leader(&self, partition: u16, to: u64) -> Result<(), ClientError> {
        let mut request = tonic::Request::new(v1::TransferLeaderRequest { partition: u32::from(partition), to });
        request.set_timeout(MEMBER_TIMEOUT);
        cluster(self.channel().1).transfer_leader(request).await?;
        Ok(())
    }

    fn timed<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.set_timeout(self.timeout);
        request
    }
}

/// Commands on their way. At most [`limits::COMMANDS_MAX`].
#[derive(Clone, Debug)]
#[must_use = "a submission does nothing until sent"]
pub struct Submission {
    client: Client,
    commands: Vec<Command>,
    key: String,
}

impl Submission {
    /// Adds a command.
    pub fn command(mut self, command: impl Into<Command>) -> Self {
        self.commands.push(command.into());
        self
    }

    /// Adds commands.
    pub fn commands(mut self, commands: impl IntoIterator<Item = Command>) -> Self {
        self.commands.extend(commands);
        self
    }

    /// Names the submission (at most 255 bytes): sent again with the same key within ten minutes it is not done again, and the
    /// first result is returned. With a key an answer that got lost is asked for again by itself.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = key.into();
        self
    }

    /// Sends it. A result for each command, in order: one may fail while others are applied.
    ///
    /// Tries again until the client's timeout, at another broker if there are several, where that cannot do anything twice: if nothing
    /// happened, or with a key.
    pub async fn send(self) -> Result<Vec<Result<Applied, CommandFailure>>, ClientError> {
        if self.commands.len() > limits::COMMANDS_MAX {
            return Err(crate::command::CommandError::TooMany.into());
        }
        for command in &self.commands {
            command.check()?;
        }
        let keyed = !self.key.is_empty();
        let commands = self.commands.into_iter().map(|command| command.0).collect();
        let request = v1::SubmitRequest { commands, idempotency_key: self.key };
        let deadline = Instant::now() + self.client.timeout;
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        loop {
            let (turn, channel) = self.client.channel();
            let answer = submit_once(channel, &request, deadline).await;
            let again = match &answer {
                Ok(results) => should_send_again(results, keyed),
                Err(error) => allows(error.retry(), keyed),
            };
            let delay = backoff.next();
            if !again || Instant::now() + delay >= deadline {
                return answer;
            }
            self.client.next_channel(turn);
            tokio::time::sleep(delay).await;
        }
    }

    /// Sends it; the result of its first command.
    pub async fn send_one(self) -> Result<Applied, ClientError> {
        match self.send().await?.into_iter().next() {
            Some(result) => Ok(result?),
            None => Err(ClientError::Answer("no result".to_owned())),
        }
    }
}

fn connections(channel: Wire) -> ConnectionsClient<Wire> {
    ConnectionsClient::new(channel).max_decoding_message_size(limits::FRAME_BYTES_MAX)
}

fn cluster(channel: Wire) -> ClusterClient<Wire> {
    ClusterClient::new(channel).max_decoding_message_size(limits::FRAME_BYTES_MAX)
}

fn allows(retry: Retry, keyed: bool) -> bool {
    retry == Retry::Safe || (retry == Retry::SameKey && keyed)
}

/// Without a key only if nothing at all happened: what was applied would be applied again.
fn should_send_again(results: &[Result<Applied, CommandFailure>], keyed: bool) -> bool {
    let retryable = |result: &Result<Applied, CommandFailure>| {
        result.as_ref().err().is_some_and(|failure| allows(failure.retry(), keyed))
    };
    if keyed { results.iter().any(retryable) } else { !results.is_empty() && results.iter().all(retryable) }
}

async fn submit_once(
    channel: Wire,
    request: &v1::SubmitRequest,
    deadline: Instant,
) -> Result<Vec<Result<Applied, CommandFailure>>, ClientError> {
    let mut timed = tonic::Request::new(request.clone());
    timed.set_timeout(deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)));
    let mut client = HandlersClient::new(channel).max_decoding_message_size(limits::FRAME_BYTES_MAX);
    let results = client.submit(timed).await?.into_inner().results;
    if results.len() != request.commands.len() {
        let (answers, commands) = (results.len(), request.commands.len());
        return Err(ClientError::Answer(format!("{answers} results for {commands} commands")));
    }
    Ok(results.into_iter().map(applied).collect())
}

fn applied(result: v1::CommandResult) -> Result<Applied, CommandFailure> {
    let forwarded = outcome(result.status)?;
    let partition = PartitionId(u16::try_from(result.partition).unwrap_or(u16::MAX));
    Ok(Applied { partition, offset: Offset(result.offset), forwarded })
}

/// Pages of a stream.
#[derive(Debug)]
pub struct Pages<T> {
    stream: Streaming<T>,
}

/// Pages of a partition's log.
pub type LogPages = Pages<v1::ReadResponse>;
/// Pages of a partition's past state.
pub type StatePages = Pages<v1::StateAtResponse>;

impl<T> Pages<T> {
    /// The next page; `None` at the end. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<T>, ClientError> {
        Ok(self.stream.message().await?)
    }
}

#[cfg(test)]
mod tests {
    use trunkline_proto::v1::Code;

    use super::*;

    #[test]
    fn without_a_key_only_what_did_not_happen_is_sent_again() {
        let failed = |code| Err(CommandFailure { code, message: String::new() });
        let done = Ok(Applied { partition: PartitionId(0), offset: Offset(1), forwarded: false });
        assert!(should_send_again(&[failed(Code::NoLeader)], false));
        assert!(!should_send_again(&[done.clone(), failed(Code::NoLeader)], false));
        assert!(should_send_again(&[done.clone(), failed(Code::NoLeader)], true));
        assert!(!should_send_again(&[failed(Code::Unknown)], false));
        assert!(should_send_again(&[failed(Code::Unknown)], true));
        assert!(!should_send_again(&[done, failed(Code::Gone)], true));
    }
}
