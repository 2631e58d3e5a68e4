//! Where requests may go.

use std::net::IpAddr;

use http::Uri;
use trunkline_proto::address::{Reach, reach, written};

/// Why a text is no URL that requests are sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Not even one.
    #[error("http://host/path or https://host/path is expected")]
    Malformed,
    /// Another scheme.
    #[error("it must begin with http:// or https://")]
    Scheme,
    /// `http:///path`.
    #[error("it names no host")]
    NoHost,
    /// What stands before an `@`.
    #[error("it holds a user's name or password")]
    UserInfo,
    /// `#…`
    #[error("a fragment is never sent")]
    Fragment,
    /// It ends like an address.
    #[error("its host is neither a name nor an address")]
    Host,
    /// Where clouds keep credentials.
    #[error("link-local addresses and those of metadata services are refused")]
    LinkLocal,
}

/// A URL that requests may be sent to. The error does not repeat it.
pub fn parse(text: &str) -> Result<Uri, UrlError> {
    let uri: Uri = text.parse().map_err(|_| UrlError::Malformed)?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(UrlError::Scheme);
    }
    let authority = uri.authority().ok_or(UrlError::NoHost)?;
    if authority.as_str().contains('@') {
        return Err(UrlError::UserInfo);
    }
    if text.contains('#') {
        return Err(UrlError::Fragment);
    }
    if authority.host().trim_matches(['[', ']']).is_empty() {
        return Err(UrlError::NoHost);
    }
    match written(authority.host()) {
        Err(_) => Err(UrlError::Host),
        Ok(Some(address)) if reach(address) == Reach::Nobody => Err(UrlError::LinkLocal),
        Ok(_) => Ok(uri),
    }
}

/// The host, if it is an address, however it is written.
pub fn address(uri: &Uri) -> Option<IpAddr> {
    written(uri.host()?).ok().flatten()
}

/// Whether the URL's host is an address of this machine's own.
pub fn is_loopback(uri: &Uri) -> bool {
    address(uri).is_some_and(|address| address.to_canonical().is_loopback())
}
