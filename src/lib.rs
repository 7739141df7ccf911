//! A Pusher-protocol broadcast server.
//!
//! The modules, lowest first; each names only those before it (`docs/architecture.md` is the map):
//! `protocol` is what is said, `app` who may say it, `config` how the server is set, `hub` who is
//! connected and subscribed, `lookup` which apps are known beyond the settings, `node` the verbs of the product, `session` one connection's conversation,
//! `socket` how its bytes come and go, `http` the API, `server` listening, starting and stopping, `cli` what people ask of
//! a server.

pub mod app;
pub mod cluster;
pub mod config;
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
