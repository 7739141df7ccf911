//! Signatures of subscriptions, sign-ins and API requests: HMAC-SHA256 in hex with the app's secret, compared in
//! constant time. The callers check a request's parameters and timestamp.

use super::hex;
use std::borrow::Cow;
use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use md5::{Digest, Md5};
use sha2::Sha256;
use smallvec::SmallVec;

use super::query::{Query, SigningParameter, percent_decode};

/// Signs with one secret, and takes for right what was signed with it or with one of those before it. The
/// key's part of each hash is worked out once, and the secrets themselves are neither kept nor shown.
#[derive(Clone)]
pub struct Signer {
    /// With the secret that holds; the key is hashed already.
    current: Hmac<Sha256>,
    /// With those that held before, the newest first.
    previous: Box<[Hmac<Sha256>]>,
}

impl fmt::Debug for Signer {
    /// A signer must not show up in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer(…)")
    }
}

impl Signer {
    /// HMAC accepts a secret of any length, the empty one included.
    pub fn new(secret: &str) -> Self {
        Self { current: keyed_hmac(secret), previous: Box::default() }
    }

    /// The same, which also takes what was signed with any of `secrets`.
    /// During a change of secrets both sides need not switch at once.
    #[must_use]
    pub fn with_previous<'a>(self, secrets: impl IntoIterator<Item = &'a str>) -> Self {
        Self { previous: secrets.into_iter().map(keyed_hmac).collect(), ..self }
    }

    /// The signature of `parts` as one text, in lower-case hex.
    /// The parts are hashed one after the other, so that nothing is put together first.
    pub fn sign(&self, parts: &[&str]) -> String {
        hex::encode_hex(feed_parts(&self.current, parts).finalize().into_bytes())
    }

    /// Signs with the oldest secret that is still valid, for receivers that may not have the new one yet (case
    /// W11).
    pub fn sign_with_oldest(&self, text: &(impl AsRef<[u8]> + ?Sized)) -> String {
        let mut mac = self.previous.last().unwrap_or(&self.current).clone();
        mac.update(text.as_ref());
        hex::encode_hex(mac.finalize().into_bytes())
    }

    /// The MAC of bytes, with the oldest secret that still holds, for nodes that may not know the new one yet.
    pub fn mac(&self, parts: &[impl AsRef<[u8]>]) -> [u8; 32] {
        mac_of(self.previous.last().unwrap_or(&self.current), parts)
    }

    /// The MACs of bytes with each secret that holds.
    pub fn macs(&self, parts: &[impl AsRef<[u8]>]) -> impl Iterator<Item = [u8; 32]> {
        std::iter::once(&self.current).chain(&*self.previous).map(|key| mac_of(key, parts))
    }

    /// Whether `signature` is the signature of `parts` in hex, in either case. Hex of another length is refused
    /// without a comparison.
    pub fn verify(&self, parts: &[&str], signature: &str) -> bool {
        let mut bytes = [0; 32];
        let keys = || std::iter::once(&self.current).chain(&*self.previous);
        // `verify_slice` compares in constant time, so that the time reveals nothing about a wrong guess.
        hex::decode_to_slice(signature, &mut bytes).is_ok()
            && keys().any(|key| feed_parts(key, parts).verify_slice(&bytes).is_ok())
    }
}

/// The two hashes of the padded key, worked out once for each app.
fn keyed_hmac(secret: &str) -> Hmac<Sha256> {
    match Hmac::new_from_slice(secret.as_bytes()) {
        Ok(mac) => mac,
        // The type says otherwise, for the sake of other MACs.
        Err(_) => unreachable!("HMAC takes a key of any length"),
    }
}

/// A copy of the keyed state: a few hundred bytes instead of hashing the key again.
fn mac_of(key: &Hmac<Sha256>, parts: &[impl AsRef<[u8]>]) -> [u8; 32] {
    let mut mac = key.clone();
    parts.iter().for_each(|part| mac.update(part.as_ref()));
    mac.finalize().into_bytes().into()
}

/// The MAC over the parts one behind the other, not finished yet: it is compared or written out.
fn feed_parts(key: &Hmac<Sha256>, parts: &[&str]) -> Hmac<Sha256> {
    let mut mac = key.clone();
    for part in parts {
        mac.update(part.as_bytes());
    }
    mac
}

/// Why a subscription's or a sign-in's `auth` does not hold.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum AuthError {
    /// None was given; an empty one counts as none.
    Missing,
    /// It is not of the form `KEY:SIGNATURE`, or not of this app's key.
    Key,
    /// It signs something else, or with another secret.
    Signature,
}

/// Checks `auth` for subscribing to `channel`: `KEY:hex(hmac(socket_id:channel[:channel_data]))`. The data counts
/// as the raw text that was sent, whenever there was some (case P06).
/// # Errors
/// The part that does not hold. The client learns only that the signature is invalid; metrics show the part.
pub fn verify_subscription(
    signer: &Signer,
    key: &str,
    auth: Option<&str>,
    socket_id: &str,
    channel: &str,
    channel_data: Option<&str>,
) -> Result<(), AuthError> {
    match channel_data {
        None => verify_auth(signer, key, auth, &[socket_id, ":", channel]),
        Some(data) => verify_auth(signer, key, auth, &[socket_id, ":", channel, ":", data]),
    }
}

/// Checks `auth` for signing in as the user that `user_data`, in its raw text, describes.
/// `::user::` stands where a channel would: no channel can have that name, so neither signature serves as the other.
/// # Errors
/// As [`verify_subscription`].
pub fn verify_sign_in(
    signer: &Signer,
    key: &str,
    auth: Option<&str>,
    socket_id: &str,
    user_data: &str,
) -> Result<(), AuthError> {
    verify_auth(signer, key, auth, &[socket_id, "::user::", user_data])
}

/// The form that both share: the app's key, a colon, and the signature of `signed`.
fn verify_auth(
    signer: &Signer,
    key: &str,
    auth: Option<&str>,
    signed: &[&str],
) -> Result<(), AuthError> {
    // An empty text is how some libraries send none.
    let auth = auth.filter(|auth| !auth.is_empty()).ok_or(AuthError::Missing)?;
    let (given_key, signature) = auth.split_once(':').ok_or(AuthError::Key)?;
    // The key is public, so a plain comparison reveals nothing.
    if given_key != key {
        return Err(AuthError::Key);
    }
    if signer.verify(signed, signature) { Ok(()) } else { Err(AuthError::Signature) }
}

/// The MD5 of `body` in hex, as `body_md5` has it.
pub fn md5_hex(body: &[u8]) -> String {
    hex::encode_hex(Md5::digest(body))
}

/// An MD5 that a request claims its body has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BodyMd5([u8; 16]);

impl BodyMd5 {
    /// Reads the hex of one.
    pub fn parse(hex: &str) -> Option<Self> {
        let mut bytes = [0; 16];
        hex::decode_to_slice(hex, &mut bytes).is_ok().then_some(Self(bytes))
    }

    /// Not a secret, so compared as it comes.
    pub fn is_of(self, body: &[u8]) -> bool {
        self.0 == *Md5::digest(body)
    }
}

/// Checks the signature of a request. SDKs do not agree on the path they sign, so each of these is
/// tried: the path as it came, percent-decoded (case A12), both with slashes that are doubled or at the end
/// read as one or none, and all of them without the server's own `prefix` (Guzzle drops it). The error is the string that was signed here first, for the operator's log.
/// The parameters are sorted and lower-cased as the specification says, and where that does not match, also as
/// SDKs really do it.
pub fn verify_request(
    signer: &Signer,
    method: &str,
    path: &str,
    prefix: &str,
    query: &Query<'_>,
) -> Result<(), String> {
    // A missing signature is compared as an empty one, and reported as wrong.
    let signature = query.signing_value(SigningParameter::Signature).unwrap_or_default();
    // Most SDKs send the query in the order in which it was signed: then nothing need be sorted.
    let as_signed = query.as_signed();
    let is_signed = |path: &str| {
        as_signed.is_some_and(|(before, after)| {
            signer.verify(&[method, "\n", path, "\n", before, after], signature)
        })
    };
    // Most sign what they send, and no other reading needs to be made.
    if is_signed(path) {
        return Ok(());
    }
    let paths = path_readings(path, prefix);
    if paths.iter().skip(1).any(|path| is_signed(path)) {
        return Ok(());
    }
    let mut first = None;
    // The slow way, for the few that do not.
    for path in &paths {
        let (plain, joined) = query.strings_to_sign(method, path);
        if signer.verify(&[&plain], signature)
            || joined.is_some_and(|joined| signer.verify(&[&joined], signature))
        {
            return Ok(());
        }
        // Of the path as it came, which is what a developer wants to see.
        first.get_or_insert(plain);
    }
    // There is at least one candidate, so the default is never used.
    Err(first.unwrap_or_default())
}

/// The paths that a client which sent `path` may have signed, the most usual first. At least two: as sent and
/// decoded, which are equal if nothing is encoded.
fn path_readings<'p>(path: &'p str, prefix: &str) -> SmallVec<[Cow<'p, str>; 2]> {
    let mut all: SmallVec<[Cow<'p, str>; 2]> = SmallVec::new();
    let mut add = |reading: Cow<'p, str>| {
        if !all.contains(&reading) {
            all.push(reading);
        }
    };
    let (plain, decoded) = (Cow::Borrowed(path), percent_decode(path));
    let mut bases: SmallVec<[Cow<'p, str>; 2]> = SmallVec::new();
    if [&plain, &decoded].iter().any(|path| path.contains("//") || path.ends_with('/')) {
        let singles = [single_slashes(&plain), single_slashes(&decoded)];
        // Four more readings where slashes are unusual: with and without the last, single and as they are.
        bases.extend(singles.iter().map(|path| Cow::Owned(path.trim_end_matches('/').to_owned())));
        bases.extend(singles.map(Cow::Owned));
        bases.push(Cow::Borrowed(path.trim_end_matches('/')));
    }
    bases.insert_many(0, [plain, decoded]);
    for base in &bases {
        add(base.clone());
    }
    if !prefix.is_empty() {
        for base in &bases {
            if let Some(stripped) = base.strip_prefix(prefix) {
                add(Cow::Owned(stripped.to_owned()));
            }
        }
    }
    all
}

/// The path with one slash for each run of them.
fn single_slashes(path: &str) -> String {
    let mut single = String::with_capacity(path.len());
    for next in path.chars() {
        if next != '/' || !single.ends_with('/') {
            single.push(next);
        }
    }
    single
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "278d425bdf160c739803";
    const SECRET: &str = "7ad3773142a6692b25b8";
    const SOCKET: &str = "1234.1234";

    /// The vectors of Pusher's signature page, its SDKs and, for the presence rows, the corrected ones.
    #[test]
    fn subscription_vectors_verify() {
        let spaced = r#"{"user_id": "10", "user_info": {"name": "Mr. Channels"}}"#;
        for (channel, data, signature) in [
            (
                "private-foobar",
                None,
                "58df8b0c36d6982b82c3ecf6b4662e34fe8c25bba48f5369f135bf843651c3a4",
            ),
            (
                "private-foobar",
                Some(r#"{"x":1}"#),
                "35884e908e059bfa19468fa6c616fa8c965fe9668613f9682f57fec3fe2fc1be",
            ),
            (
                "presence-foobar",
                Some(r#"{"user_id":10,"user_info":{"name":"Mr. Pusher"}}"#),
                "afaed3695da2ffd16931f457e338e6c9f2921fa133ce7dac49f529792be6304c",
            ),
            (
                "presence-foobar",
                Some(r#"{"user_id":10,"user_info":{"name":"Mr. Channels"}}"#),
                "31935e7d86dba64c2a90aed31fdc61869f9b22ba9d8863bba239c03ca481bc80",
            ),
            (
                "presence-foobar",
                Some(r#"{"user_id":"10","user_info":{"name":"Mr. Pusher"}}"#),
                "48dac51d2d7569e1e9c0f48c227d4b26f238fa68e5c0bb04222c966909c4f7c4",
            ),
            (
                "presence-foobar",
                Some(spaced),
                "96f61cf0b64a80c5cf1852da9dea2998a90fd7fa840c4cc62212573f1c524cdf",
            ),
        ] {
            let auth = format!("{KEY}:{signature}");
            let signer = Signer::new(SECRET);
            let check =
                |auth: Option<&str>| verify_subscription(&signer, KEY, auth, SOCKET, channel, data);
            assert_eq!(check(Some(&auth)), Ok(()), "{channel} {data:?}");
            let capitals = format!("{KEY}:{}", signature.to_uppercase());
            assert_eq!(check(Some(&capitals)), Ok(()), "hex in capitals");
            assert_eq!(check(Some("")), Err(AuthError::Missing));
            assert_eq!(check(Some(&format!("other:{signature}"))), Err(AuthError::Key));
            assert_eq!(check(Some(&auth[..auth.len() - 1])), Err(AuthError::Signature));
            assert_eq!(check(Some(&format!("{KEY}:xyz"))), Err(AuthError::Signature));
        }
    }

    #[test]
    fn the_sign_in_vector_verifies() {
        let auth =
            format!("{KEY}:4708d583dada6a56435fb8bc611c77c359a31eebde13337c16ab43aa6de336ba");
        let signer = Signer::new(SECRET);
        let data = r#"{"id":"12345"}"#;
        assert_eq!(verify_sign_in(&signer, KEY, Some(&auth), SOCKET, data), Ok(()));
        assert_eq!(
            verify_sign_in(&signer, KEY, Some(&auth), "1234.1235", data),
            Err(AuthError::Signature)
        );
    }

    /// Requests as SDKs send them: (method, path, query without the signature, signature).
    #[test]
    fn request_vectors_verify() {
        let times = "auth_key=278d425bdf160c739803&auth_timestamp=1353088179&auth_version=1.0";
        let md5 = |md5: &str| format!("{times}&body_md5={md5}");
        let info = "filter_by_prefix=presence-&info=user_count,subscription_count";
        let encoded = "filter_by_prefix=presence-&info=user_count%2Csubscription_count";
        let empty_object = "99914b932bd37a50b983c5e7c90ae93b";
        for (method, path, query, signature) in [
            (
                "POST",
                "/apps/3/events",
                md5("ec365a775a4cd0599faeb73354201b6f"),
                "da454824c97ba181a32ccc17a72625ba02771f50b50e1e7430e47a1f3f457e6c",
            ),
            (
                "GET",
                "/apps/3/channels",
                format!("{times}&{info}"),
                "ff97d40ab3fbbd15394386a29c12998c33635305357b2e2abd18dc67efe3f87d",
            ),
            (
                "GET",
                "/apps/3/channels",
                format!("{encoded}&{times}"),
                "ff97d40ab3fbbd15394386a29c12998c33635305357b2e2abd18dc67efe3f87d",
            ),
            (
                "GET",
                "/apps/3/channels",
                format!("{}&{info}", md5("d41d8cd98f00b204e9800998ecf8427e")),
                "768aaa075988b9d73b4a3b232b6e1dd9c207a55223438c0c36900e7eb2b5e182",
            ),
            (
                "POST",
                "/apps/3/users/u%201/terminate_connections",
                md5(empty_object),
                "8b02fa5c413c4f47396086c5df755ac659b1097ae2b97cca6bd583d925d5699d",
            ),
            (
                "POST",
                "/apps/3/users/u%201/terminate_connections",
                md5(empty_object),
                "2a6ce2c097d1023ff229ecbd11396a003edb1d01219b136de91944d5a3dcc5b0",
            ),
            (
                "POST",
                "/users/7/terminate_connections",
                md5(empty_object),
                "abb25ef583507973805e611ac73c056345d8d9e94c166622ad5826b73b8e2208",
            ),
        ] {
            let query = format!("auth_signature={signature}&{query}");
            let signer = Signer::new(SECRET);
            let check = |path: &str, prefix: &str| {
                verify_request(&signer, method, path, prefix, &Query::parse(&query))
            };
            assert_eq!(check(path, ""), Ok(()), "{method} {path} {query}");
            assert_eq!(check(&format!("/ws{path}"), "/ws"), Ok(()), "with a prefix");
            assert!(check(&format!("{path}x"), "").is_err());
        }
    }

    #[test]
    fn arrays_verify_in_both_forms_and_keys_in_any_case() {
        let signer = Signer::new("s");
        for signed in
            ["POST\n/p\nauth_key=k&channels[]=b&channels[]=a", "POST\n/p\nauth_key=k&channels=b,a"]
        {
            let query = format!(
                "channels%5B%5D=b&channels[]=a&auth_signature={}&Auth_Key=k",
                signer.sign(&[signed])
            );
            let query = Query::parse(&query);
            assert_eq!(verify_request(&signer, "POST", "/p", "", &query), Ok(()));
            assert_eq!(query.list("channels"), ["b", "a"]);
        }
    }

    #[test]
    fn bodies_are_compared_by_md5() {
        let is_of = |hex: &str, body: &[u8]| BodyMd5::parse(hex).is_some_and(|md5| md5.is_of(body));
        assert!(is_of("d41d8cd98f00b204e9800998ecf8427e", b""));
        assert!(is_of("D41D8CD98F00B204E9800998ECF8427E", b""));
        assert!(!is_of("d41d8cd98f00b204e9800998ecf8427e", b" "));
        assert!(!is_of("short", b""));
    }
}
