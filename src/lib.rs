//! A server that speaks the Pusher protocol. The modules, lowest first, each of which names only those
//! before it (`docs/architecture.md` is the map): `protocol` is what is said, `app` who may say it,
//! `config` how the server is set, `metrics` what it counts, `console` what people who look are told; `hub` who is connected and subscribed,
//! `cluster` the other nodes, `webhook` what backends are told, `lookup` which apps there are beside those
//! of the settings; `node` the verbs of the product, `session` one connection's conversation, `socket` how
//! its bytes come and go, `http` the API, `server` starting and stopping, `cli` what people ask.

pub mod app;
pub mod cluster;
pub mod config;
pub mod console;
pub mod http;
pub mod hub;
pub mod lookup;
pub mod metrics;
pub mod node;
pub mod protocol;
pub mod session;
pub mod socket;
pub mod webhook;

pub mod server;

pub mod cli;
