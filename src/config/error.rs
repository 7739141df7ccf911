//! Configuration errors, and the places where settings were written. An error names the place, but never the value of a
//! secret.

use std::fmt;
use std::io;
use std::sync::Arc;

/// `EX_CONFIG` and `EX_NOPERM` of sysexits.h.
const CONFIG: u8 = 78;
/// `EX_NOPERM` of sysexits.h.
const NO_PERMISSION: u8 = 77;

/// Where a setting was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum SettingOrigin {
    /// Nowhere: it is Fanfare's default.
    Default,
    /// Nowhere: it follows from the setting that is named.
    Implied(&'static str),
    /// Made at random for this run.
    Made,
    /// A key of a file.
    File { path: Arc<str>, line: usize },
    /// A variable of a Laravel environment file.
    DotEnv { path: Arc<str>, line: usize, name: String },
    /// A variable of the process's environment.
    Variable(String),
    /// A key of Soketi's JSON file, whose lines are not known.
    Json { path: Arc<str>, key: String },
    /// A column in the row of an app in a database, or the row as a whole.
    Row { id: String, column: String },
    /// A flag of the command line.
    Flag(&'static str),
}

impl fmt::Display for SettingOrigin {
    /// As messages and `config show` name it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Implied(by) => write!(f, "default with {by}"),
            Self::Row { id, column } if column.is_empty() => write!(f, "the row of {id:?}"),
            Self::Row { id, column } => write!(f, "the row of {id:?}, column {column}"),
            Self::Made => f.write_str("made for this run"),
            Self::File { path, line } => write!(f, "{path}:{line}"),
            Self::DotEnv { path, line, name } => write!(f, "{path}:{line}: {name}"),
            Self::Variable(name) => f.write_str(name),
            Self::Json { path, key } => write!(f, "{path}: {key}"),
            Self::Flag(name) => f.write_str(name),
        }
    }
}

impl SettingOrigin {
    /// The file, or what stands in the place of one, without the line.
    /// Used where it counts from which file an app came, not from which line.
    pub(super) fn source(&self) -> &str {
        match self {
            Self::Default | Self::Implied(_) => "defaults",
            Self::Made => "made for this run",
            Self::File { path, .. } | Self::DotEnv { path, .. } | Self::Json { path, .. } => path,
            Self::Variable(_) => "environment",
            Self::Row { .. } => "database",
            Self::Flag(_) => "command line",
        }
    }
}

/// A setting that cannot be used, as one line: where it is, which it is and what would be right.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Error {
    /// Without a line's end, so that one error is one line of a log.
    line: String,
    /// By which service managers tell a wrong setting from a crash, and do not restart for ever.
    code: u8,
}

impl Error {
    /// `key` is the dotted name of the setting; it is said where the origin does not say it already.
    pub(super) fn at_setting(
        origin: &SettingOrigin,
        key: &str,
        problem: impl fmt::Display,
    ) -> Self {
        let line = match origin {
            SettingOrigin::File { .. } => format!("{origin}: {key}: {problem}"),
            SettingOrigin::Default | SettingOrigin::Implied(_) | SettingOrigin::Made => {
                format!("{key}: {problem}")
            }
            // A variable's name says which setting it is.
            _ => format!("{origin}: {problem}"),
        };
        Self { line: one_line(&line), code: CONFIG }
    }

    /// A file that cannot be used as a whole, or not from `place` on.
    /// `place` may end with `:` and a line.
    pub(super) fn of_file(place: impl fmt::Display, problem: impl fmt::Display) -> Self {
        Self { line: one_line(&format!("{place}: {problem}")), code: CONFIG }
    }

    /// A file that cannot be read, called as `place` calls it.
    pub(super) fn unreadable(place: impl fmt::Display, error: &io::Error) -> Self {
        let error_line = Self::of_file(&place, error);
        if error.kind() != io::ErrorKind::PermissionDenied {
            return error_line;
        }
        // The remedy, since "permission denied" alone does not name the user.
        let problem = format!("{error}; let the user read it that runs this");
        Self::of_file(place, problem).with_code(NO_PERMISSION)
    }

    /// The same with another exit code.
    pub fn with_code(self, code: u8) -> Self {
        Self { code, ..self }
    }

    /// The exit code of the process: `EX_CONFIG` of sysexits.h, or `EX_NOPERM` if a file may not be read.
    pub fn exit_code(&self) -> u8 {
        self.code
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

impl std::error::Error for Error {}

/// A text with its control characters written out: names of keys and files may hold some.
pub(super) fn one_line(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut line, character| {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
        line
    })
}

/// `; did you mean X?` with the candidate nearest to `written`; empty if none is near. Names of settings are long
/// and easily misspelt.
pub(super) fn suggestion<'a>(
    written: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> String {
    candidates
        .into_iter()
        .map(|candidate| (edit_distance(written, candidate), candidate))
        // Two slips, or a third of a long name; further away a suggestion would only confuse.
        .filter(|(distance, candidate)| *distance <= 2.max(candidate.len() / 3))
        .min()
        .map(|(_, candidate)| format!("; did you mean {candidate}?"))
        // A key that resembles nothing gets no suggestion.
        .unwrap_or_default()
}

/// How many characters must be put in, taken out or exchanged to make `b` of `a`.
/// Levenshtein's distance, one row of its table at a time.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (index, from) in a.chars().enumerate() {
        let mut left = index + 1;
        let mut next = vec![left];
        for (to, above) in b.iter().zip(row.windows(2)) {
            let &[diagonal, above] = above else { continue };
            left = (diagonal + usize::from(from != *to)).min(above + 1).min(left + 1);
            next.push(left);
        }
        row = next;
    }
    // The last cell is the distance between the two whole words.
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        assert_eq!(edit_distance("port", "port"), 0);
        assert_eq!(edit_distance("prot", "port"), 2);
        assert_eq!(edit_distance("", "port"), 4);
        assert_eq!(edit_distance("ports", "port"), 1);
    }

    #[test]
    fn an_error_is_one_line_whatever_it_names() {
        let error = Error::of_file("a\nb\u{1b}[1m.toml", "wrong\r");
        assert_eq!(error.to_string(), "a\\nb\\u{1b}[1m.toml: wrong\\r");
    }

    #[test]
    fn the_nearest_is_suggested_and_nothing_far() {
        let names = ["server.host", "server.port"];
        assert_eq!(suggestion("server.prot", names), "; did you mean server.port?");
        assert_eq!(suggestion("colour", names), "");
    }
}
