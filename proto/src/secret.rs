//! A text that nobody is shown: not by `--dump-config`, not in a log line.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize, Serializer};

/// Fewer bytes are guessed too easily.
pub const SIGNING_BYTES_MIN: usize = 16;

/// A secret of a configuration. Shown as `…`, whoever asks.
#[derive(Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(transparent)]
pub struct SecretText(String);

impl SecretText {
    /// Hides a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// What signs by Standard Webhooks: `whsec_` and base64, as they write secrets; anything else is taken as it is.
    ///
    /// # Errors
    /// What is wrong with it, without showing it: no base64, or fewer than [`SIGNING_BYTES_MIN`] bytes.
    pub fn signing_bytes(&self) -> Result<Vec<u8>, String> {
        let bytes = match self.0.strip_prefix("whsec_") {
            Some(encoded) => STANDARD.decode(encoded).map_err(|_| "what follows whsec_ is no base64".to_owned())?,
            None => self.0.as_bytes().to_vec(),
        };
        match bytes.len() {
            SIGNING_BYTES_MIN.. => Ok(bytes),
            short => Err(format!("a secret of {short} bytes is guessed too easily: {SIGNING_BYTES_MIN} at least")),
        }
    }

    /// The text, for the one place that uses it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl Serialize for SecretText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("…")
    }
}
