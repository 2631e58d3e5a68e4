//! How a command ends. 0: done. 1: it failed. 64: the command line or the configuration is wrong. 69: no broker answers.

use std::{fmt, io};

use trunkline_proto::v1;
use trunkline_sdk::ClientError;

/// The command line or the configuration is wrong (sysexits `EX_USAGE`).
pub(crate) const USAGE: u8 = 64;
/// No broker answers (sysexits `EX_UNAVAILABLE`).
pub(crate) const UNAVAILABLE: u8 = 69;

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Exit 64.
    Usage(String),
    /// Exit 69.
    Unavailable { broker: String, reason: String },
    /// Whoever reads our output has gone: exit 0, silently.
    NobodyReads,
    /// Exit 1.
    Other(anyhow::Error),
}

impl Failure {
    pub(crate) fn usage(reason: impl fmt::Display) -> Self {
        Self::Usage(reason.to_string())
    }

    pub(crate) fn output(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::NobodyReads,
            _ => Self::Other(anyhow::Error::new(error).context("standard output")),
        }
    }

    /// What a call to a broker ended in.
    pub(crate) fn of_call(broker: &str, error: ClientError) -> Self {
        match error {
            ClientError::Unreachable { reason } => Self::Unavailable { broker: broker.to_owned(), reason },
            ClientError::Address { .. } | ClientError::Malformed(_) => Self::usage(error),
            // also what another server says to gRPC, or this one in plain text to TLS
            ClientError::NoAnswer { .. } => Self::Other(anyhow::anyhow!(
                "{error}; it may have happened all the same\n\
                 Is gRPC of a broker at {broker} (7070 unless set otherwise)? Where it speaks TLS, --ca FILE or TRUNKLINE_CA is needed."
            )),
            error if error.may_have_happened() => {
                Self::Other(anyhow::anyhow!("{error}; it may have happened all the same"))
            }
            ClientError::Refused { grpc: tonic::Code::Unauthenticated, .. } => Self::Other(anyhow::anyhow!(
                "the broker asks for a token, and knows none like this (--token or TRUNKLINE_TOKEN)"
            )),
            // its reason is a sentence of its own
            ClientError::Refused { code: v1::Code::Refused, message, .. } if !message.is_empty() => {
                Self::Other(anyhow::anyhow!(message))
            }
            error => Self::Other(error.into()),
        }
    }

    /// The process's exit code.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => USAGE,
            Self::Unavailable { .. } => UNAVAILABLE,
            Self::NobodyReads => 0,
            Self::Other(_) => 1,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(reason) => write!(f, "error: {}", reason.trim_end()),
            Self::Unavailable { broker, reason } => write!(
                f,
                "error: no broker answers at {broker} ({reason})\n\
                 `trunkline dev` starts one on this machine; --broker ADDR or TRUNKLINE_BROKER names another,\n\
                 and --ca FILE or TRUNKLINE_CA the authority of its certificate where it speaks TLS."
            ),
            Self::NobodyReads => Ok(()),
            Self::Other(error) => {
                write!(f, "error: ")?;
                let mut said = String::new();
                for cause in error.chain().map(ToString::to_string) {
                    // some errors repeat their cause
                    if said.is_empty() {
                        said = cause;
                    } else if !said.contains(&cause) {
                        said = format!("{said}: {cause}");
                    }
                }
                f.write_str(&said)
            }
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_its_error_repeats_is_said_once() {
        let error =
            anyhow::anyhow!("pki/ca.pem: not there").context("edge link: pki/ca.pem: not there").context("broker");
        assert_eq!(Failure::Other(error).to_string(), "error: broker: edge link: pki/ca.pem: not there");
    }

    #[test]
    fn an_answer_that_is_none_names_the_port_and_a_missing_token_its_option() {
        let failure = Failure::of_call("127.0.0.1:7080", ClientError::NoAnswer { reason: "broken pipe".into() });
        assert!(failure.to_string().contains("Is gRPC of a broker at 127.0.0.1:7080"), "{failure}");
        let denied = tonic::Status::unauthenticated("a bearer token is needed");
        assert!(Failure::of_call("b", denied.into()).to_string().contains("TRUNKLINE_TOKEN"));
    }
}
