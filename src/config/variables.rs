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
        let mut all = Self(pairs.collect());
        if all.0.contains_key("KUBERNETES_SERVICE_HOST") {
            all.leave_out_services();
        }
        all
    }

    /// Kubernetes tells every pod of every service in variables, such as `SOKETI_PORT` of one that is
    /// called soketi. Those are no settings.
    fn leave_out_services(&mut self) {
        let services: Vec<String> = self
            .0
            .keys()
            .filter_map(|name| Some(name.strip_suffix("_SERVICE_HOST")?.to_owned()))
            .filter(|service| self.0.contains_key(&format!("{service}_SERVICE_PORT")))
            .collect();
        self.0.retain(|name, value| {
            let address = value.to_str().is_some_and(|value| value.contains("://"));
            !services.iter().any(|service| match name.strip_prefix(service.as_str()) {
                Some("_PORT") => address,
                Some(rest) => {
                    let of_port = rest.strip_prefix("_PORT_");
                    rest.starts_with("_SERVICE_HOST")
                        || rest.starts_with("_SERVICE_PORT")
                        || of_port
                            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
                }
                None => false,
            })
        });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kubernetes_says_of_services_is_no_setting() {
        let service = [
            ("FANFARE_SERVICE_HOST", "192.0.2.1"),
            ("FANFARE_SERVICE_PORT", "80"),
            ("FANFARE_SERVICE_PORT_HTTP", "80"),
            ("FANFARE_PORT", "tcp://192.0.2.1:80"),
            ("FANFARE_PORT_80_TCP", "tcp://192.0.2.1:80"),
            ("FANFARE_PORT_80_TCP_PROTO", "tcp"),
            ("FANFARE_SERVER__PORT", "81"),
        ];
        let names = |pairs: &[(&str, &str)]| {
            let variables = Variables::new(pairs.iter().copied());
            let names = variables.with_prefix("FANFARE_").map(|(name, _)| name.to_owned());
            names.collect::<Vec<_>>()
        };
        assert_eq!(names(&service).len(), 7);
        let mut inside = service.to_vec();
        inside.push(("KUBERNETES_SERVICE_HOST", "192.0.2.2"));
        assert_eq!(names(&inside), ["FANFARE_SERVER__PORT"]);
    }

    #[test]
    fn a_prefix_finds_its_variables_alone() {
        let variables = Variables::new([("A_1", "x"), ("AB", "x"), ("A", "x"), ("A_2", "y")]);
        let found: Vec<_> = variables.with_prefix("A_").map(|(name, _)| name).collect();
        assert_eq!(found, ["A_1", "A_2"]);
    }

    #[cfg(unix)]
    #[test]
    fn what_is_not_utf8_is_refused_only_where_it_would_be_read() {
        use std::os::unix::ffi::OsStringExt;
        let bytes = OsString::from_vec(vec![0xff]);
        let variables = Variables::new([("A_1", bytes.clone()), ("B", bytes)]);
        let found: Vec<_> = variables.with_prefix("A_").map(|(_, value)| value).collect();
        let error = Error::at(&Origin::Variable("A_1".to_owned()), "A_1", "expected UTF-8");
        assert_eq!(found, [Err(error)]);
    }
}
