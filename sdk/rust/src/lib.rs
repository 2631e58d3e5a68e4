//! Write handlers for Trunkline, and send commands to it.
//!
//! A **handler** consumes the events of connections (opened, message, closed) and answers with commands (push, publish, close,
//! join, leave, set attributes). What it answers and the acknowledgement of the event are one entry of the log: both happen,
//! or neither does.
//!
//! ```no_run
//! use trunkline_sdk::{Context, Handler, HandlerError, Message, Subscriber};
//!
//! struct Echo;
//!
//! impl Handler for Echo {
//!     async fn message(&self, cx: &mut Context, message: Message) -> Result<(), HandlerError> {
//!         cx.push(message);
//!         Ok(())
//!     }
//! }
//!
//! # async fn main_() -> Result<(), trunkline_sdk::SubscribeError> {
//! Subscriber::builder("http://127.0.0.1:7070").group("echo").apis(["echo"]).run(Echo).await
//! # }
//! ```
//!
//! Events of one connection are handled in order, one at a time; those of different connections in parallel. An event is
//! delivered at least once: after a crash the same one may come again, with the same [`Context::idempotency_key`]. Commands
//! collected in the [`Context`] happen once even then.
//!
//! A service that only sends uses the [`Client`].

mod backoff;
mod brokers;
mod client;
mod command;
mod complaints;
mod context;
mod error;
mod event;
mod handler;
mod lane;
mod schedule;
mod session;
mod subscription;
mod wire;

pub use client::{Applied, Client, ClientBuilder, LogPages, Pages, StatePages, Submission};
pub use command::{Command, CommandError, Publish};
pub use context::{Assignment, Context};
pub use error::{ClientError, CommandFailure, Retry};
pub use event::{Closed, EventKind, Message, Opened};
pub use handler::{Handler, HandlerError, Registration, Trimmed};
pub use subscription::{IntoEndpoints, StartAt, SubscribeError, Subscriber};
/// The wire types, for what this crate does not wrap.
pub use trunkline_proto as proto;
pub use trunkline_proto::{CloseCode, ConnectionId, Offset, PartitionId, Timestamp};
