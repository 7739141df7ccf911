//! Where a script happens: a server, started for it or given, and the connections it names.

use std::any::Any;
use std::collections::HashMap;
use std::net::{SocketAddr, ToSocketAddrs};

use fanfare::app::App;

use super::expand::expand;
use super::expect::{check, glob, render, same};
use super::fence::{hear_out, read_until};
use super::say::{says, subscription};
use super::script::Script;
use super::settings::{set_app, set_server};
use super::step::{Api, Door, Step};
use crate::support::eventually;
use crate::support::fixture::{Fixture, ID, KEY, SECRET, established, target, trigger};
use crate::support::http::{Http, Response};
use crate::support::sign::{Place, Request, now};
use crate::support::websocket::{CLOSE, Client, FIN, Heard};

/// Why a line failed, and what it would say if what happened were right.
pub struct Failure {
    pub what: String,
    pub better: Option<String>,
}

impl Failure {
    fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), better: None }
    }

    /// A step that panicked. One that waited in vain should have heard nothing.
    pub fn of(step: &Step, panic: &(dyn Any + Send)) -> Self {
        let mut failure = Self::from_panic(panic);
        if let Step::Hears { who, .. } = step
            && failure.what.starts_with("heard nothing in time")
        {
            failure.better = Some(format!("{who} hears nothing"));
        }
        failure
    }

    pub fn from_panic(panic: &(dyn Any + Send)) -> Self {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        Self::new(text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panicked"))
    }
}

/// The server that a script speaks to. What a script can ask of it is what any transport must offer:
/// open a connection, ask the API.
enum Transport {
    Started(Box<Fixture>),
    Given(SocketAddr),
}

impl Transport {
    fn addr(&self) -> SocketAddr {
        match self {
            Self::Started(fixture) => fixture.addr,
            Self::Given(addr) => *addr,
        }
    }

    /// Whether the server is ours, so that what only we promise can be asserted.
    fn is_ours(&self) -> bool {
        matches!(self, Self::Started(_))
    }
}

/// What a client and a backend know of their app.
#[derive(Clone)]
pub struct Credentials {
    pub id: String,
    pub key: String,
    pub secret: String,
}

/// A connection that a script has opened.
struct Peer {
    client: Client,
    /// What is to go out together with the next line.
    held: Vec<u8>,
    app: Credentials,
    established: bool,
}

pub struct World {
    transport: Transport,
    apps: Vec<Credentials>,
    peers: HashMap<String, Peer>,
    answers: HashMap<String, Response>,
    values: HashMap<String, String>,
    fences: usize,
}

impl World {
    /// Starts the server that the script's first lines describe, or takes the one at the URL `against`.
    pub fn new(script: &Script, against: Option<&str>) -> Self {
        let mut apps = vec![(String::new(), App::new(ID, KEY, SECRET))];
        let mut credentials = vec![given_app(against)];
        let mut server = Vec::new();
        for (_, step) in &script.steps {
            match step {
                Step::App { name, settings } => {
                    if !apps.iter().any(|(known, _)| known == name) {
                        let setting = |wanted: &str| {
                            let found = settings.iter().find(|(setting, _)| setting == wanted);
                            found.expect("a further app has id, key and secret").1.clone()
                        };
                        let [id, key, secret] = ["id", "key", "secret"].map(setting);
                        apps.push((name.clone(), App::new(&id, &key, &secret)));
                        credentials.push(Credentials { id, key, secret });
                    }
                    let (_, app) = apps.iter_mut().find(|(known, _)| known == name).unwrap();
                    settings.iter().for_each(|(setting, value)| set_app(app, setting, value));
                }
                Step::Server { settings } => server.extend(settings.clone()),
                _ => {}
            }
        }
        let mut values = HashMap::new();
        for ((name, _), app) in apps.iter().zip(&credentials) {
            let dot = if name.is_empty() { "" } else { "." };
            for (part, value) in [("id", &app.id), ("key", &app.key), ("secret", &app.secret)] {
                values.insert(format!("{name}{dot}{part}"), value.clone());
            }
        }
        // Nobody has used a name with this in it before, on a given server neither.
        let unique = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        values.insert("unique".to_owned(), unique.as_micros().to_string());
        let transport = match against {
            Some(url) => Transport::Given(resolve(url)),
            None => Transport::Started(Box::new(Fixture::with_apps(
                apps.into_iter().map(|(_, app)| app).collect(),
                |config| server.iter().for_each(|(name, value)| set_server(config, name, value)),
            ))),
        };
        let (peers, answers) = (HashMap::new(), HashMap::new());
        Self { transport, apps: credentials, peers, answers, values, fences: 0 }
    }

    /// Does what one line says.
    pub fn take(&mut self, step: &Step) -> Result<(), Failure> {
        match step {
            Step::App { .. } | Step::Server { .. } => Ok(()),
            Step::Let { name, value } => {
                let value = expand(value, &self.values);
                self.values.insert(name.clone(), value);
                Ok(())
            }
            Step::Connects { who, door } => self.connect(who, door),
            Step::Opens { who, door, refused } => self.open(who, door, *refused),
            Step::Answered { who, header, value } => self.answered(who, header, value.as_deref()),
            Step::Says { who, what, held } => self.say(who, &expand(what, &self.values), *held),
            Step::Hears { who, what } => self.hear(who, &expand(what, &self.values)),
            Step::HearsNothing { who } => self.hear_nothing(who),
            Step::Closes { who } => {
                let peer = self.peer(who);
                peer.client.send_close(1000, "");
                while peer.client.hear() != Heard::End {}
                self.peers.remove(who);
                Ok(())
            }
            Step::Vanishes { who } => {
                self.peers.remove(who);
                Ok(())
            }
            Step::Api(api) => self.ask(api),
        }
    }

    /// Closes what is open, and waits until a given server has noticed: the next script begins there too.
    pub fn leave(mut self) {
        if self.transport.is_ours() {
            return;
        }
        for (_, peer) in self.peers.drain() {
            let mut client = peer.client;
            client.send_close(1000, "");
            while client.hear() != Heard::End {}
        }
        let app = &self.apps[0];
        let target = format!("/apps/{}/channels", app.id);
        let channels = Request::new("GET", &target, "", &app.key, &app.secret);
        let empty = eventually(|| {
            let answer = Http::connect(self.transport.addr()).ask_signed(&channels);
            let left = answer.json()["channels"].as_object().is_some_and(serde_json::Map::is_empty);
            if left { Ok(()) } else { Err(answer.text().to_owned()) }
        });
        assert_eq!(empty, Ok(()), "these channels are still occupied");
    }

    fn peer(&mut self, who: &str) -> &mut Peer {
        self.peers.get_mut(who).unwrap_or_else(|| panic!("{who} is not connected"))
    }

    fn connect(&mut self, who: &str, door: &Door) -> Result<(), Failure> {
        self.open(who, door, None)?;
        let peer = self.peer(who);
        let heard = peer.client.hear();
        let Heard::Text(text) = &heard else {
            return Err(Failure::new(format!("heard {}", render(&heard))));
        };
        let socket_id =
            established(text).map_err(|error| Failure::new(format!("{error}: {text}")))?;
        peer.established = true;
        self.values.insert(format!("{who}.socket"), socket_id);
        Ok(())
    }

    fn open(&mut self, who: &str, door: &Door, refused: Option<u16>) -> Result<(), Failure> {
        let mut path = expand(&door.target, &self.values);
        if path.is_empty() {
            path = target(&self.apps[0].key);
        } else if path.starts_with('?') {
            path.insert_str(0, &format!("/app/{}", self.apps[0].key));
        }
        let app =
            self.apps.iter().find(|app| path.contains(&app.key)).unwrap_or(&self.apps[0]).clone();
        let status = match Client::open(self.transport.addr(), &path, &door.headers) {
            Ok(client) => {
                self.answers.insert(who.to_owned(), client.response.clone());
                let peer = Peer { client, held: Vec::new(), app, established: false };
                self.peers.insert(who.to_owned(), peer);
                101
            }
            Err(response) => {
                let status = response.status;
                if self.transport.is_ours() {
                    response.error(status);
                }
                self.answers.insert(who.to_owned(), response);
                status
            }
        };
        if status == refused.unwrap_or(101) {
            return Ok(());
        }
        Err(Failure::new(format!("the handshake was answered with {status}")))
    }

    fn answered(&self, who: &str, header: &str, value: Option<&str>) -> Result<(), Failure> {
        let found = self.answers[who].header(header);
        let same = match (value, found) {
            (Some(value), Some(found)) => glob(value, found),
            (None, None) => true,
            _ => false,
        };
        if same { Ok(()) } else { Err(Failure::new(format!("{header}: {found:?}"))) }
    }

    fn say(&mut self, who: &str, what: &str, held: bool) -> Result<(), Failure> {
        let socket = self.values.get(&format!("{who}.socket")).cloned().unwrap_or_default();
        let peer = self.peer(who);
        let bytes = says(what, &socket, &peer.app).map_err(Failure::new)?;
        peer.held.extend(bytes);
        if !held {
            let bytes = std::mem::take(&mut peer.held);
            peer.client.send_bytes(&bytes);
        }
        Ok(())
    }

    fn hear(&mut self, who: &str, what: &str) -> Result<(), Failure> {
        if let Some(rest) = what.strip_prefix("refused ") {
            return self.hear_refusal(who, rest);
        }
        let heard = self.peer(who).client.hear();
        let result = check(what, &heard);
        if let Heard::Close(_) = heard
            && result.is_ok()
        {
            let peer = self.peer(who);
            peer.client.send_frame(FIN | CLOSE, &[]);
            let end = peer.client.hear();
            return check("end", &end).map_err(|error| Failure::new(format!("after it {error}")));
        }
        result.map_err(|what| Failure {
            what,
            better: Some(format!("{who} < {}", self.said(&heard))),
        })
    }

    /// A refused subscription is said twice, for the clients that understand only the one or the other.
    fn hear_refusal(&mut self, who: &str, rest: &str) -> Result<(), Failure> {
        let first = self.peer(who).client.hear();
        let result = check(&format!("subscription_error {rest}"), &first);
        if let Err(what) = result {
            return Err(Failure { what, better: Some(format!("{who} < {}", self.said(&first))) });
        }
        if !self.transport.is_ours() {
            return Ok(());
        }
        let second = self.peer(who).client.hear();
        check("error 4009", &second)
            .map_err(|error| Failure::new(format!("after subscription_error {error}")))
    }

    /// What was heard, with the names of what changes from run to run.
    fn said(&self, heard: &Heard) -> String {
        let mut text = render(heard);
        for (name, value) in &self.values {
            if name.ends_with(".socket") {
                text = text.replace(value, &format!("${name}"));
            }
        }
        text
    }

    /// Makes sure by order, not by waiting: everyone else is heard out with a ping, then an event on a
    /// channel of its own follows whatever may still be on its way to this connection.
    fn hear_nothing(&mut self, who: &str) -> Result<(), Failure> {
        for (name, other) in &mut self.peers {
            if name != who && other.established {
                hear_out(&mut other.client);
            }
        }
        self.fences += 1;
        let fence = format!("fence-{}", self.fences);
        let addr = self.transport.addr();
        let peer = self.peer(who);
        let mut heard: Vec<Heard> = peer.client.waiting.drain(..).collect();
        let is_fence = |text: &str| text.contains(&format!(r#""channel":"{fence}""#));
        let mut before = usize::MAX;
        if peer.established {
            peer.client.send_text(&subscription(&fence, None, ""));
            read_until(&mut peer.client, &mut heard, |text| {
                is_fence(text) && text.contains("subscription_succeeded")
            });
            before = heard.len();
            let path = format!("/apps/{}/events", peer.app.id);
            let body = trigger(&fence, "fence", "1");
            let request = Request::new("POST", &path, &body, &peer.app.key, &peer.app.secret);
            let answer = Http::connect(addr).ask_signed(&request);
            assert_eq!(answer.status, 200, "{}", answer.text());
            read_until(&mut peer.client, &mut heard, |text| {
                is_fence(text) && text.contains(r#""event":"fence""#)
            });
            let unsubscribe =
                format!(r#"{{"event":"pusher:unsubscribe","data":{{"channel":"{fence}"}}}}"#);
            peer.client.send_text(&unsubscribe);
        }
        hear_out(&mut peer.client);
        heard.extend(peer.client.waiting.drain(..));
        // A client that may come back is to acknowledge the fence's event, if that took long.
        let is_asked = |text: &str| text.contains("pusher:ping");
        let mut number = 0;
        heard.retain(|heard| {
            number += 1;
            // In a cluster the fence's count may be told after its event.
            !matches!(heard, Heard::Text(text)
                if is_fence(text) || (number > before && is_asked(text)))
        });
        if heard.is_empty() {
            return Ok(());
        }
        let lines: Vec<String> =
            heard.iter().map(|heard| format!("{who} < {}", self.said(heard))).collect();
        let better = lines.join("\n");
        Err(Failure { what: better.clone(), better: Some(better) })
    }

    fn ask(&self, api: &Api) -> Result<(), Failure> {
        let question = || {
            let response = self.request(api);
            let found = format!("{} {}", response.status, response.text().trim());
            match self.is_right(api, &response) {
                Ok(()) => Ok(()),
                Err(why) => Err((why, found)),
            }
        };
        let mut last = String::new();
        let result = if api.eventually {
            eventually(|| {
                question().map_err(|(why, found)| {
                    last.clone_from(&found);
                    format!("{why}: {found}")
                })
            })
        } else {
            question().map_err(|(why, found)| {
                last.clone_from(&found);
                format!("{why}: {found}")
            })
        };
        result.map_err(|what| Failure { what, better: Some(format!("{} -> {last}", api.question)) })
    }

    fn request(&self, api: &Api) -> Response {
        let mut http = Http::connect(self.transport.addr());
        let target = expand(&api.target, &self.values);
        let body = expand(&api.body, &self.values);
        let flag = |wanted: &str| {
            let found = api.flags.iter().find(|(name, _)| name == wanted);
            found.map(|(_, value)| expand(value, &self.values))
        };
        let app = match flag("app") {
            Some(id) => self.apps.iter().find(|app| app.id == id).expect("an app with this id"),
            None => &self.apps[0],
        };
        if !api.signed {
            return http.ask(&api.method, &target, "", body.as_bytes());
        }
        let target =
            if target.starts_with('/') { target } else { format!("/apps/{}/{target}", app.id) };
        let mut request = Request::new(&api.method, &target, &body, &app.key, &app.secret);
        for (name, value) in &api.flags {
            let value = expand(value, &self.values);
            match name.as_str() {
                "app" => {}
                "timestamp" => {
                    let offset: i64 = value.parse().expect("seconds");
                    request.timestamp = (now() + offset).to_string();
                }
                "at" => request.timestamp = value,
                "key" => request.key = value,
                "secret" => request.secret = value,
                "version" => request.version = value,
                "md5" => request.md5 = Some(value),
                "signature" => request.signature = Some(value),
                "path" => request.signed_path = Some(value),
                "without" => request.without.push(value),
                "capitals" => request.capitals = value == "true",
                "signature_at" => {
                    request.place = match value.as_str() {
                        "first" => Place::First,
                        "middle" => Place::Middle,
                        _ => Place::Last,
                    }
                }
                _ => panic!("{name:?} is nothing a request can have"),
            }
        }
        if request.without.iter().any(|name| name == "body_md5") {
            request.md5 = None;
        }
        http.ask_signed(&request)
    }

    fn is_right(&self, api: &Api, response: &Response) -> Result<(), String> {
        if response.status != api.status {
            return Err("another status".to_owned());
        }
        let wanted = expand(&api.answer, &self.values);
        let error = if api.status >= 400 && self.transport.is_ours() {
            response.error(api.status)
        } else {
            response.text().to_owned()
        };
        if api.status == 200 && self.transport.is_ours() {
            assert_eq!(response.header("content-type"), Some("application/json"));
            assert!(response.json().is_object(), "not an object: {}", response.text());
        }
        let same = if wanted.starts_with('{') {
            let wanted = serde_json::from_str(&wanted).expect("JSON behind the status");
            same(&wanted, &response.json())
        } else {
            wanted.is_empty() || glob(&wanted, &error)
        };
        if same { Ok(()) } else { Err("another answer".to_owned()) }
    }
}

/// The app on a given server: `FANFARE_AGAINST_APP=id:key:secret`, or the one the scripts always use.
fn given_app(against: Option<&str>) -> Credentials {
    let given = against.and_then(|_| std::env::var("FANFARE_AGAINST_APP").ok());
    let parts: Vec<&str> =
        given.as_deref().map_or_else(|| vec![ID, KEY, SECRET], |app| app.split(':').collect());
    let [id, key, secret] = parts[..] else { panic!("FANFARE_AGAINST_APP is id:key:secret") };
    Credentials { id: id.to_owned(), key: key.to_owned(), secret: secret.to_owned() }
}

/// The address in `ws://host:port`.
fn resolve(url: &str) -> SocketAddr {
    let host = url.strip_prefix("ws://").expect("FANFARE_AGAINST=ws://host:port");
    let mut addresses = host.trim_end_matches('/').to_socket_addrs().expect("an address");
    addresses.next().expect("an address")
}
