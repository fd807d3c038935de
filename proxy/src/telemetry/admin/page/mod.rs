//! The dashboard: one page that needs nothing but itself.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::StatusCode;
use hyper::header::{CONTENT_SECURITY_POLICY, HeaderValue, X_FRAME_OPTIONS};

use super::{Response, body};

const FRAME: &str = include_str!("index.html");
const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// The page as it is sent.
pub static PAGE: LazyLock<String> =
    LazyLock::new(|| FRAME.replace("/*style*/", STYLE).replace("/*script*/", SCRIPT));

/// The page may run its own script and style and talk to its own origin; nothing else.
pub static POLICY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        source(SCRIPT),
        source(STYLE)
    )
});

/// The hash by which the policy knows a text (CSP Level 3).
fn source(text: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    format!("'sha256-{}'", STANDARD.encode(digest))
}

pub(super) fn response() -> Response {
    let mut response = body::whole(StatusCode::OK, "text/html; charset=utf-8", PAGE.as_str());
    let headers = response.headers_mut();
    if let Ok(policy) = HeaderValue::from_str(&POLICY) {
        headers.insert(CONTENT_SECURITY_POLICY, policy);
    }
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_loads_nothing_from_elsewhere() {
        // In an outage there may be no internet, and no certificate, font or library from it.
        for outside in
            ["http://", "https://", "//cdn", "@import", "url(", "<link rel=\"stylesheet\"", " src="]
        {
            assert!(!PAGE.contains(outside), "{outside}");
        }
    }

    #[test]
    fn the_policy_knows_the_script_and_style_of_the_page() {
        // A byte more or less between the tags and the browser shows an empty frame.
        for (open, close, text) in [("<script>", "</script>", SCRIPT), ("<style>", "</style>", STYLE)] {
            let (_, rest) = PAGE.split_once(open).unwrap();
            let (inside, _) = rest.split_once(close).unwrap();

            assert_eq!(inside, text);
            assert!(POLICY.contains(&source(inside)));
        }
    }
}
