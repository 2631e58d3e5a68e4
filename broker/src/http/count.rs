//! Counts every request by who it is for and how it was answered.

use axum::{extract::Request, middleware::Next, response::Response};

use super::guard;
use crate::metrics::http::{Surface, count};

/// The outermost layer: what is refused is counted too.
pub(super) async fn answered(request: Request, next: Next) -> Response {
    let surface = surface(request.uri().path());
    let response = next.run(request).await;
    count(surface, response.status());
    response
}

fn surface(path: &str) -> Surface {
    if guard::is_push(path) {
        Surface::Push
    } else if guard::is_aws(path) {
        Surface::Aws
    } else if path.starts_with("/v1/") {
        Surface::Api
    } else {
        Surface::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_callers_mint_are_few_labels() {
        for (path, expected) in [
            ("/v1/connections/x", Surface::Api),
            ("/push/chat", Surface::Push),
            ("/push/chat/more", Surface::Other),
            ("/@connections/x", Surface::Aws),
            ("/any-stage/@connections/x", Surface::Aws),
            ("/metrics", Surface::Other),
            ("/no/such/path", Surface::Other),
            ("", Surface::Other),
        ] {
            assert_eq!(surface(path), expected, "{path}");
        }
    }
}
