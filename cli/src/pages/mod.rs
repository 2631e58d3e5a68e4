//! The demo's page: plain files, embedded. `/demo/config.json` tells it where the WebSockets are.

use trunkline_broker::http::{Page, Pages};

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const JSON: &str = "application/json";

/// The pages of the demo. `chat` is the WebSocket address of its API.
pub(crate) fn demo(chat: &str) -> Pages {
    let files = [
        ("/demo/chat", HTML, include_str!("chat.html")),
        ("/demo/chat.css", CSS, include_str!("chat.css")),
        ("/demo/chat.js", SCRIPT, include_str!("chat.js")),
        ("/demo/connection.js", SCRIPT, include_str!("connection.js")),
        ("/demo/log.js", SCRIPT, include_str!("log.js")),
    ];
    let mut pages = Pages::default();
    for (path, content_type, text) in files {
        pages.0.insert(path.to_owned(), Page { content_type: content_type.into(), body: text.into() });
    }
    let config = serde_json::json!({ "chat": chat }).to_string();
    pages.0.insert("/demo/config.json".to_owned(), Page { content_type: JSON.into(), body: config.into() });
    pages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_a_page_asks_for_is_there() {
        let pages = demo("ws://127.0.0.1:8080/chat");
        for (path, page) in &pages.0 {
            let text = std::str::from_utf8(&page.body).unwrap();
            for reference in text.split('"').filter(|part| part.starts_with("/demo/")) {
                assert!(pages.0.contains_key(reference), "{path} names {reference}");
            }
        }
    }
}
