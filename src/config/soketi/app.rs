//! Soketi's app object, in the three spellings of its files, tables and documentation.

use serde_json::Value as Json;

use super::{Soketi, ValueForm, boolean, text};
use crate::config::error::{Error, SettingOrigin};
use crate::config::settings::{
    AppSettings, DropInFor, GivenValue, Setting, WebhookSettings, key_below,
};
use crate::config::value::Value;

/// The key of the list of apps.
pub(super) const APPS: &str = "appManager.array.apps";

/// Soketi's settings, and the port that it listens on by default.
pub(super) const SOKETI: &DropInFor = &DropInFor { name: "Soketi's settings", port: Some(6001) };

/// A field of an app: the spellings, of which the last that is given counts, the server's key with its
/// default, Fanfare's key, and how it is read.
struct AppField {
    /// Its spellings; the last one that is given counts.
    names: [&'static str; 3],
    /// The key of the server's settings that applies to all apps, if there is one.
    general: Option<&'static str>,
    key: &'static str,
    /// How Soketi's value is converted.
    form: ValueForm,
}

/// A field that only an app has.
const fn app_field(names: [&'static str; 3], key: &'static str, form: ValueForm) -> AppField {
    AppField { names, general: None, key, form }
}

/// A field that an app takes from the server's settings where it says nothing of its own.
const fn limit_field(
    names: [&'static str; 3],
    general: &'static str,
    key: &'static str,
    form: ValueForm,
) -> AppField {
    AppField { names, general: Some(general), key, form }
}

/// An app's settings of Soketi, each with its counterpart here.
#[rustfmt::skip]
const FIELDS: [AppField; 14] = [
    app_field(["id", "AppId", "id"], "id", ValueForm::Text),
    app_field(["key", "AppKey", "key"], "key", ValueForm::Text),
    app_field(["secret", "AppSecret", "secret"], "secret", ValueForm::Text),
    app_field(["enabled", "Enabled", "enabled"], "enabled", ValueForm::Boolean),
    app_field(["maxConnections", "MaxConnections", "max_connections"], "max_connections", ValueForm::LimitOrNone),
    app_field(["maxBackendEventsPerSecond", "MaxBackendEventsPerSecond", "max_backend_events_per_sec"], "events_per_second", ValueForm::Limit),
    app_field(["maxReadRequestsPerSecond", "MaxReadRequestsPerSecond", "max_read_req_per_sec"], "reads_per_second", ValueForm::Limit),
    limit_field(["maxPresenceMembersPerChannel", "MaxPresenceMembersPerChannel", "max_presence_members_per_channel"], "presence.maxMembersPerChannel", "max_presence_members", ValueForm::Number),
    limit_field(["maxPresenceMemberSizeInKb", "MaxPresenceMemberSizeInKb", "max_presence_member_size_in_kb"], "presence.maxMemberSizeInKb", "max_member_size", ValueForm::Kilobytes),
    limit_field(["maxChannelNameLength", "MaxChannelNameLength", "max_channel_name_length"], "channelLimits.maxNameLength", "max_channel_name", ValueForm::Number),
    limit_field(["maxEventChannelsAtOnce", "MaxEventChannelsAtOnce", "max_event_channels_at_once"], "eventLimits.maxChannelsAtOnce", "max_channels_per_event", ValueForm::Number),
    limit_field(["maxEventNameLength", "MaxEventNameLength", "max_event_name_length"], "eventLimits.maxNameLength", "max_event_name", ValueForm::Number),
    limit_field(["maxEventPayloadInKb", "MaxEventPayloadInKb", "max_event_payload_in_kb"], "eventLimits.maxPayloadInKb", "max_event_data", ValueForm::Kilobytes),
    limit_field(["maxEventBatchSize", "MaxEventBatchSize", "max_event_batch_size"], "eventLimits.maxBatchSize", "max_batch", ValueForm::Number),
];

/// The keys that every app must have.
const IDENTITY: [&str; 3] = ["id", "key", "secret"];

/// Keys with a rule of their own, which the table above does not cover.
const CLIENT_RATE: [&str; 3] =
    ["maxClientEventsPerSecond", "MaxClientEventsPerSecond", "max_client_events_per_sec"];
/// The names of the switch for client events.
const CLIENT_EVENTS: [&str; 3] =
    ["enableClientMessages", "EnableClientMessages", "enable_client_messages"];
/// The names of the switch for sign-in.
const USERS: [&str; 3] =
    ["enableUserAuthentication", "EnableUserAuthentication", "enable_user_authentication"];
const WEBHOOKS: [&str; 3] = ["webhooks", "Webhooks", "webhooks"];

/// The server's settings for every app.
pub(super) struct ServerWide {
    /// By Fanfare's key.
    limits: Vec<(&'static str, GivenValue)>,
    /// Of cache channels, in seconds.
    cache_ttl: Option<GivenValue>,
    /// How long a connection has to sign in, in milliseconds.
    users_timeout: Option<GivenValue>,
    /// For how long webhooks gather events, in milliseconds; none: batching is off.
    batch: Option<GivenValue>,
}

impl Soketi {
    /// The apps that were given. Soketi would make one with known credentials where there are none, or
    /// only parts of one; here such an app stops the start.
    pub(super) fn take_apps(&mut self) -> Result<Vec<AppSettings>, Error> {
        let general = self.take_server_wide()?;
        let mut apps = Vec::new();
        loop {
            let place = format!("{APPS}.{}", apps.len());
            let inside = format!("{place}.");
            let first = self.given.range(inside.clone()..).next();
            let Some((_, first)) = first.filter(|(key, _)| key.starts_with(&inside)) else { break };
            let origin = first.origin.clone();
            apps.push(self.take_app(&place, &format!("apps[{}]", apps.len()), origin, &general)?);
        }
        self.refuse_lost(apps.len())?;
        Ok(apps)
    }

    /// Refuses apps that were given and not found: a list without any, or one behind a gap.
    fn refuse_lost(&mut self, count: usize) -> Result<(), Error> {
        if let Some(list) = self.given.get(APPS).filter(|list| !list.value.is_null())
            && count == 0
        {
            return Err(list.wrong_value(APPS, "a list of one app or more"));
        }
        self.given.remove(APPS);
        let inside = format!("{APPS}.");
        for (key, given) in self.given.range(inside.clone()..) {
            let Some(rest) = key.strip_prefix(&inside) else { break };
            let index: Option<usize> = rest.split('.').next().and_then(|one| one.parse().ok());
            if index.is_none_or(|index| index >= count) {
                let problem = format!("there is no app {count} before it");
                return Err(Error::at_setting(&given.origin, key, problem));
            }
        }
        Ok(())
    }

    /// Lets the app of a row go on without what is wrong in one of its columns. One bad row of a
    /// table would otherwise close the server to the apps of all others.
    fn settle_row(&mut self, read: Result<(), Error>) -> Result<(), Error> {
        match (read, &mut self.passed_over) {
            (Err(error), Some(passed_over)) => {
                passed_over.push(error.to_string());
                Ok(())
            }
            (read, _) => read,
        }
    }

    /// Takes the server's settings for every app. Taken once, before the apps, so that none of them is reported as
    /// ignored.
    pub(super) fn take_server_wide(&mut self) -> Result<ServerWide, Error> {
        let limits = FIELDS.iter().filter_map(|field| {
            let given = self.take_key(field.general?)?;
            Some((field.key, given))
        });
        let limits = limits.collect();
        let batching = self.take_key("webhooks.batching.enabled");
        let batch = self.take_key("webhooks.batching.duration");
        let batch = match batching {
            Some(given) if boolean(&given.value) == Some(true) => Some(
                // 50 ms, Soketi's own.
                batch.unwrap_or_else(|| GivenValue { value: Json::from(50), origin: given.origin }),
            ),
            _ => None,
        };
        Ok(ServerWide {
            limits,
            cache_ttl: self.take_key("channelLimits.cacheTtl"),
            users_timeout: self.take_key("userAuthenticationTimeout"),
            batch,
        })
    }

    /// One app with everything in it. In a settings file the first fault stops the start; in a row
    /// of a table the app goes on without what cannot be read, unless that is its identity.
    fn take_app(
        &mut self,
        place: &str,
        name: &str,
        origin: SettingOrigin,
        general: &ServerWide,
    ) -> Result<AppSettings, Error> {
        let mut app = AppSettings::new(origin);
        app.drop_in = Some(SOKETI);
        for field in &FIELDS {
            let read = self.take_field(&mut app, field, (place, name), general);
            if IDENTITY.contains(&field.key) {
                read?;
            } else {
                self.settle_row(read)?;
            }
        }
        let rate = self.take_spelled(place, CLIENT_RATE);
        let key = "client_events_per_second";
        let rate = or_else(rate, key, ValueForm::Limit, Value::Integer(0));
        let read = rate.and_then(|rate| app.set_key(name, key, rate));
        if read.is_err() && self.passed_over.is_some() {
            // Soketi's, which is none.
            app.set_key(name, key, or_else(None, key, ValueForm::Limit, Value::Integer(0))?)?;
        }
        self.settle_row(read)?;
        let ttl = general.cache_ttl.clone();
        // Soketi's `channelLimits.cacheTtl`: an hour.
        let hour = Value::Text("3600s".to_owned());
        app.set_key(name, "cache_ttl", or_else(ttl, "cache_ttl", ValueForm::Seconds, hour)?)?;
        let read = self.client_events(&mut app, place, name);
        if read.is_err() && self.passed_over.is_some() {
            let value = Value::Text("none".to_owned());
            let setting = Setting { value, origin: SettingOrigin::Implied(SOKETI.name) };
            app.set_key(name, "client_events", setting)?;
        }
        self.settle_row(read)?;
        let read = self.take_user_auth(&mut app, place, name, general);
        self.settle_row(read)?;
        let read = self.take_webhooks(&mut app, place, name, general);
        if read.is_err() && self.passed_over.is_some() {
            // One that was read in part is none.
            app.webhooks.clear();
        }
        self.settle_row(read)?;
        app.keep_client_events()?;
        Ok(app)
    }

    /// One field: the app's own value, else that for all apps, else nothing, which is Fanfare's
    /// default.
    fn take_field(
        &mut self,
        app: &mut AppSettings,
        field: &AppField,
        (place, name): (&str, &str),
        general: &ServerWide,
    ) -> Result<(), Error> {
        let of_all = general.limits.iter().find(|(key, _)| *key == field.key);
        let given = self.take_spelled(place, field.names);
        let Some(given) = given.or_else(|| of_all.map(|(_, given)| given.clone())) else {
            return Ok(());
        };
        let key = key_below(place, field.key);
        let set =
            given.into_setting(&key, field.form).and_then(|set| app.set_key(name, field.key, set));
        match of_all {
            // A column that cannot be read limits nothing; the settings for all apps still do.
            Some((_, of_all)) if set.is_err() && self.passed_over.is_some() => {
                let setting = of_all.clone().into_setting(&key, field.form)?;
                app.set_key(name, field.key, setting)?;
                set
            }
            _ => set,
        }
    }

    /// The last given of a field's spellings.
    fn take_spelled(&mut self, place: &str, names: [&str; 3]) -> Option<GivenValue> {
        let mut given = None;
        for name in names {
            given = self.take_key(&format!("{place}.{name}")).or(given);
        }
        given
    }

    /// Whether clients may send events. Soketi's default forbids it; if it is on, members of a channel may.
    fn client_events(
        &mut self,
        app: &mut AppSettings,
        place: &str,
        name: &str,
    ) -> Result<(), Error> {
        let given = self.take_spelled(place, CLIENT_EVENTS);
        let setting = or_else(given, CLIENT_EVENTS[0], ValueForm::Boolean, Value::Bool(false))?;
        let from = if setting.value == Value::Bool(true) { "members" } else { "none" };
        app.set_key(
            name,
            "client_events",
            Setting { value: Value::Text(from.to_owned()), ..setting },
        )
    }

    /// An app with user authentication closes connections that do not sign in.
    fn take_user_auth(
        &mut self,
        app: &mut AppSettings,
        place: &str,
        name: &str,
        general: &ServerWide,
    ) -> Result<(), Error> {
        let Some(given) = self.take_spelled(place, USERS) else { return Ok(()) };
        let setting = given.into_setting(USERS[0], ValueForm::Boolean)?;
        if setting.value != Value::Bool(true) {
            return Ok(());
        }
        let timeout = match general.users_timeout.clone() {
            Some(timeout) => {
                timeout.into_setting("userAuthenticationTimeout", ValueForm::Milliseconds)?
            }
            // Soketi's `userAuthenticationTimeout` is 30 000 ms.
            None => Setting { value: Value::Text("30s".to_owned()), ..setting },
        };
        app.set_key(name, "authorization_timeout", timeout)
    }

    /// The webhooks of an app: a list, or the text of one in JSON, as columns of tables have it.
    ///
    /// # Errors
    /// The list is none, or one of them asks for what there is not, such as an AWS Lambda.
    fn take_webhooks(
        &mut self,
        app: &mut AppSettings,
        place: &str,
        name: &str,
        general: &ServerWide,
    ) -> Result<(), Error> {
        let Some(given) = self.take_spelled(place, WEBHOOKS) else { return Ok(()) };
        let wanted =
            || Error::at_setting(&given.origin, WEBHOOKS[0], "expected a list of webhooks");
        let list = match &given.value {
            Json::String(text) => serde_json::from_str(text).map_err(|_| wanted())?,
            other => other.clone(),
        };
        for (index, written) in list.as_array().ok_or_else(wanted)?.iter().enumerate() {
            if written.get("lambda_function").is_some_and(|function| !function.is_null()) {
                let problem = "lambda_function is not available; expected a url";
                return Err(Error::at_setting(&given.origin, WEBHOOKS[0], problem));
            }
            let place = format!("{name}.webhooks[{index}]");
            let webhook = app.webhook_at(index, &given.origin)?;
            read_webhook(webhook, &place, written, &given.origin)?;
            if let Some(batch) = general.batch.clone() {
                webhook.set_key(
                    &place,
                    "batch",
                    batch.into_setting("batch", ValueForm::Milliseconds)?,
                )?;
            }
        }
        Ok(())
    }
}

/// A webhook object; what it leaves out is as Fanfare has it.
fn read_webhook(
    webhook: &mut WebhookSettings,
    place: &str,
    written: &Json,
    origin: &SettingOrigin,
) -> Result<(), Error> {
    let wrong = |problem: &str| Err(Error::at_setting(origin, WEBHOOKS[0], problem));
    let Some(entries) = written.as_object() else { return wrong("expected a list of objects") };
    // A misspelt name here would send webhooks to the wrong place, or nowhere, so it is refused.
    let known = ["url", "event_types", "filter", "headers", "lambda", "lambda_function"];
    if let Some(name) = entries.keys().find(|name| !known.contains(&name.as_str())) {
        return wrong(&format!("{name} is no key of a webhook; there are {}", known.join(", ")));
    }
    let filters = ["channel_name_starts_with", "channel_name_ends_with"];
    match entries.get("filter") {
        None | Some(Json::Null) => {}
        Some(Json::Object(filter)) => {
            if let Some(name) = filter.keys().find(|name| !filters.contains(&name.as_str())) {
                return wrong(&format!("{name} is no filter; there are {}", filters.join(", ")));
            }
        }
        // PHP writes an empty object so.
        Some(Json::Array(list)) if list.is_empty() => {}
        Some(_) => return wrong("filter: expected an object"),
    }
    for (pointer, key, form) in [
        ("/url", "url", ValueForm::Text),
        ("/event_types", "events", ValueForm::Texts),
        ("/filter/channel_name_starts_with", "channel_prefix", ValueForm::Text),
        ("/filter/channel_name_ends_with", "channel_suffix", ValueForm::Text),
    ] {
        let Some(value) = written.pointer(pointer).filter(|value| !value.is_null()) else {
            continue;
        };
        let given = GivenValue { value: value.clone(), origin: origin.clone() };
        webhook.set_key(place, key, given.into_setting(&key_below(place, key), form)?)?;
    }
    let headers = match entries.get("headers") {
        Some(Json::Object(headers)) => headers,
        None | Some(Json::Null) => return Ok(()),
        Some(Json::Array(list)) if list.is_empty() => return Ok(()),
        Some(_) => return wrong("headers: expected an object"),
    };
    let headers =
        headers.iter().map(|(name, value)| Some((name.clone(), Value::Text(text(value)?))));
    let headers: Option<Vec<_>> = headers.collect();
    let value = headers.map_or(Value::Other("headers that are no texts"), Value::Table);
    webhook.set_key(place, "headers", Setting { value, origin: origin.clone() })
}

/// The given value, otherwise Soketi's default.
fn or_else(
    given: Option<GivenValue>,
    key: &str,
    form: ValueForm,
    value: Value,
) -> Result<Setting, Error> {
    match given {
        Some(given) => given.into_setting(key, form),
        None => Ok(Setting { value, origin: SettingOrigin::Implied(SOKETI.name) }),
    }
}
