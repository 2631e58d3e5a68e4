//! Opaque tokens of a list.

use std::collections::BTreeMap;

use trunkline_proto::token::TokenDigest;

use super::{Denied, Identity, Places};

/// One token that is good.
#[derive(Clone, PartialEq, Debug)]
pub struct Token {
    /// Of the token.
    pub digest: TokenDigest,
    /// Whose it is.
    pub principal: String,
    /// What else is known of them.
    pub attributes: BTreeMap<String, String>,
}

/// The tokens that are good.
#[derive(Debug)]
pub struct Tokens {
    places: Places,
    tokens: Vec<Token>,
}

impl Tokens {
    /// These, at these places.
    pub fn new(places: Places, tokens: Vec<Token>) -> Self {
        Self { places, tokens }
    }

    pub(super) fn places(&self) -> &Places {
        &self.places
    }

    /// Looks at every token, whichever it is.
    pub(super) fn verify(&self, token: &str) -> Result<Identity, Denied> {
        let digest = TokenDigest::of(token);
        let found =
            self.tokens.iter().fold(None, |found, token| if token.digest == digest { Some(token) } else { found });
        let Some(token) = found else { return Err(Denied::Unknown) };
        Ok(Identity { principal: token.principal.clone(), attributes: token.attributes.clone(), expires: None })
    }
}
