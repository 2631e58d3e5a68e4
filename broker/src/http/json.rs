//! Connections as JSON: the shape `trunkline state --json` prints (SURFACE: the binary). Records: [`trunkline_proto::json`].

use jiff::Timestamp as Instant;
use serde_json::{Map, Value, json};
use trunkline_proto::{Timestamp, json};

use crate::core::{ConnectionView, Phase};

/// The time an RFC 3339 text says.
pub fn parse_time(text: &str) -> Option<Timestamp> {
    let instant: Instant = text.parse().ok()?;
    u64::try_from(instant.as_microsecond()).ok().map(Timestamp)
}

/// A phase as tools show it.
pub fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Pending => "pending",
        Phase::Open => "open",
        Phase::Closing => "closing",
    }
}

/// One open connection.
pub fn connection(connection: &ConnectionView<'_>) -> Value {
    let attributes: Map<String, Value> =
        connection.attributes.iter().map(|(key, value)| (key.to_string(), Value::from(&**value))).collect();
    let channels: Vec<&str> = connection.channels.iter().map(|channel| &**channel).collect();
    json!({
        "connection": connection.id.to_string(),
        "api": connection.api,
        "edge": connection.edge,
        "opened_at": json::time(connection.opened_at.0),
        "offset": connection.opened.to_string(),
        "phase": phase(connection.phase),
        "subprotocol": connection.subprotocol,
        "attributes": attributes,
        "channels": channels,
        "peer": connection.peer,
        "principal": connection.principal,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_round_trip() {
        let stamp = Timestamp(1_700_000_000_123_456);
        assert_eq!(parse_time(&json::time(stamp.0)), Some(stamp));
        assert_eq!(parse_time("2023-11-14T23:13:20+01:00"), Some(Timestamp(1_700_000_000_000_000)));
        assert_eq!(parse_time("yesterday"), None);
        assert_eq!(parse_time("1960-01-01T00:00:00Z"), None, "before the epoch there is no log");
    }
}
