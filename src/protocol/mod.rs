//! The Pusher protocol as a pure library: text to commands, events to bytes, names, signatures and
//! error codes. Nothing here waits, locks, or knows what time it is.

pub mod auth;
