//! HTTP requests that a process of Trunkline makes to somebody else's servers. Where they go is an operator's choice, never a client's;
//! still redirects are not followed, no link-local address is connected to, whatever a name resolves to, and answers are read within bounds.

mod client;
mod resolver;
mod url;

pub use self::{
    client::{Client, ClientError, Pool, RequestError, no_roots, read, roots_of_pem, system_roots},
    resolver::{Lookup, Resolver},
    url::{UrlError, address, is_loopback, parse},
};
