//! Tables `[broker.push]` and `[broker.aws]`: the HTTP surfaces that users of other gateways know.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use trunkline_proto::{limits, secret::SecretText, units::HumanSize};

/// Shortest secret, bytes: less is guessed.
const SECRET_BYTES_MIN: usize = 16;

/// Table `[broker.push]`: `POST /push/{api}`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PushConfig {
    /// Callers must sign by Standard Webhooks with one of these (`whsec_` and base64, or any text of 16 bytes). Default none: whoever
    /// reaches the listener may push.
    pub secrets: Vec<SecretText>,
    /// A push that fails closes its connection (1011), as the gateway did that this address is taken from. Default false.
    pub close_on_failure: bool,
}

/// Table `[broker.aws]`: `/{stage}/@connections/{id}`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AwsConfig {
    /// Callers must sign by Signature Version 4 with one of these. Default none: signatures are not looked at.
    pub keys: Vec<AwsKeyConfig>,
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
        Self { keys: Vec::new(), max_payload: HumanSize::kib(128) }
    }
}

impl PushConfig {
    pub(super) fn check(&self, check: &mut impl FnMut(bool, String)) {
        for secret in &self.secrets {
            let problem = secret_bytes(secret).err().unwrap_or_default();
            check(problem.is_empty(), format!("broker.push.secrets: {problem}"));
        }
    }
}

impl AwsConfig {
    pub(super) fn check(&self, check: &mut impl FnMut(bool, String)) {
        for (n, key) in self.keys.iter().enumerate() {
            check(
                limits::is_name(&key.id) && self.keys.iter().take(n).all(|other| other.id != key.id),
                format!("broker.aws.keys: id {:?} must be 1 to 64 of A-Z a-z 0-9 . _ - and there once", key.id),
            );
            check(
                key.secret.reveal().len() >= SECRET_BYTES_MIN,
                format!("broker.aws.keys: the secret of {:?} must have at least {SECRET_BYTES_MIN} bytes", key.id),
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

/// The bytes of a secret of Standard Webhooks.
pub fn secret_bytes(secret: &SecretText) -> Result<Vec<u8>, String> {
    let bytes = match secret.reveal().strip_prefix("whsec_") {
        Some(encoded) => STANDARD.decode(encoded).map_err(|_| "what follows whsec_ is no base64".to_owned())?,
        None => secret.reveal().as_bytes().to_vec(),
    };
    match bytes.len() {
        SECRET_BYTES_MIN.. => Ok(bytes),
        short => Err(format!("a secret of {short} bytes is guessed too easily: {SECRET_BYTES_MIN} at least")),
    }
}
