//! What the program says of its own origin, for `--version`, the log and the metrics: the commit that last
//! changed what it is built from, and its features. Looks again only when that has changed, for then it is
//! built again anyway; so committing costs nobody a build, and the same commit gives the same bytes.

use std::path::Path;
use std::process::Command;

/// What the program is built from.
const PARTS: [&str; 4] = ["src", "Cargo.toml", "Cargo.lock", "build.rs"];

/// Given by packagers who build from a tarball and know what is in it.
const GIVEN: &str = "BUILD_REVISION";

/// What cargo leaves in a package for a registry.
const LEFT: &str = ".cargo_vcs_info.json";

fn main() {
    for part in PARTS.into_iter().chain([LEFT]).filter(|part| Path::new(part).exists()) {
        println!("cargo:rerun-if-changed={part}");
    }
    println!("cargo:rerun-if-env-changed={GIVEN}");
    let given = std::env::var(GIVEN).ok().filter(|given| is_plain(given));
    let revision = given.or_else(committed).or_else(packaged).unwrap_or_default();
    let mut features = vec!["socketio", "sql"];
    features.retain(|name| {
        std::env::var_os(format!("CARGO_FEATURE_{}", name.to_uppercase())).is_some()
    });
    let version = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let details: Vec<&str> = [revision.as_str()]
        .into_iter()
        .chain(features.iter().copied())
        .filter(|one| !one.is_empty())
        .collect();
    let text = match details.as_slice() {
        [] => version,
        details => format!("{version} ({})", details.join(", ")),
    };
    // Not FANFARE_…, for cargo gives these to what it runs, too, where such a name is a setting.
    println!("cargo:rustc-env=BUILT_VERSION={text}");
    println!("cargo:rustc-env=BUILT_REVISION={revision}");
    println!("cargo:rustc-env=BUILT_FEATURES={}", features.join(","));
}

fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "+-._".contains(c))
}

/// The last commit that changed any of the parts, with a `+` where they have changed since.
fn committed() -> Option<String> {
    // A tarball may lie in the folder of another repository, whose commits are not ours.
    let top = git(&["rev-parse", "--show-toplevel"])?;
    let here = std::fs::canonicalize(".").ok()?;
    if std::fs::canonicalize(top).ok()? != here {
        return None;
    }
    let commit = git(&[&["log", "-1", "--format=%H", "--"], &PARTS[..]].concat())?;
    let commit = commit.get(..12).filter(|commit| is_plain(commit))?;
    let changed = git(&[&["status", "--porcelain", "--"], &PARTS[..]].concat())?;
    Some(format!("{commit}{}", if changed.is_empty() { "" } else { "+" }))
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("--no-optional-locks").args(arguments).output().ok()?;
    let text = output.status.success().then(|| String::from_utf8(output.stdout).ok())??;
    Some(text.trim().to_owned())
}

fn packaged() -> Option<String> {
    let text = std::fs::read_to_string(LEFT).ok()?;
    let (_, rest) = text.split_once("\"sha1\"")?;
    let sha = rest.split('"').nth(1)?;
    sha.get(..12).filter(|sha| is_plain(sha)).map(str::to_owned)
}
