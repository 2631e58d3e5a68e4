//! Keeps keys, tokens and certificates as they are in the world: files that change are read again while the edge serves, and sets of keys
//! are fetched.

use std::{convert::Infallible, sync::Arc, time::Duration};

use tokio::{task::JoinSet, time::MissedTickBehavior};
use tokio_rustls::rustls::ServerConfig;
use trunkline_quic::{TlsError, files::Watched, listener::Certificate};

use crate::{
    api::Api,
    auth::Source,
    config::TlsConfig,
    downlink::Downlink,
    metrics::{self, Reloaded},
};

/// So often files are looked at. One that has changed is read at the next look that finds it unchanged since: within twice this.
const LOOK_PERIOD: Duration = Duration::from_secs(2);

/// The files of one API.
struct Files {
    api: Arc<Api>,
    watched: Watched,
}

/// Certificate and key of the listeners.
pub(super) struct WatchedCertificate {
    certificate: Arc<Certificate>,
    watched: Watched,
}

impl WatchedCertificate {
    pub(super) fn load(config: &TlsConfig) -> Result<Self, TlsError> {
        let watched = Watched::new(vec![config.cert.clone(), config.key.clone()]);
        Ok(Self { certificate: Arc::new(Certificate::load(&config.cert, &config.key)?), watched })
    }

    /// With the certificate as it is at each handshake.
    pub(super) fn server_config(&self) -> Result<ServerConfig, TlsError> {
        self.certificate.server_config(&[b"http/1.1"])
    }

    fn reload(&mut self) {
        if !self.watched.have_changed() {
            return;
        }
        let reloaded = self.certificate.reload();
        metrics::reloaded(Reloaded::Certificate, reloaded.is_ok());
        match reloaded {
            Ok(()) => tracing::info!("the listeners' certificate has changed and was read again"),
            Err(error) => {
                tracing::error!(%error, "the listeners' certificate has changed and cannot be used: the one from before stays");
            }
        }
    }
}

/// What is looked at, and who is told.
pub(super) struct Keeper {
    downlink: Downlink,
    files: Vec<Files>,
    /// Each with the APIs whose keys it has.
    sources: Vec<(Arc<Source>, Vec<Arc<Api>>)>,
    certificate: Option<WatchedCertificate>,
}

impl Keeper {
    /// With each API's files, as they were before it read them.
    pub(super) fn new(
        apis: &[Arc<Api>],
        sources: Vec<Arc<Source>>,
        watched: Vec<Watched>,
        certificate: Option<WatchedCertificate>,
        downlink: Downlink,
    ) -> Self {
        let files = apis.iter().zip(watched).map(|(api, watched)| Files { api: Arc::clone(api), watched });
        let sources = sources.into_iter().map(|source| {
            let its = apis.iter().filter(|api| api.source().is_some_and(|other| Arc::ptr_eq(other, &source)));
            let its = its.cloned().collect();
            (source, its)
        });
        let sources = sources.collect();
        Self { downlink, sources, files: files.filter(|files| !files.watched.is_empty()).collect(), certificate }
    }

    /// Reads again what has changed, for as long as it is polled.
    pub(super) async fn run(mut self) -> Infallible {
        let mut fetching = JoinSet::new();
        for (source, apis) in std::mem::take(&mut self.sources) {
            fetching.spawn(keep_fetching(source, apis, self.downlink.clone()));
        }
        let mut ticks = tokio::time::interval(LOOK_PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            for api in self.look().await {
                self.downlink.auth_changed(&api).await;
            }
        }
    }

    /// The APIs of whose keys or tokens some are no more. Off this thread: a file may be on a disk that does not answer.
    async fn look(&mut self) -> Vec<Arc<Api>> {
        let (mut files, mut certificate) = (std::mem::take(&mut self.files), self.certificate.take());
        let looked = tokio::task::spawn_blocking(move || {
            let changed = files.iter_mut().filter_map(Files::reload).collect();
            certificate.iter_mut().for_each(WatchedCertificate::reload);
            (files, certificate, changed)
        });
        match looked.await {
            Ok((files, certificate, changed)) => {
                (self.files, self.certificate) = (files, certificate);
                changed
            }
            Err(error) => {
                tracing::error!(%error, "keys and tokens are not read again any more");
                Vec::new()
            }
        }
    }
}

/// Fetches a set for as long as it is polled, and gives it to its APIs.
async fn keep_fetching(source: Arc<Source>, apis: Vec<Arc<Api>>, downlink: Downlink) {
    loop {
        let fetched = source.next().await;
        for api in &apis {
            if api.set_fetched(fetched.clone()) {
                tracing::info!(api = api.name(), set = %source, "a key is no more");
                downlink.auth_changed(api).await;
            }
        }
    }
}

impl Files {
    fn reload(&mut self) -> Option<Arc<Api>> {
        if !self.watched.have_changed() {
            return None;
        }
        let reloaded = self.api.reload_auth();
        metrics::reloaded(Reloaded::Auth, reloaded.is_ok());
        match reloaded {
            Ok(has_lost) => {
                tracing::info!(api = self.api.name(), "keys or tokens have changed and were read again");
                has_lost.then(|| Arc::clone(&self.api))
            }
            Err(problem) => {
                tracing::error!(%problem, "keys or tokens have changed and cannot be used: those from before stay");
                None
            }
        }
    }
}
