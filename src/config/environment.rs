//! The environment as data: settings are read from this, never from the process itself, so that tests control it.
//! Recognises variables that a platform sets for its services.

use std::collections::BTreeMap;
use std::ffi::OsString;

use super::error::{Error, SettingOrigin};

/// Values by name, with where each is written.
pub(super) type FoundVariables = BTreeMap<String, (String, SettingOrigin)>;

/// The prefixes of variables that are read as settings.
const OWN: [&str; 5] = ["FANFARE_", "PUSHER_", "REDIS_", "REVERB_", "SOKETI_"];

/// The variables of an environment, by name.
pub(super) struct Variables {
    /// Sorted, so that those with a prefix stand together.
    variables: BTreeMap<String, OsString>,
    /// Names that look like settings and are a platform's word on its services.
    passed_over: Vec<String>,
}

impl Variables {
    /// Variables whose names are not UTF-8 are none of Fanfare's and left out.
    pub(super) fn new<N: Into<OsString>, V: Into<OsString>>(
        pairs: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        let pairs = pairs
            .into_iter()
            .filter_map(|(name, value)| Some((name.into().into_string().ok()?, value.into())));
        let (links, variables): (BTreeMap<_, _>, BTreeMap<_, _>) =
            pairs.partition(|(name, value)| is_service_link(name, value.to_str()));
        let is_own = |name: &String| OWN.iter().any(|prefix| name.starts_with(prefix));
        Self { variables, passed_over: links.into_keys().filter(is_own).collect() }
    }

    /// The names that were passed over though they begin like settings.
    pub(super) fn passed_over(&self) -> &[String] {
        &self.passed_over
    }

    /// The variables whose names begin with `prefix`; a value that is not UTF-8 is an error.
    /// Only those of the prefix have to be UTF-8: the rest of an environment is others' business.
    pub(super) fn with_prefix<'a>(
        &'a self,
        prefix: &'a str,
    ) -> impl Iterator<Item = (&'a str, Result<&'a str, Error>)> {
        self.variables
            .range(prefix.to_owned()..)
            .take_while(move |(name, _)| name.starts_with(prefix))
            .map(|(name, value)| {
                let value = value.to_str().ok_or_else(|| {
                    Error::at_setting(
                        &SettingOrigin::Variable(name.clone()),
                        name,
                        "expected UTF-8",
                    )
                });
                (name.as_str(), value)
            })
    }

    /// The value of a variable, if it is set and UTF-8.
    /// For the few that are asked for by name; what is not UTF-8 counts as not set.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.variables.get(name)?.to_str()
    }
}

/// Whether a platform announces a service by this variable. Kubernetes does so in every pod for every Service, and
/// Docker for every linked container. So `SOKETI_PORT` may be the address of a Service called soketi.
/// <https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables>
fn is_service_link(name: &str, value: Option<&str>) -> bool {
    let followed = |rest: &str| rest.is_empty() || rest.starts_with('_');
    if name.ends_with("_SERVICE_HOST") {
        return true;
    }
    // `_SERVICE_PORT` alone, and with a named port behind it.
    if name.split("_SERVICE_PORT").skip(1).any(followed) {
        return true;
    }
    let is_address =
        |value: &str| ["tcp://", "udp://", "sctp://"].iter().any(|s| value.starts_with(s));
    // Docker's and Kubernetes' form of the older links.
    if name.ends_with("_PORT") && value.is_some_and(is_address) {
        return true;
    }
    name.split("_PORT_").skip(1).any(|rest| {
        let Some((port, rest)) = rest.split_once('_') else { return false };
        port.parse::<u16>().is_ok()
            && ["TCP", "UDP", "SCTP"]
                .iter()
                .filter_map(|protocol| rest.strip_prefix(protocol))
                .any(followed)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_platform_says_of_services_is_no_setting() {
        let links = [
            ("FANFARE_SERVICE_HOST", "192.0.2.1"),
            ("FANFARE_SERVICE_PORT", "80"),
            ("FANFARE_SERVICE_PORT_HTTP", "80"),
            ("FANFARE_PORT", "tcp://192.0.2.1:80"),
            ("FANFARE_PORT_80_TCP", "tcp://192.0.2.1:80"),
            ("FANFARE_PORT_80_TCP_PROTO", "tcp"),
            ("FANFARE_PORT_53_UDP_ADDR", "192.0.2.1"),
            ("SOKETI_PORT", "udp://192.0.2.1:6001"),
            ("SOKETI_METRICS_SERVER_PORT", "tcp://192.0.2.1:9601"),
            ("REVERB_SERVER_PORT", "tcp://192.0.2.1:8080"),
            ("REDIS_PORT", "tcp://[2001:db8::1]:6379"),
            ("REDIS_PORT_6379_TCP_PORT", "6379"),
        ];
        let settings = [
            ("FANFARE_SERVER__PORT", "81"),
            ("REDIS_PORT", "6379"),
            ("REVERB_SERVER_PORT", "81"),
            ("SOKETI_DEFAULT_APP_KEY", "tcp://k"),
            ("SOKETI_METRICS_SERVER_PORT", "9601"),
            ("SOKETI_PORT", "6001"),
        ];
        let all = Variables::new(links);
        assert_eq!(all.passed_over().len(), links.len());
        assert!(all.variables.is_empty(), "{:?}", all.variables);
        let all = Variables::new(settings);
        assert!(all.passed_over().is_empty());
        assert_eq!(all.variables.len(), settings.len());
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
        let error =
            Error::at_setting(&SettingOrigin::Variable("A_1".to_owned()), "A_1", "expected UTF-8");
        assert_eq!(found, [Err(error)]);
    }
}
