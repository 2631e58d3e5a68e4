//! The one table from errors to gRPC. Every status carries two trailers: `trunkline-code`, a stable name, and `trunkline-retry`:
//! `safe` (nothing happened), `same-key` (it may have happened: only with the same idempotency key), or `no`.

use tonic::{Code as Grpc, Status, metadata::MetadataValue};
use trunkline_proto::v1::Code;

use crate::{
    access::Denied,
    handlers::member::SessionEnd,
    metrics::handlers::code_name,
    node::{AdminError, ReadError},
    submit,
};

/// Trailer with the stable name of what went wrong.
pub const CODE: &str = "trunkline-code";
/// Trailer that says whether to try again.
pub const RETRY: &str = "trunkline-retry";
/// Trailer of `offset_trimmed`: the first offset that can be read, as `index.position`.
pub const EARLIEST: &str = "trunkline-earliest";

/// Whether trying again can help, and is harmless.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Retry {
    Safe,
    SameKey,
    No,
}

fn make(grpc: Grpc, name: &'static str, retry: Retry, message: impl Into<String>) -> Status {
    let mut status = Status::new(grpc, message);
    let retry = match retry {
        Retry::Safe => "safe",
        Retry::SameKey => "same-key",
        Retry::No => "no",
    };
    status.metadata_mut().insert(CODE, MetadataValue::from_static(name));
    status.metadata_mut().insert(RETRY, MetadataValue::from_static(retry));
    status
}

/// A whole call came to `code`.
pub fn of_code(code: Code, message: impl Into<String>) -> Status {
    let (grpc, retry) = match code {
        Code::Gone => (Grpc::NotFound, Retry::No),
        Code::Throttled => (Grpc::ResourceExhausted, Retry::Safe),
        Code::NotAuthorized => (Grpc::PermissionDenied, Retry::No),
        Code::Unknown => (Grpc::Unknown, Retry::SameKey),
        Code::StaleEpoch | Code::NotOpen | Code::Refused => (Grpc::FailedPrecondition, Retry::No),
        Code::TooLarge | Code::Invalid => (Grpc::InvalidArgument, Retry::No),
        Code::KeyReused => (Grpc::AlreadyExists, Retry::No),
        Code::NoLeader => (Grpc::Unavailable, Retry::Safe),
        Code::Unspecified | Code::Applied | Code::Forwarded => (Grpc::Internal, Retry::No),
    };
    make(grpc, code_name(code), retry, message)
}

/// Malformed; nothing happened.
pub fn invalid(message: impl Into<String>) -> Status {
    of_code(Code::Invalid, message)
}

/// The caller may not.
pub fn of_denied(denied: &Denied) -> Status {
    let message = denied.to_string();
    match denied {
        Denied::Unauthenticated => make(Grpc::Unauthenticated, "unauthenticated", Retry::No, message),
        Denied::Forbidden(_) => of_code(Code::NotAuthorized, message),
    }
}

/// History cannot be read.
pub fn of_read(error: &ReadError) -> Status {
    let message = error.to_string();
    match error {
        ReadError::Trimmed { earliest } => {
            let mut status = make(Grpc::OutOfRange, "offset_trimmed", Retry::No, message);
            if let Ok(earliest) = MetadataValue::try_from(earliest.to_string()) {
                status.metadata_mut().insert(EARLIEST, earliest);
            }
            status
        }
        ReadError::Future { .. } => make(Grpc::OutOfRange, "offset_future", Retry::No, message),
        ReadError::Damaged { .. } => make(Grpc::DataLoss, "damaged", Retry::No, message),
        ReadError::Store(_) => make(Grpc::Unavailable, "store", Retry::Safe, message),
    }
}

/// A `Submit` was refused as a whole.
pub fn of_submit(error: &submit::SubmitError) -> Status {
    invalid(error.to_string())
}

/// Members or leaders were not changed, or not all of them.
pub fn of_admin(error: &AdminError) -> Status {
    let message = error.to_string();
    match error {
        AdminError::Refused(_) => of_code(Code::Refused, message),
        AdminError::Unavailable { .. } => of_code(Code::NoLeader, message),
        AdminError::Behind { .. } => make(Grpc::DeadlineExceeded, "behind", Retry::Safe, message),
    }
}

/// A `Subscribe` stream ends.
pub fn of_session(end: &SessionEnd) -> Status {
    let message = end.to_string();
    match end {
        SessionEnd::Invalid(_) => invalid(message),
        SessionEnd::Forbidden(_) => of_code(Code::NotAuthorized, message),
        SessionEnd::Replaced => make(Grpc::Aborted, "replaced", Retry::No, message),
        SessionEnd::Stalled => make(Grpc::ResourceExhausted, "stalled", Retry::Safe, message),
        SessionEnd::Shutdown => make(Grpc::Unavailable, "shutdown", Retry::Safe, message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_place_in_the_table() {
        let mut number = 0;
        while let Ok(code) = Code::try_from(number) {
            let status = of_code(code, "m");
            let name = status.metadata().get(CODE).unwrap().to_str().unwrap().to_owned();
            assert_eq!(Code::from_str_name(&format!("CODE_{}", name.to_ascii_uppercase())), Some(code));
            assert!(status.metadata().contains_key(RETRY));
            number += 1;
        }
        assert_eq!(number, 14, "a new code needs a row");
    }

    #[test]
    fn trimmed_says_where_the_log_begins() {
        let earliest = trunkline_proto::Offset(7 << 16);
        let status = of_read(&ReadError::Trimmed { earliest });
        assert_eq!(status.code(), Grpc::OutOfRange);
        assert_eq!(status.metadata().get(EARLIEST).unwrap().to_str().unwrap(), "7.0");
    }
}
