//! Step 14 of the walk: from a broker's events (step 13, `broker/src/handlers/stream.rs`) to the user's handler, and back as
//! one commit of outcomes and commands (step 15, `broker/src/handlers/commit.rs`).
//!
//! A member holds one stream to every broker; each serves the partitions it leads. `brokers.rs` knows where they are, `session.rs`
//! runs one stream, `schedule.rs` decides what runs when.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
};
use trunkline_proto::{Offset, Timestamp, limits, v1};

use crate::{
    brokers::Brokers, error::ClientError, event::EventKind, handler::Handler, session::Session, wire::Credentials,
};

/// Where a new group begins. One that exists goes on where it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StartAt {
    /// With the first event still there.
    Earliest,
    /// With the next event.
    Latest,
    /// With the event at this offset (of every partition).
    Offset(Offset),
    /// With the first event stamped at or after this time.
    Time(Timestamp),
}

impl From<StartAt> for v1::Start {
    fn from(start: StartAt) -> Self {
        let at = match start {
            StartAt::Earliest => v1::start::At::Earliest(true),
            StartAt::Latest => v1::start::At::Latest(true),
            StartAt::Offset(offset) => v1::start::At::Offset(offset.0),
            StartAt::Time(time) => v1::start::At::Time(time.0),
        };
        Self { at: Some(at) }
    }
}

/// One or several addresses of brokers.
pub trait IntoEndpoints {
    /// The addresses.
    fn into_endpoints(self) -> Vec<String>;
}

impl IntoEndpoints for &str {
    fn into_endpoints(self) -> Vec<String> {
        vec![self.to_owned()]
    }
}

impl IntoEndpoints for String {
    fn into_endpoints(self) -> Vec<String> {
        vec![self]
    }
}

impl IntoEndpoints for Vec<String> {
    fn into_endpoints(self) -> Vec<String> {
        self
    }
}

impl<S: Into<String>, const N: usize> IntoEndpoints for [S; N] {
    fn into_endpoints(self) -> Vec<String> {
        self.into_iter().map(Into::into).collect()
    }
}

/// Why a subscription cannot go on. A broker that is away is no reason: it is tried again for ever.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum SubscribeError {
    #[error("no broker's address was given")]
    NoEndpoint,
    #[error("{name:?} is no name for a {what}: 1 to {} of [A-Za-z0-9._-]", limits::NAME_BYTES_MAX)]
    Name { what: &'static str, name: String },
    #[error("{what} must be {min} to {max}, not {value}")]
    Range { what: &'static str, value: u64, min: u64, max: u64 },
    #[error(transparent)]
    Broker(#[from] ClientError),
    #[error("a task of the subscription broke: {0}")]
    Task(String),
}

/// What every session of a subscription shares.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) group: Arc<str>,
    pub(crate) member: String,
    pub(crate) apis: Vec<String>,
    pub(crate) kinds: Vec<u32>,
    pub(crate) start: StartAt,
    pub(crate) credit: u32,
    pub(crate) max_attempts: u32,
    pub(crate) workers: usize,
    pub(crate) timeout: Duration,
    pub(crate) extend_every: Duration,
    pub(crate) grace: Duration,
    pub(crate) credentials: Credentials,
}

impl Settings {
    pub(crate) fn join(&self) -> v1::Join {
        v1::Join {
            group: self.group.to_string(),
            member: self.member.clone(),
            apis: self.apis.clone(),
            kinds: self.kinds.clone(),
            start: Some(self.start.into()),
            credit: self.credit,
            max_attempts: self.max_attempts,
        }
    }
}

/// A member of a handler group, ready to run.
///
/// | setting | meaning | default |
/// |---|---|---|
/// | `group` | members of a group share the work | `default` |
/// | `member` | unique in the group | random |
/// | `apis`, `kinds` | which events | all |
/// | `start` | where a new group begins | latest |
/// | `credit` | events on their way or in work, for each broker, 1 to 10,000 | 1,024 |
/// | `workers` | events in work at the same time, over all brokers | 256 |
/// | `timeout` | then a handler's run is given up and the event comes again | 5 min |
/// | `max_attempts` | then an event is parked; 0: never by itself | 0 |
/// | `grace` | how long a stop waits for runs and commits | 10 s |
/// | `token`, `ca_pem` | what proves who we are; TLS | none |
#[derive(Clone, Debug)]
#[must_use = "a subscriber does nothing until run"]
pub struct Subscriber {
    endpoints: Vec<String>,
    settings: Settings,
}

impl Subscriber {
    /// A subscriber to a cluster of which these are brokers: an address, or several. The others are learnt from whichever answers.
    pub fn builder(endpoints: impl IntoEndpoints) -> Self {
        let settings = Settings {
            group: "default".into(),
            member: format!("member-{:016x}", rand::random::<u64>()),
            apis: Vec::new(),
            kinds: Vec::new(),
            start: StartAt::Latest,
            credit: 1024,
            max_attempts: 0,
            workers: 256,
            timeout: Duration::from_secs(300),
            extend_every: Duration::from_secs(10),
            grace: Duration::from_secs(10),
            credentials: Credentials::default(),
        };
        Self { endpoints: endpoints.into_endpoints(), settings }
    }

    /// The handler group.
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.settings.group = group.into().into();
        self
    }

    /// This member's name. A second one of the same name replaces the first.
    pub fn member(mut self, member: impl Into<String>) -> Self {
        self.settings.member = member.into();
        self
    }

    /// Only events of these APIs.
    pub fn apis(mut self, apis: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.settings.apis = apis.into_iter().map(Into::into).collect();
        self
    }

    /// Only events of these kinds.
    pub fn kinds(mut self, kinds: impl IntoIterator<Item = EventKind>) -> Self {
        self.settings.kinds = kinds.into_iter().map(EventKind::number).collect();
        self
    }

    /// Where a group that does not exist yet begins.
    pub fn start(mut self, start: StartAt) -> Self {
        self.settings.start = start;
        self
    }

    /// Events on their way to this member or in its hands, for each broker.
    pub fn credit(mut self, credit: u32) -> Self {
        self.settings.credit = credit;
        self
    }

    /// Deliveries of an event before it is parked; 0: it is never parked by itself.
    pub fn max_attempts(mut self, max_attempts: u32) -> Self {
        self.settings.max_attempts = max_attempts;
        self
    }

    /// Events in work at the same time.
    pub fn workers(mut self, workers: usize) -> Self {
        self.settings.workers = workers;
        self
    }

    /// How long the handler may work on one event.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.settings.timeout = timeout;
        self
    }

    /// How often the broker is told that events are still in work: well below its processing deadline.
    pub fn extend_every(mut self, extend_every: Duration) -> Self {
        self.settings.extend_every = extend_every;
        self
    }

    /// How long a stop waits for runs and commits.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.settings.grace = grace;
        self
    }

    /// Proves who subscribes: a token of role handler that `trunkline token new` has made.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.settings.credentials.token = Some(token.into());
        self
    }

    /// Brokers are reached by TLS and must prove who they are by a certificate of this authority, PEM.
    pub fn ca_pem(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.settings.credentials.ca = Some(pem.into());
        self
    }

    /// Runs for ever, or until a broker refuses the subscription for good: see [`Subscriber::run_until`].
    pub async fn run<H: Handler>(self, handler: H) -> Result<(), SubscribeError> {
        self.run_until(handler, std::future::pending()).await
    }

    /// Runs until `stop`; then takes no more events, gives back those not begun, finishes and commits the others, within the
    /// grace. The same if a broker refuses the subscription for good: what runs for the others is finished before that is
    /// reported.
    pub async fn run_until<H: Handler>(
        self,
        handler: H,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<(), SubscribeError> {
        self.check()?;
        let workers = Arc::new(Semaphore::new(self.settings.workers));
        let (handler, settings) = (Arc::new(handler), Arc::new(self.settings));
        let (stop_sender, stopped) = watch::channel(false);
        let (brokers, mut missing) = Brokers::new(&self.endpoints);
        let mut sessions = JoinSet::new();
        tokio::pin!(stop);
        let (mut stopping, mut result) = (false, Ok(()));
        loop {
            for target in missing.drain(..).filter(|_| !stopping) {
                let at = (target, brokers.clone());
                let session = Session::new(at, settings.clone(), handler.clone(), workers.clone(), stopped.clone());
                sessions.spawn(session.run());
            }
            let failed = tokio::select! {
                () = &mut stop, if !stopping => None,
                () = brokers.changed(), if !stopping => {
                    missing = brokers.missing();
                    continue;
                }
                ended = sessions.join_next(), if stopping || !sessions.is_empty() => match ended {
                    None => return result,
                    Some(Ok(Ok(()))) => continue,
                    Some(Ok(Err(error))) => Some(error.into()),
                    Some(Err(error)) => Some(SubscribeError::Task(error.to_string())),
                }
            };
            // every session ends within its grace
            stopping = true;
            stop_sender.send_replace(true);
            if let Some(error) = failed {
                tracing::error!(%error, "the subscription ends");
                result = result.and(Err(error));
            }
        }
    }

    fn check(&self) -> Result<(), SubscribeError> {
        let settings = &self.settings;
        let names = [("handler group", &*settings.group), ("member", &*settings.member)];
        let names = names.into_iter().chain(settings.apis.iter().map(|api| ("API", &**api)));
        for (what, name) in names {
            if !limits::is_name(name) {
                return Err(SubscribeError::Name { what, name: name.to_owned() });
            }
        }
        in_range("the credit", settings.credit.into(), limits::CREDIT_MAX.into())?;
        in_range("the number of workers", settings.workers as u64, 100_000)?;
        let seconds = |duration: Duration| duration.as_millis().try_into().unwrap_or(u64::MAX);
        in_range("the handler's timeout in ms", seconds(settings.timeout), 24 * 3_600_000)?;
        in_range("the interval of extensions in ms", seconds(settings.extend_every), 3_600_000)?;
        if self.endpoints.is_empty() {
            return Err(SubscribeError::NoEndpoint);
        }
        for address in &self.endpoints {
            settings.credentials.endpoint(address)?;
        }
        Ok(())
    }
}

fn in_range(what: &'static str, value: u64, max: u64) -> Result<(), SubscribeError> {
    if (1..=max).contains(&value) { Ok(()) } else { Err(SubscribeError::Range { what, value, min: 1, max }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;
    impl Handler for Nothing {}

    #[tokio::test]
    async fn wrong_settings_are_refused_at_once() {
        let subscriber = || Subscriber::builder("http://127.0.0.1:1");
        assert!(matches!(subscriber().group("a b").run(Nothing).await, Err(SubscribeError::Name { .. })));
        assert!(matches!(subscriber().credit(0).run(Nothing).await, Err(SubscribeError::Range { .. })));
        assert!(matches!(subscriber().workers(0).run(Nothing).await, Err(SubscribeError::Range { .. })));
        assert!(matches!(Subscriber::builder("nonsense").run(Nothing).await, Err(SubscribeError::Broker(_))));
        let none: [String; 0] = [];
        assert!(matches!(Subscriber::builder(none).run(Nothing).await, Err(SubscribeError::NoEndpoint)));
    }
}
