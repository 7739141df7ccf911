//! Findings of doctor for a Redis that is away, full, too old, no master, or lets nodes do too little.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::Output;

use super::{doctor, laravel, text};
use crate::support::fixture::Fixture;
use crate::support::ports::free_port;
use crate::support::redis::Redis;
use crate::support::shards::Shards;

/// What doctor says of the Redis at `url`, of a server that is well.
fn of_redis(name: &str, fixture: &Fixture, url: &str) -> Output {
    let env = laravel(fixture, "");
    let variables = [("FANFARE_METRICS__ENABLED", "false"), ("FANFARE_CLUSTER__REDIS", url)];
    doctor(name, &[], &variables, &env)
}

#[test]
fn redis_is_looked_at_and_no_password_shown() {
    let Some(redis) = Redis::start() else { return };
    let fixture = Fixture::start();
    let addr = redis.cluster().redis[0].trim_start_matches("redis://").to_owned();
    let line = |name: &str, url: &str, well: bool| {
        let output = of_redis(name, &fixture, url);
        let text = text(&output);
        assert!(!text.contains("s3cr3t"), "{text}");
        assert_eq!(output.status.success(), well, "{text}");
        text.lines().find(|line| line.contains("  Redis: ")).expect(text).to_owned()
    };
    let found = line("redis", &format!("redis://{addr}"), true);
    assert!(
        found.starts_with("ok    Redis: ") && found.contains("a message came back after"),
        "{found}"
    );
    let (nobody, hung) = (free_port(), TcpListener::bind("127.0.0.1:0").unwrap());
    for (name, url, sentence) in [
        ("refused", format!("redis://127.0.0.1:{nobody}"), "nothing listens there: start Redis"),
        ("silent", format!("redis://{}", hung.local_addr().unwrap()), "no answer in three seconds"),
        ("http", format!("redis://{}", fixture.addr), "it does not answer as Redis does"),
        ("unknown", "redis://nobody.invalid".to_owned(), "its name is not known here"),
        ("no-tls", format!("rediss://{addr}"), "or it speaks no TLS there"),
        ("wrong", format!("redis://:s3cr3t@{addr}"), "it refuses the user or the password"),
    ] {
        let found = line(name, &url, false);
        assert!(found.contains(sentence), "{name}: {found}");
    }
    let found = line("several", &format!("redis://{addr},redis://{addr}"), false);
    assert!(found.contains("this one is of no Redis Cluster"), "{found}");
    let shards = Shards::shared().unwrap();
    let found = line("shards", &shards.cluster().redis[1], true);
    assert!(found.contains(", a cluster; a message came back after"), "{found}");
    // Of several each is looked at.
    let all = shards.cluster().redis.join(",");
    let output = of_redis("each", &fixture, &all);
    for url in &shards.cluster().redis {
        let place = url.trim_start_matches("redis://").trim_end_matches('/');
        let start = format!("ok    Redis: {place}: ");
        assert!(text(&output).contains(&start), "{start}: {}", text(&output));
    }
    let output = of_redis("one", &fixture, &format!("{all},redis://127.0.0.1:{nobody}"));
    let start = format!("FAIL  Redis: 127.0.0.1:{nobody}: nothing listens there");
    assert!(text(&output).contains(&start), "{}", text(&output));
    redis.ask(&["CONFIG", "SET", "maxmemory", "100mb"]);
    redis.ask(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    let found = line("evicts", &format!("redis://{addr}"), false);
    assert!(found.contains("(allkeys-lru)") && found.contains("noeviction"), "{found}");
    redis.ask(&["ACL", "SETUSER", "u", "on", ">s3cr3t", "~*", "+@all", "&other*"]);
    let found = line("rights", &format!("redis://u:s3cr3t@{addr}"), false);
    assert!(found.contains("its user may not do what nodes do"), "{found}");
    assert!(found.contains("(it says: NOPERM"), "{found}");
    redis.ask(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    redis.ask(&["REPLICAOF", "127.0.0.1", &nobody.to_string()]);
    let found = line("replica", &format!("redis://{addr}"), false);
    assert!(found.contains("it is a replica"), "{found}");
    redis.ask(&["REPLICAOF", "NO", "ONE"]);
    redis.ask(&["CONFIG", "SET", "requirepass", "s3cr3t"]);
    let found = line("none", &format!("redis://{addr}"), false);
    assert!(found.contains("it refuses the user or the password"), "{found}");
    line("right", &format!("redis://:s3cr3t@{addr}"), true);
}

#[test]
fn a_redis_cluster_with_a_lost_master_was_called_broken() {
    let Some(mut shards) = Shards::start(3, false) else { return };
    let fixture = Fixture::start();
    let url = shards.cluster().redis[0].clone();
    let lost = format!("127.0.0.1:{}", shards.masters[2].port());
    shards.masters[2].kill();
    let output = of_redis("lost-master", &fixture, &url);
    let text = text(&output);
    assert!(output.status.success(), "nodes start: {text}");
    assert!(text.contains(&format!("warn  Redis: {lost} is away (")), "{text}");
    assert!(text.contains("the others are not affected"), "{text}");
}

/// Its one line about Redis that is not well.
fn fault(name: &str, fixture: &Fixture, url: &str) -> String {
    let output = of_redis(name, fixture, url);
    let said = text(&output);
    let mut lines = said.lines().filter(|line| line.starts_with("FAIL  Redis: "));
    let line = lines.next().expect(said).to_owned();
    assert_eq!(lines.next(), None, "{name}");
    line
}

#[test]
fn a_redis_that_takes_no_writes_says_why() {
    let Some(redis) = Redis::start() else { return };
    let fixture = Fixture::start();
    let url = redis.cluster().redis[0].clone();
    // Full, and told to throw nothing away.
    redis.ask(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    redis.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    let found = fault("full", &fixture, &url);
    assert!(found.contains("its memory is full (maxmemory)"), "{found}");
    redis.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    redis.ask(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    let found = fault("noreplicas", &fixture, &url);
    assert!(found.contains("it has too few replicas to take writes"), "{found}");
    redis.ask(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    let output = of_redis("again", &fixture, &url);
    assert!(output.status.success(), "{}", text(&output));
    // Nothing of what was tried is left.
    assert_eq!(redis.ask(&["DBSIZE"]), "0");
}

/// The rights that docs/cluster.md gives are enough, and each that is missing is named.
#[test]
fn a_command_that_scripts_may_not_use_is_named() {
    let Some(redis) = Redis::start() else { return };
    let fixture = Fixture::start();
    let addr = redis.cluster().redis[0].trim_start_matches("redis://").to_owned();
    let url = format!("redis://u:s3cr3t@{addr}");
    let prefix = &redis.cluster().prefix;
    let (keys, channels) = (format!("~{prefix}:*"), format!("&{prefix}:*"));
    let all = ["ACL", "SETUSER", "u", "on", ">s3cr3t", &keys, &channels, "+@all", "-@dangerous"];
    redis.ask(&all);
    let variables = [
        ("FANFARE_METRICS__ENABLED", "false"),
        ("FANFARE_CLUSTER__REDIS", &*url),
        ("FANFARE_CLUSTER__PREFIX", prefix),
    ];
    let look = |name: &str| doctor(name, &[], &variables, &laravel(&fixture, ""));
    let output = look("enough");
    assert!(output.status.success(), "{}", text(&output));
    redis.ask(&["ACL", "SETUSER", "u", "-hincrby", "-xadd"]);
    let output = look("inside");
    let said = text(&output);
    let line = said.lines().find(|line| line.starts_with("FAIL")).expect(said);
    assert!(line.contains("its user may not do HINCRBY, XADD inside a script (NOPERM)"), "{line}");
    assert_eq!(output.status.code(), Some(1));
    redis.ask(&["ACL", "SETUSER", "u", "+hincrby", "+xadd", "-ssubscribe"]);
    let output = look("listening");
    let said = text(&output);
    let line = said.lines().find(|line| line.starts_with("FAIL")).expect(said);
    assert!(line.contains("'ssubscribe'"), "{line}");
}

/// The next command that a client sends.
fn command(reader: &mut impl BufRead) -> Option<Vec<String>> {
    let number = |reader: &mut dyn BufRead| {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        line.trim_end().get(1..)?.parse::<usize>().ok()
    };
    let count = number(reader)?;
    let mut words = Vec::new();
    for _ in 0..count {
        let mut word = vec![0; number(reader)? + 2];
        reader.read_exact(&mut word).ok()?;
        words.push(String::from_utf8(word).ok()?.trim_end().to_owned());
    }
    Some(words)
}

/// A server of Redis's protocol that knows these commands and answers every other as Redis does.
fn not_quite_redis(version: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    // It ends with the tests.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut stream = stream;
                while let Some(words) = command(&mut reader) {
                    let info = format!("redis_version:{version}\r\nrole:master\r\n");
                    let answer = match words.first().map(String::as_str) {
                        Some("PING") => "+PONG\r\n".to_owned(),
                        Some("INFO") => format!("${}\r\n{info}\r\n", info.len()),
                        Some("HELLO") => "%1\r\n$5\r\nproto\r\n:3\r\n".to_owned(),
                        Some("SCRIPT") => format!("$40\r\n{}\r\n", "0".repeat(40)),
                        Some("CLIENT") => "+OK\r\n".to_owned(),
                        other => {
                            format!("-ERR unknown command '{}'\r\n", other.unwrap_or_default())
                        }
                    };
                    if stream.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    addr
}

#[test]
fn a_redis_that_is_too_old_or_not_quite_one_is_named() {
    let fixture = Fixture::start();
    let found = fault("old", &fixture, &format!("redis://{}", not_quite_redis("6.2.14")));
    assert!(found.contains("Redis 6.2.14 is too old: nodes need Redis 7 or later"), "{found}");
    // It says that it is new enough, and lacks what nodes use.
    let found = fault("mini", &fixture, &format!("redis://{}", not_quite_redis("7.4.0")));
    assert!(found.contains("it is too old, or not quite Redis"), "{found}");
    assert!(found.contains("(it says: ERR unknown command 'SSUBSCRIBE')"), "{found}");
}
