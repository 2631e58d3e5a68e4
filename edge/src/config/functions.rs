//! `[api.functions]`: HTTP endpoints called by the function bridge. An edge only reads it past: what it must be like is the bridge's
//! to say (`trunkline_functions::ApiSettings`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use trunkline_proto::{
    secret::SecretText,
    units::{HumanDuration, HumanSize},
};

/// The functions of an API.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FunctionsConfig {
    /// Whose requests are imitated.
    pub dialect: Dialect,
    /// Called for each new connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registration: Option<String>,
    /// Called for each message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transmission: Option<String>,
    /// Called for each closed connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cleanup: Option<String>,
    /// cloudevents dialect: called for each connection once it is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connected: Option<String>,
    /// aws dialect: route key → URL.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub routes: BTreeMap<String, String>,
    /// aws dialect: where a message names its route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route_selection: Option<String>,
    /// aws dialect: the `stageVariables` of events. Default none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub stage_variables: BTreeMap<String, String>,
    /// aws dialect: the `domainName` of events; default what the client asked for. cloudevents dialect: the origin of calls; default
    /// `localhost`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Of one call. Above 0, at most 15 m. Default 15 s.
    #[serde(default = "defaults::timeout")]
    pub timeout: HumanDuration,
    /// More attempts at once after a failure that may pass. At most 10. Default 2.
    #[serde(default = "defaults::retries")]
    pub retries: u32,
    /// Before the first of them; doubles, with jitter, up to 30 s. Default 200 ms.
    #[serde(default = "defaults::backoff")]
    pub backoff: HumanDuration,
    /// What becomes of an event whose call failed. Default retry.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// Calls at once, and as many for new connections; of one connection always one. 1 to 10,000. Default 64.
    #[serde(default = "defaults::concurrency")]
    pub concurrency: usize,
    /// Whether a call's answer is sent to the client. Default: with cloudevents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub integration_response: Option<bool>,
    /// Added to every call. Default none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, SecretText>,
    /// Each signs every call by Standard Webhooks. Default none.
    #[serde(default)]
    pub secrets: Vec<SecretText>,
    /// Larger answers are failures where they matter. 1 B to 24 MiB. Default 1 MiB.
    #[serde(default = "defaults::max_response")]
    pub max_response: HumanSize,
    /// What requests say the stage is. Default `release`.
    #[serde(default = "defaults::stage")]
    pub stage: String,
    /// scf dialect: whether `requestContext` tells query, path parameters and headers. Default false.
    #[serde(default)]
    pub forward_request: bool,
    /// Whether a function's server is asked for its consent before the first call. Default: with cloudevents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consent: Option<bool>,
    /// Whether functions may be on this machine or in a private network. Default true.
    #[serde(default = "defaults::private_addresses")]
    pub private_addresses: bool,
}

/// Whose requests a function gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dialect {
    /// The API gateway that was shut down in 2026.
    Scf,
    /// AWS API Gateway WebSocket.
    Aws,
    /// CloudEvents over HTTP.
    #[serde(rename = "cloudevents")]
    CloudEvents,
}

/// What becomes of an event whose call failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// Call again later.
    #[default]
    Retry,
    /// Close the connection.
    Close,
    /// Set the event aside.
    DeadLetter,
}

mod defaults {
    use super::{HumanDuration, HumanSize};

    pub(super) fn timeout() -> HumanDuration {
        HumanDuration::from_secs(15)
    }
    pub(super) fn retries() -> u32 {
        2
    }
    pub(super) fn backoff() -> HumanDuration {
        HumanDuration::from_millis(200)
    }
    pub(super) fn concurrency() -> usize {
        64
    }
    pub(super) fn max_response() -> HumanSize {
        HumanSize::mib(1)
    }
    pub(super) fn stage() -> String {
        "release".to_owned()
    }
    pub(super) fn private_addresses() -> bool {
        true
    }
}

impl FunctionsConfig {
    /// With every default, and no function.
    pub fn new(dialect: Dialect) -> Self {
        Self {
            dialect,
            registration: None,
            transmission: None,
            cleanup: None,
            connected: None,
            routes: BTreeMap::new(),
            route_selection: None,
            stage_variables: BTreeMap::new(),
            domain: None,
            timeout: defaults::timeout(),
            retries: defaults::retries(),
            backoff: defaults::backoff(),
            on_failure: OnFailure::default(),
            concurrency: defaults::concurrency(),
            integration_response: None,
            headers: BTreeMap::new(),
            secrets: Vec::new(),
            max_response: defaults::max_response(),
            stage: defaults::stage(),
            forward_request: false,
            consent: None,
            private_addresses: defaults::private_addresses(),
        }
    }
}
