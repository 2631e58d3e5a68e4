//! Placeholder for wiring.
mod demo;
use crate::{args::DevArgs, exit::Failure};
pub(crate) fn run(args: &DevArgs) -> Result<(), Failure> {
    let _ = crate::config::DevRole::load(args, &crate::config::environment())?;
    Ok(())
}
