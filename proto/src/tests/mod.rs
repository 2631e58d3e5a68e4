//! Round trips, golden bytes and hostile bytes.
mod golden;
mod round_trip;
