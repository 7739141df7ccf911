//! Asks an app's backend whether a Socket.IO client may subscribe to a channel, as laravel-echo-server did: a POST with
//! the client's cookies and the page's headers. The callers decide what the answer means to the client.

use std::cell::OnceCell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, COOKIE, HeaderMap, HeaderName, HeaderValue, ORIGIN,
    REFERER, USER_AGENT,
};
use hyper::{Request, StatusCode, Uri};
use tokio::sync::Semaphore;

use super::delivery::{HttpsClient, MAX_ANSWER_BYTES, causes, new_client, without_credentials};
use crate::protocol::query::percent_encode;

/// Requests that one worker has under way at a time; more wait, so that a backend whose clients all come back at once is
/// not asked for all of them at once.
const MAX_ASKED: usize = 64;

thread_local! {
    /// The client of a thread, made at its first request.
    static BACKEND: OnceCell<Rc<BackendClient>> = const { OnceCell::new() };
}

/// One for each worker, which keeps its connections to backends open.
struct BackendClient {
    /// Connections to backends.
    client: HttpsClient,
    /// Limits requests that are under way.
    places: Semaphore,
}

/// The client's headers that its backend may see.
#[derive(Clone, Debug, Default)]
pub struct ClientHeaders(HeaderMap);

/// A client that wants to subscribe.
#[derive(Debug)]
pub struct ChannelQuestion {
    /// The app's `socketio.auth_url`.
    pub url: String,
    /// The longest wait for the backend.
    pub timeout: Duration,
    /// As the client named it.
    pub channel: String,
    /// Its public name, which backends sign.
    pub socket: String,
    /// The client's headers, such as its cookies.
    pub headers: ClientHeaders,
}

/// The backend's answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ChannelVerdict {
    /// It may; the answer's text.
    Allowed(String),
    /// It may not, by this status.
    Refused(u16),
    /// Nothing that can be read; for people.
    Unanswered(String),
}

/// Headers that are no page's to choose: of the connection, of this request's body, and those by which proxies say who
/// asks.
const OWN: [&str; 16] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
    "x-real-ip",
];

impl ClientHeaders {
    /// Those of a request that opens a session; `cookies`: they go along.
    pub fn of_request(headers: &HeaderMap, cookies: bool) -> Self {
        let mut kept = HeaderMap::new();
        for name in [ORIGIN, REFERER, COOKIE] {
            for value in headers.get_all(&name).iter().filter(|_| cookies || name != COOKIE) {
                kept.append(&name, value.clone());
            }
        }
        Self(kept)
    }

    /// The same with what the page gave for this one question, which counts more.
    #[must_use]
    pub fn with_given(&self, given: Vec<(String, String)>) -> Self {
        let mut all = self.0.clone();
        for (name, value) in given {
            let name = name.to_ascii_lowercase();
            let is_own = OWN.contains(&&*name) || name.starts_with("x-forwarded-");
            if let (false, Ok(name), Ok(value)) =
                (is_own, name.parse::<HeaderName>(), HeaderValue::from_str(&value))
            {
                all.insert(name, value);
            }
        }
        Self(all)
    }
}

/// Asks the backend, and waits for a place first where many ask. The time limit counts from when it
/// is asked, not from when it waits.
pub async fn ask_backend(question: ChannelQuestion) -> ChannelVerdict {
    let backend = BACKEND.with(|backend| {
        let new = || {
            Rc::new(BackendClient { client: new_client(true), places: Semaphore::new(MAX_ASKED) })
        };
        backend.get_or_init(new).clone()
    });
    let timeout = question.timeout;
    let request = match new_request(question) {
        Ok(request) => request,
        Err(problem) => return ChannelVerdict::Unanswered(problem),
    };
    // Never closed.
    let _place = backend.places.acquire().await;
    let exchange = async {
        let answer = match backend.client.request(request).await {
            Ok(answer) => answer,
            Err(error) => return ChannelVerdict::Unanswered(causes(&error)),
        };
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
        match (status, body) {
            (StatusCode::OK, Ok(body)) => match String::from_utf8(body.to_bytes().to_vec()) {
                Ok(text) => ChannelVerdict::Allowed(text),
                Err(_) => ChannelVerdict::Unanswered("the answer is no text".to_owned()),
            },
            (StatusCode::OK, Err(error)) => ChannelVerdict::Unanswered(causes(&*error)),
            (status, _) => ChannelVerdict::Refused(status.as_u16()),
        }
    };
    tokio::time::timeout(timeout, exchange)
        .await
        .unwrap_or_else(|_| ChannelVerdict::Unanswered(format!("no answer within {timeout:?}")))
}

/// The form that laravel-echo-server posted: `channel_name=…&socket_id=…`, with `X-Requested-With`
/// so that Laravel answers JSON instead of redirecting to a login page.
///
/// # Errors
/// The URL cannot be used; in words for the log, without the URL.
fn new_request(question: ChannelQuestion) -> Result<Request<Full<Bytes>>, String> {
    let ChannelQuestion { url, channel, socket, headers: ClientHeaders(mut headers), .. } =
        question;
    let uri: Uri = url.parse().map_err(|error: hyper::http::uri::InvalidUri| error.to_string())?;
    let (uri, credentials) = without_credentials(uri).map_err(|error| error.to_string())?;
    if let Some(credentials) = credentials {
        headers.entry(AUTHORIZATION).or_insert(credentials);
    }
    let body =
        format!("channel_name={}&socket_id={}", percent_encode(&channel), percent_encode(&socket));
    let agent = concat!("Fanfare/", env!("CARGO_PKG_VERSION"));
    let form = "application/x-www-form-urlencoded";
    headers.entry(ACCEPT).or_insert(HeaderValue::from_static("application/json"));
    headers.entry(USER_AGENT).or_insert(HeaderValue::from_static(agent));
    headers.insert("x-requested-with", HeaderValue::from_static("XMLHttpRequest"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(form));
    let mut request = Request::new(Full::new(Bytes::from(body)));
    *request.method_mut() = hyper::Method::POST;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_chooses_its_own_headers_and_none_of_the_connections() {
        let mut asked = HeaderMap::new();
        asked.insert(COOKIE, HeaderValue::from_static("laravel_session=1"));
        asked.insert(ORIGIN, HeaderValue::from_static("https://app.example.test"));
        asked.insert("x-other", HeaderValue::from_static("1"));
        let given = [
            ("Authorization", "Bearer t"),
            ("X-Forwarded-For", "127.0.0.1"),
            ("Host", "elsewhere.example.test"),
            ("Content-Length", "0"),
            ("X-Bad", "a\r\nX-Injected: 1"),
        ];
        let given = given.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let names = |headers: &ClientHeaders| {
            let mut names: Vec<_> = headers.0.keys().map(|name| name.as_str().to_owned()).collect();
            names.sort();
            names
        };
        let all = ClientHeaders::of_request(&asked, true).with_given(given.clone());
        assert_eq!(names(&all), ["authorization", "cookie", "origin"]);
        let all = ClientHeaders::of_request(&asked, false).with_given(given);
        assert_eq!(names(&all), ["authorization", "origin"]);
    }

    #[test]
    fn a_question_is_a_form() {
        let question = ChannelQuestion {
            url: "http://127.0.0.1:8000/broadcasting/auth".to_owned(),
            timeout: Duration::from_secs(1),
            channel: "private-a;b=1".to_owned(),
            socket: "1.2".to_owned(),
            headers: ClientHeaders::default(),
        };
        let request = new_request(question).unwrap();
        assert_eq!(request.headers()["content-type"], "application/x-www-form-urlencoded");
        assert_eq!(request.headers()["x-requested-with"], "XMLHttpRequest");
        assert_eq!(request.headers()["accept"], "application/json");
    }
}
