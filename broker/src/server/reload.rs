//! Who may come and what the listeners prove, as it is in the world: files that change are read again while the broker serves. A file that
//! is broken changes nothing.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{ServeError, tls::Tls};
use crate::{
    access::Access,
    config::{BrokerConfig, ConfigError, files},
    http::{Compat, Keys},
    metrics::tcp::RELOADS_TOTAL,
    quic::files::Watched,
};

/// So often files are looked at. One that has changed is read at the next look that finds it unchanged since: within twice this.
const LOOK_PERIOD: Duration = Duration::from_secs(2);

type Reload = Box<dyn FnMut() -> Result<(), String> + Send>;

/// Files, and what is done when they have changed.
struct Source {
    what: &'static str,
    watched: Watched,
    reload: Reload,
}

impl Source {
    fn look(&mut self) {
        if !self.watched.have_changed() {
            return;
        }
        let outcome = match (self.reload)() {
            Ok(()) => {
                tracing::info!(what = self.what, "a file has changed and was read again");
                "ok"
            }
            Err(error) => {
                tracing::error!(what = self.what, %error, "a file has changed and cannot be used: all stays as it was");
                "failed"
            }
        };
        ::metrics::counter!(RELOADS_TOTAL, "what" => self.what, "outcome" => outcome).increment(1);
    }
}

/// What the listeners ask for.
pub(super) struct Live {
    pub(super) access: Access,
    pub(super) compat: Compat,
    sources: Vec<Source>,
}

impl Live {
    /// As configured, and as the files are now.
    pub(super) fn load(config: &BrokerConfig, tls: Option<&Tls>) -> Result<Self, ServeError> {
        let (access, compat) = (Access::new(config.tokens.clone()), Compat::new(config));
        let mut live = Self { access: access.clone(), compat: compat.clone(), sources: Vec::new() };
        if let Some(path) = config.tokens_file.clone() {
            let configured = config.tokens.clone();
            live.watch("tokens", vec![path.clone()], move || {
                access.replace(files::tokens(&configured, &path)?);
                Ok(())
            })?;
        }
        if let Some(path) = config.push.secrets_file.clone() {
            let (configured, compat) = (config.push.secrets.clone(), compat.clone());
            live.watch("push", vec![path.clone()], move || {
                let secrets = files::secrets(&configured, &path)?;
                compat.replace(|keys| keys.push = Some(Keys::signing(&secrets)));
                Ok(())
            })?;
        }
        if let Some(path) = config.aws.keys_file.clone() {
            let configured = config.aws.keys.clone();
            live.watch("aws", vec![path.clone()], move || {
                let pairs = files::pairs(&configured, &path)?;
                compat.replace(|keys| keys.aws = Some(Keys::pairs(&pairs)));
                Ok(())
            })?;
        }
        if let (Some(paths), Some(tls)) = (&config.tls, tls) {
            let certificate = Arc::clone(&tls.certificate);
            let reload = move || certificate.reload().map_err(|error| error.to_string());
            live.watch("certificate", vec![paths.cert.clone(), paths.key.clone()], reload)?;
        }
        Ok(live)
    }

    /// Reads the files, and again when they change.
    fn watch(
        &mut self,
        what: &'static str,
        paths: Vec<PathBuf>,
        mut reload: impl FnMut() -> Result<(), String> + Send + 'static,
    ) -> Result<(), ServeError> {
        // before they are read: a change in between is noticed
        let watched = Watched::new(paths);
        reload().map_err(|problem| ConfigError { problems: vec![problem] })?;
        self.sources.push(Source { what, watched, reload: Box::new(reload) });
        Ok(())
    }

    /// Looks at the files until `stop`.
    pub(super) async fn keep(mut self, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(LOOK_PERIOD)).await.is_some() {
            self.sources.iter_mut().for_each(Source::look);
        }
    }
}
