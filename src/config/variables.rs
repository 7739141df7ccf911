//! The environment as data, so that no setting is read from the process behind a test's back.

use std::collections::BTreeMap;
use std::ffi::OsString;

use super::error::{Error, Origin};

/// The variables of an environment, by name.
pub(super) struct Variables(BTreeMap<String, OsString>);

impl Variables {
    /// Variables whose names are not UTF-8 are none of Fanfare's and left out.
    pub(super) fn new<N: Into<OsString>, V: Into<OsString>>(
        pairs: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        let pairs = pairs
            .into_iter()
            .filter_map(|(name, value)| Some((name.into().into_string().ok()?, value.into())));
        Self(pairs.collect())
    }

    /// The variables whose names begin with `prefix`; a value that is not UTF-8 is an error.
    pub(super) fn with_prefix<'a>(
        &'a self,
        prefix: &'a str,
    ) -> impl Iterator<Item = (&'a str, Result<&'a str, Error>)> {
        self.0.range(prefix.to_owned()..).take_while(move |(name, _)| name.starts_with(prefix)).map(
            |(name, value)| {
                let value = value.to_str().ok_or_else(|| {
                    Error::at(&Origin::Variable(name.clone()), name, "expected UTF-8")
                });
                (name.as_str(), value)
            },
        )
    }

    /// The value of a variable, if it is set and UTF-8.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.to_str()
    }
}
