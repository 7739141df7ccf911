//! Checking signatures: of a subscription, and of a request to the API with its body's digest. What the
//! hashing itself costs is the crates'.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use fanfare::protocol::auth::{Signer, md5_hex, verify_request, verify_subscription};
use fanfare::protocol::query::Query;

pub(crate) fn sign(criterion: &mut Criterion) {
    let signer = Signer::new("a secret of twenty-seven ch");
    let mut group = criterion.benchmark_group("sign");

    let auth = format!("key:{}", signer.sign(&["12.34:private-orders.4711"]));
    let subscription = || {
        let auth = Some(black_box(auth.as_str()));
        verify_subscription(&signer, "key", auth, "12.34", "private-orders.4711", None)
    };
    assert_eq!(subscription(), Ok(()));
    group.bench_function("subscription", |bencher| bencher.iter(subscription));

    let digest = md5_hex(b"{}");
    let plain =
        format!("auth_key=key&auth_timestamp=1700000000&auth_version=1.0&body_md5={digest}");
    let signature = signer.sign(&["POST\n/apps/id/events\n", &plain]);
    let query = format!("{plain}&auth_signature={signature}");
    let request = || {
        let query = Query::parse(black_box(&query));
        verify_request(&signer, "POST", "/apps/id/events", "", &query)
    };
    assert_eq!(request(), Ok(()));
    group.bench_function("request", |bencher| bencher.iter(request));

    for size in [256, 65_536] {
        let body = vec![b'x'; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(format!("body_md5/{size}"), |bencher| {
            bencher.iter(|| md5_hex(black_box(&body)));
        });
    }
    group.finish();
}
