//! The program as it is started in odd environments: in the folder of an app, by a supervisor as another user,
//! in a container whose platform has variables of its own. Its messages are those that its operator sees.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A folder that any user may enter, gone when the test is.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        // Tests run side by side and may agree on a name.
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = format!("fanfare-{name}-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(folder);
        _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self(path)
    }

    fn with(self, file: &str, text: &str) -> Self {
        fs::write(self.0.join(file), text).unwrap();
        self
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

/// Exit code and all that was printed of the program, started in `folder` with these variables alone.
fn run(folder: &Folder, arguments: &[&str], env: &[(&str, &str)]) -> (i32, String) {
    say(Command::new(env!("CARGO_BIN_EXE_fanfare")), folder, arguments, env)
}

fn say(
    mut program: Command,
    folder: &Folder,
    arguments: &[&str],
    env: &[(&str, &str)],
) -> (i32, String) {
    let program = program.args(arguments).current_dir(&folder.0).env_clear();
    let output = program.envs(env.iter().copied()).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8(text).unwrap())
}

const CHECK: [&str; 2] = ["config", "check"];
const LARAVEL: &str = "REVERB_APP_ID=1\nREVERB_APP_KEY=k\nREVERB_APP_SECRET=s3cr3t\n";
const SOKETI: &str = "SOKETI_DEFAULT_APP_ID=1\nSOKETI_DEFAULT_APP_KEY=k\n\
                      SOKETI_DEFAULT_APP_SECRET='s3cr3t'\nSOKETI_PORT=7007\n\
                      SOKETI_DEFAULT_APP_WEBHOOKS=[{\"url\": \"http://127.0.0.1:1/\"}]\n";

/// The program as a user who owns nothing here; a copy, for not every folder above may be entered by all.
fn as_somebody_else(folder: &Folder) -> Command {
    let copy = folder.0.join("fanfare");
    if !copy.exists() {
        // By a process of its own: a child that another test starts meanwhile would hold a file that is open for
        // writing here, and the kernel starts no program that somebody can write to.
        let mut cp = Command::new("cp");
        assert!(cp.arg(env!("CARGO_BIN_EXE_fanfare")).arg(&copy).status().unwrap().success());
    }
    let mut command = Command::new(copy);
    if rustix::process::geteuid().is_root() {
        command.uid(65_534).gid(65_534);
    }
    command
}

fn forbid(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o000)).unwrap();
}

/// Served in its place, an app made up for the run has a secret that stands in a log.
#[test]
fn an_environment_file_that_may_not_be_read_stops_the_start() {
    let folder = Folder::new("unreadable").with(".env", LARAVEL);
    let file = folder.0.join(".env");
    forbid(&file);
    for arguments in [&CHECK[..], &["--port", "0"], &["config", "show"]] {
        let (code, text) = say(as_somebody_else(&folder), &folder, arguments, &[]);
        assert_eq!(code, 77, "{text}");
        assert!(text.contains(&file.display().to_string()) && text.contains("denied"), "{text}");
        assert!(!text.contains("secret") && text.lines().count() == 1, "{text}");
    }
}

#[test]
fn any_other_file_that_may_not_be_read_stops_the_start_as_well() {
    let folder = Folder::new("forbidden");
    for (name, arguments, env) in [
        ("f.toml", &["--config", "f.toml"][..], &[][..]),
        ("e", &["--env-file", "e"], &[]),
        ("s.json", &["--soketi-config", "s.json"], &[]),
        ("a.toml", &[], &[("FANFARE_APPS_FILE__PATH", "a.toml")]),
    ] {
        fs::write(folder.0.join(name), "").unwrap();
        forbid(&folder.0.join(name));
        let arguments = [arguments, &CHECK].concat();
        let (code, text) = say(as_somebody_else(&folder), &folder, &arguments, env);
        assert_eq!(code, 77, "{text}");
        assert!(text.starts_with(&format!("fanfare: {name}: ")), "{text}");
    }
}

#[test]
fn an_environment_file_that_is_no_text_is_not_taken_for_another_programs() {
    let folder = Folder::new("latin").with(".env", LARAVEL);
    let latin = [LARAVEL.as_bytes(), b"APP_NAME=\"B\xe4ckerei\"\n"].concat();
    fs::write(folder.0.join(".env"), latin).unwrap();
    let (code, text) = run(&folder, &CHECK, &[]);
    assert_eq!((code, text.as_str()), (78, "fanfare: .env: expected UTF-8\n"));
    fs::write(folder.0.join(".env"), b"NAME=\xe4").unwrap();
    assert_eq!(run(&folder, &CHECK, &[]).0, 0);
}

/// Python's virtual environments are folders of that name.
#[test]
fn a_folder_of_that_name_is_none_of_ours() {
    let folder = Folder::new("venv");
    fs::create_dir(folder.0.join(".env")).unwrap();
    let (code, text) = run(&folder, &CHECK, &[]);
    assert!(code == 0 && text.contains("one app made for the run"), "{text}");
}

#[test]
fn soketis_variables_in_an_environment_file_are_read_as_soketi_reads_them() {
    let folder = Folder::new("soketi").with(".env", SOKETI).with("e", SOKETI);
    let other = Folder::new("soketi-named").with("e", SOKETI);
    for (folder, arguments) in [(&folder, &[][..]), (&other, &["--env-file", "e"])] {
        let (code, text) = run(folder, &[arguments, &CHECK].concat(), &[]);
        assert!(code == 0 && text.ends_with("one app, on 0.0.0.0:7007\n"), "{text}");
    }
    // The process's own go first.
    let (_, text) = run(&folder, &CHECK, &[("SOKETI_PORT", "7008")]);
    assert!(text.ends_with("one app, on 0.0.0.0:7008\n"), "{text}");
    let (_, text) = run(&folder, &["config", "show"], &[]);
    assert!(text.contains("# .env:4: SOKETI_PORT") && !text.contains("s3cr3t"), "{text}");
    // Beside an app of Laravel's in the same file, which may put variables in.
    let both = "SOKETI_DEFAULT_APP_ID=\"${REVERB_APP_ID}\"\nSOKETI_PORT=7009\n";
    let folder = Folder::new("soketi-laravel").with(".env", &(LARAVEL.to_owned() + both));
    let (code, text) = run(&folder, &CHECK, &[]);
    assert!(code == 78 && text.contains("apps[0].key: missing"), "{text}");
}

#[test]
fn an_environment_file_that_was_named_and_gives_nothing_is_warned_of() {
    let folder = Folder::new("nothing").with("e", "APP_NAME=x\nREDIS_HOST=r\n");
    let (code, text) = run(&folder, &["--env-file", "e", "config", "check"], &[]);
    assert!(code == 0 && text.starts_with("warning: e gives no setting"), "{text}");
    let folder = Folder::new("own").with(".env", &(LARAVEL.to_owned() + "FANFARE_LOG__LEVEL=off"));
    let (_, text) = run(&folder, &CHECK, &[]);
    assert!(text.starts_with("warning: .env: FANFARE_LOG__LEVEL has no effect"), "{text}");
}

#[test]
fn services_that_are_called_like_us_stop_nothing() {
    let folder = Folder::new("services").with(".env", LARAVEL);
    let env = [
        ("FANFARE_SERVICE_HOST", "10.0.0.1"),
        ("FANFARE_SERVICE_PORT_HTTP", "8080"),
        ("FANFARE_PORT", "tcp://10.0.0.1:8080"),
        ("FANFARE_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("SOKETI_PORT", "tcp://10.0.0.2:6001"),
        ("REVERB_SERVER_PORT", "tcp://10.0.0.3:8080"),
        ("REVERB_SCALING_ENABLED", "true"),
        ("REDIS_PORT", "tcp://10.0.0.4:6379"),
        ("REDIS_SERVICE_PORT", "6379"),
    ];
    let (code, text) = run(&folder, &CHECK, &env);
    assert!(code == 0 && text.ends_with("one app, on 0.0.0.0:8080\n"), "{text}");
    let (code, text) = run(&folder, &CHECK, &[("FANFARE_SERVER_PORT", "80")]);
    assert!(code == 78 && text.contains("did you mean FANFARE_SERVER__PORT?"), "{text}");
}

/// Compose's lists and `docker run --env-file` hand quotes on.
#[test]
fn quotes_around_a_value_are_named_and_not_taken_for_its_part() {
    let folder = Folder::new("quotes");
    for (name, value) in [
        ("FANFARE_APPS__0__SECRET", "\"s3cr3t\""),
        ("FANFARE_APPS__0__SECRET", "'s3cr3t'"),
        ("FANFARE_SERVER__PATH", "'/ws'"),
    ] {
        let env = [("FANFARE_APPS__0__ID", "1"), ("FANFARE_APPS__0__KEY", "k"), (name, value)];
        let (code, text) = run(&folder, &CHECK, &env);
        let line = format!("fanfare: {name}: the quotes around the value are part of it");
        assert!(code == 78 && text.starts_with(&line), "{text}");
    }
    let reverb = [
        ("REVERB_APP_ID", "\"1\""),
        ("REVERB_APP_KEY", "'k'"),
        ("REVERB_APP_SECRET", "\"s3cr3t\""),
        ("REVERB_SERVER_PORT", "\"7007\""),
    ];
    let (code, text) = run(&folder, &CHECK, &reverb);
    assert!(code == 0 && text.ends_with("one app, on 0.0.0.0:7007\n"), "{text}");
}

const CERTIFICATES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/certificates");

/// The check of a server with these files for its certificate and key.
fn check_tls(cert: &str, key: &str) -> (i32, String) {
    let folder = Folder::new("tls");
    let path = |name: &str| {
        if name.contains('/') { name.to_owned() } else { format!("{CERTIFICATES}/{name}") }
    };
    let (cert, key) = (path(cert), path(key));
    let env = [("FANFARE_SERVER__TLS__CERT", cert.as_str()), ("FANFARE_SERVER__TLS__KEY", &key)];
    run(&folder, &CHECK, &env)
}

#[test]
fn a_certificate_that_no_client_takes_is_found_before_the_start() {
    let (code, text) = check_tls("old.crt", "old.key");
    assert!(code == 78 && text.starts_with("fanfare: FANFARE_SERVER__TLS__CERT: "), "{text}");
    assert!(text.contains("old.crt: the certificate has expired, "), "{text}");
    let (code, text) = check_tls("one.crt", "two.key");
    assert!(code == 78 && text.starts_with("fanfare: FANFARE_SERVER__TLS__KEY: "), "{text}");
    assert!(text.contains("two.key: certificate and key are not of one pair"), "{text}");
    let (code, text) = check_tls("one.crt", "one.crt");
    assert!(code == 78 && text.contains("KEY: ") && text.contains("no private key"), "{text}");
    let (code, text) = check_tls("one.key", "one.key");
    assert!(code == 78 && text.contains("CERT: ") && text.contains("no certificate"), "{text}");
    assert_eq!(check_tls("one.crt", "one.key").0, 0);
}

#[test]
fn an_encrypted_key_is_said_to_be_encrypted() {
    let folder = Folder::new("encrypted");
    for begin in [
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n",
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,0\n\nMIIB\n-----END RSA PRIVATE KEY-----\n",
    ] {
        let key = folder.0.join("key.pem");
        fs::write(&key, begin).unwrap();
        let (code, text) = check_tls("one.crt", key.to_str().unwrap());
        let line = "key.pem: the key is encrypted: decrypt it with openssl pkey\n";
        assert!(code == 78 && text.ends_with(line), "{text}");
        assert!(text.starts_with("fanfare: FANFARE_SERVER__TLS__KEY: "), "{text}");
    }
}

#[test]
fn a_key_that_may_not_be_read_is_named_as_such() {
    let folder = Folder::new("tls-forbidden");
    for name in ["one.crt", "one.key"] {
        fs::copy(format!("{CERTIFICATES}/{name}"), folder.0.join(name)).unwrap();
    }
    forbid(&folder.0.join("one.key"));
    let env = [("FANFARE_SERVER__TLS__CERT", "one.crt"), ("FANFARE_SERVER__TLS__KEY", "one.key")];
    let (code, text) = say(as_somebody_else(&folder), &folder, &[], &env);
    assert!(
        code == 77 && text.starts_with("fanfare: FANFARE_SERVER__TLS__KEY: one.key: "),
        "{text}"
    );
}

#[test]
fn what_the_settings_name_on_this_machine_is_looked_at() {
    let folder = Folder::new("machine").with("file", "");
    for (name, value) in [
        ("FANFARE_WEBHOOKS__SPOOL", "file"),
        ("FANFARE_WEBHOOKS__SPOOL", "file/spool"),
        ("FANFARE_SERVER__HOST", "192.0.2.1"),
        ("FANFARE_METRICS__HOST", "192.0.2.1"),
        ("FANFARE_SERVER__UNIX_SOCKET__PATH", "nowhere/socket"),
    ] {
        let (code, text) = run(&folder, &CHECK, &[(name, value)]);
        assert!(code == 78 && text.starts_with(&format!("fanfare: {name}: ")), "{text}");
    }
    let env = [("FANFARE_WEBHOOKS__SPOOL", "not/yet/there")];
    assert_eq!(run(&folder, &CHECK, &env).0, 0);
    assert!(!folder.0.join("not").exists(), "the server's user is to make it");
}

#[test]
fn a_spool_that_may_not_be_written_to_is_named() {
    let folder = Folder::new("spool");
    let spool = folder.0.join("spool");
    fs::create_dir(&spool).unwrap();
    fs::set_permissions(&spool, fs::Permissions::from_mode(0o555)).unwrap();
    let env = [("FANFARE_WEBHOOKS__SPOOL", "spool")];
    let (code, text) = say(as_somebody_else(&folder), &folder, &CHECK, &env);
    assert!(code == 77 && text.starts_with("fanfare: FANFARE_WEBHOOKS__SPOOL: spool: "), "{text}");
}

#[test]
fn the_commands_of_other_servers_are_told_the_right_word() {
    let folder = Folder::new("words").with("soketi.json", "{}");
    for command in ["serve", "start", "reverb:start", "websockets:serve"] {
        for flags in [&[][..], &["--port", "0"], &["--config=soketi.json"]] {
            let (code, text) = run(&folder, &[&[command], flags].concat(), &[]);
            let line =
                format!("fanfare: {command} is no command: `fanfare` without a command serves");
            assert!(code == 2 && text.starts_with(&line), "{text}");
        }
    }
    let (code, text) = run(&folder, &["--config", "soketi.json"], &[]);
    assert!(code == 78 && text.contains("--soketi-config reads Soketi's JSON"), "{text}");
    let (code, text) = run(&folder, &["--help"], &[]);
    assert!(code == 0 && text.contains("Without a command, the server runs"), "{text}");
    let (code, text) = run(&folder, &["liste"], &[]);
    assert!(code == 2 && text.contains("listen"), "{text}");
}

#[test]
fn everybody_could_read_the_secrets_and_nobody_was_told() {
    use std::os::unix::fs::PermissionsExt;
    let path = std::env::temp_dir().join(format!("fanfare-secrets-{}.toml", std::process::id()));
    fs::write(&path, "[log]\nlevel = \"info\"\n").unwrap();
    for (mode, is_told) in [(0o644, true), (0o640, false)] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let child = crate::support::child::Child::with_config(&path, &[]);
        // It is said before the line that the server listens, which was read.
        let told = child.log().contains("every user of this machine can read the secrets in it");
        assert_eq!(told, is_told, "{mode:o}: {}", child.log());
    }
    fs::remove_file(&path).unwrap();
}
