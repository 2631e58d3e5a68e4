//! Signatures of calls by Standard Webhooks: whoever knows the secret can tell our calls from others', whole and recent.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::hmac;
use trunkline_proto::secret::SecretText;

/// A secret that signs calls.
#[derive(Clone)]
pub struct Secret(hmac::Key);

impl Secret {
    /// See [`SecretText::signing_bytes`].
    pub fn new(secret: &SecretText) -> Result<Self, String> {
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &secret.signing_bytes()?)))
    }

    /// HMAC-SHA256 of several parts.
    fn sign(&self, parts: &[&[u8]]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.0);
        parts.iter().for_each(|part| context.update(part));
        context.sign()
    }

    /// As lower-case hexadecimal, for the dialects that sign their own way.
    pub(crate) fn hex(&self, text: &str) -> String {
        self.sign(&[text.as_bytes()]).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The value of `webhook-signature`: one signature for each secret.
pub(crate) fn signatures(secrets: &[Secret], id: &str, seconds: u64, body: &[u8]) -> String {
    let seconds = seconds.to_string();
    let one = |secret: &Secret| {
        let tag = secret.sign(&[id.as_bytes(), b".", seconds.as_bytes(), b".", body]);
        format!("v1,{}", STANDARD.encode(tag))
    };
    secrets.iter().map(one).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answer that the libraries of Standard Webhooks are tested with.
    #[test]
    fn the_known_answer() {
        let secret = Secret::new(&SecretText::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")).unwrap();
        let signed = signatures(&[secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, br#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn two_secrets_give_two_signatures() {
        let secrets = ["0123456789abcdef", "fedcba9876543210"].map(|text| Secret::new(&SecretText::new(text)).unwrap());
        let signed = signatures(&secrets, "id", 1, b"body");
        let parts: Vec<&str> = signed.split(' ').collect();
        assert_eq!(parts.len(), 2);
        assert_ne!(parts[0], parts[1]);
        assert_eq!(parts[0], signatures(&secrets[..1], "id", 1, b"body"));
        assert_ne!(parts[0], signatures(&secrets[..1], "id", 1, b"bodY"));
    }

    #[test]
    fn short_secrets_are_refused_and_none_is_shown() {
        assert!(Secret::new(&SecretText::new("secret")).is_err());
        assert!(Secret::new(&SecretText::new("whsec_!")).is_err());
        assert_eq!(format!("{:?}", Secret::new(&SecretText::new("0123456789abcdef")).unwrap()), "Secret(…)");
    }
}
