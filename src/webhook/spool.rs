//! What could not be sent before the server ended, kept in a file for the next run: one JSON object a line,
//! written to the end of what is there and flushed to the disk. A line that is not whole, because the
//! machine stopped in it, is left out.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// One event that waits for one webhook.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub(super) struct Kept {
    pub app: String,
    /// The webhook's place among those of its app, and its URL.
    pub index: usize,
    pub url: String,
    /// When it happened, in milliseconds since 1970.
    pub at: u64,
    pub event: Box<RawValue>,
}

fn file(folder: &Path) -> PathBuf {
    folder.join("webhooks.jsonl")
}

/// Adds `all` to the file.
pub(super) fn keep(folder: &Path, all: &[Kept]) -> io::Result<()> {
    let mut text = Vec::new();
    for one in all {
        serde_json::to_writer(&mut text, one)?;
        text.push(b'\n');
    }
    std::fs::create_dir_all(folder)?;
    let mut file = OpenOptions::new().create(true).append(true).open(file(folder))?;
    file.write_all(&text)?;
    file.sync_all()?;
    // The name of a new file is the folder's to keep.
    File::open(folder)?.sync_all()
}

/// Takes everything out of the file, and the file away.
pub(super) fn take(folder: &Path) -> io::Result<Vec<Kept>> {
    let path = file(folder);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let kept = lines.filter_map(|line| serde_json::from_slice(line).ok()).collect();
    std::fs::remove_file(&path)?;
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_end_costs_only_itself() {
        let name = format!("fanfare-spool-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        assert!(take(&folder).unwrap().is_empty());
        let one = |at| Kept {
            app: "1".to_owned(),
            index: 0,
            url: "http://a.test".to_owned(),
            at,
            event: RawValue::from_string(r#"{"name":"cache_miss","channel":"c"}"#.into()).unwrap(),
        };
        keep(&folder, &[one(1), one(2)]).unwrap();
        keep(&folder, &[one(3)]).unwrap();
        let mut text = std::fs::read(file(&folder)).unwrap();
        text.truncate(text.len() - 9);
        std::fs::write(file(&folder), text).unwrap();
        let kept = take(&folder).unwrap();
        assert_eq!(kept.iter().map(|one| one.at).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(kept[0].event.get(), one(1).event.get());
        assert!(take(&folder).unwrap().is_empty(), "what was taken is gone");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
