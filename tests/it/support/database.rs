//! A database server of a test's own, MariaDB or PostgreSQL as Debian has them, on a free port of the loopback
//! with everything in a folder of its own. It speaks TLS to whoever wants it, and runs as nobody in particular, for neither wants to be root's.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use super::ports::free_port;
use super::{eventually, redis, wire};

/// The user without rights, where the test has them all.
const NOBODY: u32 = 65_534;

pub const PASSWORD: &str = "pass w@rd";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    MariaDb,
    Postgres,
}

/// A server with a database `main` and a user `app`, both its own. It ends with the test.
pub struct Database {
    pub kind: Kind,
    folder: PathBuf,
    port: u16,
    server: Option<Child>,
}

impl Database {
    /// `None` where it is not installed; a failure with `CI=true`.
    pub fn start(kind: Kind) -> Option<Self> {
        let folder = std::env::temp_dir().join(format!("fanfare-{kind:?}-{}", std::process::id()));
        let mut database = Self { kind, folder, port: 0, server: None };
        if database.program("initdb").is_none() {
            assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{kind:?} is missing");
            println!("skipped: {kind:?} is not installed");
            return None;
        }
        let _ = fs::remove_dir_all(&database.folder);
        fs::create_dir_all(&database.folder).unwrap();
        fs::write(database.folder.join("password"), PASSWORD).unwrap();
        for end in ["crt", "key"] {
            fs::copy(wire::file("one", end), database.folder.join(end)).unwrap();
        }
        // PostgreSQL reads no key that others could read.
        fs::set_permissions(database.folder.join("key"), Permissions::from_mode(0o600)).unwrap();
        for name in ["", "password", "crt", "key"] {
            if is_root() {
                chown(database.folder.join(name), Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
        database.make();
        // A program that knows nothing of these tests may take it before.
        for _ in 0..5 {
            database.port = free_port();
            if database.begin() {
                database.let_in();
                return Some(database);
            }
        }
        panic!("{kind:?} does not start: {}", database.log());
    }

    /// The path of the program that does for this kind what PostgreSQL's of this name does.
    fn program(&self, name: &str) -> Option<PathBuf> {
        let names: &[&str] = match (self.kind, name) {
            (Kind::Postgres, name) => &[name],
            (Kind::MariaDb, "initdb") => &["mariadb-install-db"],
            (Kind::MariaDb, "postgres") => &["mariadbd"],
            (Kind::MariaDb, _) => &["mariadb"],
        };
        let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let debian = versions.map(|version| version.path().join("bin"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path: Vec<PathBuf> = std::env::split_paths(&path).collect();
        let folders = debian.chain(path).chain(["/usr/sbin".into()]);
        folders
            .flat_map(|folder| names.iter().map(move |name| folder.join(name)))
            .find(|file| file.exists())
    }

    /// A program of the server's, as nobody.
    fn command(&self, name: &str) -> Command {
        let program = self.program(name).unwrap();
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            let id = NOBODY.to_string();
            command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.current_dir(&self.folder).stdin(Stdio::null()).env("HOME", &self.folder);
        command
    }

    fn make(&self) {
        let data = self.folder.join("data");
        let mut command = self.command("initdb");
        match self.kind {
            Kind::Postgres => command
                .args(["--username=app", "--auth=scram-sha-256", "--pwfile=password", "--no-sync"])
                .arg("--pgdata")
                .arg(data),
            Kind::MariaDb => command
                .args(["--no-defaults", "--auth-root-authentication-method=normal"])
                .arg("--skip-test-db")
                .arg(format!("--datadir={}", data.display())),
        };
        done(&command.output().unwrap());
    }

    fn begin(&mut self) -> bool {
        let (data, port) = (self.folder.join("data"), self.port.to_string());
        let log = fs::File::options().create(true).append(true).open(self.folder.join("log"));
        let mut command = self.command("postgres");
        match self.kind {
            Kind::Postgres => command
                .args(["-c", "ssl=on", "-c", "ssl_cert_file=../crt", "-c", "ssl_key_file=../key"])
                .args(["-p", &port, "-h", "127.0.0.1", "-F", "-k"])
                .arg(&self.folder)
                .arg("-D")
                .arg(data),
            Kind::MariaDb => command
                .args(["--no-defaults", "--bind-address=127.0.0.1", "--port", &port])
                .arg("--skip-log-bin")
                .arg(format!("--ssl-cert={}", self.folder.join("crt").display()))
                .arg(format!("--ssl-key={}", self.folder.join("key").display()))
                .arg(format!("--datadir={}", data.display()))
                .arg(format!("--socket={}", self.folder.join("socket").display()))
                .arg(format!("--pid-file={}", self.folder.join("pid").display())),
        };
        command.stdout(Stdio::null()).stderr(log.unwrap());
        self.server = Some(command.spawn().unwrap());
        eventually(|| {
            if self.server.as_mut().unwrap().try_wait().unwrap().is_some() {
                return Ok(false);
            }
            let output = self.query("SELECT 1");
            if output.status.success() { Ok(true) } else { Err(format!("{output:?}")) }
        })
        .unwrap()
    }

    /// The database and the user, which the one kind has from the start.
    fn let_in(&self) {
        self.run("CREATE DATABASE main");
        if self.kind == Kind::MariaDb {
            self.run(&format!("CREATE USER app IDENTIFIED BY '{PASSWORD}'"));
            self.run("GRANT ALL ON main.* TO app");
        }
    }

    pub fn url(&self) -> String {
        let scheme = if self.kind == Kind::Postgres { "postgres" } else { "mysql" };
        let password = PASSWORD.replace(' ', "%20").replace('@', "%40");
        format!("{scheme}://app:{password}@127.0.0.1:{}/main", self.port)
    }

    /// Carries out a statement.
    pub fn run(&self, statement: &str) {
        done(&self.query(statement));
    }

    fn query(&self, statement: &str) -> Output {
        let mut command = self.command("psql");
        match self.kind {
            Kind::Postgres => command
                .env("PGPASSWORD", PASSWORD)
                .args(["-h", "127.0.0.1", "-U", "app", "-v", "ON_ERROR_STOP=1", "-p"])
                .arg(self.port.to_string())
                .args(["-d", if self.has_main() { "main" } else { "postgres" }, "-c"]),
            Kind::MariaDb => command
                .args(["--no-defaults", "--user=root", "--socket=socket"])
                .args(self.has_main().then_some("main"))
                .arg("-e"),
        };
        let output = command.arg(statement).output().unwrap();
        if output.status.success() && statement.starts_with("CREATE DATABASE") {
            fs::write(self.folder.join("main"), "").unwrap();
        }
        output
    }

    fn has_main(&self) -> bool {
        self.folder.join("main").exists()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Sends the server a signal by name: `STOP`, `CONT`.
    pub fn signal(&self, name: &str) {
        redis::signal(self.server.as_ref().expect("it runs").id(), name);
    }

    pub fn kill(&mut self) {
        let mut server = self.server.take().expect("it runs");
        // PostgreSQL's own processes see the end of this one and end as well.
        redis::signal(server.id(), "QUIT");
        if self.kind == Kind::MariaDb {
            let _ = server.kill();
        }
        server.wait().unwrap();
    }

    /// Starts it again with what it had.
    pub fn restart(&mut self) {
        let _ = fs::remove_file(self.folder.join("data/postmaster.pid"));
        eventually(|| if self.begin() { Ok(()) } else { Err(self.log()) }).unwrap();
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if self.server.is_some() {
            self.signal("CONT");
            self.kill();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(Path::new("/proc/self")).is_ok_and(|own| own.uid() == 0)
}

fn done(output: &Output) {
    assert!(output.status.success(), "{output:?}");
}
