//! Errors that answer two questions: may I try again, and may it have happened?

use std::error::Error;

use tonic::Status;
use trunkline_proto::v1::{self, Code};

use crate::command::CommandError;

/// Whether trying again may help.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Retry {
    /// Nothing happened: try again, best after a moment.
    Safe,
    /// It may have happened: try again with the same idempotency key, or not at all.
    SameKey,
    /// The same will be refused again.
    No,
}

/// A command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", describe(*.code, .message))]
pub struct CommandFailure {
    /// Why, for programs.
    pub code: Code,
    /// Why, for people.
    pub message: String,
}

impl CommandFailure {
    /// Whether trying again may help.
    pub fn retry(&self) -> Retry {
        retry_of(self.code)
    }

    /// Whether it may have happened all the same.
    pub fn may_have_happened(&self) -> bool {
        self.retry() == Retry::SameKey
    }
}

/// A call did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is no `http://host:port`.
    #[error("{address:?} is no address of a broker: {reason}")]
    Address {
        /// As given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No connection to the broker: nothing happened.
    #[error("no connection to the broker: {reason}")]
    Unreachable {
        /// What the system says.
        reason: String,
    },
    /// The connection broke before the answer: it may have happened.
    #[error("the broker did not answer: {reason}")]
    NoAnswer {
        /// What the transport says.
        reason: String,
    },
    /// The broker refused the call.
    #[error("the broker refuses: {}", describe(*.code, .message))]
    Refused {
        /// Why, for programs.
        code: Code,
        /// Why, for people.
        message: String,
        /// What the broker says about trying again.
        retry: Retry,
        /// The gRPC code, where `code` is unspecified.
        grpc: tonic::Code,
    },
    /// The one command of the call was not carried out.
    #[error(transparent)]
    Command(#[from] CommandFailure),
    /// A command is malformed; it was not sent.
    #[error(transparent)]
    Malformed(#[from] CommandError),
    /// The broker's answer makes no sense.
    #[error("the broker's answer is malformed: {0}")]
    Answer(String),
}

impl ClientError {
    /// Whether trying again may help.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Unreachable { .. } => Retry::Safe,
            Self::NoAnswer { .. } | Self::Answer(_) => Retry::SameKey,
            Self::Refused { retry, .. } => *retry,
            Self::Command(failure) => failure.retry(),
            Self::Address { .. } | Self::Malformed(_) => Retry::No,
        }
    }

    /// Whether it may have happened all the same.
    pub fn may_have_happened(&self) -> bool {
        self.retry() == Retry::SameKey
    }

    /// The broker's code, where it gave one.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::Command(failure) => Some(failure.code),
            _ => None,
        }
    }

    /// Whether what was asked for does not exist (any more).
    pub fn is_gone(&self) -> bool {
        self.code() == Some(Code::Gone) || matches!(self, Self::Refused { grpc: tonic::Code::NotFound, .. })
    }
}

impl From<Status> for ClientError {
    fn from(status: Status) -> Self {
        let text = |name: &str| status.metadata().get(name).and_then(|value| value.to_str().ok());
        let code = text("trunkline-code").map_or(Code::Unspecified, code_of);
        let retry = match text("trunkline-retry") {
            Some("safe") => Some(Retry::Safe),
            Some("same-key") => Some(Retry::SameKey),
            Some(_) => Some(Retry::No),
            None => None,
        };
        let message = status.message().to_owned();
        match retry {
            Some(retry) => Self::Refused { code, message, retry, grpc: status.code() },
            None if caused_by_connecting(&status) => Self::Unreachable { reason: root_cause(&status) },
            None if status.source().is_some() || transport_made(status.code()) => {
                Self::NoAnswer { reason: root_cause(&status) }
            }
            None => Self::Refused { code, message, retry: Retry::No, grpc: status.code() },
        }
    }
}

/// Codes a broken connection or a deadline ends in, without a word from the broker.
fn transport_made(code: tonic::Code) -> bool {
    use tonic::Code as C;
    matches!(code, C::Unavailable | C::Cancelled | C::DeadlineExceeded | C::Unknown | C::Internal)
}

fn caused_by_connecting(status: &Status) -> bool {
    chain(status).any(|error| error.is::<tonic::ConnectError>())
}

/// The innermost reason: "Connection refused" rather than "transport error".
fn root_cause(status: &Status) -> String {
    match chain(status).last() {
        Some(last) if status.source().is_some() => last.to_string(),
        _ => status.message().to_owned(),
    }
}

fn chain(status: &Status) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(status.source(), |error: &&(dyn Error + 'static)| (*error).source())
}

/// Brokers send the code's name, with or without its prefix, in any case.
fn code_of(name: &str) -> Code {
    let name = name.to_ascii_uppercase().replace('-', "_");
    Code::from_str_name(&name).or_else(|| Code::from_str_name(&format!("CODE_{name}"))).unwrap_or(Code::Unspecified)
}

fn retry_of(code: Code) -> Retry {
    match code {
        Code::Throttled | Code::NoLeader => Retry::Safe,
        Code::Unknown => Retry::SameKey,
        _ => Retry::No,
    }
}

fn describe(code: Code, message: &str) -> String {
    let meaning = match code {
        Code::Gone => "no such connection, or it is closed",
        Code::TooLarge => "too large",
        Code::Throttled => "a bound is hit, try again later",
        Code::NotAuthorized => "not authorized",
        Code::Unknown => "it may have happened: try again with the same key",
        Code::StaleEpoch => "the partition belongs to another member now",
        Code::NotOpen => "the event is not open",
        Code::Invalid => "malformed",
        Code::KeyReused => "the idempotency key was used with another body",
        Code::NoLeader => "the partition has no leader at the moment",
        Code::Refused => "refused",
        Code::Applied | Code::Forwarded => "done",
        Code::Unspecified => return message.to_owned(),
    };
    if message.is_empty() || message == meaning { meaning.to_owned() } else { format!("{meaning} ({message})") }
}

/// What became of a command.
pub(crate) fn outcome(status: Option<v1::Status>) -> Result<bool, CommandFailure> {
    let status = status.unwrap_or_default();
    match status.code() {
        Code::Applied => Ok(false),
        Code::Forwarded => Ok(true),
        code => Err(CommandFailure { code, message: status.message }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_of_the_broker_says_what_to_do() {
        let mut status = Status::unavailable("no leader");
        status.metadata_mut().insert("trunkline-code", tonic::metadata::MetadataValue::from_static("CODE_NO_LEADER"));
        status.metadata_mut().insert("trunkline-retry", tonic::metadata::MetadataValue::from_static("safe"));
        let error = ClientError::from(status);
        assert_eq!(
            (error.retry(), error.may_have_happened(), error.code()),
            (Retry::Safe, false, Some(Code::NoLeader))
        );
    }

    #[test]
    fn a_broken_connection_may_have_done_it() {
        let error = ClientError::from(Status::unknown("h2 protocol error"));
        assert_eq!((error.retry(), error.may_have_happened()), (Retry::SameKey, true));
    }

    #[test]
    fn codes_are_known_by_either_name() {
        assert_eq!(code_of("no_leader"), Code::NoLeader);
        assert_eq!(code_of("CODE_GONE"), Code::Gone);
        assert_eq!(code_of("KeyReused"), Code::Unspecified);
    }

    #[test]
    fn what_may_be_tried_again() {
        for (code, retry) in [(Code::Gone, Retry::No), (Code::Throttled, Retry::Safe), (Code::Unknown, Retry::SameKey)]
        {
            assert_eq!(CommandFailure { code, message: String::new() }.retry(), retry);
        }
    }
}
