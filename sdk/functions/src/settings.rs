//! What one API's functions are, and how they are called. Checked when made: a bridge that runs has nothing to complain about.

use std::{collections::BTreeMap, fmt, net::IpAddr, str::FromStr, time::Duration};

use http::{HeaderName, HeaderValue, Uri};
use trunkline_https::UrlError;
use trunkline_proto::address::may_be_dialled;

use crate::{route::RouteSelection, signature::Secret};

/// Longest time one call may take: what the clouds allow.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(900);
/// Most attempts after the first, before the event's `on_failure` decides.
pub const RETRIES_MAX: u32 = 10;
/// Longest wait before an attempt.
pub const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Most calls of one API at once.
pub const CONCURRENCY_MAX: usize = 10_000;
/// Largest answer that may be asked for: what can be pushed to a client, and its envelope.
pub const RESPONSE_BYTES_MAX: usize = 24 << 20;
/// What calls say they come from, where the configuration says nothing.
const ORIGIN: &str = "localhost";
/// Most routes of an API.
pub const ROUTES_MAX: usize = 300;

/// Whose requests functions get.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dialect {
    /// The cloud gateway that was shut down in 2026: registration, transmission, cleanup.
    Scf,
    /// AWS API Gateway WebSocket: `$connect`, `$disconnect`, `$default` and routes, Lambda's JSON.
    Aws,
    /// CloudEvents over HTTP, as Azure Web PubSub sends them.
    CloudEvents,
}

/// What becomes of an event whose call failed for good.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnFailure {
    /// It comes again, for ever; later events of its connection wait.
    Retry,
    /// The connection is closed and the event is done. A failed cleanup becomes a dead letter.
    Close,
    /// It becomes a dead letter.
    DeadLetter,
}

/// One API's functions. Make it with [`ApiSettings::new`], set what differs, and have it [checked](ApiSettings::check).
#[derive(Clone, Debug)]
pub struct ApiSettings {
    /// The API's name.
    pub api: String,
    /// Its path, with `{parameters}`.
    pub path: String,
    /// The handler group. It must be the API's own where it decides registrations.
    pub group: String,
    /// Whether clients wait for this group's decision.
    pub decides: bool,
    /// How long they wait.
    pub registration_timeout: Duration,
    /// Whose requests are imitated.
    pub dialect: Dialect,
    /// Called for each new connection.
    pub registration: Option<FunctionUrl>,
    /// Called for each message.
    pub transmission: Option<FunctionUrl>,
    /// Called for each closed connection.
    pub cleanup: Option<FunctionUrl>,
    /// cloudevents: called for each connection that is open.
    pub connected: Option<FunctionUrl>,
    /// aws: route key → function.
    pub routes: BTreeMap<String, FunctionUrl>,
    /// aws: where a message names its route; without it every message goes to `$default`.
    pub route_selection: Option<RouteSelection>,
    /// aws: what events say the stage's variables are.
    pub stage_variables: BTreeMap<String, String>,
    /// aws: what events say the domain is; without it what the client asked for. cloudevents: the origin that calls name, and that
    /// functions consent to; without it `localhost`.
    pub domain: Option<String>,
    /// Of one call, connecting and the answer's body included.
    pub timeout: Duration,
    /// More attempts at once after a failure that may pass.
    pub retries: u32,
    /// Before the first of them; doubles, with jitter, up to [`BACKOFF_MAX`].
    pub backoff: Duration,
    /// What becomes of an event whose call failed for good.
    pub on_failure: OnFailure,
    /// Calls at once, and as many for new connections; of one connection always one at a time, in order.
    pub concurrency: usize,
    /// Whether a transmission's answer is sent to the client.
    pub integration_response: bool,
    /// Added to every call.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Each signs every call: two while one is replaced by the other.
    pub secrets: Vec<Secret>,
    /// Larger answers are failures where they matter.
    pub max_response: usize,
    /// What requests say the stage is.
    pub stage: String,
    /// scf: whether `requestContext` tells query, path parameters and headers.
    pub forward_request: bool,
    /// Whether a function's server is asked for its consent before the first call.
    pub consent: bool,
    /// Whether functions may be on this machine or in a private network.
    pub private_addresses: bool,
}

/// What is wrong with an API's functions.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct SettingsError {
    /// The key, as in `[api.functions]`.
    pub key: String,
    /// What is wrong with its value, and what would be right.
    pub problem: String,
}

impl SettingsError {
    /// `problem` with `key`.
    pub fn new(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { key: key.into(), problem: problem.into() }
    }
}

impl ApiSettings {
    /// Settings of an API named `api`, with every default and no function.
    pub fn new(api: impl Into<String>, dialect: Dialect) -> Self {
        let api = api.into();
        Self {
            path: format!("/{api}"),
            group: api.clone(),
            api,
            decides: true,
            registration_timeout: Duration::from_secs(15),
            dialect,
            registration: None,
            transmission: None,
            cleanup: None,
            connected: None,
            routes: BTreeMap::new(),
            route_selection: None,
            stage_variables: BTreeMap::new(),
            domain: None,
            timeout: Duration::from_secs(15),
            retries: 2,
            backoff: Duration::from_millis(200),
            on_failure: OnFailure::Retry,
            concurrency: 64,
            // where an answer is one, not a side effect
            integration_response: dialect == Dialect::CloudEvents,
            headers: Vec::new(),
            secrets: Vec::new(),
            max_response: 1 << 20,
            stage: "release".to_owned(),
            forward_request: false,
            consent: dialect == Dialect::CloudEvents,
            private_addresses: true,
        }
    }

    /// The first thing that is wrong, if anything is.
    pub fn check(&self) -> Result<(), SettingsError> {
        self.check_functions()?;
        let wrong = |key: &str, problem: String| Err(SettingsError::new(key, problem));
        if let Some((key, url)) = self.named_urls().find(|(_, url)| !self.may_call(url)) {
            return wrong(key, format!("{} is a private address, and private_addresses = false", url.place()));
        }
        if HeaderValue::from_str(self.origin()).is_err() || self.origin().is_empty() {
            return wrong("domain", format!("{:?} is no domain", self.origin()));
        }
        if self.timeout.is_zero() || self.timeout > TIMEOUT_MAX {
            return wrong("timeout", format!("{:?} is not above 0 and at most 15m", self.timeout));
        }
        if self.retries > RETRIES_MAX {
            return wrong("retries", format!("{} is more than {RETRIES_MAX}", self.retries));
        }
        if self.backoff.is_zero() || self.backoff > BACKOFF_MAX {
            return wrong("backoff", format!("{:?} is not above 0 and at most 30s", self.backoff));
        }
        if !(1..=CONCURRENCY_MAX).contains(&self.concurrency) {
            return wrong("concurrency", format!("{} is not 1 to {CONCURRENCY_MAX}", self.concurrency));
        }
        if !(1..=RESPONSE_BYTES_MAX).contains(&self.max_response) {
            return wrong("max_response", format!("{}B is not 1B to 24MiB", self.max_response));
        }
        Ok(())
    }

    fn check_functions(&self) -> Result<(), SettingsError> {
        if self.connected.is_some() && self.dialect != Dialect::CloudEvents {
            return Err(SettingsError::new("connected", "only the cloudevents dialect has it"));
        }
        let slots = [
            ("registration", self.registration.is_some()),
            ("transmission", self.transmission.is_some()),
            ("cleanup", self.cleanup.is_some()),
        ];
        if self.dialect == Dialect::Aws {
            if let Some((key, _)) = slots.iter().find(|(_, is_set)| *is_set) {
                return Err(SettingsError::new(
                    *key,
                    "the aws dialect takes `routes` instead: \"$connect\", \"$default\", …",
                ));
            }
            if self.routes.is_empty() || self.routes.len() > ROUTES_MAX {
                return Err(SettingsError::new("routes", format!("the aws dialect takes 1 to {ROUTES_MAX} routes")));
            }
            let own = ["$connect", "$disconnect", "$default"];
            if let Some(key) = self.routes.keys().find(|key| key.starts_with('$') && !own.contains(&key.as_str())) {
                return Err(SettingsError::new(
                    "routes",
                    format!("{key:?} begins with $ and is none of {}", own.join(", ")),
                ));
            }
            return Ok(());
        }
        if self.transmission.is_none() {
            return Err(SettingsError::new("transmission", "is missing: the function that gets the messages"));
        }
        for (key, is_set) in [
            ("routes", !self.routes.is_empty()),
            ("route_selection", self.route_selection.is_some()),
            ("stage_variables", !self.stage_variables.is_empty()),
        ] {
            if is_set {
                return Err(SettingsError::new(key, "only the aws dialect has routes and stage variables"));
            }
        }
        Ok(())
    }

    /// Every function there is.
    pub(crate) fn urls(&self) -> impl Iterator<Item = &FunctionUrl> {
        self.named_urls().map(|(_, url)| url)
    }

    fn named_urls(&self) -> impl Iterator<Item = (&'static str, &FunctionUrl)> {
        let slots = [
            ("registration", &self.registration),
            ("transmission", &self.transmission),
            ("cleanup", &self.cleanup),
            ("connected", &self.connected),
        ];
        let routes = self.routes.values().map(|url| ("routes", url));
        slots.into_iter().filter_map(|(key, url)| Some((key, url.as_ref()?))).chain(routes)
    }

    /// What calls say they come from, and what functions' servers consent to.
    pub(crate) fn origin(&self) -> &str {
        self.domain.as_deref().unwrap_or(ORIGIN)
    }

    /// Whether the address that a URL writes may be called. Of a name that is known when it resolves.
    pub(crate) fn may_call(&self, url: &FunctionUrl) -> bool {
        url.address.is_none_or(|address| may_be_dialled(address, self.private_addresses))
    }
}

/// Where a function is. Its host is an operator's choice, never a client's; still no cloud's metadata service is called by
/// mistake, at whatever name it stands.
#[derive(Clone, PartialEq, Eq)]
pub struct FunctionUrl {
    uri: Uri,
    /// What its host writes, unless it is a name.
    address: Option<IpAddr>,
}

impl FunctionUrl {
    /// As a request needs it.
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Whether it is called over TLS.
    pub fn is_https(&self) -> bool {
        self.uri.scheme_str() == Some("https")
    }

    /// Without its query, which may hold a key.
    pub(crate) fn place(&self) -> String {
        let host = self.uri.authority().map(ToString::to_string).unwrap_or_default();
        format!("{}://{host}{}", self.uri.scheme_str().unwrap_or_default(), self.uri.path())
    }
}

impl FromStr for FunctionUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // what stands before an @ may be a password, and the query may hold a key
        let place = text.split('?').next().unwrap_or_default();
        let shown = if text.contains('@') { "(not shown)" } else { place };
        let parsed = trunkline_https::parse(text);
        parsed.map(|uri| Self { address: trunkline_https::address(&uri), uri }).map_err(|error| {
            let hint = if error == UrlError::UserInfo { "; use `headers`" } else { "" };
            format!("{shown:?} is no function's URL: {error}{hint}")
        })
    }
}

impl fmt::Display for FunctionUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.uri.fmt(f)
    }
}

impl fmt::Debug for FunctionUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.uri.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_that_could_do_harm_are_refused() {
        for good in ["http://127.0.0.1:9000/registration", "https://example.com/a?b=c", "http://[::1]:80/", "http://h"]
        {
            assert!(good.parse::<FunctionUrl>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "/registration",
            "file:///etc/passwd",
            "ftp://h/",
            "http://user:secret@h/",
            "http:///path",
            "http://h/#x",
            "http://169.254.169.254/latest/meta-data",
            "http://[::ffff:169.254.169.254]/",
            "http://[fe80::1]/",
            "http://[fd00:ec2::254]/",
            "http://0.0.0.0/",
            "http://224.0.0.1/",
            "http://2852039166/",
            "http://0xa9.0xfe.0xa9.0xfe/",
            "http://0251.0376.0251.0376/",
            "http://169.254.43518/",
            "http://169.254.169.254./",
            "http://[64:ff9b::a9fe:a9fe]/",
            "http://[2002:a9fe:a9fe::]/",
            "http://168.63.129.16/",
            "http://0/",
            "http://256.1.1.1/",
            "http://h@169.254.169.254/",
            "http://h\\@169.254.169.254/",
            "http://h%2f@x/",
        ] {
            assert!(bad.parse::<FunctionUrl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn private_addresses_are_refused_where_that_is_asked_for_however_they_are_written() {
        let scf = |url: &str, private_addresses| ApiSettings {
            transmission: Some("http://example.com/".parse().unwrap()),
            cleanup: Some(url.parse().unwrap()),
            private_addresses,
            ..ApiSettings::new("chat", Dialect::Scf)
        };
        for private in [
            "http://127.0.0.1:9000/",
            "http://[::1]/",
            "http://10.1.2.3/",
            "http://192.168.0.1/",
            "http://172.31.0.1/",
            "http://100.64.0.1/",
            "http://[fd12::1]/",
            "http://[::ffff:10.0.0.1]/",
            "http://[64:ff9b::7f00:1]/",
            "http://2130706433/",
            "http://0x7f.1/",
            "http://0177.0.0.1/",
            "http://127.1/",
        ] {
            let error = scf(private, false).check().unwrap_err();
            assert_eq!(
                (error.key.as_str(), error.problem.contains("private_addresses")),
                ("cleanup", true),
                "{private}"
            );
            assert_eq!(scf(private, true).check(), Ok(()), "{private}");
        }
        // a name is judged when it resolves
        for other in ["https://8.8.8.8/", "http://localhost/", "http://[2606:4700::1111]/"] {
            assert_eq!(scf(other, false).check(), Ok(()), "{other}");
        }
        let aws = ApiSettings {
            routes: [("$default".to_owned(), "http://10.0.0.1/".parse().unwrap())].into(),
            private_addresses: false,
            ..ApiSettings::new("a", Dialect::Aws)
        };
        assert_eq!(aws.check().unwrap_err().key, "routes");
    }

    #[test]
    fn what_is_told_of_a_url_leaves_out_its_query() {
        let url: FunctionUrl = "https://h:8443/api/x?code=secret".parse().unwrap();
        assert_eq!(url.place(), "https://h:8443/api/x");
        let wrong = "https://h/api?code=secret#x".parse::<FunctionUrl>().unwrap_err();
        assert!(wrong.contains("https://h/api") && !wrong.contains("secret"), "{wrong}");
        let private = ApiSettings {
            transmission: Some("http://10.0.0.1/api?code=secret".parse().unwrap()),
            private_addresses: false,
            ..ApiSettings::new("chat", Dialect::Scf)
        };
        let problem = private.check().unwrap_err().problem;
        assert!(problem.contains("http://10.0.0.1/api") && !problem.contains("secret"), "{problem}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let url = || Some("http://h/".parse().unwrap());
        let scf = ApiSettings { transmission: url(), ..ApiSettings::new("chat", Dialect::Scf) };
        assert_eq!(scf.check(), Ok(()));
        let aws =
            ApiSettings { routes: [("$default".into(), url().unwrap())].into(), ..ApiSettings::new("a", Dialect::Aws) };
        assert_eq!(aws.check(), Ok(()));
        let cases = [
            ("transmission", ApiSettings::new("chat", Dialect::Scf)),
            ("routes", ApiSettings::new("chat", Dialect::Aws)),
            ("cleanup", ApiSettings { cleanup: url(), ..aws.clone() }),
            ("routes", ApiSettings { routes: [("$other".into(), url().unwrap())].into(), ..aws.clone() }),
            ("routes", ApiSettings { routes: aws.routes.clone(), ..scf.clone() }),
            ("connected", ApiSettings { connected: url(), ..scf.clone() }),
            ("stage_variables", ApiSettings { stage_variables: [("a".into(), "b".into())].into(), ..scf.clone() }),
            ("timeout", ApiSettings { timeout: Duration::ZERO, ..scf.clone() }),
            ("retries", ApiSettings { retries: 11, ..scf.clone() }),
            ("backoff", ApiSettings { backoff: Duration::ZERO, ..scf.clone() }),
            ("concurrency", ApiSettings { concurrency: 0, ..scf.clone() }),
            ("max_response", ApiSettings { max_response: 0, ..scf.clone() }),
            ("domain", ApiSettings { domain: Some("a\nb".into()), ..scf.clone() }),
            ("domain", ApiSettings { domain: Some(String::new()), ..scf.clone() }),
        ];
        for (key, settings) in cases {
            assert_eq!(settings.check().unwrap_err().key, key);
        }
    }
}
