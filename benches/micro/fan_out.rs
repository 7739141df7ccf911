//! One event, or ten of one turn, into the outboxes of all subscribers of a channel: everything of a
//! delivery but the system call. A time divided by the number of subscribers is what one delivery costs.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};

use crate::stage::{Stage, data, name};

pub(crate) fn fan_out(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("fan_out");
    let (channel, data) = (name("orders"), data(256));
    for subscribers in [1_000, 10_000] {
        let stage = Stage::new(subscribers, &["orders"]);
        for events in [1, 10] {
            group.throughput(Throughput::Elements((subscribers * events) as u64));
            let id = BenchmarkId::new(format!("events_{events}"), subscribers);
            group.bench_function(id, |bencher| {
                bencher.iter_custom(|rounds| {
                    let mut spent = Duration::ZERO;
                    for _ in 0..rounds {
                        let began = Instant::now();
                        (0..events).for_each(|_| stage.publish(&channel, &data));
                        stage.deliver();
                        spent += began.elapsed();
                        // Emptying the outboxes is the sockets' part.
                        assert!(stage.settle() > subscribers * events * 256);
                    }
                    spent
                });
            });
        }
    }
    group.finish();
}
