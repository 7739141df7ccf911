//! A wall clock of its own for a process that a test starts, built from `clock.c` and loaded before the C library.

use std::path::{Path, PathBuf};
use std::process::Command;

pub struct Clock {
    shim: PathBuf,
    /// How many seconds it is ahead of the machine's.
    offset: PathBuf,
}

impl Clock {
    /// In this folder; `None` where there is no C compiler, and a failure with `CI=true`.
    pub fn build(folder: &Path) -> Option<Self> {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/support/clock.c");
        let shim = folder.join("clock.so");
        let mut compiler = Command::new("cc");
        let compiled = compiler.args(["-shared", "-fPIC", "-o"]).arg(&shim).arg(source).status();
        let is_built = compiled.is_ok_and(|status| status.success());
        assert!(is_built || std::env::var("CI").as_deref() != Ok("true"), "no C compiler");
        let clock = Self { shim, offset: folder.join("clock") };
        clock.step(0);
        is_built.then_some(clock)
    }

    /// Another one from the same shim.
    pub fn another(&self, name: &str) -> Self {
        let (shim, offset) = (self.shim.clone(), self.shim.with_file_name(name));
        let clock = Self { shim, offset };
        clock.step(0);
        clock
    }

    /// What a process that goes by it is started with.
    pub fn environment(&self) -> [(&'static str, &Path); 2] {
        [("LD_PRELOAD", &self.shim), ("CLOCK_FILE", &self.offset)]
    }

    /// From now on it is so many seconds ahead of the machine's.
    pub fn step(&self, seconds: i64) {
        let next = self.offset.with_extension("next");
        std::fs::write(&next, format!("{seconds:+}\n")).unwrap();
        std::fs::rename(next, &self.offset).unwrap();
    }
}
