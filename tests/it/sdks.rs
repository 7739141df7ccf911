//! Requests as the server SDKs write them, byte by byte: what each puts into the request line, and the
//! text that it signed for it. And what a developer is told whose signature does not hold.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::fixture::{Fixture, ID, KEY, SECRET};
use crate::support::http::{Http, request};
use crate::support::sign::{Request, hmac_hex, md5_hex};
use crate::support::{DEADLINE, eventually};

const EVENT: &str = r#"{"name":"e","data":"{\"a\":1}","channels":["a","b"]}"#;

/// An SDK's request: method, request line and signed text with `KEY`, `MD5` and `SIGNATURE` to be filled
/// in, and the body.
type Spelling = (&'static str, &'static str, &'static str, &'static str, &'static str);

const SPELLINGS: [Spelling; 13] = [
    (
        "PHP triggers",
        "POST",
        "/apps/3/events?auth_key=KEY&auth_signature=SIGNATURE&auth_timestamp=1353088179&auth_version=1.0&body_md5=MD5",
        "POST\n/apps/3/events\nauth_key=KEY&auth_timestamp=1353088179&auth_version=1.0&body_md5=MD5",
        EVENT,
    ),
    (
        "PHP asks, through Guzzle, which encodes commas",
        "GET",
        "/apps/3/channels?auth_key=KEY&auth_signature=SIGNATURE&auth_timestamp=1353088179&auth_version=1.0&filter_by_prefix=presence-&info=user_count%2Csubscription_count",
        "GET\n/apps/3/channels\nauth_key=KEY&auth_timestamp=1353088179&auth_version=1.0&filter_by_prefix=presence-&info=user_count,subscription_count",
        "",
    ),
    (
        "PHP joins lists",
        "POST",
        "/apps/3/events?auth_key=KEY&auth_signature=SIGNATURE&auth_timestamp=1353088179&auth_version=1.0&channels=a%2Cb&data=1&name=e",
        "POST\n/apps/3/events\nauth_key=KEY&auth_timestamp=1353088179&auth_version=1.0&channels=a,b&data=1&name=e",
        "",
    ),
    (
        "Node signs the path as it was before it was encoded",
        "POST",
        "/apps/3/users/u%201/terminate_connections?auth_key=KEY&auth_timestamp=1353088179&auth_version=1.0&body_md5=MD5&auth_signature=SIGNATURE",
        "POST\n/apps/3/users/u 1/terminate_connections\nauth_key=KEY&auth_timestamp=1353088179&auth_version=1.0&body_md5=MD5",
        "{}",
    ),
    (
        "Python sorts its signature in, and digests no body",
        "GET",
        "/apps/3/channels?auth_key=KEY&auth_signature=SIGNATURE&auth_timestamp=1353088179&auth_version=1.0&body_md5=MD5&filter_by_prefix=presence-&info=user_count",
        "GET\n/apps/3/channels\nauth_key=KEY&auth_timestamp=1353088179&auth_version=1.0&body_md5=MD5&filter_by_prefix=presence-&info=user_count",
        "",
    ),
    (
        "Python forgets the app",
        "POST",
        "/users/7/terminate_connections?auth_key=KEY&auth_signature=SIGNATURE&auth_timestamp=1353088179&auth_version=1.0&body_md5=MD5",
        "POST\n/users/7/terminate_connections\nauth_key=KEY&auth_timestamp=1353088179&auth_version=1.0&body_md5=MD5",
        "{}",
    ),
    (
        "Ruby encodes commas",
        "GET",
        "/apps/3/channels/presence-a?auth_version=1.0&auth_key=KEY&auth_timestamp=1353088179&auth_signature=SIGNATURE&info=user_count%2Csubscription_count",
        "GET\n/apps/3/channels/presence-a\nauth_key=KEY&auth_timestamp=1353088179&auth_version=1.0&info=user_count,subscription_count",
        "",
    ),
    (
        "Ruby repeats lists",
        "POST",
        "/apps/3/events?channels%5B%5D=b&channels%5B%5D=a&name=e&data=1&auth_version=1.0&auth_key=KEY&auth_timestamp=1353088179&auth_signature=SIGNATURE",
        "POST\n/apps/3/events\nauth_key=KEY&auth_timestamp=1353088179&auth_version=1.0&channels[]=b&channels[]=a&data=1&name=e",
        "",
    ),
    (
        "Go leaves everything as it is",
        "GET",
        "/apps/3/channels?auth_key=KEY&auth_timestamp=1353088179&auth_version=1.0&filter_by_prefix=presence-&info=user_count,subscription_count&auth_signature=SIGNATURE",
        "GET\n/apps/3/channels\nauth_key=KEY&auth_timestamp=1353088179&auth_version=1.0&filter_by_prefix=presence-&info=user_count,subscription_count",
        "",
    ),
    (
        ".NET puts its signature first",
        "POST",
        "/apps/3/batch_events?auth_signature=SIGNATURE&auth_key=KEY&auth_timestamp=1353088179&auth_version=1.0&body_md5=MD5",
        "POST\n/apps/3/batch_events\nauth_key=KEY&auth_timestamp=1353088179&auth_version=1.0&body_md5=MD5",
        r#"{"batch":[{"channel":"a","name":"e","data":"1"}]}"#,
    ),
    (
        "Java encodes what it signs plainly",
        "GET",
        "/apps/3/channels?auth_key=KEY&auth_timestamp=1353088179&auth_version=1.0&filter_by_prefix=presence%2D&info=user%5Fcount&auth_signature=SIGNATURE",
        "GET\n/apps/3/channels\nauth_key=KEY&auth_timestamp=1353088179&auth_version=1.0&filter_by_prefix=presence-&info=user_count",
        "",
    ),
    (
        "Rust sends them in the order they came to it",
        "GET",
        "/apps/3/channels?info=user_count&filter_by_prefix=presence-&auth_version=1.0&auth_timestamp=1353088179&auth_key=KEY&auth_signature=SIGNATURE",
        "GET\n/apps/3/channels\nauth_key=KEY&auth_timestamp=1353088179&auth_version=1.0&filter_by_prefix=presence-&info=user_count",
        "",
    ),
    (
        "a backend of one's own may shout",
        "GET",
        "/apps/3/channels?AUTH_KEY=KEY&Auth_Timestamp=1353088179&auth_Version=1.0&Info=subscription_count&AUTH_SIGNATURE=SIGNATURE",
        "GET\n/apps/3/channels\nauth_key=KEY&auth_timestamp=1353088179&auth_version=1.0&info=subscription_count",
        "",
    ),
];

#[test]
fn every_sdk_is_understood() {
    let fixture = Fixture::with(|app| app.limits.timestamp_tolerance = Duration::ZERO);
    for (sdk, method, line, signed, body) in SPELLINGS {
        let fill = |text: &str| text.replace("KEY", KEY).replace("MD5", &md5_hex(body.as_bytes()));
        // Not in the names of parameters, which one SDK writes in capitals.
        let line = line.replace("AUTH_KEY", "AUTH_\0").replace("AUTH_SIGNATURE", "AUTH_\u{1}");
        let signature = hmac_hex(SECRET, &fill(signed));
        let ask = |signature: &str| {
            let line = fill(&line).replace("SIGNATURE", signature);
            let line = line.replace("AUTH_\0", "AUTH_KEY").replace("AUTH_\u{1}", "AUTH_SIGNATURE");
            let bytes =
                request(method, &line, "Content-Type: application/json\r\n", body.as_bytes());
            let mut http = Http::connect(fixture.addr);
            http.send(bytes);
            http.answer_to(method)
        };
        let answer = ask(&signature);
        assert_eq!(answer.status, 200, "{sdk}: {}", answer.text());
        assert!(answer.json().is_object(), "{sdk}: {}", answer.text());
        assert_eq!(ask(&hmac_hex("other", &fill(signed))).status, 401, "{sdk}");
    }
}

/// A proxy that changes paths is found by what the server took for signed: it is logged, no secret is.
#[test]
fn a_wrong_signature_is_explained_in_the_log() {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("sdks");
    std::fs::create_dir_all(&folder).unwrap();
    let settings = format!(
        "[server]\nport = 0\nworkers = 1\n[metrics]\nenabled = false\n[log]\nlevel = \"debug\"\n\
         [[apps]]\nid = {ID:?}\nkey = {KEY:?}\nsecret = {SECRET:?}\nprevious_secrets = [\"before-that\"]\n"
    );
    std::fs::write(folder.join("f.toml"), settings).unwrap();
    let log = folder.join("log");
    let mut child = Command::new(env!("CARGO_BIN_EXE_fanfare"))
        .args(["--config", "f.toml"])
        .current_dir(&folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::from(std::fs::File::create(&log).unwrap()))
        .spawn()
        .unwrap();
    let read = || std::fs::read_to_string(&log).unwrap();
    let addr = eventually(|| {
        let text = read();
        let at = text.find("127.0.0.1:").ok_or_else(|| text.clone())?;
        let end = text[at..].find(|c: char| !(c.is_ascii_digit() || ".:".contains(c)));
        let end = end.ok_or_else(|| text.clone())?;
        text[at..at + end].parse().map_err(|_| text.clone())
    });
    let told = addr.and_then(|addr| {
        let target = format!("/apps/{ID}/channels?info=subscription_count");
        let mut asked = Request::new("GET", &target, "", KEY, SECRET);
        asked.signed_path = Some(format!("/rewritten/apps/{ID}/channels"));
        let refused = Http::connect(addr).ask_signed(&asked).error(401);
        assert_eq!(refused, "Authentication signature invalid.");
        let wanted =
            format!(r"GET\n/apps/{ID}/channels\nauth_key={KEY}&auth_timestamp={}", asked.timestamp);
        eventually(|| if read().contains(&wanted) { Ok(()) } else { Err(read()) })?;
        let forged = Http::connect(addr).ask("GET", "/apps/x%0AFORGED/channels", "", b"");
        assert_eq!(forged.status, 404);
        eventually(|| if read().contains("FORGED") { Ok(()) } else { Err(read()) })
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(told, Ok(()), "within {DEADLINE:?}");
    assert!(!read().lines().any(|line| line.starts_with("FORGED")), "a stranger wrote a line");
    assert!(!read().contains(SECRET) && !read().contains("before-that"), "a secret is in the log");
}
