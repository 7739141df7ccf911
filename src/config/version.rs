//! The version, commit and features of this program, determined by `build.rs`. They are on the metrics page, in the
//! console, and in `fanfare --version`.

/// The version with the commit and the features: `0.1.0 (1a2b3c4d5e6f)`. A `+` after the commit says that
/// the sources had changed since; there is none where nothing was known of it.
pub const VERSION: &str = env!("BUILT_VERSION");

/// The commit alone; empty if it is not known.
pub const REVISION: &str = env!("BUILT_REVISION");

/// The cargo features, a comma between them.
pub const FEATURES: &str = env!("BUILT_FEATURES");
