//! Every API's bridge, each a member of its API's handler group, until told to stop.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{sync::watch, task::JoinSet};
use trunkline_proto::{limits, secret::SecretText};
use trunkline_sdk::{Client, ClientBuilder, ClientError, StartAt, SubscribeError, Subscriber, Timestamp};

use crate::{
    bridge::Bridge,
    http::{Caller, CallerError},
    known::Known,
    measure,
    settings::{ApiSettings, SettingsError},
};

/// Longest work on one event, waiting for a place included; then it comes again.
const RUN_TIMEOUT: Duration = Duration::from_secs(12 * 3600);

/// Where brokers are, and what proves who we are.
#[derive(Clone, Debug, Default)]
pub struct Brokers {
    /// gRPC addresses to ask first.
    pub addresses: Vec<String>,
    /// A token of role handler, where brokers ask for one.
    pub token: Option<SecretText>,
    /// The authority (PEM) of their certificates, where gRPC speaks TLS.
    pub ca_pem: Option<Vec<u8>>,
}

impl Brokers {
    /// A client of theirs.
    pub fn client(&self) -> ClientBuilder {
        let mut client = Client::builder(self.addresses.clone());
        if let Some(token) = &self.token {
            client = client.token(token.reveal());
        }
        if let Some(pem) = &self.ca_pem {
            client = client.ca_pem(pem.clone());
        }
        client
    }

    fn subscriber(&self) -> Subscriber {
        let mut subscriber = Subscriber::builder(self.addresses.clone());
        if let Some(token) = &self.token {
            subscriber = subscriber.token(token.reveal());
        }
        if let Some(pem) = &self.ca_pem {
            subscriber = subscriber.ca_pem(pem.clone());
        }
        subscriber
    }
}

/// Why bridges do not run, or not any more. Brokers that are away are no reason.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// Settings of an API.
    #[error("api {api:?}: functions.{error}")]
    Settings {
        /// The API's name.
        api: String,
        /// What is wrong.
        error: SettingsError,
    },
    /// Calls cannot be made.
    #[error(transparent)]
    Caller(#[from] CallerError),
    /// A broker's address is none.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A broker refuses a subscription for good.
    #[error("api {api:?}: {error}")]
    Subscribe {
        /// The API's name.
        api: String,
        /// Why.
        error: SubscribeError,
    },
    /// A task panicked: a bug.
    #[error("a task of the bridge broke: {0}")]
    Task(String),
}

/// Runs the functions of `apis` until `stop`, then finishes and commits what is under way. `member` is unique among the processes
/// that serve the same APIs; they share the work.
///
/// # Errors
/// Settings that make no sense, at once; or a broker's final refusal, once the others have been stopped in order.
pub async fn run_until(
    brokers: &Brokers,
    member: &str,
    apis: Vec<ApiSettings>,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), BridgeError> {
    for settings in &apis {
        settings.check().map_err(|error| BridgeError::Settings { api: settings.api.clone(), error })?;
    }
    measure::describe();
    let caller = Caller::new(&apis)?;
    let known = Arc::new(Known::new(brokers.client().build()?));
    let (stop_sender, stopped) = watch::channel(false);
    let mut running = JoinSet::new();
    for settings in apis {
        let (api, subscriber) = (settings.api.clone(), subscriber(brokers, member, &settings));
        let bridge = Bridge::new(settings, caller.clone(), known.clone());
        let mut stopped = stopped.clone();
        running.spawn(async move {
            // an error: this function has ended
            let stopped = async move { drop(stopped.wait_for(|stopped| *stopped).await) };
            subscriber.run_until(bridge, stopped).await.map_err(|error| BridgeError::Subscribe { api, error })
        });
    }
    tokio::pin!(stop);
    let mut result = Ok(());
    loop {
        tokio::select! {
            () = &mut stop, if !*stop_sender.borrow() => drop(stop_sender.send_replace(true)),
            ended = running.join_next() => match ended {
                None => return result,
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err(error))) => result = result.and(Err(error)),
                Some(Err(error)) => result = result.and(Err(BridgeError::Task(error.to_string()))),
            }
        }
        if result.is_err() {
            stop_sender.send_replace(true);
        }
    }
}

fn subscriber(brokers: &Brokers, member: &str, settings: &ApiSettings) -> Subscriber {
    // so much that calls never wait for events; the broker shares it among the connections, so that one of them cannot have it all
    let held = (settings.concurrency * 16).clamp(1024, limits::CREDIT_MAX as usize);
    brokers
        .subscriber()
        .group(&settings.group)
        .member(member)
        .apis([&settings.api])
        .start(start(settings))
        .credit(u32::try_from(held).unwrap_or(limits::CREDIT_MAX))
        // every event that may be in flight has its task: what bounds calls are the bridge's places, and new connections have their own
        .workers(held)
        .timeout(RUN_TIMEOUT)
}

/// A client may be faster than the group's first member: it waits for an answer no longer than this.
fn start(settings: &ApiSettings) -> StartAt {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let since = now.saturating_sub(settings.registration_timeout);
    StartAt::Time(Timestamp(u64::try_from(since.as_micros()).unwrap_or(u64::MAX)))
}
