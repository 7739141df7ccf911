//! Laravel apps whose events go nowhere, or whose pages ask elsewhere, although the server is well.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::laravel;
use crate::support::fixture::{Fixture, KEY};

/// An app's folder with these files and this in its `.env`; what doctor says of it, and its exit code.
fn examine(fixture: &Fixture, name: &str, env: &str, files: &[(&str, &str)]) -> (String, i32) {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("laravel-{name}"));
    let _ = fs::remove_dir_all(&folder);
    for (path, content) in files {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    fs::create_dir_all(&folder).unwrap();
    let port = fixture.addr.port();
    let public = format!("REVERB_HOST=127.0.0.1\nREVERB_PORT={port}\nREVERB_SCHEME=http\n{env}");
    fs::write(folder.join(".env"), laravel(fixture, &public)).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_fanfare"))
        .arg("doctor")
        .current_dir(&folder)
        .env("FANFARE_METRICS__ENABLED", "false")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    fs::remove_dir_all(folder).unwrap();
    (String::from_utf8(output.stdout).unwrap(), output.status.code().unwrap())
}

fn lock(version: &str) -> String {
    format!(
        "{{\"packages\":[{{\"name\":\"a/b\",\"version\":\"1\"}},{{\"name\":\"laravel/framework\",\"version\":\"{version}\"}}]}}"
    )
}

const WRITE: &str = "write BROADCAST_CONNECTION=reverb into .env";

#[test]
fn an_app_whose_events_go_nowhere_is_told_the_line_to_write() {
    let fixture = Fixture::start();
    let (ten, eleven, thirteen) = (lock("v10.48.2"), lock("v11.0.0"), lock("13.2.1"));
    let of_ten = "<?php return ['default' => env('BROADCAST_DRIVER', 'null')];";
    for (name, env, files, sentence) in [
        // Laravel 11 reads another variable than 10 did.
        ("driver", "BROADCAST_DRIVER=reverb", vec![("composer.lock", &*eleven)], Some(WRITE)),
        ("ten", "BROADCAST_DRIVER=reverb", vec![("composer.lock", &*ten)], None),
        // An app that was upgraded keeps its configuration.
        (
            "upgraded",
            "BROADCAST_DRIVER=reverb",
            vec![("composer.lock", &*thirteen), ("config/broadcasting.php", of_ten)],
            None,
        ),
        (
            "kept",
            "BROADCAST_CONNECTION=reverb",
            vec![("composer.lock", &*thirteen), ("config/broadcasting.php", of_ten)],
            Some("write BROADCAST_DRIVER=reverb into .env"),
        ),
        ("unset", "APP_NAME=x", vec![], Some(WRITE)),
        ("unset-files", "", vec![("artisan", "")], Some(WRITE)),
        ("log", "BROADCAST_CONNECTION=log", vec![], Some(WRITE)),
        ("null", "BROADCAST_CONNECTION=null", vec![], Some(WRITE)),
        ("redis", "BROADCAST_CONNECTION=redis", vec![], Some(WRITE)),
        (
            "pusher",
            "BROADCAST_CONNECTION=pusher",
            vec![],
            Some("write BROADCAST_CONNECTION=reverb into .env"),
        ),
        ("right", "BROADCAST_CONNECTION=reverb", vec![("composer.lock", &*thirteen)], None),
        ("own", "BROADCAST_CONNECTION=mine", vec![("composer.lock", &*thirteen)], None),
    ] {
        let (said, code) = examine(&fixture, name, env, &files);
        let line = said.lines().find(|line| line.starts_with("FAIL  Laravel: "));
        match sentence {
            Some(sentence) => {
                assert!(line.is_some_and(|line| line.contains(sentence)), "{name}: {said}");
            }
            None => assert_eq!(line, None, "{name}"),
        }
        assert_eq!(code, i32::from(sentence.is_some()), "{name}: {said}");
    }
}

/// A file with the server's settings alone may be no app's.
#[test]
fn a_file_of_settings_is_no_app_that_fails() {
    let fixture = Fixture::start();
    let (said, code) = examine(&fixture, "settings", "", &[]);
    assert!(said.contains("warn  Laravel: BROADCAST_CONNECTION is not set"), "{said}");
    assert_eq!(code, 0, "{said}");
}

#[test]
fn an_app_that_reads_its_cache_is_told_to_clear_it() {
    let fixture = Fixture::start();
    let right = "BROADCAST_CONNECTION=reverb";
    let cache = |connection: &str, key: &str| {
        format!(
            "<?php return array (\n  'broadcasting' =>\n  array (\n    'default' => {connection},\n    'connections' => array ('reverb' => array ('key' => '{key}')),\n  ),\n);"
        )
    };
    let clear = "run php artisan config:clear";
    for (name, cache, sentence) in [
        ("cached", cache("'reverb'", KEY), None),
        ("stale-key", cache("'reverb'", "another"), Some("has another REVERB_APP_KEY")),
        ("stale-log", cache("'log'", KEY), Some("sends the app's events nowhere")),
        ("stale-null", cache("NULL", KEY), Some("sends the app's events nowhere")),
    ] {
        let files = [("bootstrap/cache/config.php", &*cache)];
        let (said, code) = examine(&fixture, name, right, &files);
        let line = said.lines().find(|line| line.starts_with("FAIL  Laravel: "));
        assert_eq!(line.is_some(), sentence.is_some(), "{name}: {said}");
        if let (Some(line), Some(sentence)) = (line, sentence) {
            assert!(line.contains(sentence) && line.contains(clear), "{line}");
        }
        assert_eq!(code, i32::from(sentence.is_some()), "{name}: {said}");
    }
}

#[test]
fn reverb_that_is_still_installed_is_noted() {
    let fixture = Fixture::start();
    let right = "BROADCAST_CONNECTION=reverb";
    let of = |name: &str, packages: &str| {
        let composer = format!("{{\"require\":{{{packages}}}}}");
        let (said, code) = examine(&fixture, name, right, &[("composer.json", &composer)]);
        assert_eq!(code, 0, "{said}");
        said.lines().find(|line| line.contains("  Laravel: ")).map(str::to_owned)
    };
    let note = of("reverb", r#""laravel/reverb":"^1.0""#).unwrap();
    assert!(note.starts_with("warn  Laravel: laravel/reverb is still installed"), "{note}");
    // The library that Laravel's broadcaster needs came with it.
    let sdk = "composer require pusher/pusher-php-server && composer remove laravel/reverb";
    assert!(note.ends_with(sdk), "{note}");
    let both = r#""laravel/reverb":"^1.0","pusher/pusher-php-server":"^7.2""#;
    assert!(!of("reverb-sdk", both).unwrap().contains("composer require"));
    assert_eq!(of("none", r#""laravel/framework":"^13.0""#), None);
}

#[test]
fn a_key_that_pages_were_not_built_with_fails() {
    let fixture = Fixture::start();
    let right = "BROADCAST_CONNECTION=reverb\n";
    let (said, code) =
        examine(&fixture, "vite", &format!("{right}VITE_REVERB_APP_KEY=another"), &[]);
    let line = said.lines().find(|line| line.starts_with("FAIL  pages: ")).expect(&said);
    assert!(line.contains("write VITE_REVERB_APP_KEY=\"${REVERB_APP_KEY}\""), "{line}");
    assert_eq!(code, 1);
    let same = format!("{right}VITE_REVERB_APP_KEY=\"${{REVERB_APP_KEY}}\"");
    assert_eq!(examine(&fixture, "vite-same", &same, &[]).1, 0);
}
