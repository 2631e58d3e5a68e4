//! What is asked for over HTTP and how it is answered.

use metrics::{Unit, counter, describe_counter};

/// Requests, by surface ([`Surface`]) and status. `malformed` is no status: nothing that could be answered was sent.
pub const HTTP_REQUESTS_TOTAL: &str = "trunkline_http_requests_total";

/// Whose callers a path is for. Paths themselves are minted by callers, and so are no labels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Surface {
    /// `/v1/…`.
    Api,
    /// `/push/{api}`.
    Push,
    /// `/{stage}/@connections/{id}`.
    Aws,
    /// Health, metrics, pages, and what is not there.
    Other,
}

impl Surface {
    fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Push => "push",
            Self::Aws => "aws",
            Self::Other => "other",
        }
    }
}

/// Describes it to the recorder.
pub fn describe() {
    describe_counter!(HTTP_REQUESTS_TOTAL, Unit::Count, "HTTP requests by surface and status");
}

/// A request was answered.
pub fn count(surface: Surface, status: ::http::StatusCode) {
    counter!(HTTP_REQUESTS_TOTAL, "surface" => surface.name(), "status" => status.as_str().to_owned()).increment(1);
}

/// Something came that is no request.
pub fn count_malformed() {
    counter!(HTTP_REQUESTS_TOTAL, "surface" => Surface::Other.name(), "status" => "malformed").increment(1);
}
