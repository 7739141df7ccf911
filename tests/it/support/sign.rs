//! The signatures of the protocol, written a second time from its description, and what they need.

use fanfare::protocol::hex;
use hmac::{Hmac, KeyInit, Mac};
use md5::{Digest, Md5};
use sha2::Sha256;

/// HMAC-SHA256 in lower-case hex.
pub fn hmac_hex(secret: &str, text: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(text.as_bytes());
    hex::encode_hex(mac.finalize().into_bytes())
}

/// MD5 in lower-case hex.
pub fn md5_hex(bytes: &[u8]) -> String {
    hex::encode_hex(Md5::digest(bytes))
}

/// Seconds since 1970.
pub fn now() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    now.as_secs() as i64
}

/// `%41` and the like turned into what they stand for; anything else stays.
pub fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let byte = (bytes[at] == b'%')
            .then(|| text.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok()))
            .flatten();
        decoded.push(byte.unwrap_or(bytes[at]));
        at += if byte.is_some() { 3 } else { 1 };
    }
    String::from_utf8(decoded).unwrap()
}

/// A request to the API as an SDK signs it. Fields change what it claims, for the cases in which a
/// signature is wrong or unusual.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// With its query, as it is to stand in the request's first line.
    pub target: String,
    pub body: String,
    pub key: String,
    pub secret: String,
    pub timestamp: String,
    pub version: String,
    /// Instead of the body's; none for a GET and other requests without a body.
    pub md5: Option<String>,
    /// Instead of the right one.
    pub signature: Option<String>,
    /// Instead of the target's path: an SDK may sign another spelling.
    pub signed_path: Option<String>,
    /// Parameters to leave out, before signing.
    pub without: Vec<String>,
    /// Where `auth_signature` stands in the query.
    pub place: Place,
    /// Whether the names of parameters are sent in capitals (and signed in small letters).
    pub capitals: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    First,
    Middle,
    Last,
}

impl Request {
    pub fn new(method: &str, target: &str, body: &str, key: &str, secret: &str) -> Self {
        Self {
            method: method.to_owned(),
            target: target.to_owned(),
            body: body.to_owned(),
            key: key.to_owned(),
            secret: secret.to_owned(),
            timestamp: now().to_string(),
            version: "1.0".to_owned(),
            md5: (!body.is_empty()).then(|| md5_hex(body.as_bytes())),
            signature: None,
            signed_path: None,
            without: Vec::new(),
            place: Place::Last,
            capitals: false,
        }
    }

    /// The target with its signed query.
    pub fn signed_target(&self) -> String {
        let (path, query) = self.target.split_once('?').unwrap_or((&self.target, ""));
        let mut pairs: Vec<(String, String)> = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let mut add = |name: &str, value: &str| pairs.push((name.to_owned(), value.to_owned()));
        add("auth_key", &self.key);
        add("auth_timestamp", &self.timestamp);
        add("auth_version", &self.version);
        if let Some(md5) = &self.md5 {
            add("body_md5", md5);
        }
        pairs.retain(|(name, _)| !self.without.contains(name));
        let mut decoded: Vec<(String, String)> = pairs
            .iter()
            .map(|(name, value)| (percent_decode(name).to_lowercase(), percent_decode(value)))
            .collect();
        decoded.sort_by(|a, b| a.0.cmp(&b.0));
        let parameters: Vec<String> =
            decoded.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let signed_path = self.signed_path.as_deref().unwrap_or(path);
        let text = format!("{}\n{signed_path}\n{}", self.method, parameters.join("&"));
        let signature = self.signature.clone().unwrap_or_else(|| hmac_hex(&self.secret, &text));
        if !self.without.iter().any(|name| name == "auth_signature") {
            let at = match self.place {
                Place::First => 0,
                Place::Middle => pairs.len() / 2,
                Place::Last => pairs.len(),
            };
            pairs.insert(at, ("auth_signature".to_owned(), signature));
        }
        let sent: Vec<String> = pairs
            .iter()
            .map(|(name, value)| {
                let name = if self.capitals { name.to_uppercase() } else { name.clone() };
                format!("{name}={value}")
            })
            .collect();
        if sent.is_empty() { path.to_owned() } else { format!("{path}?{}", sent.join("&")) }
    }
}

/// The vectors that the protocol's documents and its SDKs' tests agree on.
#[test]
fn the_published_signatures_come_out() {
    let secret = "7ad3773142a6692b25b8";
    assert_eq!(
        hmac_hex(secret, "1234.1234:private-foobar"),
        "58df8b0c36d6982b82c3ecf6b4662e34fe8c25bba48f5369f135bf843651c3a4"
    );
    let body = r#"{"name":"foo","channels":["project-3"],"data":"{\"some\":\"data\"}"}"#;
    let mut request = Request::new("POST", "/apps/3/events", body, "278d425bdf160c739803", secret);
    request.timestamp = "1353088179".to_owned();
    assert!(
        request
            .signed_target()
            .ends_with("da454824c97ba181a32ccc17a72625ba02771f50b50e1e7430e47a1f3f457e6c")
    );
}
