//! The queue on disk, so that a killed process loses nothing. Each process has its own locked file: one JSON object per
//! line, for each queued event and for each that was sent or given up. Files whose lock is gone are taken over, at the
//! start and while running, since a process that hands over ends after its successor has started. At worst an event is
//! sent twice. An incomplete line, from a power cut, is ignored.

use crate::protocol::hex;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tracing::{info, warn};

/// Bytes of lines that are not needed any more before the file is written anew without them, if they are more
/// than half of it.
const MAX_DONE: u64 = 4 << 20;

/// Logged once when the spool fails.
const FAILS: &str = "the webhook spool cannot be used: a crash would lose events";
/// Logged once the spool can be written to again.
const WORKS: &str = "the webhook spool can be written to again";

/// One event that waits for one webhook.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub(super) struct SpooledEvent {
    /// Its number in the file.
    #[serde(default)]
    pub n: u64,
    pub app: String,
    /// The webhook's place among those of its app, and its URL.
    pub index: usize,
    pub url: String,
    /// When it happened, in milliseconds since 1970.
    pub at: u64,
    pub event: Box<RawValue>,
}

/// That the events of these numbers need not be sent any more.
#[derive(Serialize, Deserialize, Debug)]
struct SpooledDone {
    /// Numbers of events that were sent.
    done: Vec<u64>,
}

/// The file of this process.
#[derive(Debug)]
pub(super) struct Spool {
    folder: PathBuf,
    /// This process's file.
    path: PathBuf,
    journal: RefCell<SpoolFile>,
    /// Faults that were logged: a failing disk, and files that cannot be taken over.
    faults: RefCell<ToldFaults>,
}

/// So that a disk that stays full is one line.
#[derive(Debug, Default)]
struct ToldFaults {
    /// Whether the last write failed.
    failing: bool,
    /// Files of other processes that could not be read.
    files: HashSet<PathBuf>,
}

/// Appended to, and written anew when most of it is done.
#[derive(Debug)]
struct SpoolFile {
    /// The file, locked while this process runs.
    file: File,
    /// Bytes that are surely in the file: what was written in part is cut off again.
    length: u64,
    /// Bytes that are not in the file yet.
    pending: Vec<u8>,
    /// Where the lines are whose events are not done.
    open: BTreeMap<u64, (u64, usize)>,
    /// Of the lines in `open`, to know how much of the file is still needed.
    open_bytes: u64,
    /// The number of the next event.
    next: u64,
    /// The last attempt to write failed.
    failing: bool,
}

impl Spool {
    /// A file of this process's own in `folder`, which is made if it is not there.
    ///
    /// # Errors
    /// The folder cannot be made or written to.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let mut chance = [0; 4];
        getrandom::fill(&mut chance).map_err(io::Error::other)?;
        let name = format!("webhooks-{}-{}.jsonl", std::process::id(), hex::encode_hex(chance));
        let path = folder.join(name);
        let file = locked(&path, private().append(true).create_new(true))?
            .ok_or_else(|| io::Error::other("somebody else has locked a new file"))?;
        // A file is only safe once its name is on disk, too.
        File::open(folder)?.sync_all()?;
        let journal = SpoolFile {
            file,
            length: 0,
            pending: Vec::new(),
            open: BTreeMap::new(),
            open_bytes: 0,
            next: 0,
            failing: false,
        };
        let faults = RefCell::default();
        Ok(Self { folder: folder.to_owned(), path, journal: RefCell::new(journal), faults })
    }

    /// Takes over the events of processes that have ended.
    pub(super) fn adopt_orphans(&self) -> Vec<SpooledEvent> {
        let mut taken = Vec::new();
        let files = match fs::read_dir(&self.folder) {
            Ok(files) => files,
            Err(error) => {
                self.warn_about_file(&self.folder, &error);
                return taken;
            }
        };
        let mut paths: Vec<PathBuf> = files.flatten().map(|file| file.path()).collect();
        paths.sort_unstable();
        for path in paths.iter().filter(|path| **path != self.path) {
            match self.take_file(path) {
                Ok(more) => taken.extend(more),
                Err(error) => self.warn_about_file(path, &error),
            }
        }
        taken
    }

    /// Says, once, that a file cannot be taken over; it is tried every second.
    fn warn_about_file(&self, path: &Path, error: &io::Error) {
        if self.faults.borrow_mut().files.insert(path.to_owned()) {
            warn!(%error, file = %path.display(), "cannot be taken over");
        }
    }

    /// Copies another process's events into this one's file before it removes theirs.
    fn take_file(&self, path: &Path) -> io::Result<Vec<SpooledEvent>> {
        // A name that is not UTF-8 is not one of ours.
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_new = name.ends_with(".new");
        if !name.starts_with("webhooks") || !(is_new || name.ends_with(".jsonl")) {
            return Ok(Vec::new());
        }
        let Some(file) = locked(path, OpenOptions::new().read(true).write(true))? else {
            return Ok(Vec::new());
        };
        let mut left = Vec::new();
        // One that was still being written anew is in the old one as a whole.
        if !is_new {
            let text = fs::read(path)?;
            for mut one in read(&text) {
                self.keep(&mut one);
                left.push(one);
            }
            self.flush();
            if self.journal.borrow().failing {
                // It stays until there is room for what is in it.
                return Ok(left);
            }
        }
        fs::remove_file(path)?;
        // Locked until its name is gone, so that no other process takes it over in between.
        drop(file);
        Ok(left)
    }

    /// Adds an event; it is in the file after the next [`Self::flush`].
    pub(super) fn keep(&self, one: &mut SpooledEvent) {
        let journal = &mut *self.journal.borrow_mut();
        if journal.is_overfull() {
            return;
        }
        one.n = journal.next;
        let begin = journal.pending.len();
        if serde_json::to_writer(&mut journal.pending, one).is_err() {
            journal.pending.truncate(begin);
            return;
        }
        journal.pending.push(b'\n');
        let size = journal.pending.len() - begin;
        journal.open.insert(one.n, (journal.length + begin as u64, size));
        journal.open_bytes += size as u64;
        journal.next += 1;
    }

    /// Writes what was added and waits until the disk has it: all that came in one turn at once.
    pub(super) fn flush(&self) {
        self.flush_noting();
    }

    /// Writes, and returns the logged line, for tests.
    fn flush_noting(&self) -> Option<&'static str> {
        let written = self.journal.borrow_mut().write(true);
        self.note(written)
    }

    /// Notes that events are done with. Should that be lost, they are sent again.
    pub(super) fn done(&self, numbers: Vec<u64>) {
        let written = {
            let journal = &mut *self.journal.borrow_mut();
            journal.forget(&numbers);
            if journal.is_overfull() && !journal.open.is_empty() {
                return;
            }
            // Numbers are always written.
            if serde_json::to_writer(&mut journal.pending, &SpooledDone { done: numbers }).is_ok() {
                journal.pending.push(b'\n');
            }
            if journal.open.is_empty() {
                // A full disk takes that, too.
                journal.empty().map(|()| false)
            } else {
                journal.write(false).and_then(|some| journal.shorten(&self.path).map(|()| some))
            }
        };
        self.note(written);
    }

    /// How many events the file has for the next process.
    pub(super) fn count(&self) -> usize {
        self.journal.borrow().open.len()
    }

    /// Takes the file away if nothing is in it.
    pub(super) fn end(&self) {
        if self.count() == 0 {
            // A file that stays is read at the next start, and finds nothing to send.
            let _ = fs::remove_file(&self.path);
        }
    }

    /// Notes whether the disk has taken what it was given, and says so when that has changed; what it has said.
    /// Where nothing was given to it, nothing is known.
    fn note(&self, written: io::Result<bool>) -> Option<&'static str> {
        let (folder, faults) = (self.folder.display(), &mut *self.faults.borrow_mut());
        match written {
            Ok(false) => None,
            Ok(true) => {
                self.journal.borrow_mut().failing = false;
                std::mem::take(&mut faults.failing).then(|| {
                    info!(%folder, "{WORKS}");
                    WORKS
                })
            }
            Err(error) => {
                self.journal.borrow_mut().failing = true;
                let before = std::mem::replace(&mut faults.failing, true);
                (!before).then(|| {
                    warn!(%error, %folder, "{FAILS}");
                    FAILS
                })
            }
        }
    }
}

impl SpoolFile {
    /// The disk takes nothing, and enough waits for it.
    fn is_overfull(&self) -> bool {
        self.failing && self.pending.len() as u64 > MAX_DONE
    }

    /// Their lines stay in the file until that is written anew.
    fn forget(&mut self, numbers: &[u64]) {
        for number in numbers {
            if let Some((_, size)) = self.open.remove(number) {
                self.open_bytes -= size as u64;
            }
        }
    }

    /// Writes what is pending, if anything is; on failure the file is as it was, and it stays pending.
    fn write(&mut self, sync: bool) -> io::Result<bool> {
        if self.pending.is_empty() {
            return Ok(false);
        }
        let written = self.file.write_all(&self.pending);
        let written = match written {
            Ok(()) if sync => self.file.sync_data(),
            other => other,
        };
        if let Err(error) = written {
            // A partial line must not remain in front of the next one.
            self.file.set_len(self.length)?;
            return Err(error);
        }
        self.length += self.pending.len() as u64;
        self.pending.clear();
        Ok(true)
    }

    /// Nothing waits: the file begins again.
    fn empty(&mut self) -> io::Result<()> {
        self.pending.clear();
        self.file.set_len(0)?;
        self.length = 0;
        Ok(())
    }

    /// Writes the file anew, beside the old one and put in its place, once most of it is not needed.
    fn shorten(&mut self, path: &Path) -> io::Result<()> {
        let done = self.length.saturating_sub(self.open_bytes);
        if done < MAX_DONE || done < self.open_bytes {
            return Ok(());
        }
        let new = path.with_extension("new");
        let mut options = private();
        options.append(true).create(true).truncate(false);
        let Some(mut file) = locked(&new, &options)? else { return Ok(()) };
        file.set_len(0)?;
        let (mut text, mut places) = (Vec::new(), BTreeMap::new());
        for (number, (begin, size)) in &self.open {
            let mut line = vec![0; *size];
            self.file.read_exact_at(&mut line, *begin)?;
            places.insert(*number, (text.len() as u64, *size));
            text.extend_from_slice(&line);
        }
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        // Otherwise a power cut could bring the old one back, without what comes now.
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())?;
        (self.file, self.length, self.open) = (file, text.len() as u64, places);
        Ok(())
    }
}

/// Creates files that only the user may read: URLs of webhooks may have credentials, and events have users' data.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).mode(0o600);
    options
}

/// Opens and locks a file. `None` if another process has it, or has just replaced it.
fn locked(path: &Path, options: &OpenOptions) -> io::Result<Option<File>> {
    let file = match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Ok(None),
        Err(fs::TryLockError::Error(error)) => return Err(error),
    }
    let own = file.metadata()?;
    let is_it = fs::metadata(path).is_ok_and(|there| there.ino() == own.ino());
    Ok(is_it.then_some(file))
}

/// The events that are not done.
fn read(text: &[u8]) -> Vec<SpooledEvent> {
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let (mut kept, mut done) = (Vec::new(), HashSet::new());
    for line in lines {
        match serde_json::from_slice::<SpooledDone>(line) {
            Ok(more) => done.extend(more.done),
            Err(_) => kept.extend(serde_json::from_slice::<SpooledEvent>(line).ok()),
        }
    }
    kept.retain(|one| !done.contains(&one.n));
    kept
}

#[cfg(test)]
mod tests;
