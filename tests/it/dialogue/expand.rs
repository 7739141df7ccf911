//! The placeholders of a script's line: `$a.socket`, `$key`, `$name` of a `let`, and functions:
//! `$hmac(text)` in hex with the app's secret, `$json(text)` as a JSON string, `$repeat(3 ab)`,
//! `$list(3 c)` as `"c1","c2","c3"`.

use std::collections::HashMap;

use crate::support::sign::{hmac_hex, md5_hex};

/// Fills in all placeholders, the innermost first. A `$` before anything that is no known name stays.
pub fn expand(text: &str, values: &HashMap<String, String>) -> String {
    let mut filled = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        filled.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let end = rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.'))
            .unwrap_or(rest.len());
        let name = rest[..end].trim_end_matches('.');
        if let Some(inside) = rest[name.len()..].strip_prefix('(')
            && let Some(length) = closing(inside)
            && let Some(value) = call(name, &expand(&inside[..length], values), values)
        {
            filled.push_str(&value);
            rest = &inside[length + 1..];
        } else if let Some(value) = values.get(name) {
            filled.push_str(value);
            rest = &rest[name.len()..];
        } else {
            filled.push('$');
        }
    }
    filled + rest
}

fn call(name: &str, argument: &str, values: &HashMap<String, String>) -> Option<String> {
    Some(match name {
        "hmac" => hmac_hex(&values["secret"], argument),
        "md5" => md5_hex(argument.as_bytes()),
        "json" => serde_json::Value::from(argument).to_string(),
        "list" => {
            let (count, text) = argument.split_once(' ')?;
            let count: usize = count.parse().ok()?;
            (1..=count).map(|number| format!("\"{text}{number}\"")).collect::<Vec<_>>().join(",")
        }
        "repeat" => {
            let (count, text) = argument.split_once(' ')?;
            text.repeat(count.parse().ok()?)
        }
        _ => return None,
    })
}

/// Where the parenthesis that is already open closes.
fn closing(text: &str) -> Option<usize> {
    let mut open = 1;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => open += 1,
            b')' => open -= 1,
            _ => {}
        }
        if open == 0 {
            return Some(at);
        }
    }
    None
}

#[test]
fn placeholders_are_filled_in_from_within() {
    let values = [("a.socket", "1.2"), ("data", r#"{"user_id":1}"#)]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    assert_eq!(expand("$a.socket:x", &values), "1.2:x");
    assert_eq!(expand("$json($data)", &values), r#""{\"user_id\":1}""#);
    assert_eq!(expand("$repeat(3 ab) costs $5", &values), "ababab costs $5");
}
