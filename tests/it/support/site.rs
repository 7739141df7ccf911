//! A server whose settings are in files, so that they can change while it runs.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use fanfare::config::{self, Config, Flags, LoadedSettings};
use fanfare::server::reload::Reloader;

use super::fixture::Fixture;

/// What every site's `fanfare.toml` begins with.
const SERVER: &str = "[server]\nport = 0\nworkers = 2\nshutdown_grace = \"0s\"\ntry_out = \"off\"\n\
    [metrics]\nenabled = false\n";

pub struct Site {
    folder: PathBuf,
    config: Config,
    pub fixture: Fixture,
}

impl Site {
    /// A server with these files in its folder; `fanfare.toml` is the one it is started with.
    pub fn start(name: &str, files: &[(&str, &str)]) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("site-{name}"));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        for (file, text) in files {
            write(&folder, file, text);
        }
        let config = load(&folder).unwrap_or_else(|error| panic!("{error}")).config;
        Self { fixture: Fixture::of(config.clone()), folder, config }
    }

    pub fn write(&self, file: &str, text: &str) {
        write(&self.folder, file, text);
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    pub fn reloader(&self) -> Reloader<'_> {
        Reloader::new(self.fixture.running(), &self.config, || load(&self.folder))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn write(folder: &Path, file: &str, text: &str) {
    let text = if file == "fanfare.toml" { SERVER.to_owned() + text } else { text.to_owned() };
    fs::write(folder.join(file), text).unwrap();
}

fn load(folder: &Path) -> Result<LoadedSettings, config::Error> {
    let flags = Flags::parse_from(["fanfare", "--config", "fanfare.toml"]);
    config::load_settings(&flags, std::iter::empty::<(&str, &str)>(), folder)
}
