//! The operator's verbs, each a client of a broker's gRPC.

pub(crate) mod certs;
pub(crate) mod cluster;
pub(crate) mod connections;
pub(crate) mod dead_letters;
pub(crate) mod groups;
pub(crate) mod init;
pub(crate) mod recover;
pub(crate) mod state;
pub(crate) mod submit;
pub(crate) mod tail;
pub(crate) mod token;
pub(crate) mod verify;

use std::time::Duration;

use trunkline_sdk::{Client, ClientError};

use crate::{args::RemoteArgs, exit::Failure};

/// How long a verb waits for an answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The brokers to ask, and how to name them in messages.
pub(crate) struct Remote {
    pub(crate) client: Client,
    pub(crate) json: bool,
    address: String,
}

impl Remote {
    pub(crate) fn new(args: &RemoteArgs) -> Result<Self, Failure> {
        let mut builder = Client::builder(args.broker.clone()).timeout(TIMEOUT);
        if let Some(token) = &args.token {
            builder = builder.token(token);
        }
        if let Some(path) = &args.ca {
            let pem = std::fs::read(path);
            builder = builder.ca_pem(pem.map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?);
        }
        let address = args.broker.join(" or ");
        let client = builder.build().map_err(|error| Failure::of_call(&address, error))?;
        Ok(Self { client, json: args.json, address })
    }

    /// The result of a call, or why not, with the broker's address.
    pub(crate) fn check<T>(&self, result: Result<T, ClientError>) -> Result<T, Failure> {
        result.map_err(|error| Failure::of_call(&self.address, error))
    }

    /// The partitions to ask: the one named, or all.
    pub(crate) async fn partitions(&self, named: Option<u16>) -> Result<Vec<u16>, Failure> {
        let count = self.check(self.client.describe().await)?.partition_count;
        let count = u16::try_from(count).unwrap_or(u16::MAX);
        match named {
            Some(partition) if partition >= count => Err(Failure::usage(format!(
                "there is no partition {partition}: the cluster has 0 to {}",
                count.saturating_sub(1)
            ))),
            Some(partition) => Ok(vec![partition]),
            None => Ok((0..count).collect()),
        }
    }
}
