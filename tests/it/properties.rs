//! Rules that hold of whatever may come in and go out, tried on inputs that proptest makes up and makes
//! smaller where one breaks a rule; and the fuzz targets' rules on the corpus that they begin with.

use std::collections::VecDeque;
use std::fs;
use std::path::Path;

use bytes::Bytes;
use fanfare::hub::outbox::Outbox;
use fanfare::protocol::auth::{Signer, verify_request, verify_sign_in, verify_subscription};
use fanfare::protocol::channel::{Access, ChannelName};
use fanfare::protocol::event::{MemberText, Message};
use fanfare::protocol::member::{Member, User, UserId};
use fanfare::protocol::query::{Query, SigningParameter, percent_decode};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::dialogue::expect::is_sound;
use crate::support::fixture::{KEY, SECRET};
use crate::support::sign::hmac_hex;
use crate::support::websocket::{Heard, frame, take_frame};

#[path = "../fuzz/checks.rs"]
mod checks;

/// What breaks a rule is printed, and kept in no file.
fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

#[test]
fn the_corpus_keeps_the_rules() {
    type Check = fn(&[u8]);
    let targets: [(&str, Check); 4] = [
        ("command", checks::command),
        ("query", checks::query),
        ("channel_data", checks::channel_data),
        ("frames", checks::frames),
    ];
    for (name, check) in targets {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
        let mut found = 0;
        for entry in fs::read_dir(folder).unwrap() {
            check(&fs::read(entry.unwrap().path()).unwrap());
            found += 1;
        }
        assert!(found > 3, "{name} has {found} inputs");
        assert!(Path::new("tests/fuzz/fuzz_targets").join(format!("{name}.rs")).exists());
    }
}

/// JSON of any shape.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((any::<String>(), inner), 0..6)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

/// Frames of clients, right in most places.
fn any_frame() -> impl Strategy<Value = String> {
    let event = prop_oneof![
        Just("pusher:subscribe".to_owned()),
        Just("pusher:unsubscribe".to_owned()),
        Just("pusher:signin".to_owned()),
        Just("pusher:ping".to_owned()),
        "client-.{0,5}",
        any::<String>(),
    ];
    let key = prop::sample::select(vec!["channel", "auth", "channel_data", "user_data", "x"]);
    let text = prop_oneof![any::<String>().prop_map(Value::from), any_json()];
    let data = prop::collection::vec((key, text), 0..5).prop_map(|pairs| {
        Value::Object(pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    });
    (event, data, any_json(), any::<[bool; 3]>()).prop_map(|(event, data, channel, how)| {
        let data = if how[0] { Value::from(data.to_string()) } else { data };
        let mut frame = json!({ "event": event, "data": data });
        if how[1] {
            frame["channel"] = if how[2] { "private-x".into() } else { channel };
        }
        frame.to_string()
    })
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn commands_mean_the_same_written_anew(text in prop_oneof![any_frame(), any::<String>()]) {
        checks::command(text.as_bytes());
    }

    #[test]
    fn spoilt_commands_are_no_harm(text in any_frame(), at in any::<prop::sample::Index>(), by in any::<u8>()) {
        let mut bytes = text.into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = by;
        checks::command(&bytes);
    }

    #[test]
    fn queries_come_apart_and_verify(text in "([a-zA-Z_%&=+,é]|\\[\\]|%[0-9a-fA-F]{2}){0,40}") {
        checks::query(text.as_bytes());
    }

    #[test]
    fn what_is_encoded_is_decoded(text in any::<String>()) {
        let encoded = checks::encode(&text);
        prop_assert_eq!(&*percent_decode(&encoded), &text);
        let small: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
        prop_assert_eq!(&*percent_decode(&small), &text);
    }

    #[test]
    fn any_percents_decode_to_text(text in "(%|[0-9a-gA-G]|é){0,30}") {
        prop_assert!(percent_decode(&text).len() <= 3 * text.len());
    }

    #[test]
    fn channel_data_is_refused_or_told(id in any_json(), info in any_json(), other in any_json()) {
        let data = json!({ "user_id": id, "id": id, "user_info": info, "watchlist": other });
        checks::channel_data(data.to_string().as_bytes());
        checks::channel_data(other.to_string().as_bytes());
    }

    #[test]
    fn members_are_who_they_say(id in "[^\u{0}]{1,128}", number in any::<u64>(), info in any_json()) {
        let info = info.to_string();
        for (written, id) in [(json!(id), id), (json!(number), number.to_string())] {
            let member = Member::parse(&format!(r#"{{"user_info":{info},"user_id":{written}}}"#), info.len());
            let member = member.unwrap();
            prop_assert_eq!(member.user_id.as_str(), id);
            let kept = if info == "null" { "{}" } else { info.as_str() };
            prop_assert_eq!(&*member.user_info, kept);
        }
    }

    #[test]
    fn watchlists_keep_the_first_hundred(ids in prop::collection::vec("[a-z]{1,3}", 0..130)) {
        let user = User::parse(&json!({ "id": "1", "watchlist": ids }).to_string()).unwrap();
        let mut different: Vec<&str> = Vec::new();
        for id in &ids {
            if !different.contains(&id.as_str()) {
                different.push(id);
            }
        }
        prop_assert_eq!(user.watchlist.cut, different.len() > 100);
        different.truncate(100);
        let kept: Vec<&str> = user.watchlist.ids.iter().map(UserId::as_str).collect();
        prop_assert_eq!(kept, different);
    }

    #[test]
    fn channel_names_are_those_of_the_rule(
        name in "(private-|presence-|encrypted-|cache-|#server-to-user-){0,3}([A-Za-z0-9_=@,.;-]|.){0,12}",
        max in 1..40_usize,
    ) {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-=@,.;".contains(c);
        let user = name.strip_prefix("#server-to-user-");
        let right = match user {
            Some(user) => !user.is_empty() && !user.chars().any(char::is_control),
            None => !name.is_empty() && name.chars().all(plain),
        };
        let parsed = ChannelName::parse(&name, max);
        prop_assert_eq!(parsed.is_ok(), right && name.chars().count() <= max);
        let Ok(parsed) = parsed else { return Ok(()) };
        prop_assert_eq!(parsed.as_str(), &name);
        let access = [
            ("private-encrypted-", Access::Encrypted),
            ("private-", Access::Private),
            ("presence-", Access::Presence),
            ("#server-to-user-", Access::ServerToUser),
        ];
        let access = access.into_iter().find(|(prefix, _)| name.starts_with(prefix));
        let (prefix, access) = access.unwrap_or(("", Access::Public));
        prop_assert_eq!(parsed.kind().access, access);
        let cache = access != Access::ServerToUser && name[prefix.len()..].starts_with("cache-");
        prop_assert_eq!(parsed.kind().cache, cache);
    }

    #[test]
    fn frames_say_the_same_however_they_are_cut(
        cut in any::<u8>(),
        frames in prop::collection::vec((0_u8..16, any::<bool>(), prop::collection::vec(32_u8..128, 0..130)), 0..8),
        noise in prop::collection::vec(any::<u8>(), 0..12),
    ) {
        let mut bytes = vec![cut];
        for (opcode, fin, payload) in frames {
            bytes.extend(frame(opcode | if fin { 0x80 } else { 0 }, &payload));
        }
        bytes.extend(noise);
        checks::frames(&bytes);
    }

    #[test]
    fn subscriptions_verify_as_they_were_signed(
        channel in "[a-z-]{1,9}", data in any::<String>(), wrong in any::<prop::sample::Index>(),
    ) {
        let signer = Signer::new(SECRET);
        let auth = |text: String| format!("{KEY}:{}", hmac_hex(SECRET, &text));
        let check = |auth: &str, data: Option<&str>| {
            verify_subscription(&signer, KEY, Some(auth), "1.2", &channel, data)
        };
        let (plain, full) = (auth(format!("1.2:{channel}")), auth(format!("1.2:{channel}:{data}")));
        prop_assert_eq!(check(&plain, None), Ok(()));
        prop_assert_eq!(check(&full, Some(&data)), Ok(()));
        prop_assert!(check(&full, None).is_err());
        prop_assert!(check(&plain, Some(&data)).is_err());
        let user = auth(format!("1.2::user::{data}"));
        prop_assert_eq!(verify_sign_in(&signer, KEY, Some(&user), "1.2", &data), Ok(()));
        prop_assert!(verify_sign_in(&signer, KEY, Some(&user), "1.3", &data).is_err());
        let mut spoilt = full.into_bytes();
        let at = wrong.index(spoilt.len());
        spoilt[at] = if spoilt[at] == b'0' { b'1' } else { b'0' };
        prop_assert!(check(std::str::from_utf8(&spoilt).unwrap(), Some(&data)).is_err());
    }

    #[test]
    fn requests_verify_as_each_sdk_signs_them(request in any_request(), spoil in any::<prop::sample::Index>()) {
        let Sent { method, path, query } = request.sent();
        let signer = Signer::new(SECRET);
        let verify = |query: &str| verify_request(&signer, method, &path, "/at/us", &Query::parse(query));
        prop_assert_eq!(verify(&query), Ok(()), "{} {}", path, query);
        let rotated = Signer::new("new").with_previous([SECRET]);
        prop_assert!(verify_request(&rotated, method, &path, "/at/us", &Query::parse(&query)).is_ok());
        let digits: Vec<usize> = query.char_indices().filter(|(_, c)| c.is_ascii_digit()).map(|(at, _)| at).collect();
        let at = digits[spoil.index(digits.len())];
        // Digits are in values and in escapes; a changed one of either makes another request.
        let other = if &query[at..=at] == "7" { "8" } else { "7" };
        let spoilt = format!("{}{other}{}", &query[..at], &query[at + 1..]);
        prop_assert!(verify(&spoilt).is_err(), "{}", spoilt);
    }

    #[test]
    fn queries_are_what_splitting_makes_of_them(text in "([a-cA-C=&%2é]|auth_key|Auth_Key|body_md5|name){0,12}") {
        let query = Query::parse(&text);
        let pairs: Vec<(String, String)> = text
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(name, value)| (percent_decode(name).into_owned(), percent_decode(value).into_owned()))
            .collect();
        prop_assert_eq!(query.names().collect::<Vec<_>>(), pairs.iter().map(|(name, _)| &**name).collect::<Vec<_>>());
        for (name, _) in &pairs {
            let last = pairs.iter().rev().find(|(other, _)| other.eq_ignore_ascii_case(name));
            prop_assert_eq!(query.get(name), last.map(|(_, value)| &**value));
        }
        prop_assert_eq!(query.signing_value(SigningParameter::Key), query.get("auth_key"));
        prop_assert_eq!(query.signing_value(SigningParameter::BodyMd5), query.get("body_md5"));
        prop_assert_eq!(query.signing_value(SigningParameter::Signature), None);
        let signs = |name: &str| ["auth_key", "body_md5"].contains(&&*name.to_ascii_lowercase());
        prop_assert_eq!(query.asks(), !pairs.iter().all(|(name, _)| signs(name)));
    }

    #[test]
    fn messages_are_json_that_says_what_was_meant(
        event in any::<String>(), data in any::<String>(), users in prop::collection::vec((any::<String>(), any_json()), 1..5),
    ) {
        let room = ChannelName::parse("presence-x", 200).unwrap();
        let token = Value::from(data.as_str()).to_string();
        let said = read(&Message::event(&room, &event, &token))?;
        prop_assert_eq!(said, json!({ "event": event, "channel": "presence-x", "data": data }));
        let user = inside(&Message::signed_in(&data))?;
        prop_assert_eq!(user, json!({ "user_data": data }));
        let mut members = Vec::new();
        for (id, info) in users {
            let Some(user_id) = UserId::parse(&id) else { continue };
            let said = read(&Message::client_event(&room, &event, &token, Some(&user_id)))?;
            prop_assert_eq!(said["user_id"].as_str(), Some(&*id));
            let watch = inside(&Message::watchlist_events(std::slice::from_ref(&user_id), &[]))?;
            prop_assert_eq!(watch, json!({ "events": [{ "name": "online", "user_ids": [id] }] }));
            let member = Member { user_id, user_info: info.to_string().into() };
            let text = MemberText::new(&member);
            let info: Value = serde_json::from_str(&member.user_info).unwrap();
            let added = inside(&Message::member_added(&room, &text))?;
            prop_assert_eq!(added, json!({ "user_id": id, "user_info": info }));
            let removed = inside(&Message::member_removed(&room, &text, false))?;
            prop_assert_eq!(removed, json!({ "user_id": id }));
            members.push((id, info, text));
        }
        let texts = members.iter().map(|(.., text)| text);
        let roster = inside(&Message::subscribed_presence(&room, members.len(), texts))?;
        let ids: Vec<&str> = members.iter().map(|(id, ..)| &**id).collect();
        prop_assert_eq!(&roster["presence"]["ids"], &json!(ids));
        for (id, info, _) in members.iter().rev().take(1) {
            prop_assert_eq!(&roster["presence"]["hash"][id], info);
        }
    }

    #[test]
    fn an_outbox_gives_what_it_was_given_in_order(
        steps in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..9), 0..20_usize), 0..40),
    ) {
        let (mut outbox, mut model) = (Outbox::default(), VecDeque::new());
        for (frame, written) in steps {
            outbox.push(Bytes::from(frame.clone()));
            model.extend(frame);
            let held: Vec<u8> = outbox.iter().flatten().copied().collect();
            prop_assert_eq!(&held, &Vec::from(model.clone()));
            let written = written.min(model.len());
            outbox.advance(written);
            model.drain(..written);
            prop_assert_eq!((outbox.len(), outbox.is_empty()), (model.len(), model.is_empty()));
        }
    }
}

#[test]
fn percent_signs_that_encode_nothing_stay() {
    assert_eq!(percent_decode("a%2Cb%2cc%zz%4"), "a,b,c%zz%4");
    assert_eq!(percent_decode("%ff"), "\u{fffd}");
}

/// Anybody may send so many, for they are looked at before the signature holds: each against each would
/// take minutes here.
#[test]
fn a_query_of_many_names_is_not_searched_for_each() {
    let mut names: Vec<String> = (0..100_000).map(|n| format!("p{n}")).collect();
    let sent: Vec<String> = names.iter().map(|name| format!("{name}[]=1")).collect();
    names.sort();
    let signed: Vec<String> = names.iter().map(|name| format!("{name}=1")).collect();
    let signature = hmac_hex(SECRET, &format!("GET\n/p\n{}", signed.join("&")));
    let query = format!("{}&auth_signature={signature}", sent.join("&"));
    let verified = verify_request(&Signer::new(SECRET), "GET", "/p", "", &Query::parse(&query));
    assert_eq!(verified, Ok(()));
}

/// A frame as a client reads it.
fn read(message: &Message) -> Result<Value, TestCaseError> {
    let mut bytes = message.bytes().to_vec();
    let Some(Heard::Text(text)) = take_frame(&mut bytes) else {
        return Err(TestCaseError::fail("no text frame"));
    };
    prop_assert!(bytes.is_empty());
    prop_assert_eq!(is_sound(&text), Ok(()));
    Ok(serde_json::from_str(&text).unwrap())
}

/// The JSON that stands in its `data`.
fn inside(message: &Message) -> Result<Value, TestCaseError> {
    Ok(serde_json::from_str(read(message)?["data"].as_str().unwrap()).unwrap())
}

/// How an SDK writes and signs a request. Each of them is some choice of these.
#[derive(Debug, Clone)]
struct Signed {
    pairs: Vec<(String, String)>,
    channels: Vec<String>,
    arrays: Arrays,
    /// The order the pairs are sent in: the signature's place among them included.
    sorted: bool,
    signature_at: prop::sample::Index,
    capitals: bool,
    /// Whether commas and brackets are sent as they are.
    bare: bool,
    path: SignedPath,
}

/// How a list of values is sent, and how it is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arrays {
    /// `k[]=a&k[]=b`, signed like that.
    Repeated,
    /// The same, signed as `k=a,b`.
    RepeatedSignedJoined,
    /// `k=a,b`.
    Joined,
}

/// Which spelling of the path is sent, and which signed.
#[derive(Debug, Clone, Copy)]
enum SignedPath {
    AsSent,
    Decoded,
    WithoutPrefix,
    DecodedWithoutPrefix,
}

struct Sent {
    method: &'static str,
    path: String,
    query: String,
}

fn any_request() -> impl Strategy<Value = Signed> {
    let name = "[a-z][a-z_]{0,5}";
    let pairs = prop::collection::btree_map(name, "[ -~é]{0,6}", 0..5);
    let channels = prop::collection::vec("[a-z]{1,4}", 0..4);
    let arrays =
        prop::sample::select(vec![Arrays::Repeated, Arrays::RepeatedSignedJoined, Arrays::Joined]);
    let path = prop::sample::select(vec![
        SignedPath::AsSent,
        SignedPath::Decoded,
        SignedPath::WithoutPrefix,
        SignedPath::DecodedWithoutPrefix,
    ]);
    (pairs, channels, arrays, path, any::<[bool; 3]>(), any::<prop::sample::Index>()).prop_map(
        |(pairs, channels, arrays, path, [sorted, capitals, bare], signature_at)| Signed {
            pairs: pairs.into_iter().collect(),
            channels,
            arrays,
            sorted,
            signature_at,
            capitals,
            bare,
            path,
        },
    )
}

impl Signed {
    fn sent(&self) -> Sent {
        let mut sent = self.pairs.clone();
        sent.push(("auth_timestamp".to_owned(), "1353088179".to_owned()));
        sent.push(("auth_key".to_owned(), KEY.to_owned()));
        let mut signed = sent.clone();
        let joined = ("channels".to_owned(), self.channels.join(","));
        let repeated = || self.channels.iter().map(|name| ("channels[]".to_owned(), name.clone()));
        if !self.channels.is_empty() {
            match self.arrays {
                Arrays::Joined => sent.push(joined.clone()),
                _ => sent.extend(repeated()),
            }
            match self.arrays {
                Arrays::Repeated => signed.extend(repeated()),
                _ => signed.push(joined),
            }
        }
        signed.sort_by(|a, b| a.0.cmp(&b.0));
        if self.sorted {
            sent.sort_by(|a, b| a.0.cmp(&b.0));
        }
        let (prefix, rest, decoded) =
            ("/at/us", "/apps/3/channels/a%2Cb%C3%BC", "/apps/3/channels/a,bü");
        let signed_path = match self.path {
            SignedPath::AsSent => format!("{prefix}{rest}"),
            SignedPath::Decoded => format!("{prefix}{decoded}"),
            SignedPath::WithoutPrefix => rest.to_owned(),
            SignedPath::DecodedWithoutPrefix => decoded.to_owned(),
        };
        let plain: Vec<String> = signed.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let signature = hmac_hex(SECRET, &format!("GET\n{signed_path}\n{}", plain.join("&")));
        let at = self.signature_at.index(sent.len() + 1);
        sent.insert(at, ("auth_signature".to_owned(), signature));
        let query: Vec<String> =
            sent.iter().map(|(k, v)| format!("{}={}", self.name(k), self.value(v))).collect();
        Sent { method: "GET", path: format!("{prefix}{rest}"), query: query.join("&") }
    }

    fn name(&self, name: &str) -> String {
        let name = if self.capitals { name.to_uppercase() } else { name.to_owned() };
        if self.bare { name } else { checks::encode(&name) }
    }

    fn value(&self, value: &str) -> String {
        let encoded = checks::encode(value);
        if self.bare { encoded.replace("%2C", ",").replace("%2F", "/") } else { encoded }
    }
}
