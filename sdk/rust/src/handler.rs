//! The trait users implement, and what its methods answer.

use std::{collections::BTreeMap, error::Error, fmt, future::Future, time::Duration};

use bytes::Bytes;
use trunkline_proto::{Offset, PartitionId, v1};

use crate::{
    context::Context,
    event::{Closed, Message, Opened},
};

/// Handles the events of connections. Every method has a default, so a handler implements what it needs.
///
/// Events of one connection come one at a time and in order: opened, messages, closed. Different connections run in parallel,
/// hence `&self`. An event may come more than once (after a crash, or after an error): see [`Context::idempotency_key`].
pub trait Handler: Send + Sync + 'static {
    /// A connection was opened. Where the API asks this group for a decision, the client gets its answer only when this
    /// returns; elsewhere channels and attributes of the answer are applied, and a rejection closes the connection.
    fn opened(
        &self,
        cx: &mut Context,
        opened: Opened,
    ) -> impl Future<Output = Result<Registration, HandlerError>> + Send {
        let _ = (cx, opened);
        async { Ok(Registration::accept()) }
    }

    /// A message was received.
    fn message(&self, cx: &mut Context, message: Message) -> impl Future<Output = Result<(), HandlerError>> + Send {
        let _ = (cx, message);
        async { Ok(()) }
    }

    /// Retention has taken events before this group was given them. Said at least once, and again at each assignment of the partition
    /// until the group has settled an event there. Called between events: must return at once.
    fn trimmed(&self, trimmed: Trimmed) {
        let _ = trimmed;
    }

    /// A connection was closed. Nothing can be sent to it any more.
    fn closed(&self, cx: &mut Context, closed: Closed) -> impl Future<Output = Result<(), HandlerError>> + Send {
        let _ = (cx, closed);
        async { Ok(()) }
    }
}

/// What a group misses of a partition: its start is not in the log any more, or an operator lets a full log go on without it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trimmed {
    /// Whose log.
    pub partition: PartitionId,
    /// The first offset that is gone...
    pub from: Offset,
    /// ... and the last one. Not every offset between them was an event of the group.
    pub through: Offset,
}

/// The decision about a new connection.
///
/// ```
/// use trunkline_sdk::Registration;
/// let yes = Registration::accept().subprotocol("chat.v2").channel("lobby").attribute("user", "ada");
/// let no = Registration::reject(403, "not today");
/// ```
#[derive(Clone, PartialEq, Debug)]
pub struct Registration(pub(crate) Decision);

#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Decision {
    Accept(v1::ConnectionAccepted),
    Reject(v1::ConnectionRejected),
}

impl Registration {
    /// Lets the connection in.
    pub fn accept() -> Self {
        Self(Decision::Accept(v1::ConnectionAccepted::default()))
    }

    /// Turns it away with an HTTP status (400 to 599) and a body.
    pub fn reject(status: u16, body: impl Into<Bytes>) -> Self {
        Self(Decision::Reject(v1::ConnectionRejected { status: u32::from(status), body: body.into() }))
    }

    /// With one of the subprotocols the client offered. Without effect on a rejection, as are the other parts.
    #[must_use]
    pub fn subprotocol(self, subprotocol: impl Into<String>) -> Self {
        self.with(|accept| accept.subprotocol = subprotocol.into())
    }

    /// With a header in the answer to the handshake.
    #[must_use]
    pub fn header(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.with(|accept| accept.headers.push(v1::Header { name: name.into(), value: value.into() }))
    }

    /// With an attribute, kept with the connection.
    #[must_use]
    pub fn attribute(self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.with(|accept| {
            accept.attributes.insert(key.into(), value.into());
        })
    }

    /// With several attributes.
    #[must_use]
    pub fn attributes(self, attributes: BTreeMap<String, String>) -> Self {
        self.with(|accept| accept.attributes.extend(attributes))
    }

    /// In a channel from the start: the client misses none of its publishes.
    #[must_use]
    pub fn channel(self, channel: impl Into<String>) -> Self {
        self.with(|accept| accept.channels.push(channel.into()))
    }

    fn with(mut self, change: impl FnOnce(&mut v1::ConnectionAccepted)) -> Self {
        if let Decision::Accept(accept) = &mut self.0 {
            change(accept);
        }
        self
    }
}

/// An event could not be handled. Any other error turns into one by `?`: the event comes again after a growing delay.
pub struct HandlerError {
    pub(crate) then: Then,
    cause: Option<Box<dyn Error + Send + Sync>>,
}

/// What is to become of the event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Then {
    /// Again after a delay that grows with the attempts.
    Retry,
    RetryAfter(Duration),
    Park(String),
}

impl HandlerError {
    /// Deliver the event again after `delay` (at most 49 days). Later events of the connection wait for it.
    pub fn retry_after(delay: Duration) -> Self {
        Self { then: Then::RetryAfter(delay), cause: None }
    }

    /// Set the event aside as a dead letter and go on with the connection's next one.
    pub fn park(reason: impl Into<String>) -> Self {
        Self { then: Then::Park(reason.into()), cause: None }
    }

    /// With the error that caused it, for the log.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.cause = Some(cause.into());
        self
    }
}

impl<E: Into<Box<dyn Error + Send + Sync>>> From<E> for HandlerError {
    fn from(cause: E) -> Self {
        Self { then: Then::Retry, cause: Some(cause.into()) }
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.then {
            Then::Retry => f.write_str("the handler failed")?,
            Then::RetryAfter(delay) => write!(f, "the handler asks for the event again after {delay:?}")?,
            Then::Park(reason) => write!(f, "the handler parks the event: {reason}")?,
        }
        match &self.cause {
            Some(cause) => write!(f, ": {cause}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
