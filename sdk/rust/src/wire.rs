//! How brokers are reached: connections with this crate's settings, and what proves who we are.

use std::{fmt, time::Duration};

use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use crate::error::ClientError;

/// HTTP/2 windows: their quotient is how many slow streams may stall before they block the others.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A peer that answers no ping this long is dead.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// A connection whose calls carry the token.
pub(crate) type Wire = InterceptedService<Channel, Bearer>;

/// What calls prove, and what brokers must prove. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Credentials {
    pub(crate) token: Option<String>,
    /// PEM; given: brokers speak TLS.
    pub(crate) ca: Option<Vec<u8>>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = self.token.as_ref().map(|_| "(hidden)");
        f.debug_struct("Credentials").field("token", &token).field("tls", &self.ca.is_some()).finish()
    }
}

impl Credentials {
    /// An endpoint with this crate's settings. `host:port` is taken as `http://host:port`, or as `https://host:port` where an authority is
    /// given.
    pub(crate) fn endpoint(&self, address: &str) -> Result<Endpoint, ClientError> {
        let invalid = |reason: String| ClientError::Address { address: address.to_owned(), reason };
        let scheme = if self.ca.is_some() { "https" } else { "http" };
        let uri = if address.contains("://") { address.to_owned() } else { format!("{scheme}://{address}") };
        let endpoint = Endpoint::from_shared(uri).map_err(|error| invalid(error.to_string()))?;
        if endpoint.uri().authority().is_none() || endpoint.uri().port_u16().is_none() {
            return Err(invalid("http://host:port is expected".to_owned()));
        }
        let is_tls = endpoint.uri().scheme_str() == Some("https");
        let endpoint = match &self.ca {
            Some(ca) if is_tls => {
                let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
                endpoint.tls_config(tls).map_err(|error| invalid(error.to_string()))?
            }
            Some(_) => {
                return Err(invalid("an authority was given, and http:// is plain text: write https://".to_owned()));
            }
            None if is_tls => {
                return Err(invalid(
                    "https:// needs the authority's certificate (ca_pem; --ca or TRUNKLINE_CA of the command line)"
                        .to_owned(),
                ));
            }
            None => endpoint,
        };
        Ok(endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true))
    }

    /// A connection that is made when first used.
    pub(crate) fn connect_lazy(&self, address: &str) -> Result<Wire, ClientError> {
        let bearer = match &self.token {
            None => None,
            Some(token) => Some(header(token).ok_or_else(|| ClientError::Address {
                address: address.to_owned(),
                reason: "the token is no visible ASCII".to_owned(),
            })?),
        };
        Ok(InterceptedService::new(self.endpoint(address)?.connect_lazy(), Bearer(bearer)))
    }
}

fn header(token: &str) -> Option<MetadataValue<Ascii>> {
    let mut header: MetadataValue<Ascii> = format!("Bearer {token}").parse().ok()?;
    header.set_sensitive(true);
    Some(header)
}

/// Adds the token to each call.
#[derive(Clone, Debug)]
pub(crate) struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(header) = &self.0 {
            request.metadata_mut().insert("authorization", header.clone());
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_a_scheme_is_http_unless_an_authority_is_given() {
        let plain = Credentials::default();
        assert_eq!(plain.endpoint("127.0.0.1:7070").unwrap().uri().scheme_str(), Some("http"));
        for wrong in ["", "http://", "http://host", "not an address", "https://host:1"] {
            assert!(matches!(plain.endpoint(wrong), Err(ClientError::Address { .. })), "{wrong}");
        }
        let safe = Credentials { ca: Some(Vec::new()), ..Credentials::default() };
        assert!(
            matches!(safe.endpoint("http://host:1"), Err(ClientError::Address { .. })),
            "no token goes out in plain text"
        );
    }

    #[tokio::test]
    async fn a_token_is_never_shown() {
        let credentials = Credentials { token: Some("SECRET".to_owned()), ca: None };
        let wire = credentials.connect_lazy("127.0.0.1:1").unwrap();
        let shown = format!("{credentials:?} {wire:?} {:?}", Bearer(header("SECRET")));
        assert!(!shown.contains("SECRET"), "{shown}");
        let broken = Credentials { token: Some("a\nb".to_owned()), ca: None };
        assert!(matches!(broken.connect_lazy("127.0.0.1:1"), Err(ClientError::Address { .. })));
    }
}
