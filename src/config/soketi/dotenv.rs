//! The grammar of Soketi's environment files: npm's `dotenv` 16, which accepts more than phpdotenv, expands no
//! variables, and rejects nothing.

use crate::config::environment::FoundVariables;
use crate::config::error::SettingOrigin;

use super::names::PREFIX;

/// The variables of Soketi in a file that messages call `name`; the last of a name counts.
pub(in crate::config) fn parse_dotenv(text: &str, name: &str) -> FoundVariables {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut found = FoundVariables::new();
    let (mut rest, mut line) = (text.as_str(), 1);
    while !rest.is_empty() {
        // `lines` yields at least one line while text is left.
        let first = rest.lines().next().unwrap_or_default();
        let mut taken = first;
        if let Some((variable, tail)) = split_name(first) {
            let at = first.len() - tail.len();
            // Both ends lie within the line; an empty rest has no value.
            let (value, length) = parse_value(rest.get(at..).unwrap_or_default(), tail);
            taken = rest.get(..at + length).unwrap_or(first);
            if variable.starts_with(PREFIX) {
                let path = name.into();
                let origin = SettingOrigin::DotEnv { path, line, name: variable.to_owned() };
                found.insert(variable.to_owned(), (value, origin));
            }
        }
        // The value may span lines, each of which must be counted for error messages.
        line += taken.matches('\n').count() + 1;
        rest = rest.get(taken.len()..).unwrap_or_default();
        rest = rest.strip_prefix('\n').unwrap_or(rest);
    }
    found
}

/// The name in front of a line's `=`, or of its `:` and a blank, and what follows.
fn split_name(line: &str) -> Option<(&str, &str)> {
    let line = line.trim_start();
    let line = match line.strip_prefix("export") {
        Some(rest) if rest.starts_with(char::is_whitespace) => rest.trim_start(),
        _ => line,
    };
    let is_name = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let (name, rest) = line.split_at(line.find(|c| !is_name(c))?);
    if name.is_empty() {
        return None;
    }
    let after = rest.trim_start();
    let tail = match (after.strip_prefix('='), rest.strip_prefix(':')) {
        (Some(tail), _) => tail,
        (None, Some(tail)) if tail.starts_with(char::is_whitespace) => tail,
        _ => return None,
    };
    Some((name, tail))
}

/// The value at the beginning of `text`, whose first line is `line`, and how many bytes it and all that follows
/// it on its last line take.
fn parse_value(text: &str, line: &str) -> (String, usize) {
    let blanks = line.len() - line.trim_start().len();
    // The blanks are those of the first line, so the cut is within the text.
    let quoted = text.get(blanks..).unwrap_or_default();
    if let Some(quote @ ('"' | '\'' | '`')) = quoted.chars().next()
        && let Some(end) = closing_quote(quoted, quote)
    {
        // Nothing follows a quote that ends the text.
        let after = quoted.get(end + 1..).unwrap_or_default().lines().next().unwrap_or_default();
        if matches!(after.trim_start().chars().next(), None | Some('#')) {
            // Other text behind the closing quote would make the quotes part of a plain value.
            let inner = quoted.get(1..end).unwrap_or_default();
            let inner = match quote {
                '"' => inner.replace("\\n", "\n").replace("\\r", "\r"),
                _ => inner.to_owned(),
            };
            return (inner, blanks + end + 1 + after.len());
        }
    }
    // An unquoted value ends at the first `#`, as npm's `dotenv` has it.
    let plain = line.split('#').next().unwrap_or_default().trim();
    (plain.to_owned(), line.len())
}

/// Where the quote is that ends a value which begins with one; one after a backslash does not.
fn closing_quote(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().skip(1).find_map(|(at, character)| {
        let is_end = character == quote && !escaped;
        escaped = character == '\\' && !escaped;
        is_end.then_some(at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<(String, String)> {
        let found = parse_dotenv(&format!("# comment\n\n{text}\nOTHER=1\nSOKETI_Z=last"), ".env");
        assert!(found.keys().all(|name| name.starts_with(PREFIX)));
        assert_eq!(found["SOKETI_Z"].0, "last");
        let (value, origin) = found.get("SOKETI_A")?;
        Some((value.clone(), origin.to_string()))
    }

    /// Each as dotenv 16 reads it.
    #[test]
    fn values_are_read_as_dotenv_reads_them() {
        for (text, value) in [
            ("SOKETI_A=x", "x"),
            ("  export SOKETI_A = x y  # c", "x y"),
            ("SOKETI_A: x", "x"),
            ("SOKETI_A=", ""),
            ("SOKETI_A='a \"b\" # c' # d", "a \"b\" # c"),
            ("SOKETI_A=\"a\\nb\"", "a\nb"),
            ("SOKETI_A='a\\nb'", "a\\nb"),
            ("SOKETI_A=`a'b\"`", "a'b\""),
            ("SOKETI_A=[{\"host\": \"a\", \"port\": 1}]", "[{\"host\": \"a\", \"port\": 1}]"),
            (
                "SOKETI_A='[{\"host\": \"a\"},\n {\"host\": \"b\"}]'",
                "[{\"host\": \"a\"},\n {\"host\": \"b\"}]",
            ),
            ("SOKETI_A='a' b", "'a' b"),
            ("SOKETI_A=a#b", "a"),
            ("SOKETI_A=${B}", "${B}"),
            ("SOKETI_A=1\nSOKETI_A=2", "2"),
        ] {
            assert_eq!(read(text).map(|(value, _)| value).as_deref(), Some(value), "{text}");
        }
        assert_eq!(read("SOKETI_A"), None);
        assert_eq!(read("SOKETI_A x=1"), None);
    }

    #[test]
    fn lines_are_counted_over_values_of_several() {
        let found = parse_dotenv("SOKETI_B='1\n2\n3'\r\nSOKETI_A=1", "e");
        assert_eq!(found["SOKETI_A"].1.to_string(), "e:4: SOKETI_A");
    }
}
