//! The program says what it was built from, and a build finds it out wherever the sources lie.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use fanfare::config::VERSION;

/// The build script of its own, run in `folder`; what it tells the compiler under that name.
fn told(script: &Path, folder: &Path, given: Option<&str>, name: &str) -> String {
    let mut command = Command::new(script);
    command.current_dir(folder).env_clear().env("CARGO_PKG_VERSION", "9.9.9");
    command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command.envs(given.map(|given| ("BUILD_REVISION", given)));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let beginning = format!("cargo:rustc-env={name}=");
    text.lines().find_map(|line| line.strip_prefix(&beginning)).unwrap().to_owned()
}

fn git(folder: &Path, arguments: &[&str]) -> String {
    let identity = ["-c", "user.name=a", "-c", "user.email=a@example.test"];
    let output =
        Command::new("git").args(identity).args(arguments).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn empty_folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("fanfare-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// Compiled into `folder`.
fn build_script(folder: &Path) -> PathBuf {
    let script = folder.join("script");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut compiler = Command::new(rustc);
    compiler.args(["--edition", "2024", "-C", "debuginfo=0", "build.rs", "-o"]).arg(&script);
    assert!(compiler.status().unwrap().success());
    script
}

/// A folder with something to build.
fn sources(folder: PathBuf) -> PathBuf {
    fs::create_dir_all(folder.join("src")).unwrap();
    fs::write(folder.join("src/main.rs"), "fn main() {}").unwrap();
    fs::write(folder.join("README"), "").unwrap();
    folder
}

#[test]
fn a_build_knows_its_commit_or_says_none() {
    if Command::new("git").arg("--version").output().is_err() {
        println!("skipped: git is not installed");
        return;
    }
    let base = empty_folder("commit");
    let tarball = sources(base.join("tarball"));
    let script = build_script(&base);
    let version = |folder: &Path, given| told(&script, folder, given, "BUILT_VERSION");

    assert_eq!(version(&tarball, None), "9.9.9");
    assert_eq!(version(&tarball, Some("abc-1")), "9.9.9 (abc-1)");
    assert_eq!(version(&tarball, Some("a b\n")), "9.9.9");
    // A package from a registry.
    let note = "{\n  \"git\": {\n    \"sha1\": \"0123456789abcdef0123\"\n  }\n}";
    fs::write(tarball.join(".cargo_vcs_info.json"), note).unwrap();
    assert_eq!(version(&tarball, None), "9.9.9 (0123456789ab)");

    let checkout = sources(base.join("checkout"));
    git(&checkout, &["init", "--quiet"]);
    git(&checkout, &["add", "."]);
    git(&checkout, &["commit", "--quiet", "-m", "one"]);
    let commit = git(&checkout, &["rev-parse", "HEAD"])[..12].to_owned();
    assert_eq!(version(&checkout, None), format!("9.9.9 ({commit})"));
    assert_eq!(told(&script, &checkout, None, "BUILT_REVISION"), commit);
    // What the program is not built from changes nothing, committed or not.
    fs::write(checkout.join("README"), "more").unwrap();
    assert_eq!(version(&checkout, None), format!("9.9.9 ({commit})"));
    git(&checkout, &["commit", "--quiet", "-am", "two"]);
    assert_eq!(version(&checkout, None), format!("9.9.9 ({commit})"));
    fs::write(checkout.join("src/main.rs"), "fn main() { }").unwrap();
    assert_eq!(version(&checkout, None), format!("9.9.9 ({commit}+)"));
    // A tarball in somebody else's repository.
    let inside = sources(checkout.join("vendor/fanfare"));
    assert_eq!(version(&inside, None), "9.9.9");
    fs::remove_dir_all(base).unwrap();
}

/// A build with Socket.IO named only SQL.
#[test]
fn a_build_names_each_feature_of_the_manifest() {
    let manifest: toml::Table = fs::read_to_string("Cargo.toml").unwrap().parse().unwrap();
    let features: Vec<&String> = manifest["features"].as_table().unwrap().keys().collect();
    assert!(features.len() > 1, "{features:?}");
    let base = empty_folder("features");
    let mut command = Command::new(build_script(&base));
    command.current_dir(&base).env_clear().env("CARGO_PKG_VERSION", "9.9.9");
    for feature in &features {
        command.env(format!("CARGO_FEATURE_{}", feature.to_uppercase()), "1");
    }
    let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
    let named = text.lines().find_map(|line| line.strip_prefix("cargo:rustc-env=BUILT_FEATURES="));
    let mut named: Vec<&str> = named.unwrap().split(',').collect();
    named.sort_unstable();
    assert_eq!(named, features);
    fs::remove_dir_all(base).unwrap();
}

#[test]
fn the_program_says_its_version() {
    let output = Command::new(env!("CARGO_BIN_EXE_fanfare")).arg("--version").output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("fanfare {VERSION}\n"));
    assert!(VERSION.starts_with(env!("CARGO_PKG_VERSION")), "{VERSION}");
}
