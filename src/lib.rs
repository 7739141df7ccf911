//! A server for the Pusher protocol. The modules, lowest first; each may use only those before it
//! (`docs/architecture.md` is the map): `protocol` is the wire format, `app` the tenants, `config` the settings,
//! `metrics` the counters, `console` the debug console's facts; `hub` the connections and subscriptions of this node,
//! `cluster` the other nodes, `webhook` the webhooks, `lookup` apps in databases; `node` the operations, `session` the
//! conversation of one connection, `socket` its bytes, `http` the API, `server` starting and stopping, `cli` the
//! commands.

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
