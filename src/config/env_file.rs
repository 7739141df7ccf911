//! The environment file of a Laravel app or a Soketi server: which file it is, whether Fanfare may use it, and its
//! variables by the original reader's grammar. Their meaning is decided elsewhere.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::dotenv;
use super::environment::{FoundVariables, Variables};
use super::error::{Error, SettingOrigin};
use super::laravel;
use super::soketi;

/// The variables of an environment file.
#[derive(Default)]
pub(super) struct EnvFile {
    /// As Laravel's `env()` answers them: those that are null are left out.
    pub(super) laravel: FoundVariables,
    /// Those of Soketi, as they are written.
    pub(super) soketi: FoundVariables,
}

impl EnvFile {
    /// Reads the `given` file, otherwise the one in `folder` if it belongs to an app with credentials or to a
    /// Soketi server. Faults that stop nothing are added to `warnings`.
    /// # Errors
    /// The file cannot be read or parsed; both stop the start.
    pub(super) fn read(
        given: Option<&Path>,
        folder: &Path,
        variables: &Variables,
        warnings: &mut Vec<String>,
    ) -> Result<Self, Error> {
        let Some(path) = given else { return found_in(folder, variables, warnings) };
        // The path as it was typed, since the user reads it in messages.
        let name = path.display().to_string();
        let text = std::fs::read_to_string(folder.join(path))
            .map_err(|error| Error::unreadable(&name, &error))?;
        let is_ours =
            |line: &str| ["REVERB_", "PUSHER_APP_"].iter().any(|prefix| line.contains(prefix));
        // A file for Soketi is read by the grammar of Soketi's own reader, which differs from PHP's in quotes and
        // escapes.
        let file = if !text.lines().any(is_ours) && text.contains(soketi::PREFIX) {
            Self { soketi: soketi::dotenv::parse_dotenv(&text, &name), ..Self::default() }
        } else {
            parse_env_file(&text, &name, variables)?
        };
        // A file that was named and sets nothing is most often the wrong file.
        let gives = |name: &String| name.starts_with("REVERB_") || name.starts_with("PUSHER_APP_");
        if file.soketi.is_empty() && !file.laravel.keys().any(gives) {
            warnings.push(format!(
                "{name} gives no setting: there is no REVERB_*, PUSHER_APP_* or SOKETI_* in it"
            ));
        }
        file.warn_of_own(&name, &text, warnings);
        Ok(file)
    }

    /// Fanfare's own variables are for the process's environment.
    /// They would seem to be set, and silently are not.
    fn warn_of_own(&self, name: &str, text: &str, warnings: &mut Vec<String>) {
        let own = text.lines().map(|line| line.trim_start().trim_start_matches("export "));
        let own = own.filter(|line| line.starts_with("FANFARE_"));
        let names: Vec<_> = own.filter_map(|line| line.split(['=', ' ']).next()).collect();
        if !names.is_empty() {
            warnings.push(format!(
                "{name}: {} has no effect in this file: put it into the environment of the \
                 process, or into the file of --config",
                names.join(", ")
            ));
        }
    }
}

/// Both kinds of variables out of one file, each where it belongs.
/// # Errors
/// The line that PHP's own reader would refuse.
pub(super) fn parse_env_file(
    text: &str,
    name: &str,
    variables: &Variables,
) -> Result<EnvFile, Error> {
    let outside = |name: &str| variables.value(name).map(str::to_owned);
    let entries = dotenv::parse_dotenv(text, outside)
        .map_err(|wrong| Error::of_file(format!("{name}:{}", wrong.line), wrong.problem))?;
    let mut file = EnvFile::default();
    for (variable, entry) in entries {
        let origin =
            SettingOrigin::DotEnv { path: name.into(), line: entry.line, name: variable.clone() };
        // A name without a value sets nothing.
        let Some(value) = entry.value else { continue };
        if variable.starts_with(soketi::PREFIX) {
            file.soketi.insert(variable, (value, origin));
        } else if let Some(value) = dotenv::laravel_cast(&value) {
            file.laravel.insert(variable, (value.to_owned(), origin));
        }
    }
    Ok(file)
}

/// The file that Laravel, or Soketi, would read in `folder`.
fn find_env_file(folder: &Path, variables: &Variables) -> Result<Option<(PathBuf, String)>, Error> {
    // As `LoadEnvironmentVariables` of Laravel decides it.
    // Laravel reads `.env.x` instead of `.env` where APP_ENV is x.
    let special = variables.value("APP_ENV").map(|name| format!(".env.{name}"));
    for name in special.into_iter().chain([".env".to_owned()]) {
        let path = folder.join(&name);
        match std::fs::metadata(&path) {
            Ok(data) if data.is_file() => return Ok(Some((path, name))),
            // Python keeps virtual environments in folders of this name.
            Ok(_) => {}
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            Err(error) => return Err(Error::unreadable(path.display(), &error)),
        }
    }
    Ok(None)
}

/// The variables of the environment file in `folder`, if it belongs to an app with credentials or to a Soketi
/// server. Any other `.env` is ignored, whatever it contains.
fn found_in(
    folder: &Path,
    variables: &Variables,
    warnings: &mut Vec<String>,
) -> Result<EnvFile, Error> {
    let Some((path, name)) = find_env_file(folder, variables)? else {
        return Ok(EnvFile::default());
    };
    // Unreadable must not look like absent.
    // One that may not be read may be the app's, and an app made up in its place would be served instead.
    let bytes = std::fs::read(&path).map_err(|error| Error::unreadable(path.display(), &error))?;
    let text = String::from_utf8_lossy(&bytes);
    let is_app = laravel::mentions_app(&text);
    if !is_app && !text.contains(soketi::PREFIX) {
        return Ok(EnvFile::default());
    }
    if std::str::from_utf8(&bytes).is_err() {
        return Err(Error::of_file(&name, "expected UTF-8"));
    }
    let mut file = EnvFile::default();
    if is_app {
        file = parse_env_file(&text, &name, variables)?;
        if let Some(problem) = laravel::no_app(&file.laravel) {
            file.laravel.clear();
            if let Some(error) = problem {
                warnings.push(format!("{name} is not read: {error}"));
            }
        }
    }
    // One file may serve both; what is Laravel's wins.
    if file.laravel.is_empty() {
        file.soketi = soketi::dotenv::parse_dotenv(&text, &name);
    }
    if file.laravel.is_empty() && file.soketi.is_empty() {
        return Ok(file);
    }
    file.warn_of_own(&name, &text, warnings);
    let cache = folder.join("bootstrap/cache/config.php");
    // In a folder that may not be looked into, it may be there.
    // Rather warn once too often.
    let is_cached = cache.try_exists().unwrap_or(true);
    if !file.laravel.is_empty() && is_cached {
        warnings.push(format!(
            "bootstrap/cache/config.php exists: the Laravel app uses what is cached there and \
             not {name}, which this server reads"
        ));
    }
    Ok(file)
}
