//! aws: which route a message takes, by an expression such as `$request.body.action` or
//! `${request.body.service}/${request.body.action}`.

use std::str::FromStr;

use serde_json::Value;

/// A route selection expression.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RouteSelection(Vec<Part>);

#[derive(Clone, PartialEq, Eq, Debug)]
enum Part {
    Literal(String),
    /// Keys from the message's JSON downwards.
    Body(Vec<String>),
}

impl RouteSelection {
    /// The route key that a message names; `None` if it is no JSON. What is missing is empty.
    pub fn select(&self, text: &str) -> Option<String> {
        let body: Value = serde_json::from_str(text).ok()?;
        let part = |part: &Part| match part {
            Part::Literal(text) => text.clone(),
            Part::Body(path) => {
                text_of(path.iter().try_fold(&body, |value, key| value.get(key)).unwrap_or(&Value::Null))
            }
        };
        Some(self.0.iter().map(part).collect())
    }
}

fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(truth) => truth.to_string(),
        Value::Null | Value::Array(_) | Value::Object(_) => String::new(),
    }
}

impl FromStr for RouteSelection {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("{text:?} is no route selection: $request.body.KEY or text with ${{request.body.KEY}} is expected")
        };
        if let Some(path) = text.strip_prefix('$').filter(|rest| !rest.starts_with('{')) {
            return Ok(Self(vec![body(path).ok_or_else(wrong)?]));
        }
        let (mut parts, mut rest) = (Vec::new(), text);
        while let Some((before, after)) = rest.split_once("${") {
            let (path, behind) = after.split_once('}').ok_or_else(wrong)?;
            parts.extend((!before.is_empty()).then(|| Part::Literal(before.to_owned())));
            parts.push(body(path).ok_or_else(wrong)?);
            rest = behind;
        }
        parts.extend((!rest.is_empty()).then(|| Part::Literal(rest.to_owned())));
        let names_something = parts.iter().any(|part| matches!(part, Part::Body(_)));
        if names_something && !rest.contains('$') { Ok(Self(parts)) } else { Err(wrong()) }
    }
}

fn body(path: &str) -> Option<Part> {
    let keys: Vec<String> = path.strip_prefix("request.body.")?.split('.').map(str::to_owned).collect();
    let fits = |key: &String| !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-');
    keys.iter().all(fits).then_some(Part::Body(keys))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn select(expression: &str, text: &str) -> Option<String> {
        expression.parse::<RouteSelection>().unwrap().select(text)
    }

    #[test]
    fn routes_are_selected_as_the_cloud_does() {
        let by_action = "$request.body.action";
        assert_eq!(select(by_action, r#"{"action":"send","x":1}"#).as_deref(), Some("send"));
        assert_eq!(select(by_action, r#"{"action":7}"#).as_deref(), Some("7"));
        assert_eq!(select(by_action, r#"{"other":"send"}"#).as_deref(), Some(""), "what is missing is empty");
        assert_eq!(select(by_action, r#""send""#).as_deref(), Some(""));
        assert_eq!(select(by_action, "send"), None, "no JSON");
        let two = "${request.body.service}/${request.body.a.b}";
        assert_eq!(select(two, r#"{"service":"chat","a":{"b":"send"}}"#).as_deref(), Some("chat/send"));
        assert_eq!(select(two, r#"{"service":"chat"}"#).as_deref(), Some("chat/"));
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        for bad in
            ["", "action", "$", "$request.body", "$request.body.", "$request.header.x", "${request.body.a", "a$b"]
        {
            assert!(bad.parse::<RouteSelection>().is_err(), "{bad}");
        }
    }
}
