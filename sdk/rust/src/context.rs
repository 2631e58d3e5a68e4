//! What a handler acts through while it handles one event. Nothing is sent before it returns: commands and acknowledgement
//! are one commit.

use prost::Message as _;
use trunkline_proto::{CloseCode, ConnectionId, Offset, PartitionId, Timestamp, limits, v1};

use crate::{
    command::{Command, CommandError, Publish},
    event::Message,
};

/// Most bytes of commands of one event: one largest message and what describes it must fit a commit.
pub(crate) const COMMAND_BYTES_MAX: usize = limits::RECORD_BYTES_MAX;

/// Where an event comes from.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) group: std::sync::Arc<str>,
    pub(crate) partition: PartitionId,
    pub(crate) offset: Offset,
    pub(crate) time: Timestamp,
    pub(crate) attempt: u32,
    pub(crate) connection: ConnectionId,
    pub(crate) api: String,
    pub(crate) assignment: Assignment,
}

/// One assignment of a partition to this member. No other two are equal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Assignment {
    /// Of the sessions of this process.
    pub(crate) session: u64,
    /// Of the assignments within it.
    pub(crate) generation: u64,
}

/// The event being handled, and the commands it causes.
///
/// The commands and the event's acknowledgement are one atomic commit: after `Ok` both happen, once, even if the event was
/// delivered twice; after an error none of them does. Commands to a connection that has gone meanwhile are refused alone and
/// hold up nothing. A malformed command (a channel name with control characters, say) fails the event as an error would.
#[derive(Debug)]
pub struct Context {
    origin: Origin,
    commands: Vec<v1::Command>,
    bytes: usize,
    malformed: Option<CommandError>,
}

impl Context {
    pub(crate) fn new(origin: Origin) -> Self {
        Self { origin, commands: Vec::new(), bytes: 0, malformed: None }
    }

    /// The connection the event belongs to.
    pub fn connection(&self) -> ConnectionId {
        self.origin.connection
    }

    /// The API the connection came in by.
    pub fn api(&self) -> &str {
        &self.origin.api
    }

    /// The assignment the event came by. While it is the same, no other member handles events of this connection: what was remembered of
    /// them still holds. After another one, ask.
    pub fn assignment(&self) -> Assignment {
        self.origin.assignment
    }

    /// The handler group this handler is a member of.
    pub fn group(&self) -> &str {
        &self.origin.group
    }

    /// The partition the event is in.
    pub fn partition(&self) -> PartitionId {
        self.origin.partition
    }

    /// The event's position in its partition's log.
    pub fn offset(&self) -> Offset {
        self.origin.offset
    }

    /// How often the event has been delivered, this time included; from 1.
    pub fn attempt(&self) -> u32 {
        self.origin.attempt
    }

    /// When the event was put into the log.
    pub fn time(&self) -> Timestamp {
        self.origin.time
    }

    /// Names this event for good, whichever member handles it, however often: `group/partition/index.position`. Give it to
    /// other systems as the idempotency key of side effects.
    pub fn idempotency_key(&self) -> String {
        format!("{}/{}/{}", self.origin.group, self.origin.partition, self.origin.offset)
    }

    /// Sends a message to this connection.
    pub fn push(&mut self, message: impl Into<Message>) -> &mut Self {
        self.push_to(self.origin.connection, message)
    }

    /// Sends a message to another connection.
    pub fn push_to(&mut self, connection: ConnectionId, message: impl Into<Message>) -> &mut Self {
        self.command(Command::push(connection, message))
    }

    /// Sends a message to every connection of a channel.
    pub fn publish(&mut self, channel: impl Into<String>, message: impl Into<Message>) -> &mut Self {
        self.command(Command::publish(channel, message))
    }

    /// Sends a message to every connection of a channel but this one.
    pub fn publish_to_others(&mut self, channel: impl Into<String>, message: impl Into<Message>) -> &mut Self {
        let publish = Publish::to_channel(channel, message).except(self.origin.connection);
        self.command(publish)
    }

    /// Sends a message to every connection of an API.
    pub fn publish_to_api(&mut self, api: impl Into<String>, message: impl Into<Message>) -> &mut Self {
        self.command(Publish::to_api(api, message))
    }

    /// Closes this connection, after everything pushed to it before.
    pub fn close(&mut self, code: CloseCode, reason: impl Into<String>) -> &mut Self {
        self.command(Command::close(self.origin.connection, code, reason))
    }

    /// Puts this connection into a channel.
    pub fn join(&mut self, channel: impl Into<String>) -> &mut Self {
        self.command(Command::join(self.origin.connection, channel))
    }

    /// Takes this connection out of a channel.
    pub fn leave(&mut self, channel: impl Into<String>) -> &mut Self {
        self.command(Command::leave(self.origin.connection, channel))
    }

    /// Sets one attribute of this connection.
    pub fn set_attribute(&mut self, key: impl Into<String>, value: impl Into<String>) -> &mut Self {
        self.command(Command::attributes(self.origin.connection, [(key, value)], [] as [String; 0]))
    }

    /// Any command, a [`Publish`] or one for another connection.
    pub fn command(&mut self, command: impl Into<Command>) -> &mut Self {
        if self.malformed.is_none() {
            self.malformed = self.add(command.into()).err();
        }
        self
    }

    fn add(&mut self, command: Command) -> Result<(), CommandError> {
        command.check()?;
        if command.0.unlogged {
            return Err(CommandError::Unlogged);
        }
        if self.commands.len() >= limits::COMMANDS_MAX {
            return Err(CommandError::TooMany);
        }
        let bytes = command.0.encoded_len();
        if self.bytes.saturating_add(bytes) > COMMAND_BYTES_MAX {
            return Err(CommandError::TooManyBytes { limit: COMMAND_BYTES_MAX });
        }
        self.bytes += bytes;
        self.commands.push(command.0);
        Ok(())
    }

    /// Puts the decision about a connection before the other commands: welcome pushes follow it.
    pub(crate) fn decide(&mut self, decision: Command) {
        self.command(decision);
        if self.malformed.is_none() {
            self.commands.rotate_right(1);
        }
    }

    /// What was collected, or what is wrong with it.
    pub(crate) fn finish(self) -> Result<Vec<v1::Command>, CommandError> {
        self.malformed.map_or(Ok(self.commands), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> Context {
        Context::new(Origin {
            group: "chat".into(),
            partition: PartitionId(3),
            offset: Offset(5 << 16 | 2),
            time: Timestamp(1),
            attempt: 1,
            connection: ConnectionId([1; 16]),
            api: "chat".into(),
            assignment: Assignment::default(),
        })
    }

    #[test]
    fn a_decision_goes_before_what_was_pushed() {
        let mut cx = context();
        cx.push("welcome").join("room");
        cx.decide(Command::accept(cx.connection(), v1::ConnectionAccepted::default()));
        let commands = cx.finish().unwrap();
        assert!(matches!(commands[0].command, Some(v1::command::Command::Accept(_))));
        assert!(matches!(commands[1].command, Some(v1::command::Command::Push(_))));
    }

    #[test]
    fn one_malformed_command_fails_all_of_them() {
        let mut cx = context();
        cx.push("a").join("\u{7}").push("b");
        assert!(matches!(cx.finish(), Err(CommandError::Channel { .. })));
    }

    #[test]
    fn commands_of_one_event_are_bounded() {
        let mut cx = context();
        for _ in 0..limits::COMMANDS_MAX + 1 {
            cx.push("x");
        }
        assert_eq!(cx.finish(), Err(CommandError::TooMany));
        let mut cx = context();
        let large = Message::binary(vec![0; limits::MESSAGE_BYTES_MAX]);
        cx.push(large.clone()).push(large);
        assert!(matches!(cx.finish(), Err(CommandError::TooManyBytes { .. })));
    }

    #[test]
    fn the_idempotency_key_names_the_event() {
        assert_eq!(context().idempotency_key(), "chat/3/5.2");
    }
}
