//! What holds for every request: no page of another site acts, nobody does what their token is not for, and no more requests at once than
//! configured.

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, Method, header};
use tokio::sync::SemaphorePermit;

use super::{App, aws, problem::Problem, push, request};
use crate::access::{Caller, Denied, Need};

tokio::task_local! {
    /// Who asks, while the request is worked on.
    static CALLER: Caller;
}

/// Who asks, as far as it was proved.
pub(super) fn caller() -> Caller {
    CALLER.try_with(Caller::clone).unwrap_or_default()
}

/// Works on as asked by `caller`.
pub(super) async fn asked_by<T>(caller: Caller, work: impl Future<Output = T>) -> T {
    CALLER.scope(caller, work).await
}

/// Answers before the routes do, where they must not.
pub(super) async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if !reads && request::is_cross_site(request.headers()) {
        return Problem::cross_site().into_response();
    }
    let need = need(&app, request.method(), request.uri().path());
    let caller = match need {
        None => Caller::default(),
        Some(need) => {
            let authorization = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
            match app.0.settings.access.judge(authorization, need) {
                Ok(caller) => caller,
                Err(denied) => return refusal(request.uri().path(), &denied),
            }
        }
    };
    let path = request.uri().path();
    // who watches the broker must see it when it is overloaded
    let watches = matches!(path, "/healthz" | "/readyz" | "/metrics");
    // a signature is over the body: until it has come anybody may have sent it, and takes no place of those who have proved who they are
    let is_unproved = need.is_none() && (is_push(path) || is_aws(path));
    let _place = match (!is_unproved).then(|| place(&app)) {
        Some(Ok(place)) => Some(place),
        Some(Err(_)) if !watches => return overloaded(path),
        Some(Err(_)) | None => None,
    };
    let mut response = CALLER.scope(caller, next.run(request)).await;
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// A place among the requests under way, until it is dropped.
pub(super) fn place(app: &App) -> Result<SemaphorePermit<'_>, Problem> {
    app.0.permits.try_acquire().map_err(|_| Problem::overloaded())
}

/// Too much at once, as the path's callers know it.
fn overloaded(path: &str) -> Response {
    if is_aws(path) {
        aws::Fault::limit_exceeded().into_response()
    } else if is_push(path) {
        push::Answer::from(Problem::overloaded()).into_response()
    } else {
        Problem::overloaded().into_response()
    }
}

/// What a request needs; none: it is for everybody, or its signature is asked for instead. Pages hold nothing that is not in the binary.
fn need(app: &App, method: &Method, path: &str) -> Option<Need> {
    let reads = matches!(*method, Method::GET | Method::HEAD);
    let keys = app.0.settings.compat.keys();
    match path {
        "/healthz" | "/readyz" => None,
        _ if reads && app.0.pages.paths().any(|page| page == path) => None,
        _ if is_push(path) && keys.push.is_some() => None,
        _ if is_aws(path) && keys.aws.is_some() => None,
        "/metrics" | "/v1/log" | "/v1/groups" => Some(Need::Read),
        _ if reads => Some(Need::Look),
        _ => Some(Need::Command),
    }
}

/// No or not the right token, as the path's callers know it.
fn refusal(path: &str, denied: &Denied) -> Response {
    let problem = Problem::denied(denied);
    let mut response = if is_aws(path) {
        aws::Fault::forbidden(problem.detail).into_response()
    } else if is_push(path) {
        push::Answer::from(problem).into_response()
    } else {
        problem.into_response()
    };
    if *denied == Denied::Unauthenticated {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// `/push/{api}`, and nothing that only begins or looks like it: by this it is decided whose proof is asked for.
pub(super) fn is_push(path: &str) -> bool {
    matches!(segments(path).as_slice(), ["push", _])
}

/// `/@connections/{id}` and `/{stage}/@connections/{id}`.
pub(super) fn is_aws(path: &str) -> bool {
    matches!(
        segments(path).as_slice(),
        ["@connections" | "%40connections", _] | [_, "@connections" | "%40connections", _]
    )
}

fn segments(path: &str) -> Vec<&str> {
    path.strip_prefix('/').unwrap_or(path).splitn(4, '/').collect()
}

pub(super) async fn not_found() -> Problem {
    Problem::not_found("no such path; /v1/openapi.json lists them")
}

pub(super) async fn method_not_allowed() -> Problem {
    Problem::method()
}
