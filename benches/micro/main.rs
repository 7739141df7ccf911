//! What the parts of a message's path cost by themselves, in memory, without sockets or system calls:
//! `cargo bench --bench micro`, or only some of them, `cargo bench --bench micro -- encode`. The whole
//! server is measured by the load generator next door.

mod directory;
mod encode;
mod fan_out;
mod parse;
mod sign;
mod stage;

use criterion::{criterion_group, criterion_main};

criterion_group!(
    benches,
    encode::encode,
    parse::parse,
    sign::sign,
    fan_out::fan_out,
    directory::subscribe
);
criterion_main!(benches);
