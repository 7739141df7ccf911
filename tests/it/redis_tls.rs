//! A Redis that wants to know its clients: an issuer of one's own and a client certificate (`cluster.tls`), with one
//! server, Sentinels and a Redis Cluster, and renewed while nodes run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use fanfare::config::ClusterConfig;

use crate::cluster::{Process, event};
use crate::support::eventually;
use crate::support::fixture::{Fixture, ID, KEY, SECRET, subscribe, trigger};
use crate::support::http::Http;
use crate::support::ports::free_port;
use crate::support::redis::{Redis, alone};
use crate::support::sign::Request;
use crate::support::wire::file;

/// A folder of a test's own.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("fanfare-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        let issuers = ["one", "two"].map(|name| fs::read_to_string(file(name, "crt")).unwrap());
        fs::write(folder.join("issuers"), issuers.concat()).unwrap();
        Self(folder)
    }

    /// A Redis of the first certificate, that takes clients of the first and the second.
    fn redis(&self, options: &[&str]) -> Option<Redis> {
        let issuers = self.0.join("issuers").display().to_string();
        let own = ["--tls-auth-clients", "yes", "--tls-ca-cert-file", &issuers];
        Redis::start_with(&[&own, options].concat(), true)
    }

    fn install(&self, name: &str) {
        for end in ["crt", "key"] {
            // As certificates are renewed: a new file in the place of the old one.
            fs::copy(file(name, end), self.0.join("new")).unwrap();
            fs::rename(self.0.join("new"), self.0.join(format!("client.{end}"))).unwrap();
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn cluster(urls: &[String]) -> ClusterConfig {
    ClusterConfig { redis: urls.to_vec(), ..alone() }
}

fn url(redis: &Redis) -> String {
    format!("rediss://127.0.0.1:{}", redis.tls_port())
}

/// A node by the certificate in these files.
fn node(cluster: &ClusterConfig, cert: &Path, key: &Path) -> Process {
    let ca = file("one", "crt");
    Process::start_with(
        cluster,
        &[
            ("FANFARE_CLUSTER__TLS__CA", &ca),
            ("FANFARE_CLUSTER__TLS__CERT", cert),
            ("FANFARE_CLUSTER__TLS__KEY", key),
        ],
    )
}

/// Two nodes that hear each other.
fn share(cluster: &ClusterConfig) {
    let (cert, key) = (file("two", "crt"), file("two", "key"));
    let [one, two] = [0; 2].map(|_| node(cluster, &cert, &key));
    one.is_ready();
    two.is_ready();
    for channel in ["a", "b", "c", "d"] {
        let (mut client, _) = one.connect();
        subscribe(&mut client, channel);
        let (target, body) = (format!("/apps/{ID}/events"), trigger(channel, "e", "1"));
        let request = Request::new("POST", &target, &body, KEY, SECRET);
        assert_eq!(Http::connect(two.addr).ask_signed(&request).status, 200);
        assert_eq!(client.hear_text(), event(channel, "1"));
    }
}

fn is_ready(node: &Process) -> bool {
    Http::connect(node.addr).ask("GET", "/ready", "", b"").status == 200
}

#[test]
fn nodes_share_a_redis_that_wants_their_certificates() {
    let folder = Folder::new("redis-mutual");
    let Some(redis) = folder.redis(&[]) else { return };
    share(&cluster(&[url(&redis)]));
}

#[test]
fn sentinels_are_asked_with_certificates_too() {
    let folder = Folder::new("redis-mutual-sentinel");
    let Some(master) = folder.redis(&["--tls-replication", "yes"]) else { return };
    let sentinel = master.sentinel_over_tls(&folder.0.join("issuers"));
    let url = format!("rediss+sentinel://127.0.0.1:{}/main", sentinel.tls_port());
    share(&cluster(&[url]));
}

#[test]
fn all_servers_of_a_redis_cluster_are_shown_the_certificate() {
    let folder = Folder::new("redis-mutual-cluster");
    let shard = || {
        let bus = free_port();
        let port = bus.to_string();
        let options = ["--cluster-enabled", "yes", "--cluster-port", &port, "--tls-cluster", "yes"];
        Some((folder.redis(&options)?, bus))
    };
    let Some((one, _)) = shard() else { return };
    let (two, bus) = shard().unwrap();
    for (redis, epoch, slots) in [(&one, "1", ["0", "8191"]), (&two, "2", ["8192", "16383"])] {
        assert_eq!(redis.ask(&["CLUSTER", "SET-CONFIG-EPOCH", epoch]), "OK");
        assert_eq!(redis.ask(&["CLUSTER", "ADDSLOTSRANGE", slots[0], slots[1]]), "OK");
    }
    let (port, bus) = (two.tls_port().to_string(), bus.to_string());
    one.ask(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]);
    for redis in [&one, &two] {
        redis.is_of_a_whole_cluster(2);
    }
    share(&cluster(&[url(&one), url(&two)]));
}

#[test]
fn a_renewed_certificate_holds_without_a_restart() {
    let folder = Folder::new("redis-renewed");
    let Some(redis) = folder.redis(&[]) else { return };
    // Of an issuer that Redis does not know.
    folder.install("other");
    let (cert, key) = (folder.0.join("client.crt"), folder.0.join("client.key"));
    let node = node(&cluster(&[url(&redis)]), &cert, &key);
    assert!(!is_ready(&node));
    // A half of a pair is passed over.
    fs::copy(file("two", "crt"), &cert).unwrap();
    assert!(!is_ready(&node));
    folder.install("two");
    node.is_ready();
    // Even where the link was made once.
    fs::write(&key, "broken").unwrap();
    redis.ask(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    eventually(|| if is_ready(&node) { Ok(()) } else { Err("not ready".to_owned()) }).unwrap();
}

#[test]
fn what_cannot_be_read_stops_the_start() {
    let start = |variables: &[(&str, &str)]| {
        let output = Command::new(env!("CARGO_BIN_EXE_fanfare"))
            .args(["config", "check"])
            .env_clear()
            .env("FANFARE_CLUSTER__REDIS", "rediss://127.0.0.1")
            .envs(variables.iter().copied())
            .current_dir(env!("CARGO_TARGET_TMPDIR"))
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(78), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let path = |name: &str, end| file(name, end).display().to_string();
    let [cert, key, foreign] = [path("one", "crt"), path("one", "key"), path("two", "key")];
    let [cert, key, foreign] = [&*cert, &key, &foreign];
    let (ca_name, cert_name) = ("FANFARE_CLUSTER__TLS__CA", "FANFARE_CLUSTER__TLS__CERT");
    let key_name = "FANFARE_CLUSTER__TLS__KEY";
    for (variables, said) in [
        (&[(ca_name, "nowhere.pem")][..], "nowhere.pem: No such file"),
        (&[(ca_name, key)][..], "holds no certificate in PEM form"),
        (&[(cert_name, cert)][..], "needs cluster.tls.key beside it"),
        (&[(cert_name, cert), (key_name, foreign)][..], "do not fit together"),
        (&[(cert_name, cert), (key_name, cert)][..], "holds no private key"),
        (
            &[("FANFARE_CLUSTER__REDIS", "redis://127.0.0.1"), (ca_name, cert)][..],
            "cluster.redis asks for none",
        ),
    ] {
        let error = start(variables);
        assert!(error.contains(said), "{said}: {error}");
    }
}

#[test]
fn doctor_says_that_redis_wants_a_certificate() {
    let folder = Folder::new("redis-doctor");
    let Some(redis) = folder.redis(&[]) else { return };
    let fixture = Fixture::start();
    let doctor = |client: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fanfare"));
        command.arg("doctor").env_clear().current_dir(&folder.0);
        command.env("FANFARE_CLUSTER__REDIS", url(&redis));
        command.env("FANFARE_CLUSTER__TLS__CA", file("one", "crt"));
        for (name, end) in [("CERT", "crt"), ("KEY", "key")] {
            if let Some(client) = client {
                command.env(format!("FANFARE_CLUSTER__TLS__{name}"), file(client, end));
            }
        }
        let port = fixture.addr.port().to_string();
        command.env("FANFARE_SERVER__PORT", port).env("FANFARE_METRICS__ENABLED", "false");
        for (name, value) in [("ID", ID), ("KEY", KEY), ("SECRET", SECRET)] {
            command.env(format!("FANFARE_APPS__0__{name}"), value);
        }
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().find(|line| line.contains("  Redis: ")).expect(&text).to_owned()
    };
    // It waits no longer than three seconds, in which a busy machine may not answer.
    for (client, said) in [
        (Some("two"), "a message came back after"),
        (None, "it wants a client certificate"),
        (Some("other"), "it does not take the client certificate"),
    ] {
        eventually(|| match doctor(client) {
            line if line.contains(said) => Ok(()),
            line => Err(line),
        })
        .unwrap();
    }
}
