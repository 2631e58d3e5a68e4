//! Where requests may go.

use std::net::{IpAddr, Ipv6Addr};

use http::Uri;

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
    /// Where clouds keep credentials.
    #[error("link-local addresses are refused")]
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
    match address(&uri) {
        _ if authority.host().is_empty() => Err(UrlError::NoHost),
        Some(address) if !may_be_called(address) => Err(UrlError::LinkLocal),
        _ => Ok(uri),
    }
}

/// The host, if it is an address.
pub(crate) fn address(uri: &Uri) -> Option<IpAddr> {
    uri.host()?.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// Whether requests may go to this address: not link-local, where clouds keep credentials (169.254.169.254, fd00:ec2::254), nor
/// unspecified, nor a multicast group.
pub fn may_be_called(address: IpAddr) -> bool {
    const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    match address.to_canonical() {
        IpAddr::V4(v4) => !(v4.is_link_local() || v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast()),
        IpAddr::V6(v6) => {
            !(v6.is_unicast_link_local() || v6.is_unspecified() || v6.is_multicast() || v6 == METADATA_V6)
        }
    }
}

/// Whether the URL's host is an address of this machine's own.
pub fn is_loopback(uri: &Uri) -> bool {
    address(uri).is_some_and(|address| address.to_canonical().is_loopback())
}
