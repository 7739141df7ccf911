//! The grammar of Laravel's environment files, as phpdotenv 5.6 reads them, and the values that Laravel's `env()` makes
//! of them. `laravel/` gives the variables their meaning.

use std::collections::BTreeMap;

/// One variable of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct DotenvEntry {
    /// Where it is written, counted from 1.
    pub(super) line: usize,
    /// None where the name stands alone, which takes the variable back.
    pub(super) value: Option<String>,
}

/// Why a file is refused as a whole. The values around stay out of it, since they may be secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct DotenvError {
    /// Of the entry that is wrong, counted from 1.
    pub(super) line: usize,
    /// The fault, without any of the file's text, which may be secret.
    pub(super) problem: &'static str,
}

/// Reads a file; the last entry of a name counts. `outside` answers what variable `${NAME}` stands
/// for where the real environment has it, which goes before the file.
///
/// # Errors
/// The first entry that phpdotenv would refuse: Laravel itself does not start with such a file.
pub(super) fn parse_dotenv(
    text: &str,
    outside: impl Fn(&str) -> Option<String>,
) -> Result<BTreeMap<String, DotenvEntry>, DotenvError> {
    let parsed: Result<Vec<_>, _> = split_entries(text)
        .into_iter()
        .map(|(line, entry)| match parse_entry(&entry) {
            Ok((name, value)) => Ok((line, name, value)),
            Err(problem) => Err(DotenvError { line, problem }),
        })
        .collect();
    let mut all: BTreeMap<String, DotenvEntry> = BTreeMap::new();
    for (line, name, value) in parsed? {
        let value = value.map(|value| {
            value.resolve_variables(|name| outside(name).or_else(|| all.get(name)?.value.clone()))
        });
        // Only now, so that a value may name an earlier entry of its own name.
        all.insert(name, DotenvEntry { line, value });
    }
    Ok(all)
}

/// The value as Laravel's `env()` returns it: `None` for null, otherwise its text. `true` and `false` are those
/// words; quotes around the whole value are removed.
pub(super) fn laravel_cast(value: &str) -> Option<&str> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "(true)" => return Some("true"),
        "false" | "(false)" => return Some("false"),
        "empty" | "(empty)" => return Some(""),
        "null" | "(null)" => return None,
        _ => {}
    }
    let inner = ['"', '\''].into_iter().find_map(|quote| {
        value.strip_prefix(quote)?.strip_suffix(quote).filter(|inner| !inner.contains('\n'))
    });
    Some(inner.unwrap_or(value))
}

/// The characters that PHP's `trim` removes in phpdotenv.
const BLANKS: [char; 6] = [' ', '\n', '\r', '\t', '\0', '\x0b'];

/// The entries with the lines they begin on. Comments and blank lines are left out; a value in double
/// quotes may go over several lines, and one that never ends takes the rest of the file with it.
fn split_entries(text: &str) -> Vec<(usize, String)> {
    let mut entries = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (index, line) in split_lines(text).into_iter().enumerate() {
        let (begin, entry, ended) = match open.take() {
            Some((begin, before)) => (begin, before + "\n" + line, closes_quotes(line, 1)),
            None => (index + 1, line.to_owned(), !line.contains("=\"") || closes_quotes(line, 2)),
        };
        if !ended {
            open = Some((begin, entry));
        } else if !matches!(entry.trim_matches(BLANKS).chars().next(), None | Some('#')) {
            entries.push((begin, entry));
        }
    }
    entries
}

/// Splits at `\r\n`, `\n` and `\r` alike, as phpdotenv does.
fn split_lines(text: &str) -> Vec<&str> {
    text.split("\r\n").flat_map(|part| part.split(['\r', '\n'])).collect()
}

/// Whether a line has at least `quotes` closing double quotes: not escaped, and not the first character unless the
/// line is that character alone.
fn closes_quotes(line: &str, quotes: usize) -> bool {
    let unescaped = line.replace("\\\\", "");
    let pairs = unescaped.as_bytes().windows(2);
    let ends = pairs.filter(|pair| matches!(pair, [before, b'"'] if *before != b'\\'));
    line == "\"" || ends.count() >= quotes
}

/// A variable's name, and its value unless the name stands alone.
type ParsedValue = (String, Option<ValueTemplate>);

/// Splits at the first `=`, so that a value may have more of them: `KEY=base64:abc=`.
fn parse_entry(entry: &str) -> Result<ParsedValue, &'static str> {
    let Some((name, value)) = entry.split_once('=') else {
        return Ok((parse_name(entry)?, None));
    };
    let name = name.trim_matches(BLANKS);
    if name.is_empty() {
        return Err("a name is missing in front of the =");
    }
    Ok((parse_name(name)?, Some(ValueTemplate::parse(value.trim_matches(BLANKS))?)))
}

/// A name without `export` and quotes, both of which phpdotenv allows around it.
fn parse_name(name: &str) -> Result<String, &'static str> {
    // The length is phpdotenv's own condition: `export D` counts as a name, and not as a good one.
    let exported = name
        .strip_prefix("export")
        .filter(|rest| name.chars().count() > 8 && rest.starts_with(is_space))
        .map(|rest| rest.trim_start_matches(is_space));
    let name = exported.unwrap_or(name);
    let unquoted = ['"', '\''].into_iter().find_map(|quote| {
        name.strip_prefix(quote)?.strip_suffix(quote).filter(|name| !name.is_empty())
    });
    let name = unquoted.unwrap_or(name);
    if !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || "_.".contains(c)) {
        Ok(name.to_owned())
    } else {
        Err("a name may have letters, digits, _ and . alone")
    }
}

/// The characters that PHP's `ctype_space` accepts.
fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

/// A value whose variables are yet to be put in.
struct ValueTemplate {
    /// The value as far as it is parsed, with places for variables.
    text: String,
    /// Where in `text` the `$` stand that may begin a variable.
    variables: Vec<usize>,
}

/// Where in a value the parser is: the states of phpdotenv's `EntryParser`.
#[derive(Clone, Copy)]
enum ParserState {
    /// Before the value.
    Begin,
    /// In a value without quotes.
    Unquoted,
    Single,
    Double,
    /// After a backslash in double quotes.
    Escape,
    /// After the value: only blanks and a comment may follow.
    After,
    /// Behind the value, in a comment.
    Comment,
}

impl ValueTemplate {
    /// Parses a value.
    /// # Errors
    /// The fault, without the value, which may be secret.
    fn parse(value: &str) -> Result<Self, &'static str> {
        let mut template = Self { text: String::new(), variables: Vec::new() };
        let mut state = ParserState::Begin;
        for character in value.chars() {
            state = template.step_state(state, character)?;
        }
        match state {
            ParserState::Single | ParserState::Double | ParserState::Escape => {
                Err("a closing quote is missing")
            }
            _ => Ok(template),
        }
    }

    /// The state after one more character, which is taken into the text where it belongs to it.
    fn step_state(
        &mut self,
        state: ParserState,
        character: char,
    ) -> Result<ParserState, &'static str> {
        Ok(match (state, character) {
            (ParserState::Begin, '\'') => ParserState::Single,
            (ParserState::Begin, '"') => ParserState::Double,
            (ParserState::Begin | ParserState::Unquoted | ParserState::After, '#') => {
                ParserState::Comment
            }
            (ParserState::Unquoted, space) if is_space(space) => ParserState::After,
            (ParserState::Begin | ParserState::Unquoted, _) => {
                self.take_character(character, ParserState::Unquoted)
            }
            (ParserState::Single, '\'') | (ParserState::Double, '"') => ParserState::After,
            (ParserState::Single, _) => {
                self.text.push(character);
                ParserState::Single
            }
            (ParserState::Double, '\\') => ParserState::Escape,
            (ParserState::Double, _) => self.take_character(character, ParserState::Double),
            (ParserState::Escape, _) => {
                self.text.push(
                    escape_of(character)
                        .ok_or("after a \\ in double quotes only \" \\ $ f n r t v may follow")?,
                );
                ParserState::Double
            }
            (ParserState::After, space) if is_space(space) => ParserState::After,
            (ParserState::After, _) => {
                return Err("a value with blanks or quotes in it must be quoted");
            }
            (ParserState::Comment, _) => ParserState::Comment,
        })
    }

    /// Notes where a `$` stands outside single quotes: only there does phpdotenv look for
    /// variables.
    fn take_character(&mut self, character: char, state: ParserState) -> ParserState {
        if character == '$' {
            self.variables.push(self.text.len());
        }
        self.text.push(character);
        state
    }

    /// Puts the variables in, the last first; `${NAME}` stays where there is no such variable.
    fn resolve_variables(self, variable: impl Fn(&str) -> Option<String>) -> String {
        let mut text = self.text;
        // From the back, so that the positions that are still to come stay right.
        for at in self.variables.into_iter().rev() {
            let (before, after) = text.split_at(at);
            let named = after.strip_prefix("${").and_then(|rest| rest.split_once('}'));
            let Some((name, rest)) = named else { continue };
            let is_name = |c: char| c.is_ascii_alphanumeric() || "_.".contains(c);
            if name.is_empty() || !name.chars().all(is_name) {
                continue;
            }
            if let Some(value) = variable(name) {
                // The inserted text is not resolved again: phpdotenv resolves once.
                text = format!("{before}{value}{rest}");
            }
        }
        text
    }
}

/// The character that an escape in double quotes stands for.
fn escape_of(character: char) -> Option<char> {
    Some(match character {
        '"' | '\\' | '$' => character,
        'f' => '\x0c',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'v' => '\x0b',
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answer of `env()` for `name` after reading `text` with `A=plain` in front.
    fn env(text: &str, name: &str) -> Option<String> {
        let all = parse_dotenv(&format!("A=plain\n{text}"), |_| None).unwrap();
        let value = all.get(name)?.value.clone()?;
        laravel_cast(&value).map(str::to_owned)
    }

    fn problem(text: &str) -> (usize, &'static str) {
        let DotenvError { line, problem } = parse_dotenv(text, |_| None).unwrap_err();
        (line, problem)
    }

    #[track_caller]
    fn is(text: &str, name: &str, expected: &str) {
        assert_eq!(env(text, name).as_deref(), Some(expected), "{text}");
    }

    #[test]
    fn plain_values_are_trimmed() {
        is("", "A", "plain");
        is("B = spaced", "B", "spaced");
        is("  C\t=\tx  ", "C", "x");
    }

    #[test]
    fn empty_is_not_absent() {
        for text in ["E=", "E=\"\"", "E=''"] {
            is(text, "E", "");
        }
    }

    #[test]
    fn a_name_alone_is_absent() {
        assert_eq!(env("F", "F"), None);
        assert_eq!(env("F=1\nF", "F"), None);
    }

    #[test]
    fn a_hash_begins_a_comment_outside_quotes() {
        is("M=value # c", "M", "value");
        is("N=value#c", "N", "value");
        is("O=#x", "O", "");
        is("I=\"a # b\"", "I", "a # b");
        is("AH=\"x\"   # c", "AH", "x");
        is("AY=\"x\"#c", "AY", "x");
        assert_eq!(env("  # Z=1\n\n \t\n", "Z"), None);
    }

    #[test]
    fn single_quotes_are_literal() {
        is(r"J='single $A ${A} \n'", "J", r"single $A ${A} \n");
    }

    #[test]
    fn variables_stand_in_braces() {
        is("K=\"v ${A} $A ${UNSET}\"", "K", "v plain $A ${UNSET}");
        is("L=un${A}quoted", "L", "unplainquoted");
        is("AL=\"a${A}b${A}\"", "AL", "aplainbplain");
        is("AM=${A-x}${}${A", "AM", "${A-x}${}${A");
    }

    #[test]
    fn variables_are_put_in_in_the_order_of_the_file() {
        is("AB=${AC}\nAC=later", "AB", "${AC}");
        is("AC=1\nAB=${AC}\nAC=2", "AB", "1");
    }

    #[test]
    fn the_real_environment_goes_first() {
        let all = parse_dotenv("A=file\nB=${A}", |name| (name == "A").then(|| "real".to_owned()));
        assert_eq!(all.unwrap()["B"].value.as_deref(), Some("real"));
    }

    #[test]
    fn double_quotes_know_escapes() {
        is(r#"P="\" \\ \$A \${A} \f\n\r\t\v""#, "P", "\" \\ $A ${A} \x0c\n\r\t\x0b");
        is(r#"P="\nabc""#, "P", "\nabc");
        assert_eq!(problem(r#"P="\x""#).0, 1);
        assert_eq!(problem(r#"P="\ x""#).0, 1);
    }

    #[test]
    fn marks_are_literal_without_quotes() {
        is(r"AI=back\slash", "AI", r"back\slash");
        is("AJ=a$b", "AJ", "a$b");
        is("AK=pa$$w", "AK", "pa$$w");
        is("AX=un'quo'te", "AX", "un'quo'te");
        is("AX=a\"b\"", "AX", "a\"b\"");
    }

    #[test]
    fn only_the_first_equals_counts() {
        is("Z=a=b=c", "Z", "a=b=c");
        is("AQ=base64:abc/+=", "AQ", "base64:abc/+=");
    }

    #[test]
    fn double_quotes_go_over_lines() {
        is("AA=\"multi\nline\"\nAB=1", "AA", "multi\nline");
        is("AA=\"multi\nline\"\nAB=1", "AB", "1");
        is("AA=\"a\n# b\n\"\nAB=1", "AA", "a\n# b\n");
        is("AA=\"a\nb\\\\\"", "AA", "a\nb\\");
        is("AA=\"a\r\nb \\\"\r\nc\" # d\r\nAB=1", "AA", "a\nb \"\nc");
    }

    #[test]
    fn some_words_are_values_of_their_own() {
        for word in ["true", "(true)", "TRUE", "\"true\"", "'True'"] {
            is(&format!("R={word}"), "R", "true");
        }
        for word in ["FALSE", "(false)"] {
            is(&format!("R={word}"), "R", "false");
        }
        for word in ["empty", "(EMPTY)"] {
            is(&format!("R={word}"), "R", "");
        }
        for word in ["null", "(null)", "\"Null\""] {
            assert_eq!(env(&format!("R={word}"), "R"), None, "{word}");
        }
    }

    #[test]
    fn a_second_pair_of_quotes_is_taken_off() {
        is("Y=\"'inner'\"", "Y", "inner");
        is("Y='\"inner\"'", "Y", "inner");
        is("Y=\"'inner\"", "Y", "'inner");
    }

    #[test]
    fn digits_with_lines_between_are_text() {
        is("AT=100_000", "AT", "100_000");
    }

    #[test]
    fn names_may_be_exported_and_quoted() {
        is("export NAME=x", "NAME", "x");
        is("\"AN\"=x", "AN", "x");
        is("'AN'=x", "AN", "x");
        is("a.b=x", "a.b", "x");
        is("ÄÖ_1=x", "ÄÖ_1", "x");
        assert_eq!(problem("export D=x").0, 1);
    }

    #[test]
    fn lines_end_in_three_ways() {
        let all = parse_dotenv("A=1\r\nB=2\rC=3\nD=4", |_| None).unwrap();
        let lines: Vec<_> = all.values().map(|entry| entry.line).collect();
        assert_eq!(lines, [1, 2, 3, 4]);
    }

    #[test]
    fn the_last_of_a_name_counts() {
        is("D=1\nD=2", "D", "2");
    }

    #[test]
    fn errors_refuse_the_file_and_name_the_line() {
        for text in [
            "X=a b",
            "X=\"a\" b",
            "X='it''s'",
            "X='un",
            "=x",
            "A B=1",
            "X-Y=1",
            "X=\"\\q\"",
            " F ",
            "X= \"a\nb\"",
            "\u{feff}X=1",
        ] {
            let (line, problem) = problem(&format!("A=1\n\n{text}\nB=2"));
            assert_eq!(line, 3, "{text}: {problem}");
        }
    }

    #[test]
    fn an_unterminated_value_takes_the_rest_with_it() {
        let all = parse_dotenv("A=1\nX=\"un\nB=2\nC=3", |_| None).unwrap();
        assert_eq!(all.keys().collect::<Vec<_>>(), ["A"]);
    }

    /// The quote after two backslashes, which phpdotenv takes out first, is all that is left of the line
    /// and ends nothing.
    #[test]
    fn a_line_of_backslashes_and_a_quote_ends_no_value() {
        assert!(parse_dotenv("A=\"\n\\\\\"", |_| None).unwrap().is_empty());
    }

    #[test]
    fn blanks_are_those_of_ascii() {
        is("A=a\u{a0}b", "A", "a\u{a0}b");
    }
}
