//! Builds a Redis URL from the separate settings that other servers have for its parts. Each part is checked here, so
//! that an error names the wrong setting.

use super::value::{Value, WantedForm, host, number};
use crate::protocol::query::percent_encode;

/// A Redis URL: user, address, database, and whether TLS is used.
#[derive(Clone, PartialEq, Eq, Default)]
pub(super) struct RedisUrl {
    /// Whether TLS is used (`rediss://`).
    pub(super) tls: bool,
    /// The user; empty for the default one.
    pub(super) user: String,
    /// The password; empty for none.
    pub(super) password: String,
    /// An IPv6 address with its brackets.
    pub(super) host: String,
    /// The port, as text, since it goes into a URL.
    pub(super) port: String,
    pub(super) database: String,
    /// The CA, a client certificate and its key: files, or texts in PEM form.
    pub(super) ca: String,
    /// The client certificate.
    pub(super) cert: String,
    /// The client certificate's key.
    pub(super) key: String,
}

impl RedisUrl {
    /// `127.0.0.1:6379`, Redis's usual address.
    pub(super) fn local_default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: "6379".to_owned(),
            database: "0".to_owned(),
            ..Self::default()
        }
    }

    /// `rediss` is TLS, by the convention of all clients of Redis.
    pub(super) fn scheme(&self) -> &'static str {
        if self.tls { "rediss" } else { "redis" }
    }

    /// User and password with the `@` behind them, or nothing.
    pub(super) fn login(&self) -> String {
        let Self { user, password, .. } = self;
        if user.is_empty() && password.is_empty() {
            return String::new();
        }
        format!("{}:{}@", percent_encode(user), percent_encode(password))
    }

    /// The settings of its certificates that are given, by their names.
    pub(super) fn certificates(&self) -> impl Iterator<Item = (&'static str, String)> {
        [
            ("cluster.tls.ca", &self.ca),
            ("cluster.tls.cert", &self.cert),
            ("cluster.tls.key", &self.key),
        ]
        .map(|(name, value)| (name, value.clone()))
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
    }

    /// The URL. It holds the password, so it goes into a setting that is hidden.
    pub(super) fn text(&self) -> String {
        let (scheme, login) = (self.scheme(), self.login());
        let Self { host, port, database, .. } = self;
        format!("{scheme}://{login}{host}:{port}/{database}")
    }
}

/// A host as it stands in a URL.
///
/// # Errors
/// It is more than a host's name or address, or none.
pub(super) fn url_host(text: &str) -> Result<String, WantedForm> {
    let host = host(&Value::Text(text.to_owned()))
        .map_err(|_| "a host's name or address alone, without port or scheme".to_owned())?;
    Ok(if host.contains(':') { format!("[{host}]") } else { host })
}

/// A port to connect to, which cannot be 0.
///
/// # Errors
/// It is no number from 1 to 65535.
pub(super) fn url_port(text: &str) -> Result<String, WantedForm> {
    let port: u16 = number(&Value::Raw(text.to_owned()), 1..=65_535)?;
    Ok(port.to_string())
}

/// The number of a database in Redis.
///
/// # Errors
/// It is no whole number.
pub(super) fn url_database(text: &str) -> Result<String, WantedForm> {
    let wanted = "the number of a database, such as 0";
    text.parse::<u32>().map(|number| number.to_string()).map_err(|_| wanted.to_owned())
}
