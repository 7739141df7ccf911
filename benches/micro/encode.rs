//! From an event to the bytes that every subscriber gets. It is done once for all of them, so it weighs
//! where few are subscribed.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use fanfare::protocol::event::Message;

use crate::stage::{data, name};

pub(crate) fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    let channel = name("private-orders.4711");
    group.bench_function("subscribed", |bencher| {
        bencher.iter(|| Message::subscription_succeeded(black_box(&channel)));
    });
    for size in [64, 256, 2_048, 65_536] {
        let data = data(size);
        group.throughput(Throughput::Bytes(data.len() as u64));
        group.bench_function(format!("event/{size}"), |bencher| {
            bencher.iter(|| Message::event(&channel, "order.shipped", black_box(&data)));
        });
    }
    group.finish();
}
