//! Names and descriptions of the broker's metrics (docs: SURFACE 8). One file per layer.

pub mod handlers;
pub mod store;
