//! What a request holds that may prove who a client is. It stays in the record, for the handler that judges it, and is not shown.

use crate::{text, v1};

/// Request headers that hold secrets.
const HEADERS: [&str; 4] = ["authorization", "cookie", "proxy-authorization", "x-api-key"];
/// Query parameters that do.
const PARAMETERS: [&str; 4] = ["access_token", "hmac_signature", "ticket", "token"];
/// The subprotocol that browsers offer before a token, which is the next one.
const SUBPROTOCOL: &str = "bearer";
const NOT_SHOWN: &str = "(not shown)";

pub(super) fn headers(mut headers: Vec<v1::Header>) -> Vec<v1::Header> {
    for header in &mut headers {
        if HEADERS.contains(&header.name.as_str()) {
            NOT_SHOWN.clone_into(&mut header.value);
        }
    }
    headers
}

pub(super) fn query(query: &str) -> String {
    let shown = |pair: &str| match pair.split_once('=') {
        Some((name, _)) if PARAMETERS.contains(&text::percent_decoded(name).to_ascii_lowercase().as_str()) => {
            format!("{name}={NOT_SHOWN}")
        }
        _ => pair.to_owned(),
    };
    query.split('&').map(shown).collect::<Vec<_>>().join("&")
}

pub(super) fn subprotocols(mut offered: Vec<String>) -> Vec<String> {
    let mut is_token = false;
    for name in &mut offered {
        if is_token {
            NOT_SHOWN.clone_into(name);
        }
        is_token = name == SUBPROTOCOL;
    }
    offered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_in_a_query_are_not_shown_and_the_rest_is_as_it_was_sent() {
        for (sent, shown) in [
            ("", ""),
            ("a=1&&b", "a=1&&b"),
            ("a=%20&access_token=HUSH&b=x=y", "a=%20&access_token=(not shown)&b=x=y"),
            ("access%5Ftoken=HUSH&Token=HUSH", "access%5Ftoken=(not shown)&Token=(not shown)"),
            ("token&tokens=2", "token&tokens=2"),
        ] {
            assert_eq!(query(sent), shown);
        }
    }

    #[test]
    fn a_token_among_subprotocols_is_not_shown() {
        let offered = |names: &[&str]| subprotocols(names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(offered(&["chat", "bearer", "HUSH", "v2"]), ["chat", "bearer", "(not shown)", "v2"]);
        assert_eq!(offered(&["chat", "bearer"]), ["chat", "bearer"]);
    }
}
