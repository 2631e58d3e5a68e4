//! Where a request holds its token, and how it is taken out of what is kept.

use trunkline_proto::text;

use super::{Denied, Hidden};
use crate::core::handshake::Upgrade;

/// Query parameters that hold secrets whatever an API is configured with.
const SECRET_PARAMETERS: [&str; 2] = ["access_token", super::hmac::SIGNATURE];
/// Headers that may hold secrets: not kept where clients prove who they are, whatever the edge keeps elsewhere.
const SECRET_HEADERS: [&str; 3] = ["authorization", "cookie", "sec-websocket-protocol"];

/// Where tokens may be, besides the Authorization header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Places {
    /// This query parameter; empty: none.
    pub query: String,
    /// After this offered subprotocol; empty: none.
    pub subprotocol: String,
}

impl Places {
    pub(super) fn is_marker(&self, subprotocol: &str) -> bool {
        !self.subprotocol.is_empty() && self.subprotocol == subprotocol
    }

    /// Takes the token out of the request: exactly one (RFC 6750 §2).
    pub(super) fn take(&self, request: &mut Upgrade) -> Result<Hidden, Denied> {
        let mut found = Vec::new();
        if let Some(Hidden(value)) = request.authorization.take() {
            found.push(text::bearer(&value).map(str::to_owned));
        }
        let in_query =
            text::query_pairs(&request.query).filter(|(name, _)| !self.query.is_empty() && *name == self.query);
        found.extend(in_query.map(|(_, value)| Some(value)));
        let mut offered = Vec::new();
        let mut names = std::mem::take(&mut request.subprotocols).into_iter();
        while let Some(name) = names.next() {
            let is_marker = self.is_marker(&name);
            offered.push(name);
            if is_marker {
                found.push(names.next());
            }
        }
        request.subprotocols = offered;
        redact(request, &self.query);
        let mut found = found.into_iter();
        match (found.next(), found.next()) {
            (None, _) => Err(Denied::Missing),
            (Some(_), Some(_)) => Err(Denied::Twice),
            (Some(token), None) => {
                let token = token.filter(|token| !token.is_empty() && token.len() <= super::TOKEN_BYTES_MAX);
                token.map(Hidden).ok_or(Denied::Malformed)
            }
        }
    }
}

/// Takes out what may be a secret.
pub(super) fn redact(request: &mut Upgrade, parameter: &str) {
    request.authorization = None;
    request.headers.retain(|header| !SECRET_HEADERS.contains(&header.name.as_str()));
    let is_secret = |pair: &&str| {
        let name = text::percent_decoded(pair.split_once('=').map_or(*pair, |(name, _)| name));
        SECRET_PARAMETERS.contains(&name.as_str()) || (!parameter.is_empty() && name == parameter)
    };
    let kept: Vec<&str> = request.query.split('&').filter(|pair| !is_secret(pair)).collect();
    request.query = kept.join("&");
}
