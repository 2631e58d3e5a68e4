//! Tables `[broker.push]` and `[broker.aws]`: the HTTP surfaces that users of other gateways know.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use trunkline_proto::{
    limits,
    secret::{SIGNING_BYTES_MIN, SecretText},
    units::HumanSize,
};

/// Table `[broker.push]`: `POST /push/{api}`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PushConfig {
    /// Callers must sign by Standard Webhooks with one of these (`whsec_` and base64, or any text of 16 bytes). Default none: they
    /// bring a bearer token where `broker.tokens` are set.
    pub secrets: Vec<SecretText>,
    /// TOML file with more of them, `secrets = […]`, read again when it changes. Default none. Where it is set pushes must be signed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secrets_file: Option<PathBuf>,
    /// A push that fails closes its connection (1011), as the gateway did that this address is taken from. Default false.
    pub close_on_failure: bool,
}

/// Table `[broker.aws]`: `/{stage}/@connections/{id}`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AwsConfig {
    /// Callers must sign by Signature Version 4 with one of these. Default none: signatures are not looked at.
    pub keys: Vec<AwsKeyConfig>,
    /// TOML file with more of them, `[[keys]]`, read again when it changes. Default none. Where it is set requests must be signed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys_file: Option<PathBuf>,
    /// Largest payload of a POST; more gets 413. Default 128KiB, as in the cloud; never more than `broker.limits.http_body`.
    pub max_payload: HumanSize,
}

/// One of `[[broker.aws.keys]]`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AwsKeyConfig {
    /// Access key id.
    pub id: String,
    /// Secret access key.
    pub secret: SecretText,
}

impl Default for AwsConfig {
    fn default() -> Self {
        Self { keys: Vec::new(), keys_file: None, max_payload: HumanSize::kib(128) }
    }
}

impl PushConfig {
    pub(super) fn check(&self, check: &mut (impl FnMut(bool, String) + ?Sized)) {
        for secret in &self.secrets {
            let problem = secret.signing_bytes().err().unwrap_or_default();
            check(problem.is_empty(), format!("broker.push.secrets: {problem}"));
        }
    }
}

impl AwsConfig {
    pub(super) fn check(&self, check: &mut (impl FnMut(bool, String) + ?Sized)) {
        for (n, key) in self.keys.iter().enumerate() {
            check(
                limits::is_name(&key.id) && self.keys.iter().take(n).all(|other| other.id != key.id),
                format!("broker.aws.keys: id {:?} must be 1 to 64 of A-Z a-z 0-9 . _ - and there once", key.id),
            );
            check(
                key.secret.reveal().len() >= SIGNING_BYTES_MIN,
                format!("broker.aws.keys: the secret of {:?} must have at least {SIGNING_BYTES_MIN} bytes", key.id),
            );
        }
        check(
            self.max_payload.get() > 0 && self.max_payload.as_usize() <= limits::MESSAGE_BYTES_MAX,
            format!(
                "broker.aws.max_payload {} must be 1B to {}",
                self.max_payload,
                HumanSize(limits::MESSAGE_BYTES_MAX as u64)
            ),
        );
    }
}
