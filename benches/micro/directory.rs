//! Subscribing and unsubscribing in memory, the answer included: on a channel of one's own, which is
//! opened and closed each time, and on one with a thousand others.

use criterion::Criterion;

use crate::stage::Stage;

pub(crate) fn subscribe(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("directory");
    for (what, crowd) in [("own_channel", 0), ("crowded_channel", 1_000)] {
        let stage = Stage::new(crowd, &["orders"]);
        let connection = stage.connect();
        connection.take_queued();
        group.bench_function(format!("subscribe_unsubscribe/{what}"), |bencher| {
            bencher.iter(|| {
                stage.subscribe(&connection, "orders");
                stage.node.unsubscribe(&connection, "orders");
                connection.take_queued()
            });
        });
    }
    group.finish();
}
