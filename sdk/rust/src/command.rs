//! Commands, checked before they leave the process: what a broker would refuse as malformed never becomes part of a commit.

use std::collections::BTreeMap;

use trunkline_proto::{CloseCode, ConnectionId, limits, v1};

use crate::event::Message;

/// Why a command is malformed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum CommandError {
    #[error("payload of {bytes} bytes exceeds the limit of {} bytes", limits::MESSAGE_BYTES_MAX)]
    PayloadTooLarge { bytes: usize },
    #[error("{channel:?} is no channel name: 1 to {} bytes without control characters", limits::CHANNEL_BYTES_MAX)]
    Channel { channel: String },
    #[error("{name:?} is no API name: 1 to {} of [A-Za-z0-9._-]", limits::NAME_BYTES_MAX)]
    Api { name: String },
    #[error("close code {code} may not be asked for: 1000, 1001, 1008, 1011, 1012, 1013 or 3000 to 4999")]
    CloseCode { code: u16 },
    #[error("close reason of {bytes} bytes exceeds the limit of {} bytes", limits::CLOSE_REASON_BYTES_MAX)]
    Reason { bytes: usize },
    #[error("a rejection answers with an HTTP status of 400 to 599, not {status}")]
    RejectStatus { status: u16 },
    #[error("attributes of {bytes} bytes exceed the limit of {} bytes", limits::ATTRIBUTES_BYTES_MAX)]
    Attributes { bytes: usize },
    #[error("{count} channels exceed the limit of {} a connection", limits::CHANNELS_PER_CONNECTION_MAX)]
    Channels { count: usize },
    #[error("{count} excepted connections exceed the limit of {}", limits::EXCEPT_MAX)]
    Except { count: usize },
    #[error("more than {} commands for one event", limits::COMMANDS_MAX)]
    TooMany,
    #[error("the commands of one event exceed {limit} bytes together")]
    TooManyBytes { limit: usize },
    #[error("an unlogged publish has no acknowledgement to be part of: send it with a Client")]
    Unlogged,
}

/// One command: something to be done to a connection, a channel or an API.
///
/// ```
/// use trunkline_sdk::{Command, ConnectionId};
/// let id: ConnectionId = "AAAAAAAAAAAAAAAAAAAAAA".parse()?;
/// let commands = [Command::push(id, "hello"), Command::join(id, "lobby"), Command::publish("lobby", "someone came")];
/// assert!(commands.iter().all(|command| command.check().is_ok()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Debug)]
pub struct Command(pub(crate) v1::Command);

impl Command {
    fn of(connection: ConnectionId, command: v1::command::Command) -> Self {
        let connection = connection.0.to_vec().into();
        Self(v1::Command { connection, command: Some(command), unlogged: false })
    }

    /// Sends a message to one connection.
    pub fn push(connection: ConnectionId, message: impl Into<Message>) -> Self {
        let message = message.into();
        let push = v1::Pushed { kind: message.kind() as i32, payload: message.into_payload() };
        Self::of(connection, v1::command::Command::Push(push))
    }

    /// Sends a message to every connection of a channel. See [`Publish`] for more.
    pub fn publish(channel: impl Into<String>, message: impl Into<Message>) -> Self {
        Publish::to_channel(channel, message).into()
    }

    /// Closes a connection: what was pushed before is sent first.
    pub fn close(connection: ConnectionId, code: CloseCode, reason: impl Into<String>) -> Self {
        let close = v1::CloseRequested { code: u32::from(code.0), reason: reason.into() };
        Self::of(connection, v1::command::Command::Close(close))
    }

    /// Puts a connection into a channel.
    pub fn join(connection: ConnectionId, channel: impl Into<String>) -> Self {
        let join = v1::ChannelJoined { channel: channel.into(), edge: String::new() };
        Self::of(connection, v1::command::Command::Join(join))
    }

    /// Takes a connection out of a channel.
    pub fn leave(connection: ConnectionId, channel: impl Into<String>) -> Self {
        Self::of(connection, v1::command::Command::Leave(v1::ChannelLeft { channel: channel.into() }))
    }

    /// Sets attributes of a connection and removes others.
    pub fn attributes(
        connection: ConnectionId,
        set: impl IntoIterator<Item = (impl Into<String>, impl Into<String>)>,
        removed: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        let set: BTreeMap<String, String> = set.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        let removed = removed.into_iter().map(Into::into).collect();
        Self::of(connection, v1::command::Command::Attributes(v1::AttributesSet { set, removed }))
    }

    pub(crate) fn accept(connection: ConnectionId, accepted: v1::ConnectionAccepted) -> Self {
        Self::of(connection, v1::command::Command::Accept(accepted))
    }

    pub(crate) fn reject(connection: ConnectionId, rejected: v1::ConnectionRejected) -> Self {
        Self::of(connection, v1::command::Command::Reject(rejected))
    }

    /// Whether a broker would take it as well-formed.
    pub fn check(&self) -> Result<(), CommandError> {
        use v1::command::Command as C;
        match &self.0.command {
            Some(C::Push(push)) => check_payload(push.payload.len()),
            Some(C::Publish(publish)) => check_publish(publish),
            Some(C::Close(close)) => check_close(close),
            Some(C::Join(join)) => check_channel(&join.channel),
            Some(C::Leave(leave)) => check_channel(&leave.channel),
            Some(C::Attributes(attributes)) => check_attributes(&attributes.set),
            Some(C::Accept(accept)) => check_accept(accept),
            Some(C::Reject(reject)) => match u16::try_from(reject.status).unwrap_or(0) {
                400..=599 => check_payload(reject.body.len()),
                status => Err(CommandError::RejectStatus { status }),
            },
            None => Ok(()),
        }
    }
}

fn check_payload(bytes: usize) -> Result<(), CommandError> {
    if bytes > limits::MESSAGE_BYTES_MAX { Err(CommandError::PayloadTooLarge { bytes }) } else { Ok(()) }
}

fn check_channel(channel: &str) -> Result<(), CommandError> {
    if limits::is_channel(channel) { Ok(()) } else { Err(CommandError::Channel { channel: channel.into() }) }
}

fn check_attributes(set: &BTreeMap<String, String>) -> Result<(), CommandError> {
    let bytes = set.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > limits::ATTRIBUTES_BYTES_MAX { Err(CommandError::Attributes { bytes }) } else { Ok(()) }
}

fn check_accept(accept: &v1::ConnectionAccepted) -> Result<(), CommandError> {
    if accept.channels.len() > limits::CHANNELS_PER_CONNECTION_MAX {
        return Err(CommandError::Channels { count: accept.channels.len() });
    }
    accept.channels.iter().try_for_each(|channel| check_channel(channel))?;
    check_attributes(&accept.attributes)
}

fn check_close(close: &v1::CloseRequested) -> Result<(), CommandError> {
    let code = u16::try_from(close.code).unwrap_or(0);
    if !CloseCode(code).may_be_requested() {
        return Err(CommandError::CloseCode { code });
    }
    match close.reason.len() {
        bytes if bytes > limits::CLOSE_REASON_BYTES_MAX => Err(CommandError::Reason { bytes }),
        _ => Ok(()),
    }
}

fn check_publish(publish: &v1::Published) -> Result<(), CommandError> {
    if publish.channel.is_empty() {
        if !limits::is_name(&publish.api) {
            return Err(CommandError::Api { name: publish.api.clone() });
        }
    } else {
        check_channel(&publish.channel)?;
    }
    if publish.except.len() > limits::EXCEPT_MAX {
        return Err(CommandError::Except { count: publish.except.len() });
    }
    check_payload(publish.payload.len())
}

/// A publish: to a channel or to every connection of an API.
///
/// ```
/// use trunkline_sdk::Publish;
/// let cursor = Publish::to_channel("board", "12,40").unlogged();
/// ```
#[derive(Clone, PartialEq, Debug)]
pub struct Publish {
    published: v1::Published,
    unlogged: bool,
}

impl Publish {
    /// To a channel.
    pub fn to_channel(channel: impl Into<String>, message: impl Into<Message>) -> Self {
        Self::new(channel.into(), String::new(), message.into())
    }

    /// To every connection of an API.
    pub fn to_api(api: impl Into<String>, message: impl Into<Message>) -> Self {
        Self::new(String::new(), api.into(), message.into())
    }

    fn new(channel: String, api: String, message: Message) -> Self {
        let kind = message.kind() as i32;
        let published = v1::Published { channel, api, kind, payload: message.into_payload(), except: Vec::new() };
        Self { published, unlogged: false }
    }

    /// But not to this connection. At most [`limits::EXCEPT_MAX`] of them.
    #[must_use]
    pub fn except(mut self, connection: ConnectionId) -> Self {
        self.published.except.push(connection.0.to_vec().into());
        self
    }

    /// Skips the log: at most once, for what the next one replaces anyway. By [`crate::Client`] only.
    #[must_use]
    pub fn unlogged(mut self) -> Self {
        self.unlogged = true;
        self
    }
}

impl From<Publish> for Command {
    fn from(publish: Publish) -> Self {
        Self(v1::Command {
            connection: bytes::Bytes::new(),
            command: Some(v1::command::Command::Publish(publish.published)),
            unlogged: publish.unlogged,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: ConnectionId = ConnectionId([7; 16]);

    #[test]
    fn malformed_commands_are_found() {
        let cases: [(Command, bool); 9] = [
            (Command::push(ID, "x"), true),
            (Command::push(ID, vec![0; limits::MESSAGE_BYTES_MAX + 1]), false),
            (Command::join(ID, ""), false),
            (Command::leave(ID, "a\nb"), false),
            (Command::publish("room", "x"), true),
            (Publish::to_api("no such name!", "x").into(), false),
            (Command::close(ID, CloseCode(1006), ""), false),
            (Command::close(ID, CloseCode(4000), "x".repeat(124)), false),
            (Command::attributes(ID, [("k", "v".repeat(5000))], [] as [String; 0]), false),
        ];
        for (command, valid) in cases {
            assert_eq!(command.check().is_ok(), valid, "{command:?}: {:?}", command.check());
        }
    }
}
