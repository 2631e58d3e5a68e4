//! Opaque tokens of a list.

use std::collections::BTreeMap;

use trunkline_proto::token::TokenDigest;

use super::{Denied, Identity, Places, Proof};

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
    tokens: Vec<(Token, Proof)>,
}

impl Token {
    /// Whoever came by this entry came as this principal with these attributes: another of the same token is another.
    fn proof(&self) -> Proof {
        let digest = self.digest.to_string();
        let attributes = self.attributes.iter().flat_map(|(name, value)| [name.as_bytes(), value.as_bytes()]);
        Proof::of([digest.as_bytes(), self.principal.as_bytes()].into_iter().chain(attributes))
    }
}

impl Tokens {
    /// These, at these places.
    pub fn new(places: Places, tokens: Vec<Token>) -> Self {
        let with_proof = |token: Token| {
            let proof = token.proof();
            (token, proof)
        };
        Self { places, tokens: tokens.into_iter().map(with_proof).collect() }
    }

    pub(super) fn places(&self) -> &Places {
        &self.places
    }

    pub(super) fn proofs(&self) -> impl Iterator<Item = Proof> {
        self.tokens.iter().map(|(_, proof)| *proof)
    }

    /// Looks at every token, whichever it is.
    pub(super) fn verify(&self, token: &str) -> Result<Identity, Denied> {
        let digest = TokenDigest::of(token);
        let found =
            self.tokens.iter().fold(None, |found, entry| if entry.0.digest == digest { Some(entry) } else { found });
        let Some((token, proof)) = found else { return Err(Denied::Unknown) };
        let (principal, attributes) = (token.principal.clone(), token.attributes.clone());
        Ok(Identity { principal, attributes, expires: None, proof: Some(*proof) })
    }
}
