//! Parsing values, and the errors for invalid ones.

use super::*;

fn raw(text: &str) -> Value {
    Value::Raw(text.to_owned())
}

fn written(text: &str) -> Value {
    Value::Text(text.to_owned())
}

#[test]
fn times() {
    let any = Duration::ZERO..=Duration::MAX;
    for (text, milliseconds) in
        [("500ms", 500), ("10s", 10_000), ("30m", 1_800_000), ("1h", 3_600_000), ("0s", 0)]
    {
        let expected = Ok(Duration::from_millis(milliseconds));
        assert_eq!(duration(&written(text), any.clone()), expected, "{text}");
        assert_eq!(duration(&raw(text), any.clone()), expected, "{text}");
    }
    for text in ["10", "s", "", "-1s", "1.5s", "10 sec", "99999999999999999999s"] {
        assert!(duration(&written(text), any.clone()).is_err(), "{text}");
    }
    assert!(duration(&Value::Integer(10), any).is_err());
    assert!(duration(&written("2s"), Duration::ZERO..=Duration::from_secs(1)).is_err());
}

#[test]
fn sizes() {
    for (value, bytes) in [
        (written("100KiB"), 102_400),
        (written("1MiB"), 1 << 20),
        (written("17B"), 17),
        (Value::Integer(512), 512),
        (raw("512"), 512),
        (raw("2KiB"), 2048),
    ] {
        assert_eq!(size(&value), Ok(bytes));
    }
    for value in
        [written("512"), written("1KB"), written("2GiB"), Value::Integer(0), Value::Integer(-1)]
    {
        assert!(size(&value).is_err(), "{value}");
    }
}

#[test]
fn shares_of_memory() {
    for (value, limit) in [
        (written("90%"), MemoryLimit::Share(90)),
        (raw("100%"), MemoryLimit::Share(100)),
        (written("2GiB"), MemoryLimit::Bytes(2 << 30)),
        (Value::Integer(0), MemoryLimit::Bytes(0)),
        (raw("0"), MemoryLimit::Bytes(0)),
    ] {
        assert_eq!(memory(&value), Ok(limit));
    }
    for value in [written("0%"), written("101%"), written("90"), Value::Integer(90)] {
        assert!(memory(&value).is_err(), "{value}");
    }
}

#[test]
fn numbers_keep_to_their_range() {
    assert_eq!(number::<u16>(&Value::Integer(65_535), 0..=65_535), Ok(65_535));
    assert_eq!(number::<u16>(&raw("80"), 0..=65_535), Ok(80));
    for value in [Value::Integer(65_536), Value::Integer(-1), written("80"), raw("8_0")] {
        assert_eq!(
            number::<u16>(&value, 0..=65_535),
            Err("a whole number from 0 to 65535".to_owned())
        );
    }
}

#[test]
fn lists() {
    let both = Ok(vec!["a".to_owned(), "b".to_owned()]);
    assert_eq!(texts(&raw("a, b")), both);
    assert_eq!(texts(&raw(r#"["a", "b"]"#)), both);
    assert_eq!(texts(&raw("")), Ok(Vec::new()));
    assert!(texts(&written("a")).is_err());
    assert!(texts(&Value::List(vec![Value::Integer(1)])).is_err());
}

#[test]
fn tables() {
    let one = Ok(vec![("A".to_owned(), "b".to_owned())]);
    assert_eq!(pairs(&raw(r#"{ A = "b" }"#)), one);
    assert!(pairs(&raw("A=b")).is_err());
    assert!(pairs(&raw("{ A = 1 }")).is_err());
}

#[test]
fn hosts() {
    for (text, host_) in [
        ("127.0.0.1", "127.0.0.1"),
        ("::", "::"),
        ("[::1]", "::1"),
        ("localhost", "localhost"),
        ("ws.example.test", "ws.example.test"),
    ] {
        assert_eq!(host(&written(text)), Ok(host_.to_owned()));
    }
    for text in ["", "a b", "localhost:80", "http://a", "[localhost]", "a..b", "*"] {
        assert!(host(&written(text)).is_err(), "{text}");
    }
}

#[test]
fn paths() {
    for (text, path_) in [("", ""), ("/", ""), ("ws", "/ws"), ("/ws/", "/ws"), ("/a/b", "/a/b")] {
        assert_eq!(path(&written(text)), Ok(path_.to_owned()), "{text}");
    }
    for text in ["a b", "a//b", "a?b", "a/../b", "ä", "%41"] {
        assert!(path(&written(text)).is_err(), "{text}");
    }
}

#[test]
fn networks_are_addresses_with_a_prefix() {
    let network = |address: &str, prefix| Network { address: address.parse().unwrap(), prefix };
    assert_eq!(
        networks(&raw("10.0.0.0/8,::1,192.0.2.1")),
        Ok(vec![network("10.0.0.0", 8), network("::1", 128), network("192.0.2.1", 32)])
    );
    for text in ["10.0.0.0/33", "::/129", "10.0.0/8", "a/8", "10.0.0.0/"] {
        assert!(networks(&raw(text)).is_err(), "{text}");
    }
}

#[test]
fn credentials_in_urls_are_hidden() {
    for (url, shown) in [
        ("https://a.test/x", "https://a.test/x"),
        ("https://u:p@a.test/x", "https://…@a.test/x"),
        ("https://a.test/x?token=t", "https://a.test/x?…"),
        ("https://u:p@/@a.test?t", "https://…@/@a.test?…"),
        ("no url?", "no url?"),
    ] {
        assert_eq!(without_credentials(url), shown);
    }
}

#[test]
fn values_are_shown_as_toml_on_one_line() {
    let list = Value::List(vec![written("a\"\n"), Value::Integer(1), Value::Bool(true)]);
    assert_eq!(list.to_string(), r#"["a\"\n", 1, true]"#);
    let table = Value::Table(vec![("A".to_owned(), written("b"))]);
    assert_eq!(table.to_string(), r#"{ "A" = "b" }"#);
}
