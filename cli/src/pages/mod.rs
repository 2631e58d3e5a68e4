//! The demo's page: plain files, embedded. `/demo/config.json` tells it where the WebSockets are.

use bytes::Bytes;

/// One file of the page.
#[derive(Debug, Clone)]
pub(crate) struct Page {
    pub(crate) path: &'static str,
    pub(crate) content_type: &'static str,
    pub(crate) body: Bytes,
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const JSON: &str = "application/json";

/// The pages of the demo. `chat` is the WebSocket address of its API.
pub(crate) fn demo(chat: &str) -> Vec<Page> {
    let files = [
        ("/demo/chat", HTML, include_str!("chat.html")),
        ("/demo/chat.css", CSS, include_str!("chat.css")),
        ("/demo/chat.js", SCRIPT, include_str!("chat.js")),
        ("/demo/connection.js", SCRIPT, include_str!("connection.js")),
        ("/demo/log.js", SCRIPT, include_str!("log.js")),
    ];
    let config = serde_json::json!({ "chat": chat }).to_string();
    let config = Page { path: "/demo/config.json", content_type: JSON, body: config.into() };
    let pages = files.into_iter().map(|(path, content_type, text)| Page { path, content_type, body: text.into() });
    pages.chain([config]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_a_page_asks_for_is_there() {
        let pages = demo("ws://127.0.0.1:8080/chat");
        let paths: Vec<&str> = pages.iter().map(|page| page.path).collect();
        for page in &pages {
            let text = std::str::from_utf8(&page.body).unwrap();
            for reference in text.split('"').filter(|part| part.starts_with("/demo/")) {
                assert!(paths.contains(&reference), "{} names {reference}", page.path);
            }
        }
    }
}
