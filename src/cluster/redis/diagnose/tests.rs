//! Of the diagnosis of Redis: what it says of itself is read, and every command that nodes call is tried.

use super::*;

#[test]
fn what_redis_says_of_itself_is_read() {
    let found = |version: &str, rest: &str| parse_info(&format!("# Server\r\n{version}\r\n{rest}"));
    let well = found("redis_version:7.0.15", "role:master\r\nmaxmemory:0\r\n");
    assert_eq!((well.version.as_str(), well.is_recent), ("Redis 7.0.15", true));
    assert!(!well.is_replica && well.evicts.is_none() && well.memory.is_none());
    assert!(!found("redis_version:6.2.14", "").is_recent);
    assert!(found("redis_version:10.0.0", "").is_recent);
    let valkey = found("redis_version:7.2.4\r\nvalkey_version:8.0.1", "role:slave\r\n");
    assert_eq!((valkey.version.as_str(), valkey.is_recent), ("Valkey 8.0.1", true));
    assert!(valkey.is_replica);
    // A policy holds only where memory has a bound.
    let policy = "maxmemory_policy:allkeys-lru";
    assert_eq!(found("", &format!("maxmemory:0\r\n{policy}\r\n")).evicts, None);
    let evicting = found("used_memory:950", &format!("maxmemory:1000\r\n{policy}\r\n"));
    assert_eq!(evicting.evicts.as_deref(), Some("allkeys-lru"));
    assert_eq!(evicting.memory, Some(95));
}

/// A command that a script begins to call is one that doctor must try.
#[test]
fn every_command_of_the_scripts_is_tried() {
    let tried: BTreeSet<String> = TRIED.iter().map(|(name, _)| (*name).to_owned()).collect();
    let called = script_commands();
    assert!(called.contains("HINCRBY") && called.contains("SPUBLISH"));
    let missing: Vec<_> = called.difference(&tried).filter(|name| *name != "SPUBLISH").collect();
    assert!(missing.is_empty(), "doctor does not try {missing:?}: put them into TRIED");
}

/// The commands that nodes call themselves are in the sources of this folder, but not in folders of tests.
#[test]
fn every_command_of_nodes_is_tried() {
    // Of connections, of servers, and those that run scripts.
    const OTHERS: [&str; 9] =
        ["ASKING", "CLUSTER", "EVALSHA", "INFO", "PING", "ROLE", "SCRIPT", "SENTINEL", "SPUBLISH"];
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cluster/redis");
    let mut names = BTreeSet::new();
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    for file in files.filter(|path| path.is_file()) {
        let text = std::fs::read_to_string(file).unwrap();
        let calls = text.split("cmd(\"").skip(1).filter_map(|rest| rest.split('"').next());
        names.extend(calls.filter(|name| !name.contains('\\')).map(str::to_owned));
    }
    names.retain(|name| !OTHERS.contains(&name.as_str()));
    assert_eq!(names, DIRECT.map(str::to_owned).into());
}

/// docs/cluster.md lists the least that a user of the nodes' own must be given.
#[test]
fn the_least_rights_are_those_that_nodes_use() {
    let doc = include_str!("../../../../docs/cluster.md");
    let rule = doc.lines().find(|line| line.contains("-@all ")).unwrap();
    let listed = rule.split([' ', '`']).filter_map(|word| word.strip_prefix('+'));
    let called: BTreeSet<String> =
        script_commands().iter().map(|name| name.to_ascii_lowercase()).collect();
    let others = ["evalsha", "script|load", "ssubscribe", "sunsubscribe", "ping", "hello"];
    let others = others.iter().chain(&["auth", "select", "info"]);
    let known: BTreeSet<&str> = called.iter().map(String::as_str).chain(others.copied()).collect();
    assert_eq!(listed.collect::<BTreeSet<_>>(), known, "docs/cluster.md and what nodes call");
}
