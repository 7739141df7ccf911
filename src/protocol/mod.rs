//! The Pusher protocol as a pure library: text to commands, events to bytes, names, signatures and error codes. Nothing
//! here waits, locks, or reads a clock.

pub mod auth;
pub mod channel;
pub mod command;
pub mod deflate;
#[cfg(feature = "socketio")]
pub mod engineio;
pub mod error;
pub mod event;
pub mod extension;
pub mod fallback;
pub mod hex;
pub mod json;
pub mod member;
pub mod origin;
pub mod query;
pub mod resume_token;
pub mod socket_id;
#[cfg(feature = "socketio")]
pub mod socketio;
pub mod trace;
