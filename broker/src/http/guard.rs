//! What holds for every request: no page of another site acts, nobody does what their token is not for, and no more requests at once than
//! configured.

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, Method, header};

use super::{App, problem::Problem, request};
use crate::access::{Caller, Denied, Need};

tokio::task_local! {
    /// Who asks, while the request is worked on.
    static CALLER: Caller;
}

/// The name of who asks; empty: nobody proved anything.
pub(super) fn caller_name() -> String {
    CALLER.try_with(|caller| caller.name().to_owned()).unwrap_or_default()
}

/// Answers before the routes do, where they must not.
pub(super) async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if !reads && request::is_cross_site(request.headers()) {
        return Problem::cross_site().into_response();
    }
    let caller = match need(&app, request.method(), request.uri().path()) {
        None => Caller::default(),
        Some(need) => {
            let authorization = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
            match app.0.settings.access.judge(authorization, need) {
                Ok(caller) => caller,
                Err(denied) => return refusal(&denied),
            }
        }
    };
    // who watches the broker must see it when it is overloaded
    let watches = matches!(request.uri().path(), "/healthz" | "/readyz" | "/metrics");
    let permit = app.0.permits.try_acquire();
    if permit.is_err() && !watches {
        return Problem::overloaded().into_response();
    }
    let mut response = CALLER.scope(caller, next.run(request)).await;
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// What a request needs; none: it is for everybody. Pages hold nothing that is not in the binary.
fn need(app: &App, method: &Method, path: &str) -> Option<Need> {
    let reads = matches!(*method, Method::GET | Method::HEAD);
    match path {
        "/healthz" | "/readyz" => None,
        _ if reads && app.0.pages.paths().any(|page| page == path) => None,
        "/metrics" | "/v1/log" | "/v1/groups" => Some(Need::Read),
        _ if reads => Some(Need::Look),
        _ => Some(Need::Command),
    }
}

fn refusal(denied: &Denied) -> Response {
    let mut response = Problem::denied(denied).into_response();
    if *denied == Denied::Unauthenticated {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

pub(super) async fn not_found() -> Problem {
    Problem::not_found("no such path; /v1/openapi.json lists them")
}

pub(super) async fn method_not_allowed() -> Problem {
    Problem::method()
}
