//! What has proved who a client is, as small as a connection can keep it.

use std::fmt;

use ring::digest::{Context, SHA256};

/// A key, or an entry of a list of tokens: part of a digest of all that makes it what it is. When the API's set no longer holds it, what it
/// let in is closed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Proof(u64);

impl Proof {
    /// Of these parts, in this order.
    pub(super) fn of<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut context = Context::new(&SHA256);
        for part in parts {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let mut first = [0; 8];
        first.iter_mut().zip(context.finish().as_ref()).for_each(|(byte, digest)| *byte = *digest);
        Self(u64::from_be_bytes(first))
    }
}

/// It may be of a secret.
impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}
