//! The language of `tests/it/scripts`: conversations with a Pusher server in the protocol's own words,
//! and what runs them. `docs/testing.md` teaches it. A file holds the scripts of one subject, each
//! under a line `# P15: what it shows`; every file is a test.
//!
//! `UPDATE=1` rewrites what the scripts expect to what was heard. `FANFARE_AGAINST=ws://host:port`
//! runs those marked `# any server` against another server; `TEST_REDIS=redis://host:port` runs all but those marked
//! `# a lone server` on nodes that have that Redis.

mod expand;
pub mod expect;
mod fence;
mod say;
mod script;
mod settings;
mod step;
mod world;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

pub use script::Script;
use world::{Failure, World};

macro_rules! files {
    ($($name:ident)*) => {
        /// Every file in `tests/it/scripts`, without its extension.
        pub const FILES: &[&str] = &[$(stringify!($name)),*];
        $(
            #[test]
            fn $name() {
                run_file(stringify!($name));
            }
        )*
    };
}

files! {
    handshake liveness malformed public private presence client_events trigger batch query
    signature small_print users cache clients limits withdrawal resume
}

/// Held by the script that speaks to a given server.
static TURN: Mutex<()> = Mutex::new(());

/// All scripts of all files.
pub fn all() -> Vec<Script> {
    FILES.iter().flat_map(|name| Script::parse_all(&read(name))).collect()
}

fn path(name: &str) -> String {
    format!("tests/it/scripts/{name}.txt")
}

fn read(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap()
}

/// Runs all scripts of a file, each against a server of its own, and reports every one that fails.
fn run_file(name: &str) {
    let text = read(name);
    let scripts = Script::parse_all(&text);
    assert!(!scripts.is_empty(), "{name} holds no scripts");
    let against = std::env::var("FANFARE_AGAINST").ok();
    let update = std::env::var("UPDATE").is_ok_and(|value| value == "1");
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let mut failures = Vec::new();
    for script in &scripts {
        let left_out = match against {
            Some(_) => !script.any_server,
            None => script.lone_server && std::env::var("TEST_REDIS").is_ok(),
        };
        if left_out {
            continue;
        }
        // A given server is one for all scripts, so only one of them may speak to it at a time.
        let _turn = against.as_ref().map(|_| TURN.lock().unwrap_or_else(PoisonError::into_inner));
        let mut world = World::new(script, against.as_deref());
        for (number, step) in &script.steps {
            let outcome = catch_unwind(AssertUnwindSafe(|| world.take(step)));
            let Err(failure) = outcome.unwrap_or_else(|panic| Err(Failure::of(step, &*panic)))
            else {
                continue;
            };
            if let (true, Some(better)) = (update, &failure.better) {
                lines[number - 1].clone_from(better);
                continue;
            }
            let line = &lines[number - 1];
            failures.push(format!(
                "{}:{number}, {}\n    {line}\n{}",
                path(name),
                script.title,
                failure.what
            ));
            break;
        }
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| world.leave())) {
            let what = Failure::from_panic(&*panic).what;
            failures.push(format!("{}, after {}\n{what}", path(name), script.title));
        }
    }
    if update {
        fs::write(path(name), lines.join("\n") + "\n").unwrap();
    }
    assert!(failures.is_empty(), "\n\n{}\n", failures.join("\n\n"));
}

/// The language must be able to fail: what is heard and what is expected differ by one thing each.
#[test]
fn a_wrong_expectation_fails() {
    let file = "# X00: wrong\na connects\na > ping\na < pong\na hears nothing\n";
    let run = |text: &str| {
        let scripts = Script::parse_all(text);
        let mut world = World::new(&scripts[0], None);
        scripts[0].steps.iter().try_for_each(|(_, step)| world.take(step).map_err(|_| ()))
    };
    assert_eq!(run(file), Ok(()));
    for (right, wrong) in [
        ("a < pong", r#"a < {"event":"pusher:pong","data":{}}"#),
        ("a < pong", "a < error 4200"),
        ("a < pong", "a < close 4200"),
        ("a < pong\n", "a hears nothing\n"),
        ("a connects", "a opens"),
        ("a < pong", "api GET channels -> 200 {\"channels\":{\"x\":{}}}"),
        ("a < pong", "api GET channels -> 401"),
    ] {
        assert_eq!(run(&file.replacen(right, wrong, 1)), Err(()), "{wrong} was let through");
    }
}
