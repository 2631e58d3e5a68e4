//! What holds for every request: no page of another site acts, and no more requests at once than configured.

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, Method, header};

use super::{App, aws, problem::Problem, push, request};

/// Answers before the routes do, where they must not.
pub(super) async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if !reads && request::is_cross_site(request.headers()) {
        return Problem::cross_site().into_response();
    }
    // who watches the broker must see it when it is overloaded
    let watches = matches!(request.uri().path(), "/healthz" | "/readyz" | "/metrics");
    let permit = app.0.permits.try_acquire();
    if permit.is_err() && !watches {
        return overloaded(request.uri().path());
    }
    let mut response = next.run(request).await;
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Too much at once, as the path's callers know it.
fn overloaded(path: &str) -> Response {
    if path.contains("/@connections/") {
        aws::Fault::limit_exceeded().into_response()
    } else if path.starts_with("/push/") {
        push::Answer::from(Problem::overloaded()).into_response()
    } else {
        Problem::overloaded().into_response()
    }
}

pub(super) async fn not_found() -> Problem {
    Problem::not_found("no such path; /v1/openapi.json lists them")
}

pub(super) async fn method_not_allowed() -> Problem {
    Problem::method()
}
