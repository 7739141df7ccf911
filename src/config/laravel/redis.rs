//! Laravel's Redis server: `REDIS_URL` over the single variables, merged as Laravel's
//! `ConfigurationUrlParser` does it and Reverb after it.

use super::Laravel;
use crate::config::error::{Error, SettingOrigin};
use crate::config::redis_url::{RedisUrl, url_database, url_host, url_port};
use crate::config::settings::Setting;
use crate::config::settings::Settings;
use crate::config::value::{Value, WantedForm};
use crate::protocol::query::percent_decode;

/// Counts over the single variables, part by part: what it leaves out they say.
const URL: &str = "REDIS_URL";

/// One part of the address and how it is checked.
struct AddressPart {
    /// In Laravel's configuration, and so in the query of a URL.
    name: &'static str,
    variable: &'static str,
    /// Writes its value into the URL.
    put: fn(&mut RedisUrl, &str) -> Result<(), WantedForm>,
}

/// In this order, so that a scheme is known before the host that may say another.
const PARTS: [AddressPart; 6] = [
    AddressPart {
        name: "scheme",
        variable: "REDIS_SCHEME",
        put: |url, text| {
            url.tls = matches!(text, "tls" | "rediss");
            Ok(())
        },
    },
    // After the scheme, which may stand in front of it.
    AddressPart { name: "host", variable: "REDIS_HOST", put: put_host },
    AddressPart {
        name: "port",
        variable: "REDIS_PORT",
        put: |url, text| url_port(text).map(|port| url.port = port),
    },
    AddressPart {
        name: "username",
        variable: "REDIS_USERNAME",
        put: |url, text| {
            text.clone_into(&mut url.user);
            Ok(())
        },
    },
    AddressPart {
        name: "password",
        variable: "REDIS_PASSWORD",
        put: |url, text| {
            text.clone_into(&mut url.password);
            Ok(())
        },
    },
    AddressPart {
        name: "database",
        variable: "REDIS_DB",
        put: |url, text| url_database(text).map(|database| url.database = database),
    },
];

/// The host of `REDIS_HOST`. `tls://` in front of it is how phpredis is asked for TLS, for example
/// `tls://cache.example.net`.
fn put_host(url: &mut RedisUrl, text: &str) -> Result<(), WantedForm> {
    let host = match text.split_once("://") {
        Some((scheme @ ("tls" | "rediss" | "tcp" | "redis"), host)) => {
            url.tls = matches!(scheme, "tls" | "rediss");
            host.trim_end_matches('/')
        }
        _ => text,
    };
    url.host = url_host(host)?;
    Ok(())
}

impl Laravel {
    /// Several Reverb servers share a Redis server; so do several of Fanfare.
    pub(super) fn apply_scaling(&self, settings: &mut Settings) -> Result<(), Error> {
        let variable = "REVERB_SCALING_ENABLED";
        if matches!(self.variable_text(variable), None | Some("false" | "0")) {
            return Ok(());
        }
        let by = [URL, "REDIS_HOST"].into_iter().find(|name| self.variable_text(name).is_some());
        let origin = self.variable_origin(by.unwrap_or(variable));
        let url = self.redis_url(&mut settings.warnings)?;
        for (name, value) in url.certificates() {
            let variable_setting = Setting { value: Value::Text(value), origin: origin.clone() };
            settings.set_key(name, variable_setting)?;
        }
        let value = Value::Text(match self.variable_text(URL).filter(|text| is_sentinels(text)) {
            // Fanfare's own way to write several; Laravel has none.
            Some(text) => text.to_owned(),
            None => url.text(),
        });
        settings.set_key("cluster.redis", Setting { value, origin })?;
        match self.variable_setting("REVERB_SCALING_CHANNEL") {
            Some(channel) => settings.set_key("cluster.prefix", channel),
            None => Ok(()),
        }
    }

    /// Laravel's Redis server, where it is a single one.
    pub(super) fn redis_url(&self, warnings: &mut Vec<String>) -> Result<RedisUrl, Error> {
        let mut url = RedisUrl::local_default();
        for part in &PARTS {
            if let Some(text) = self.variable_text(part.variable) {
                (part.put)(&mut url, text)
                    .map_err(|wanted| self.expected_error(part.variable, &wanted))?;
            }
        }
        let Some(text) = self.variable_text(URL).filter(|text| !is_sentinels(text)) else {
            return Ok(url);
        };
        let asked = url.tls;
        overlay_url(&mut url, text).map_err(|wanted| self.expected_error(URL, &wanted))?;
        if asked && !url.tls {
            warnings.push(format!(
                "Redis is spoken to without TLS, as {URL} has it: rediss:// there asks for it"
            ));
        }
        Ok(url)
    }

    /// The error of a variable, without its value, in which a password may stand.
    fn expected_error(&self, variable: &str, wanted: &str) -> Error {
        let origin = match self.variable_origin(variable) {
            SettingOrigin::Default => SettingOrigin::Variable(variable.to_owned()),
            origin => origin,
        };
        Error::at_setting(&origin, variable, format!("expected {wanted}"))
    }
}

/// Such a URL is Fanfare's own and is passed on as it is; Laravel has no setting for Sentinels.
fn is_sentinels(url: &str) -> bool {
    ["redis+sentinel://", "rediss+sentinel://"].iter().any(|scheme| url.starts_with(scheme))
}

/// The place of a TLS option as PHP's stream contexts call it, alone or in brackets: `ssl[cafile]`
/// (Predis). None for an option that has no counterpart here.
fn certificate<'a>(url: &'a mut RedisUrl, name: &str) -> Option<&'a mut String> {
    let name = percent_decode(name);
    // PHP nests names: `options[ssl][cafile]`. The last part decides.
    let last = name.trim_end_matches(']').rsplit('[').next().unwrap_or_default();
    match last {
        "cafile" => Some(&mut url.ca),
        "local_cert" => Some(&mut url.cert),
        "local_pk" => Some(&mut url.key),
        _ => None,
    }
}

/// Writes what the URL says over what the variables said, part by part: `redis://:secret@cache`
/// leaves the port and the database to `REDIS_PORT` and `REDIS_DB`.
fn overlay_url(url: &mut RedisUrl, text: &str) -> Result<(), WantedForm> {
    let wanted = || "a redis:// or rediss:// URL, or HOST:PORT".to_owned();
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) => (Some(scheme.to_ascii_lowercase()), rest),
        None => (None, text.trim_start_matches('/')),
    };
    match scheme.as_deref() {
        Some("tls" | "rediss") => url.tls = true,
        Some("tcp" | "redis") => url.tls = false,
        Some(_) => return Err(wanted()),
        None => {}
    }
    let decode = |text: &str| percent_decode(text).into_owned();
    // A fragment is never sent to a server, so it means nothing here.
    let rest = rest.split('#').next().unwrap_or_default();
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    // The last `@` separates them: a password may contain one that is not encoded.
    let (login, place) = match authority.rsplit_once('@') {
        Some((login, place)) => (Some(login), place),
        None => (None, authority),
    };
    if let Some(login) = login {
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        url.user = decode(user);
        // A user alone leaves the password to `REDIS_PASSWORD`.
        if login.contains(':') {
            url.password = decode(password);
        }
    }
    let (host, port) = host_and_port(place);
    if !host.is_empty() {
        url.host = url_host(host).map_err(|_| wanted())?;
    }
    if let Some(port) = port {
        url.port = url_port(port).map_err(|_| wanted())?;
    }
    if !path.is_empty() {
        url.database = url_database(path)?;
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decode(&value.replace('+', " "));
        // Reverb's own client says `db`.
        let name = if name == "db" { "database" } else { name };
        match PARTS.iter().find(|part| part.name == name) {
            // A scheme in front goes before one behind.
            Some(part) if name != "scheme" || scheme.is_none() => (part.put)(url, &value)?,
            Some(_) => {}
            // Laravel hands such parameters to its client, which takes TLS for asked for.
            None if matches!(name, "tls" | "ssl") => {
                url.tls |= !matches!(value.as_str(), "false" | "0" | "no" | "off");
            }
            None => {
                if let Some(place) = certificate(url, name) {
                    *place = value;
                    // An option with a certificate implies TLS.
                    url.tls = true;
                }
            }
        }
    }
    Ok(())
}

/// An IPv6 address may stand in brackets, and without a port also without.
fn host_and_port(place: &str) -> (&str, Option<&str>) {
    let is_bare = place.matches(':').count() > 1 && !place.starts_with('[');
    match place.rsplit_once(':') {
        Some((host, port)) if !is_bare && !port.ends_with(']') => {
            (host, Some(port).filter(|port| !port.is_empty()))
        }
        _ => (place, None),
    }
}
