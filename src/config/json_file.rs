//! JSON settings files of other servers. `soketi/` and `echo_server.rs` give them their meaning.

use serde_json::{Map, Value};

use super::error::Error;

/// Parses the settings of a JSON file. Errors begin with the file's name and line, as with other files.
/// # Errors
/// The text is not JSON, or not an object.
pub(super) fn parse_settings(text: &str, name: &str) -> Result<Map<String, Value>, Error> {
    let json: Value = serde_json::from_str(text).map_err(|error| {
        // Its own text ends with the place.
        let problem = error.to_string();
        let problem = problem.split(" at line ").next().unwrap_or_default();
        Error::of_file(format!("{name}:{}", error.line()), problem)
    })?;
    match json {
        Value::Object(settings) => Ok(settings),
        _ => Err(Error::of_file(name, "expected an object")),
    }
}
