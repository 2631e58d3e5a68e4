//! From a name to addresses that may be dialled. What is looked at here is what is connected to: a name that leads elsewhere when it
//! is asked again leads nowhere new.

use std::{
    fmt,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    vec,
};

use hyper_util::client::legacy::connect::dns::Name;
use tower::Service;
use trunkline_proto::address::may_be_dialled;

type Addresses = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// Asks for a name's addresses.
#[derive(Clone)]
pub struct Lookup(Arc<dyn Fn(String) -> Addresses + Send + Sync>);

impl Lookup {
    /// The system's.
    pub fn system() -> Self {
        Self::new(|name| async move { Ok(tokio::net::lookup_host((name, 0)).await?.collect()) })
    }

    /// Another one, such as a test's.
    pub fn new<F>(ask: impl Fn(String) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'static,
    {
        Self(Arc::new(move |name| Box::pin(ask(name))))
    }
}

impl fmt::Debug for Lookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lookup(…)")
    }
}

/// Resolves names, and leaves out addresses that may not be called.
#[derive(Clone, Debug)]
pub struct Resolver {
    /// Who is asked.
    pub lookup: Lookup,
    /// Whether this machine and private networks may be called.
    pub private_too: bool,
}

impl Default for Resolver {
    /// The system's, and private addresses too.
    fn default() -> Self {
        Self { lookup: Lookup::system(), private_too: true }
    }
}

impl Service<Name> for Resolver {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let (resolving, private_too) = ((self.lookup.0)(name.as_str().to_owned()), self.private_too);
        Box::pin(async move {
            let found = resolving.await?;
            let may_be = |address: &SocketAddr| may_be_dialled(address.ip(), private_too);
            match found.first().map(SocketAddr::ip) {
                Some(refused) if !found.iter().any(may_be) => {
                    let problem = format!("{name} leads to {refused}, which may not be called");
                    Err(io::Error::new(io::ErrorKind::PermissionDenied, problem))
                }
                _ => Ok(found.into_iter().filter(may_be).collect::<Vec<_>>().into_iter()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn addresses(name: &str, private_too: bool) -> io::Result<Vec<SocketAddr>> {
        let mut resolver = Resolver { lookup: Lookup::system(), private_too };
        Ok(resolver.call(name.parse().unwrap()).await?.collect())
    }

    /// The system's resolver reads numbers as addresses too, however they are written.
    #[tokio::test]
    async fn a_name_that_leads_where_no_function_may_be_leads_nowhere() {
        for (name, anywhere, public) in [
            ("127.0.0.1", true, false),
            ("2130706433", true, false),
            ("0x7f.1", true, false),
            ("localhost", true, false),
            ("::1", true, false),
            ("8.8.8.8", true, true),
            ("169.254.169.254", false, false),
            ("2852039166", false, false),
            ("::ffff:169.254.169.254", false, false),
        ] {
            assert_eq!(addresses(name, true).await.is_ok(), anywhere, "{name}");
            assert_eq!(addresses(name, false).await.is_ok(), public, "{name}");
        }
        let error = addresses("127.0.0.1", false).await.unwrap_err().to_string();
        assert_eq!(error, "127.0.0.1 leads to 127.0.0.1, which may not be called");
    }

    #[tokio::test]
    async fn of_several_addresses_those_that_may_be_are_left() {
        let lookup = Lookup::new(|_| async {
            Ok(["169.254.169.254:0", "10.0.0.1:0", "8.8.8.8:0"].map(|text| text.parse().unwrap()).to_vec())
        });
        let mut resolver = Resolver { lookup, private_too: false };
        let left: Vec<_> = resolver.call("h".parse().unwrap()).await.unwrap().collect();
        assert_eq!(left, ["8.8.8.8:0".parse().unwrap()]);
    }
}
