//! The integration tests: one binary, one module a subject.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test may stop at what it does not expect, and say so"
)]
#![expect(
    unreachable_pub,
    reason = "what the tests share is public to them, and nobody else sees it"
)]

mod acl;
mod api_address;
mod capacity;
mod cli;
mod cluster;
mod compression;
mod config;
mod console;
mod crowds;
mod dashboard;
mod descriptors;
mod dialogue;
mod doctor;

mod endings;
mod environment;
mod failovers;
mod fallback;
mod fallback_bounds;
mod fallback_time;
mod fencing;
mod garbage;
mod handshake;
mod held;
mod io_uring;
mod judge;
mod leases;
mod liveness;
mod lost_data;
mod metrics;
mod model;
mod news;
mod nodes;
mod online;
mod ordering;
mod outage;
mod panics;
mod process;
mod properties;
mod proxy;
mod races;
mod rates;
mod redis;
mod redis_tls;
mod refusals;
mod reload;
mod replay;
mod requests;
mod resume;
mod rfc6455;
mod sdks;
mod seals;
mod shards;
mod shards_lost;
mod sizing;
#[cfg(feature = "socketio")]
mod socketio;
mod spelling;
mod spool;
#[cfg(feature = "sql")]
mod sql;
mod support;
mod tidy;
mod tls;
mod traces;
mod travelling;
mod travelling_faults;
mod travelling_model;
mod unix;
mod upgrade;
mod version;
mod waiting;
mod webhook;
mod whole;
mod withdrawal;
