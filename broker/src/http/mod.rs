//! HTTP on the broker: messages and connections, the operator's JSON, health and metrics.
//!
//! One table of routes (`routes`) makes the router and is held against the OpenAPI document by a test.

#[cfg(test)]
mod access_tests;
mod aws;
#[cfg(test)]
mod compat_tests;
mod connections;
mod count;
mod extract;
mod guard;
mod log;
mod messages;
mod operator;
pub mod pages;
mod problem;
mod push;
mod query;
mod request;
mod serve;
mod sigv4;
#[cfg(test)]
mod tests;
mod webhook;

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use axum::{
    Router, middleware,
    routing::{MethodRouter, delete, get, post, put},
};
use tokio::sync::{Semaphore, watch};
use trunkline_proto::{secret::SecretText, v1};

pub use pages::{Page, Pages};
pub use problem::Problem;
pub use serve::serve;
pub use sigv4::KeyPair;

use crate::{
    access::Access,
    config::{AwsKeyConfig, BrokerConfig},
    grpc::About,
    handlers::Registry,
    metrics::PrometheusHandle,
    node::Node,
    submit::Submitter,
};

/// What a command came to, or why the request as a whole was refused.
pub type Submitted<'a> = Pin<Box<dyn Future<Output = Result<v1::CommandResult, Problem>> + Send + 'a>>;

/// Where commands go: the [`Submitter`], or a test's.
pub trait Commands: Send + Sync + 'static {
    /// Applies one command, at most once under a `key` that is not empty.
    fn submit<'a>(&'a self, key: &'a str, command: v1::Command) -> Submitted<'a>;
}

impl Commands for Submitter {
    fn submit<'a>(&'a self, key: &'a str, command: v1::Command) -> Submitted<'a> {
        Box::pin(async move {
            let results = Submitter::submit(self, &guard::caller(), key, &[command]).await;
            let mut results = results.map_err(|error| Problem::invalid(error.to_string()))?;
            results.pop().ok_or_else(|| Problem::internal("a command without a result"))
        })
    }
}

/// Bounds.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Longest wait for a command to be applied.
    pub submit_timeout: Duration,
    /// Largest payload, bytes.
    pub body_limit: u64,
    /// Bytes of requests' bodies held at once, for all of them.
    pub bodies: usize,
    /// Requests under way at once.
    pub concurrency: usize,
    /// Who may ask.
    pub access: Access,
    /// The surfaces of other gateways.
    pub compat: Compat,
}

/// Settings of the surfaces that users of other gateways know.
#[derive(Clone, Debug)]
pub struct Compat {
    keys: watch::Sender<Arc<Keys>>,
    /// Whether a push that fails closes its connection.
    pub close_on_failure: bool,
    /// Largest payload posted to `@connections`, bytes.
    pub aws_payload: u64,
}

/// Who must have signed what; they may be replaced while it is served. None: nobody is asked; without any, nobody is let in.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    /// Of these one must have signed a push.
    pub push: Option<Vec<ring::hmac::Key>>,
    /// Of these one must have signed a request to `@connections`.
    pub aws: Option<Vec<KeyPair>>,
}

impl Keys {
    /// With these secrets and pairs, and where there are none, nobody is asked.
    pub fn new(push: &[SecretText], aws: &[AwsKeyConfig]) -> Self {
        let asked = |is_asked: bool| is_asked.then_some(());
        Self {
            push: asked(!push.is_empty()).map(|()| Self::signing(push)),
            aws: asked(!aws.is_empty()).map(|()| Self::pairs(aws)),
        }
    }

    /// Secrets that were checked; what is wrong with one is passed over.
    pub fn signing(secrets: &[SecretText]) -> Vec<ring::hmac::Key> {
        let keys = secrets.iter().filter_map(|secret| secret.signing_bytes().ok());
        keys.map(|bytes| ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &bytes)).collect()
    }

    /// The pairs.
    pub fn pairs(keys: &[AwsKeyConfig]) -> Vec<KeyPair> {
        keys.iter().map(|key| KeyPair { id: key.id.clone(), secret: key.secret.reveal().to_owned() }).collect()
    }
}

impl Compat {
    /// As configured. Call after the configuration was validated: what is wrong with it is passed over.
    pub fn new(config: &BrokerConfig) -> Self {
        Self {
            keys: watch::Sender::new(Arc::new(Keys::new(&config.push.secrets, &config.aws.keys))),
            close_on_failure: config.push.close_on_failure,
            aws_payload: config.aws.max_payload.min(config.limits.http_body).get(),
        }
    }

    /// As they are now.
    pub fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.borrow())
    }

    /// Changes them from now on, for every clone.
    pub fn replace(&self, change: impl FnOnce(&mut Keys)) {
        self.keys.send_modify(|keys| change(Arc::make_mut(keys)));
    }
}

/// What handlers of requests work with. Cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Inner>);

struct Inner {
    node: Node,
    about: About,
    registry: Arc<Registry>,
    commands: Arc<dyn Commands>,
    metrics: PrometheusHandle,
    pages: Pages,
    settings: Settings,
    permits: Semaphore,
    bodies: request::Bodies,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App").field("settings", &self.0.settings).finish_non_exhaustive()
    }
}

impl App {
    /// Puts the surface together.
    pub fn new(
        node: Node,
        about: About,
        registry: Arc<Registry>,
        commands: Arc<dyn Commands>,
        metrics: PrometheusHandle,
        pages: Pages,
        settings: Settings,
    ) -> Self {
        let permits = Semaphore::new(settings.concurrency);
        let bodies = request::Bodies::new(settings.bodies);
        Self(Arc::new(Inner { node, about, registry, commands, metrics, pages, settings, permits, bodies }))
    }

    /// The whole surface.
    pub fn router(self) -> Router {
        let mut router = Router::new();
        for route in routes() {
            if route.path.contains('@') {
                // as some clients write it
                router = router.route(&route.path.replace('@', "%40"), route.handler.clone());
            }
            router = router.route(route.path, route.handler);
        }
        for path in self.0.pages.paths() {
            router = router.route(path, get(pages::page));
        }
        router
            .fallback(guard::not_found)
            .method_not_allowed_fallback(guard::method_not_allowed)
            .layer(middleware::from_fn_with_state(self.clone(), guard::guard))
            .layer(middleware::from_fn(count::answered))
            .with_state(self)
    }
}

/// One path of the surface.
struct Route {
    path: &'static str,
    /// Lower case, as the OpenAPI document has them.
    #[cfg_attr(not(test), allow(dead_code))]
    methods: &'static [&'static str],
    handler: MethodRouter<App>,
}

fn route(path: &'static str, methods: &'static [&'static str], handler: MethodRouter<App>) -> Route {
    Route { path, methods, handler }
}

/// Every path there is, pages apart.
fn routes() -> Vec<Route> {
    vec![
        route("/v1/connections", &["get"], get(connections::list)),
        route("/v1/connections/{id}", &["get", "delete"], get(connections::get).delete(connections::close)),
        route("/v1/connections/{id}/messages", &["post"], post(messages::push)),
        route("/v1/channels/{channel}", &["get"], get(connections::channel)),
        route("/v1/channels/{channel}/messages", &["post"], post(messages::publish_channel)),
        route(
            "/v1/channels/{channel}/connections/{id}",
            &["put", "delete"],
            put(messages::join).merge(delete(messages::leave)),
        ),
        route("/v1/apis/{api}/messages", &["post"], post(messages::publish_api)),
        route("/v1/cluster", &["get"], get(operator::cluster)),
        route("/v1/groups", &["get"], get(operator::groups)),
        route("/v1/log", &["get"], get(log::read)),
        route("/push/{api}", &["post"], post(push::push)),
        route("/{stage}/@connections/{id}", &["post", "get", "delete"], managed()),
        route("/@connections/{id}", &["post", "get", "delete"], managed()),
        route("/v1/openapi.json", &["get"], get(operator::openapi)),
        route("/healthz", &["get"], get(operator::healthz)),
        route("/readyz", &["get"], get(operator::readyz)),
        route("/metrics", &["get"], get(operator::metrics)),
    ]
}

/// The management of connections as the cloud's SDKs ask for it.
fn managed() -> MethodRouter<App> {
    post(aws::connections).get(aws::connections).delete(aws::connections)
}
