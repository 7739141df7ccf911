//! From a client's text to what it asks for, and from a name to a channel. Nothing is looked up and nothing
//! answered.

use std::hint::black_box;

use criterion::Criterion;
use fanfare::protocol::channel::ChannelName;
use fanfare::protocol::command::ClientCommand;
use fanfare::protocol::query::Query;

const COMMANDS: [(&str, &str); 4] = [
    ("ping", r#"{"event":"pusher:ping","data":{}}"#),
    (
        "subscribe",
        r#"{"event":"pusher:subscribe","data":{"auth":"key:2fd4e1c67a2d28fced849ee1bb76e7391b93eb12","channel":"private-orders.4711"}}"#,
    ),
    (
        "subscribe_presence",
        r#"{"event":"pusher:subscribe","data":{"auth":"key:2fd4e1c67a2d28fced849ee1bb76e7391b93eb12","channel":"presence-hall","channel_data":"{\"user_id\":\"17\",\"user_info\":{\"name\":\"Member 17\"}}"}}"#,
    ),
    (
        "client_event",
        r#"{"event":"client-typing","channel":"private-room.7","data":{"user":17,"typing":true}}"#,
    ),
];

const QUERY: &str = "auth_key=key&auth_timestamp=1700000000&auth_version=1.0&body_md5=900150983cd24fb0d6963f7d28e17f72&auth_signature=2fd4e1c67a2d28fced849ee1bb76e7391b93eb122fd4e1c67a2d28fced849ee1";

pub(crate) fn parse(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse");
    for (what, text) in COMMANDS {
        assert!(ClientCommand::parse(text).is_ok(), "{what}");
        group.bench_function(what, |bencher| {
            bencher.iter(|| ClientCommand::parse(black_box(text)).is_ok());
        });
    }
    group.bench_function("channel_name", |bencher| {
        bencher.iter(|| ChannelName::parse(black_box("private-orders.4711"), 200));
    });
    group.bench_function("query", |bencher| bencher.iter(|| Query::parse(black_box(QUERY))));
    group.finish();
}
