//! An API as the shards know it: what its configuration says, ready to use, and how many connections it has.

use std::{
    fmt,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use parking_lot::{Mutex, RwLock};
use trunkline_proto::units::HumanSize;

use crate::{
    auth::{self, Source},
    config::{ApiConfig, AuthConfig, ConfigProblem},
    core::{
        Bucket, Limits, Millis, Rate,
        auth::{Auth, Fetched},
        senders::{Senders, SharedBucket},
    },
    metrics::ApiMetrics,
};

/// A named front door, shared by all shards.
pub struct Api {
    /// As configured.
    pub config: ApiConfig,
    /// What bounds each of its connections.
    pub limits: Limits,
    /// Its counters.
    pub metrics: ApiMetrics,
    /// How its clients prove who they are, replaced as a whole.
    auth: RwLock<Arc<Auth>>,
    connections: AtomicU64,
    handshakes: Mutex<Bucket>,
    /// None: messages of an address are not bounded.
    senders: Option<Mutex<Senders>>,
    /// What all connections together have sent. None: it is not bounded.
    pub(crate) received: Option<SharedBucket>,
    /// Keys that are fetched.
    source: Option<Arc<Source>>,
    started: Instant,
}

impl Api {
    /// An API without connections, its keys read from the files that it names. Made after the metrics recorder is installed.
    pub fn load(config: ApiConfig) -> Result<Self, ConfigProblem> {
        Self::load_beside(config, &mut Vec::new())
    }

    /// The same, with keys that are fetched once for all APIs whose configuration says the same of them.
    pub(crate) fn load_beside(config: ApiConfig, sources: &mut Vec<Arc<Source>>) -> Result<Self, ConfigProblem> {
        let source = match &config.auth {
            AuthConfig::Jwt(jwt) => Source::shared(jwt, sources),
            _ => None,
        };
        let senders = (config.max_messages_per_address > 0)
            .then(|| Mutex::new(Senders::new(Rate::of(config.max_messages_per_address))));
        let received =
            (config.max_messages_per_api > 0).then(|| SharedBucket::new(Rate::of(config.max_messages_per_api)));
        let auth = auth::load(&config)?;
        let limits = Limits {
            max_message: usize::try_from(config.max_message.get()).unwrap_or(usize::MAX),
            max_frame: config.max_frame.map_or(usize::MAX, HumanSize::as_usize),
            max_fragments: config.max_fragments,
            text_only: config.text_only,
            max_queue: usize::try_from(config.max_queue.get()).unwrap_or(usize::MAX),
            registration_timeout: config.registration_timeout.0.into(),
            idle_timeout: config.idle_timeout.0.into(),
            ping_interval: config.ping_interval.0.into(),
            ping_timeout: config.ping_timeout.0.into(),
            max_lifetime: config.max_lifetime.0.into(),
            messages: Rate::of(config.max_messages),
        };
        let metrics = ApiMetrics::new(&config.name);
        Ok(Self {
            config,
            limits,
            metrics,
            auth: RwLock::new(Arc::new(auth)),
            connections: AtomicU64::new(0),
            handshakes: Mutex::default(),
            senders,
            received,
            source,
            started: Instant::now(),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// How its clients prove who they are, as of now.
    pub fn auth(&self) -> Arc<Auth> {
        Arc::clone(&self.auth.read())
    }

    /// Reads the files that `auth` names again. What is wrong with any of them leaves everything as it was. Says whether a key or a token is
    /// no more: then shards are to be told [`crate::inbox::ShardInput::AuthChanged`].
    pub fn reload_auth(&self) -> Result<bool, ConfigProblem> {
        let auth = auth::load(&self.config)?;
        Ok(self.replace_auth(|current| {
            let fetched = current.fetched().and_then(|fetched| auth.with_fetched(fetched.clone()));
            Some(fetched.unwrap_or(auth))
        }))
    }

    /// Takes in keys that were fetched. Says the same.
    pub fn set_fetched(&self, fetched: Fetched) -> bool {
        self.replace_auth(|current| current.with_fetched(fetched))
    }

    fn replace_auth(&self, make: impl FnOnce(&Auth) -> Option<Auth>) -> bool {
        // held over it: files and fetched keys come from different threads, and neither may undo the other
        let mut current = self.auth.write();
        let Some(next) = make(&current) else { return false };
        let has_lost = !current.proofs().is_subset(&next.proofs());
        *current = Arc::new(next);
        has_lost
    }

    /// Where its keys are fetched.
    pub(crate) fn source(&self) -> Option<&Arc<Source>> {
        self.source.as_ref()
    }

    /// What a connection of this address takes of for its messages, if they are bounded.
    pub(crate) fn sender(&self, now: Millis, address: IpAddr) -> Option<Arc<SharedBucket>> {
        self.senders.as_ref().map(|senders| senders.lock().join(now, address))
    }

    /// The subprotocol chosen without asking anybody (registration "accept"): the first the client offered that is listed, else the one that
    /// said where its token is.
    pub(crate) fn subprotocol(&self, offered: &[String]) -> String {
        let listed = offered.iter().find(|offered| self.config.subprotocols.contains(offered));
        listed.or_else(|| self.auth().marker(offered)).cloned().unwrap_or_default()
    }

    /// Takes a place for one connection; `false` if all are taken, or too many come at once.
    pub(crate) fn take_place(&self) -> bool {
        let rate = Rate::of(self.config.max_handshakes);
        if rate != Rate::UNBOUNDED && !self.handshakes.lock().take(self.started.elapsed().into(), rate) {
            return false;
        }
        let most = self.config.max_connections;
        self.connections
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |live| (live < most).then_some(live + 1))
            .is_ok()
    }

    /// Gives it back.
    pub(crate) fn leave_place(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// Live connections over all shards, pending ones included.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api")
            .field("name", &self.name())
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}
