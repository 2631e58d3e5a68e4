//! Static pages, given by whoever starts the server (`dev` embeds the chat page).

use std::{borrow::Cow, collections::BTreeMap};

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderValue, Uri, header};

use super::{App, problem::Problem};

/// A page: what it is, and its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// `text/html; charset=utf-8` and the like. Must be a valid header value.
    pub content_type: Cow<'static, str>,
    /// As sent.
    pub body: Bytes,
}

/// Pages by their path, such as `/demo/chat`. Paths must not collide with the surface's own.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Pages(pub BTreeMap<String, Page>);

impl Pages {
    pub(super) fn paths(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

pub(super) async fn page(State(app): State<App>, uri: Uri) -> Result<Response, Problem> {
    let page = app.0.pages.0.get(uri.path()).ok_or_else(|| Problem::not_found("no such page"))?;
    let mut response = page.body.clone().into_response();
    let headers = response.headers_mut();
    if let Ok(content_type) = HeaderValue::from_str(&page.content_type) {
        headers.insert(header::CONTENT_TYPE, content_type);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    Ok(response)
}
