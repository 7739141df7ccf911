//! The debug console's routes: access, the page, its requests, and the feed. It acts on an app through the routes of
//! the API, with the server as the signer. Secrets are never sent to the page.

mod access;
mod figures;
mod pages;
mod questions;
mod stream;

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use hyper::header::{ALLOW, CACHE_CONTROL, HeaderValue, SET_COOKIE};
use hyper::http::request::Parts;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use super::api::{BodyClaim, SignedQuery};
use super::body::{ReceivedBody, RequestBody};
use super::error::Error;
use super::exchange::RequestStage;
use super::response::{AnswerBody, HttpResponse};
use super::timeouts::RequestPhase;
use super::{Handoff, HttpService, api, api_route, response};
use crate::console::{Feed, Filter};
use crate::protocol::query::{PlusMeaning, Query, percent_decode};
use access::{COOKIE_NAME, Entrance, Login, SESSION_SECONDS, Way};

pub use access::ConsoleGate;
pub use stream::{FeedStream, serve};

/// Bytes of the body of a question.
/// Questions are a few hundred bytes; what is published goes by the API's own bounds.
const MAX_BODY: usize = 64 << 10;

/// Frequent facts that a feed shows in a second, unless it asks for fewer or more.
/// More than a person can follow, and far less than a busy server has.
const USUAL_RATE: u32 = 200;
/// Most facts a second that a reader may ask for.
const MAX_RATE: u32 = 2_000;

/// An answer that is not there yet.
/// A task's worth of work on the connection's own task, so that it ends with the connection.
pub(super) struct ConsoleReply(Pin<Box<dyn Future<Output = HttpResponse>>>);

impl fmt::Debug for ConsoleReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConsoleReply")
    }
}

impl ConsoleReply {
    /// Polled like any other stage of a request.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<HttpResponse> {
        self.0.as_mut().poll(cx)
    }
}

/// The rest of a path below the console's, with or without the server's prefix, since a proxy may have removed it.
/// `None` for other paths.
pub(super) fn below<'p>(path: &'p str, prefix: &str) -> Option<&'p str> {
    [prefix, ""].into_iter().find_map(|prefix| {
        let rest = path.strip_prefix(prefix)?.strip_prefix("/console")?;
        (rest.is_empty() || rest.starts_with('/')).then_some(rest)
    })
}

impl HttpService {
    /// How the request came, from which follows who may be let in.
    fn way(&self, parts: &Parts) -> Way {
        let trusted = &self.http.trusted_proxies;
        Way {
            peer: self.peer,
            client: response::client_address(trusted, self.peer, &parts.headers),
            tls: self.tls || response::came_by_tls(trusted, self.peer, &parts.headers),
            unix: self.unix,
        }
    }

    /// Decides how to handle a request below the console's path. Access is checked first, by the connection and its
    /// headers alone; then the routes. If the console is off, its paths are answered like any that do not exist.
    pub(super) fn open_console(&self, parts: Parts, body: RequestBody) -> RequestStage {
        let path = parts.uri.path().to_owned();
        // The router has checked the prefix, so the rest exists.
        let rest = below(&path, &self.http.prefix).unwrap_or_default();
        let way = self.way(&parts);
        let entrance = if self.role.refuses(&["console"]) {
            Entrance::Off
        } else {
            self.http.console.admit(&parts, way)
        };
        let is_page = matches!(rest, "" | "/");
        let answer = match entrance {
            Entrance::Off => refusal(StatusCode::NOT_FOUND, "Not found."),
            Entrance::Closed(why) => refusal(StatusCode::FORBIDDEN, why),
            // Any page may be opened by a link, but nothing else of the console is for a page of another origin.
            _ if !is_page && access::is_from_elsewhere(&parts.headers) => {
                let why = "The console answers no page of another origin.";
                refusal(StatusCode::FORBIDDEN, why)
            }
            entrance => {
                let open = entrance == Entrance::Open;
                match (parts.method.as_str(), rest) {
                    ("GET" | "HEAD", "") => pages::page(open),
                    ("GET" | "HEAD", "/") => pages::to_page(),
                    ("GET" | "HEAD", file) if pages::asset(file).is_some() => {
                        pages::asset(file).unwrap_or_else(pages::to_page)
                    }
                    ("POST", "/login") => return self.reply(parts, body, way, Question::LogIn),
                    ("POST", "/logout") => return self.reply(parts, body, way, Question::LogOut),
                    // Everything from here on says something of the server.
                    _ if !open => refusal(StatusCode::UNAUTHORIZED, "The console wants its token."),
                    ("GET", "/feed") => self.begin_feed(&parts),
                    ("GET", "/state") => self.state(&parts, way),
                    ("GET", asked) if asked == "/sockets" || asked.starts_with("/sockets/") => {
                        return self.reply(parts, body, way, Question::Sockets);
                    }
                    ("POST", "/authorize") => {
                        return self.reply(parts, body, way, Question::Authorize);
                    }
                    ("POST", "/sign") => return self.reply(parts, body, way, Question::Sign),
                    // With all checks of the API but the signature.
                    (_, called) if called.starts_with("/apps/") => {
                        return self.call_api(called, parts, body);
                    }
                    ("GET" | "HEAD", _) => refusal(StatusCode::NOT_FOUND, "Not found."),
                    _ => {
                        let mut answer =
                            refusal(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed.");
                        answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, POST"));
                        answer
                    }
                }
            }
        };
        self.timer.enter_phase(RequestPhase::Idle, self.now_seconds());
        RequestStage::answered(answer, &parts, body)
    }

    /// A question whose answer needs the body, or others.
    /// Where a body has to be read, or workers asked. Anything else is answered at once.
    fn reply(&self, parts: Parts, body: RequestBody, way: Way, question: Question) -> RequestStage {
        self.timer.enter_phase(RequestPhase::Body, self.now_seconds());
        let door = self.clone();
        RequestStage::Console(ConsoleReply(Box::pin(async move {
            let answered = door.answer_question(&parts, body, way, question).await;
            door.timer.enter_phase(RequestPhase::Idle, door.now_seconds());
            answered.unwrap_or_else(|error| refusal(error.status(), &error.to_string()))
        })))
    }

    /// # Errors
    /// The error of the API, which the page shows.
    async fn answer_question(
        &self,
        parts: &Parts,
        body: RequestBody,
        way: Way,
        question: Question,
    ) -> Result<HttpResponse, Error> {
        if question == Question::Sockets {
            return self.sockets(parts).await;
        }
        // A form on another site cannot send JSON as its content type, so this stops forged requests.
        let kind = parts.headers.get(hyper::header::CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        // A form of another page could send such a request with the person's cookie, but no form sends JSON.
        if !kind.starts_with("application/json") {
            return Err(Error::BadRequest("Content-Type must be application/json.".to_owned()));
        }
        let body = read(body).await?;
        let body: Value = serde_json::from_slice(&body)
            .map_err(|_| Error::BadRequest("The body must be JSON.".to_owned()))?;
        match question {
            Question::LogIn => Ok(self.log_in(&body, way)),
            Question::LogOut => Ok(with_cookie(ok(), way, "", 0, &self.cookie_path(parts))),
            Question::Authorize => self.authorize(&body).map(|value| private(&value)),
            Question::Sign => self.sign(&body).map(|value| private(&value)),
            Question::Sockets => self.sockets(parts).await,
        }
        .map(|answer| match question {
            Question::LogIn if answer.status() == StatusCode::OK => {
                let session = self.http.console.session();
                with_cookie(answer, way, &session, SESSION_SECONDS, &self.cookie_path(parts))
            }
            _ => answer,
        })
    }

    /// Without a token there is nothing to be logged in with, and nothing is locked.
    fn log_in(&self, body: &Value, way: Way) -> HttpResponse {
        if !self.http.console.is_by_token() {
            return ok();
        }
        // A body without a token is compared like one with an empty token.
        let token = body.get("token").and_then(Value::as_str).unwrap_or_default();
        match self.http.console.log_in(token, way.client) {
            Login::Right => ok(),
            Login::Wrong => refusal(StatusCode::UNAUTHORIZED, "That is not the token."),
            Login::TooMany => {
                let why = "Too many wrong tokens came from there: try again in a minute.";
                refusal(StatusCode::TOO_MANY_REQUESTS, why)
            }
        }
    }

    /// The path that the cookie is for: the console's as the browser sees it from here.
    /// Behind a proxy that changes paths the browser knows the path as it asked for it, which is what the cookie
    /// must have.
    fn cookie_path(&self, parts: &Parts) -> String {
        let path = parts.uri.path();
        // A path outside the prefix is taken as a whole.
        let rest = below(path, &self.http.prefix).unwrap_or_default();
        path.strip_suffix(rest).unwrap_or(path).to_owned()
    }

    /// Begins a feed on the connection that asks for it.
    /// The filter, the rate and whether payloads are wanted come in the query. The connection belongs to the feed
    /// from then on.
    fn begin_feed(&self, parts: &Parts) -> HttpResponse {
        // Without a query the feed has no filter.
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        let filter = match Filter::parse(|name| query.get(name)) {
            Ok(filter) => filter,
            Err(why) => return refusal(StatusCode::BAD_REQUEST, &why),
        };
        let rate = query.get("rate").and_then(|rate| rate.parse().ok()).unwrap_or(USUAL_RATE);
        let payloads = query.get("payloads").is_some_and(|wanted| wanted != "0");
        let feed = Feed::new(filter, payloads, rate.clamp(1, MAX_RATE));
        // A feed costs every event a look, so there are few.
        let Some(watching) = self.http.node.hub().console.watch(feed) else {
            let why = "As many consoles look as may at a time.";
            return refusal(StatusCode::SERVICE_UNAVAILABLE, why);
        };
        let feed = FeedStream { watching, before: Vec::new() };
        *self.handoff.borrow_mut() = Some(Handoff::Feed(Box::new(feed)));
        // The client is never sent this: it only makes hyper let go of the stream.
        response::switching_response()
    }

    /// A call of the API, with the console in the place of a signature.
    /// The app is found by its id alone, and may be one that only a database has if it is known by now.
    fn call_api(&self, called: &str, parts: Parts, body: RequestBody) -> RequestStage {
        let segments: Vec<&str> = called.split('/').filter(|one| !one.is_empty()).collect();
        let opened = match segments.as_slice() {
            ["apps", id, rest @ ..] => api_route(rest).ok_or(Error::NotFound).and_then(|found| {
                let (route, allowed) = found;
                // The first is the one that does the work.
                if allowed.split(',').next() != Some(parts.method.as_str()) {
                    return Err(Error::MethodNotAllowed(allowed));
                }
                let apps = self.http.node.shared.apps.load();
                Ok((api::find_app(&apps, Some(&percent_decode(id)), "")?, route))
            }),
            _ => Err(Error::NotFound),
        };
        let is_json = parts.headers.get(hyper::header::CONTENT_TYPE);
        let is_json = is_json.is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
        let opened = match opened {
            Ok(_) if parts.method == Method::POST && !is_json => {
                Err(Error::BadRequest("Content-Type must be application/json.".to_owned()))
            }
            opened => opened,
        };
        match opened {
            Ok((app, route)) => {
                self.timer.enter_phase(RequestPhase::Body, self.now_seconds());
                let claims =
                    // Nobody has signed a body that the page made up.
                    SignedQuery { body: BodyClaim::Any, asks: true, plus: PlusMeaning::Plus };
                self.read_call((parts, body), (app, route, claims), Instant::now())
            }
            Err(error) => {
                self.timer.enter_phase(RequestPhase::Idle, self.now_seconds());
                RequestStage::answered(refusal(error.status(), &error.to_string()), &parts, body)
            }
        }
    }
}

/// Requests that are answered later. Those with a body are `POST`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Question {
    /// With the token.
    LogIn,
    /// Takes the cookie back.
    LogOut,
    /// A signature for a subscription or a sign-in.
    Authorize,
    /// A signature for a request from a terminal.
    Sign,
    /// Which sockets there are.
    Sockets,
}

/// Bounded like every body.
///
/// # Errors
/// It is larger than [`MAX_BODY`], or ends early.
async fn read(mut body: RequestBody) -> Result<Bytes, Error> {
    let mut received = ReceivedBody::Nothing;
    std::future::poll_fn(|cx| received.poll_all(&mut body, MAX_BODY, cx)).await?;
    Ok(Bytes::copy_from_slice(received.bytes()))
}

/// A response that no proxy or browser may store.
fn private(value: &Value) -> HttpResponse {
    let mut answer = response::value_response(AnswerBody::Text(value.to_string().into()), None);
    keep_private(&mut answer);
    answer
}

/// A response whose status says everything.
fn ok() -> HttpResponse {
    private(&json!({}))
}

/// As the API's refusals look, so that the page reads one form.
fn refusal(status: StatusCode, why: &str) -> HttpResponse {
    let mut answer = private(&json!({ "error": why, "code": status.as_u16() }));
    *answer.status_mut() = status;
    answer
}

/// Not readable by scripts, sent to this server alone, and only over TLS if it came by that.
fn with_cookie(
    mut answer: HttpResponse,
    way: Way,
    value: &str,
    seconds: u64,
    path: &str,
) -> HttpResponse {
    let secure = if way.tls { "; Secure" } else { "" };
    let cookie = format!(
        "{COOKIE_NAME}={value}; Path={path}; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}"
    );
    if let Ok(cookie) = HeaderValue::from_str(&cookie) {
        answer.headers_mut().insert(SET_COOKIE, cookie);
    }
    answer
}

/// Makes a response of the API private to the console's page.
pub(super) fn keep_private(answer: &mut HttpResponse) {
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    pages::harden(answer);
}

/// Whether a request is below the console's path.
pub(super) fn is_below(parts: &Parts, prefix: &str) -> bool {
    below(parts.uri.path(), prefix).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_paths_are_known_with_and_without_the_prefix() {
        for (path, prefix, rest) in [
            ("/console", "", Some("")),
            ("/console/feed", "", Some("/feed")),
            ("/ws/console/feed", "/ws", Some("/feed")),
            ("/console/feed", "/ws", Some("/feed")),
            ("/consoles", "", None),
            ("/apps/1/console", "", None),
        ] {
            assert_eq!(below(path, prefix), rest, "{path}");
        }
    }
}
