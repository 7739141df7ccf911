//! The page's requests: the list of apps, signatures for trying things out, and the list of sockets. No response
//! contains a secret or anything that would reveal one.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use hyper::http::request::Parts;
use serde_json::{Value, json};

use super::access::{self, Way};
use super::{below, private};
use crate::app::{App, ClientEvents};
use crate::config;
use crate::http::HttpService;
use crate::http::error::Error;
use crate::http::response::HttpResponse;
use crate::hub::described::{SocketQuery, SocketView};
use crate::protocol::auth::md5_hex;
use crate::protocol::query::{Query, percent_decode};
use crate::protocol::socket_id::SocketId;

/// Most apps in a list.
const MAX_APPS: usize = 1_000;

impl HttpService {
    /// The state for a page that was just opened: the server, its address as the page reached it, and the apps with
    /// their settings.
    pub(super) fn state(&self, parts: &Parts, way: Way) -> HttpResponse {
        let http = &self.http;
        let host = access::host(&parts.headers).map(|host| host.to_string());
        let scheme = if way.tls { "https" } else { "http" };
        let origin = host.map(|host| format!("{scheme}://{host}"));
        let apps = http.node.shared.apps.load();
        let mut all: Vec<&Arc<App>> = apps.iter().collect();
        // By ID, so that the page's list stays as it was when it is read again.
        all.sort_by(|a, b| a.id.as_str().cmp(b.id.as_str()));
        let told = all.into_iter().take(MAX_APPS).map(|app| about(app, origin.as_deref()));
        private(&json!({
            "version": config::VERSION,
            "node": http.node.hub().node_number(),
            "cluster": http.node.shared.scope.is_link_up().is_some(),
            "workers": http.node.hub().worker_count(),
            "prefix": http.prefix,
            "fallback": http.fallback,
            "sockets_port": http.console.sockets_port,
            "is_by_token": http.console.is_by_token(),
            "made": http.console.made_app,
            "apps": told.collect::<Vec<_>>(),
        }))
    }

    /// The app that a question is about. Only apps that are known by now: a page asks nothing of a
    /// database.
    fn app_of(&self, body: &Value) -> Result<Arc<App>, Error> {
        let id = text(body, "app")?;
        let apps = self.http.node.shared.apps.load();
        apps.by_id(id).cloned().ok_or_else(|| Error::NoSuchApp(id.to_owned()))
    }

    /// Signs the page's own subscription or sign-in, as an app's backend would.
    ///
    /// # Errors
    /// 400 for a parameter that is missing or wrong, 404 for an app that is not known.
    pub(super) fn authorize(&self, body: &Value) -> Result<Value, Error> {
        let (app, socket) = (self.app_of(body)?, text(body, "socket_id")?);
        if SocketId::parse(socket).is_none() {
            return Err(Error::mistyped_parameter("socket_id", "two numbers with a dot between"));
        }
        let sign = |parts: &[&str]| format!("{}:{}", app.key, app.signer.sign(parts));
        if let Some(user) = body.get("user_data").and_then(Value::as_str) {
            return Ok(json!({ "auth": sign(&[socket, "::user::", user]), "user_data": user }));
        }
        let channel = text(body, "channel")?;
        match body.get("channel_data").and_then(Value::as_str) {
            Some(data) => {
                let auth = sign(&[socket, ":", channel, ":", data]);
                Ok(json!({ "auth": auth, "channel_data": data }))
            }
            None => Ok(json!({ "auth": sign(&[socket, ":", channel]) })),
        }
    }

    /// Signs a request to the API that a person will send from a terminal: the query, which holds for as long as the
    /// app takes its time for right.
    pub(super) fn sign(&self, body: &Value) -> Result<Value, Error> {
        let (app, sent) = (self.app_of(body)?, text(body, "body")?);
        let path = format!("{}/apps/{}/events", self.http.prefix, app.id);
        // A clock before 1970 signs with 0, and the console shows the server's own refusal.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let (key, hash) = (&app.key, md5_hex(sent.as_bytes()));
        let query = format!("auth_key={key}&auth_timestamp={now}&auth_version=1.0&body_md5={hash}");
        let signature = app.signer.sign(&["POST\n", &path, "\n", &query]);
        Ok(json!({ "path": path, "query": format!("{query}&auth_signature={signature}") }))
    }

    /// The sockets of this node that the query is about, or the one that the path names.
    pub(super) async fn sockets(&self, parts: &Parts) -> Result<HttpResponse, Error> {
        // Without a query all sockets are listed; without a rest of the path no single one is meant.
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        let rest = below(parts.uri.path(), &self.http.prefix).unwrap_or_default();
        let named = rest.strip_prefix("/sockets/").filter(|id| !id.is_empty());
        let socket = match named {
            Some(id) => Some(SocketId::parse(&percent_decode(id)).ok_or(Error::NotFound)?),
            None => None,
        };
        let asked = |name| query.get(name).filter(|text| !text.is_empty()).map(str::to_owned);
        let query = SocketQuery {
            socket,
            app: asked("app"),
            channel: asked("channel"),
            user: asked("user"),
        };
        let mut all = Vec::new();
        for answered in self.http.node.hub().describe(&query) {
            // A worker that has ended carries none.
            all.extend(answered.await.unwrap_or_default());
        }
        if named.is_some() {
            let found = all.first().map(view).ok_or(Error::NotFound)?;
            return Ok(private(&found));
        }
        all.sort_by_key(|one| one.age);
        Ok(private(&json!({ "sockets": all.iter().map(view).collect::<Vec<_>>() })))
    }
}

/// A field of the question that must be a text.
fn text<'v>(body: &'v Value, name: &'static str) -> Result<&'v str, Error> {
    body.get(name).and_then(Value::as_str).ok_or_else(|| Error::missing_parameter(name))
}

/// An app, without what is secret of it.
fn about(app: &App, origin: Option<&str>) -> Value {
    let client_events = match app.client_events {
        ClientEvents::None => "none",
        ClientEvents::Private => "private",
        ClientEvents::Members => "members",
    };
    json!({
        "id": app.id.as_str(),
        "key": &*app.key,
        "name": &*app.name,
        "enabled": app.enabled,
        "client_events": client_events,
        "compression": app.features.compression,
        "resume": app.features.resume.as_secs(),
        "watchlist": app.features.watchlist,
        "subscription_count": app.features.subscription_count,
        "webhooks": app.webhooks.len(),
        "require_tls": app.require_tls,
        // Whether the console's own page may open sockets to the app.
        "admits_this_origin": app.allows_origin(origin),
    })
}

/// A socket for people: the address without the IPv4-in-IPv6 form, times in seconds.
fn view(one: &SocketView) -> Value {
    let channel = |(name, user): &(String, Option<String>)| json!({ "name": name, "user": user });
    json!({
        "id": one.id.to_string(),
        "app": one.app,
        "address": one.address.to_canonical().to_string(),
        "user": one.user,
        "age": one.age,
        "silent": one.silent,
        "channels": one.channels.iter().map(channel).collect::<Vec<_>>(),
        "channel_count": one.channel_count,
        "waiting": one.waiting,
        "transport": one.transport,
        "compressed": one.is_compressed,
        "resumable": one.is_resumable,
    })
}
