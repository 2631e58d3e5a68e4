//! A JSON Web Key Set that is fetched. What a token says leads to no URL: there is the one of the configuration.

use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::Full;
use parking_lot::Mutex;
use tokio::sync::Notify;
use trunkline_https::{Client, ClientError, Pool};
use trunkline_proto::units::HumanDuration;
use trunkline_quic::files;

use crate::{
    config::{Algorithm, JwtConfig},
    core::{
        Millis,
        auth::{Fetched, Key, Refresh},
    },
    metrics::{self, Reloaded},
};

/// From the first byte asked to the last one answered.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest answer.
const SET_BYTES_MAX: usize = 256 << 10;
/// One request is made in minutes: no connection is kept for the next.
const POOL: Pool = Pool { idle_timeout: Duration::from_secs(1), idle_max: 0 };

/// What the configuration says of it.
#[derive(Clone, PartialEq)]
struct Settings {
    url: String,
    ca_file: Option<PathBuf>,
    refresh: HumanDuration,
    max_age: HumanDuration,
    /// Keys for others are left out.
    algorithms: Vec<Algorithm>,
}

/// A set that is fetched, for all APIs whose configuration says the same of it.
pub struct Source {
    settings: Settings,
    started: Instant,
    refresh: Mutex<Refresh>,
    brought_forward: Notify,
    /// The last fetch failed, or there was none: its success is worth a word.
    is_wanting: AtomicBool,
}

/// Why it was not fetched. Of what came nothing is told.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("{0}")]
    Url(#[from] trunkline_https::UrlError),
    #[error("{0}")]
    Client(#[from] ClientError),
    #[error("{}: {error}", path.display())]
    File { path: PathBuf, error: std::io::Error },
    #[error("{0}")]
    Request(#[from] trunkline_https::RequestError),
    #[error("no whole answer within {FETCH_TIMEOUT:?}")]
    Timeout,
    #[error("it was answered with {0}")]
    Status(StatusCode),
    #[error("the answer has more than 256 KiB")]
    TooLarge,
    #[error("{0}")]
    Key(#[from] crate::core::auth::KeyError),
    #[error("{0}")]
    Ended(#[from] tokio::task::JoinError),
}

impl Source {
    /// The one that this configuration names: one of those there are, if it is the same, or a new one beside them.
    pub fn shared(config: &JwtConfig, sources: &mut Vec<Arc<Self>>) -> Option<Arc<Self>> {
        let is_public = |algorithm: &Algorithm| *algorithm != Algorithm::Hs256;
        let settings = Settings {
            url: config.jwks_url.clone()?,
            ca_file: config.jwks_ca_file.clone(),
            refresh: config.jwks_refresh,
            max_age: config.jwks_max_age,
            algorithms: config.algorithms.iter().copied().filter(is_public).collect(),
        };
        if let Some(same) = sources.iter().find(|source| source.settings == settings) {
            return Some(Arc::clone(same));
        }
        let source = Arc::new(Self {
            started: Instant::now(),
            refresh: Mutex::new(Refresh::new(settings.refresh.get().into())),
            brought_forward: Notify::new(),
            is_wanting: AtomicBool::new(true),
            settings,
        });
        sources.push(Arc::clone(&source));
        Some(source)
    }

    /// A token names a key that the set does not hold.
    pub(crate) fn handle_unknown_key(&self) {
        if self.refresh.lock().handle_unknown_key(self.now()) {
            self.brought_forward.notify_one();
        }
    }

    /// Waits until the set is to be fetched (again) and fetches it, as often as that fails. One caller. Cancel safe.
    pub(crate) async fn next(&self) -> Fetched {
        loop {
            self.until_due().await;
            let fetched = self.fetch().await;
            let random = rand::random_range(0..=1000);
            metrics::reloaded(Reloaded::Jwks, fetched.is_ok());
            let was_wanting = self.is_wanting.swap(fetched.is_err(), Ordering::Relaxed);
            match fetched {
                Ok(keys) => {
                    if was_wanting {
                        tracing::info!(set = %self, keys = keys.len(), "keys are fetched");
                    }
                    self.refresh.lock().handle_fetched(self.now(), random);
                    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                    return Fetched::new(keys, (now + self.settings.max_age.get()).as_secs());
                }
                Err(error) => {
                    self.refresh.lock().handle_failed(self.now(), random);
                    tracing::error!(set = %self, %error, "keys cannot be fetched: those from before stay, for jwks_max_age");
                }
            }
        }
    }

    async fn until_due(&self) {
        loop {
            let wait = self.refresh.lock().due().saturating_sub(self.now());
            if wait.is_zero() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(wait.0)) => {}
                () = self.brought_forward.notified() => {}
            }
        }
    }

    async fn fetch(&self) -> Result<Arc<[Key]>, FetchError> {
        let fetched = tokio::time::timeout(FETCH_TIMEOUT, self.body()).await;
        let body = fetched.map_err(|_| FetchError::Timeout)??;
        Ok(Key::set(&self.settings.algorithms, &body)?.into())
    }

    async fn body(&self) -> Result<Bytes, FetchError> {
        let url = trunkline_https::parse(&self.settings.url)?;
        let client = self.client(&url).await?;
        let mut request = Request::new(Full::default());
        *request.uri_mut() = url;
        request.headers_mut().insert(header::USER_AGENT, Client::USER_AGENT);
        let accepted = header::HeaderValue::from_static("application/jwk-set+json, application/json");
        request.headers_mut().insert(header::ACCEPT, accepted);
        let response = client.request(request).await?;
        if response.status() != StatusCode::OK {
            return Err(FetchError::Status(response.status()));
        }
        trunkline_https::read(response.into_body(), SET_BYTES_MAX).await?.ok_or(FetchError::TooLarge)
    }

    /// Made for each fetch: authorities change too. Off this thread, for it reads files.
    async fn client(&self, url: &Uri) -> Result<Client, FetchError> {
        let (is_https, file) = (url.scheme_str() == Some("https"), self.settings.ca_file.clone());
        let roots = tokio::task::spawn_blocking(move || match file {
            Some(path) => {
                let pem = files::read(&path).map_err(|error| FetchError::File { path, error })?;
                Ok(trunkline_https::roots_of_pem(&pem)?)
            }
            None if is_https => Ok(trunkline_https::system_roots()?),
            None => Ok::<_, FetchError>(trunkline_https::no_roots()),
        });
        Ok(Client::new(roots.await??, POOL)?)
    }

    fn now(&self) -> Millis {
        self.started.elapsed().into()
    }
}

/// The URL without its query, which may hold a secret.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.settings.url.split('?').next().unwrap_or_default())
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({self})")
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;
    use crate::config::AuthConfig;

    const SET: &str = r#"{"keys":[
        {"kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
        {"kty":"oct","kid":"public","k":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}]}"#;

    /// Answers as the path says; tells what it was asked.
    async fn serve(listener: TcpListener, asked: Arc<Mutex<Vec<String>>>) {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = vec![0; 4096];
            let count = stream.read(&mut head).await.unwrap();
            let head = String::from_utf8_lossy(&head[..count]).into_owned();
            let answer = |status: &str, body: &str| {
                format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
            };
            let answer = match head.split(' ').nth(1).unwrap_or_default() {
                "/moved" => "HTTP/1.1 302 Found\r\nlocation: /keys\r\ncontent-length: 0\r\n\r\n".to_owned(),
                "/large" => answer("200 OK", &format!("{SET}{}", " ".repeat(SET_BYTES_MAX))),
                // of a length that is not told
                "/endless" => format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{}", " ".repeat(SET_BYTES_MAX + 1)),
                "/none" => answer("404 Not Found", SET),
                "/silent" => {
                    // until the other side has given up
                    tokio::spawn(async move { stream.read_to_end(&mut Vec::new()).await });
                    asked.lock().push(head);
                    continue;
                }
                "/text" => answer("200 OK", "HUSH"),
                "/secret" => answer("200 OK", &SET.replace("OKP", "HUSH")),
                _ => answer("200 OK", SET),
            };
            asked.lock().push(head);
            // who has read enough closes
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    }

    fn source(url: &str, sources: &mut Vec<Arc<Source>>) -> Arc<Source> {
        let text = format!("kind = \"jwt\"\nalgorithms = [\"HS256\", \"EdDSA\"]\njwks_url = \"{url}\"");
        let AuthConfig::Jwt(config) = toml::from_str(&text).unwrap() else { panic!("{text}") };
        Source::shared(&config, sources).unwrap()
    }

    #[tokio::test]
    async fn a_set_is_fetched_from_its_url_alone_and_within_bounds() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let server = tokio::spawn(serve(listener, Arc::clone(&asked)));
        let good = source(&format!("{base}/keys?secret=HUSH"), &mut Vec::new());
        let keys = good.fetch().await.unwrap();
        assert_eq!(keys.len(), 1, "no secret that everybody can fetch: {keys:?}");
        let head = asked.lock().pop().unwrap().to_lowercase();
        assert!(
            head.starts_with("get /keys?secret=hush http/1.1\r\n") && head.contains("accept: application/jwk-set+json"),
            "{head}"
        );
        assert!(!format!("{good} {good:?}").contains("HUSH"));
        for (path, expected) in [
            ("/moved", "answered with 302"),
            ("/large", "more than 256 KiB"),
            ("/endless", "more than 256 KiB"),
            ("/none", "answered with 404"),
            ("/text", "no JSON Web Key Set"),
            ("/secret", "no key of the set fits"),
            ("/silent", "no whole answer within 5s"),
        ] {
            let error = source(&format!("{base}{path}"), &mut Vec::new()).fetch().await.unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains("HUSH"), "{path}: {error}");
        }
        assert_eq!(asked.lock().len(), 7, "a redirect leads nowhere");
        server.abort();
        let _ = server.await;
        let error = good.fetch().await.unwrap_err().to_string();
        assert!(error.contains("refused"), "{error}");
    }

    #[tokio::test]
    async fn an_unknown_key_has_the_set_fetched_before_its_time() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let server = tokio::spawn(serve(listener, Arc::clone(&asked)));
        let mut sources = Vec::new();
        let set = source(&url, &mut sources);
        assert!(Arc::ptr_eq(&set, &source(&url, &mut sources)), "two APIs, one set");
        assert!(!Arc::ptr_eq(&set, &source(&format!("{url}?b"), &mut sources)));
        set.next().await;
        set.handle_unknown_key();
        tokio::time::timeout(Duration::from_secs(20), set.next()).await.expect("long before its ten minutes");
        for _ in 0..100 {
            set.handle_unknown_key();
        }
        assert!(tokio::time::timeout(Duration::from_millis(200), set.next()).await.is_err(), "not again so soon");
        assert_eq!(asked.lock().len(), 2);
        server.abort();
    }
}
