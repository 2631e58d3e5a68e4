//! A record as a line for people.

use serde_json::Value;

use super::{
    escape::{escape, hex},
    json::Object,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};

/// Characters of a line where the output is no terminal.
const WIDTH_DEFAULT: usize = 4096;
/// Of one value.
const VALUE_MAX: usize = 1024;

/// `time  partition/offset  kind  connection  details`, cut at the terminal's width.
pub(crate) fn record(object: &Object, width: Option<u16>) -> String {
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
    let partition = object.get("partition").map(Value::to_string).unwrap_or_default();
    let place = format!("{partition}/{}", text("offset"));
    let mut line = format!("{}  {place:<12} {:<19} {:<22}", text("time"), text("kind"), text("connection"));
    for (key, value) in object.iter().skip_while(|(key, _)| *key != "kind").skip(1) {
        if key != "connection" && !is_empty(value) {
            line.push_str("  ");
            line.push_str(&detail(key, value));
        }
    }
    cut(line.trim_end(), width.map_or(WIDTH_DEFAULT, usize::from))
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        _ => false,
    }
}

fn detail(key: &str, value: &Value) -> String {
    match (key, value) {
        ("text", Value::String(text)) => format!("\"{}\"", escape(text, VALUE_MAX)),
        ("base64", Value::String(text)) => hex(&STANDARD.decode(text).unwrap_or_default(), VALUE_MAX),
        (_, Value::String(text)) => format!("{key}={}", escape(text, VALUE_MAX)),
        (_, Value::Array(values)) if values.iter().all(Value::is_string) => {
            let names: Vec<&str> = values.iter().filter_map(Value::as_str).collect();
            format!("{key}={}", escape(&names.join(","), VALUE_MAX))
        }
        _ => format!("{key}={}", escape(&value.to_string(), VALUE_MAX)),
    }
}

/// Counts characters, not columns: a wide script may still wrap.
fn cut(line: &str, width: usize) -> String {
    match line.char_indices().nth(width.saturating_sub(1)) {
        Some((at, _)) if line.chars().count() > width => format!("{}…", &line[..at]),
        _ => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use trunkline_proto::v1::LoggedRecord;

    use super::*;
    use crate::render::json;

    fn message(text: &str) -> Object {
        let body = prost::Message::encode_to_vec(&trunkline_proto::v1::MessageReceived {
            kind: 1,
            payload: text.to_owned().into(),
        });
        let record = LoggedRecord {
            offset: 1 << 16,
            kind: 2,
            connection: vec![1; 16].into(),
            api: "chat".into(),
            body: body.into(),
            ..Default::default()
        };
        json::record(0, &record, false)
    }

    #[test]
    fn a_message_is_readable_and_harmless() {
        assert_eq!(
            record(&message("hi \x1b[2J"), None),
            "1970-01-01T00:00:00.000000Z  0/1.0        message_received    AQEBAQEBAQEBAQEBAQEBAQ  api=chat  \"hi \\u{1b}[2J\""
        );
    }

    #[test]
    fn a_line_fits_the_terminal() {
        let line = record(&message(&"x".repeat(500)), Some(100));
        assert_eq!(line.chars().count(), 100);
        assert!(line.ends_with('…'));
    }
}
