//! Placeholder for wiring.
use crate::{
    args::{BrokerArgs, EdgeArgs},
    exit::Failure,
};

pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| Failure::Other(e.into()))
}
pub(crate) fn broker(args: &BrokerArgs) -> Result<(), Failure> {
    let _ = crate::config::BrokerRole::load(args, &crate::config::environment())?;
    Ok(())
}
pub(crate) fn edge(args: &EdgeArgs) -> Result<(), Failure> {
    let _ = crate::config::EdgeRole::load(args, &crate::config::environment())?;
    Ok(())
}
