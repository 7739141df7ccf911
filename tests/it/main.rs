//! The integration tests: one binary, one module a subject.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

mod config;
