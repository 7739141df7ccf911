//! What waits to be sent, on disk as well, so that a process that is killed loses none of it. Each process has
//! a file of its own, which it keeps locked: one JSON object a line, for each event that came in line, and for
//! those that were sent or given up. Files that nobody has locked any more are taken over, at the start and
//! while it runs, for a process that hands over ends later than the next one begins. At worst an event is sent
//! twice. A line that is not whole, because the machine stopped in it, is left out.

use crate::protocol::hex;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tracing::{info, warn};

/// Bytes of lines that are not needed any more before the file is written anew without them, if they are more
/// than half of it.
const MOST_DONE: u64 = 4 << 20;

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
    done: Vec<u64>,
}

/// The file of this process.
#[derive(Debug)]
pub(super) struct Spool {
    folder: PathBuf,
    path: PathBuf,
    journal: RefCell<SpoolFile>,
}

#[derive(Debug)]
struct SpoolFile {
    file: File,
    length: u64,
    /// What is not in the file yet.
    pending: Vec<u8>,
    /// Where the lines are whose events are not done.
    open: BTreeMap<u64, (u64, usize)>,
    open_bytes: u64,
    next: u64,
    /// The last attempt to write failed.
    failing: bool,
}

impl Spool {
    /// A file of this process's own in `folder`, which is made if it is not there.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let mut chance = [0; 4];
        getrandom::fill(&mut chance).map_err(io::Error::other)?;
        let name = format!("webhooks-{}-{}.jsonl", std::process::id(), hex::encode_hex(chance));
        let path = folder.join(name);
        let file = locked(&path, OpenOptions::new().read(true).append(true).create_new(true))?
            .ok_or_else(|| io::Error::other("somebody else has locked a new file"))?;
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
        Ok(Self { folder: folder.to_owned(), path, journal: RefCell::new(journal) })
    }

    /// What processes that have ended left, which is this one's from now on.
    pub(super) fn take_over(&self) -> Vec<SpooledEvent> {
        let mut taken = Vec::new();
        let files = match fs::read_dir(&self.folder) {
            Ok(files) => files,
            Err(error) => {
                self.complain(&error);
                return taken;
            }
        };
        let mut paths: Vec<PathBuf> = files.flatten().map(|file| file.path()).collect();
        paths.sort_unstable();
        for path in paths.iter().filter(|path| **path != self.path) {
            match self.take_file(path) {
                Ok(more) => taken.extend(more),
                Err(error) => warn!(%error, file = %path.display(), "cannot be taken over"),
            }
        }
        taken
    }

    fn take_file(&self, path: &Path) -> io::Result<Vec<SpooledEvent>> {
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
        let written = self.journal.borrow_mut().write(true);
        self.note(written);
    }

    /// Notes that events are done with. Should that be lost, they are sent again.
    pub(super) fn done(&self, numbers: Vec<u64>) {
        let written = {
            let journal = &mut *self.journal.borrow_mut();
            journal.forget(&numbers);
            if journal.is_overfull() && !journal.open.is_empty() {
                return;
            }
            match serde_json::to_writer(&mut journal.pending, &SpooledDone { done: numbers }) {
                Ok(()) => journal.pending.push(b'\n'),
                Err(error) => warn!(%error, "the webhook spool cannot be written to"),
            }
            if journal.open.is_empty() {
                journal.empty()
            } else {
                journal.write(false).and_then(|()| journal.shorten(&self.path))
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
            let _ = fs::remove_file(&self.path);
        }
    }

    fn note(&self, written: io::Result<()>) {
        let failed_before = self.journal.borrow().failing;
        match written {
            Err(error) if !failed_before => self.complain(&error),
            Ok(()) if failed_before => info!("the webhook spool can be written to again"),
            _ => {}
        }
    }

    fn complain(&self, error: &io::Error) {
        let folder = self.folder.display();
        warn!(%error, %folder, "the webhook spool cannot be used: a crash would lose events");
        self.journal.borrow_mut().failing = true;
    }
}

impl SpoolFile {
    /// The disk takes nothing, and enough waits for it.
    fn is_overfull(&self) -> bool {
        self.failing && self.pending.len() as u64 > MOST_DONE
    }

    fn forget(&mut self, numbers: &[u64]) {
        for number in numbers {
            if let Some((_, size)) = self.open.remove(number) {
                self.open_bytes -= size as u64;
            }
        }
    }

    /// Writes what is pending; on failure the file is as it was, and it stays pending.
    fn write(&mut self, sync: bool) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let written = self.file.write_all(&self.pending);
        let written = match written {
            Ok(()) if sync => self.file.sync_data(),
            other => other,
        };
        if let Err(error) = written {
            // What was written of it must not begin the next line.
            self.file.set_len(self.length)?;
            return Err(error);
        }
        self.length += self.pending.len() as u64;
        self.pending.clear();
        self.failing = false;
        Ok(())
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
        if done < MOST_DONE || done < self.open_bytes {
            return Ok(());
        }
        let new = path.with_extension("new");
        let options = &mut OpenOptions::new();
        options.read(true).append(true).create(true).truncate(false);
        let Some(mut file) = locked(&new, options)? else { return Ok(()) };
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

/// Opens a file that nobody else has, and keeps others away from it for as long as it is held. `None` if
/// somebody has it, or has just put another in its place.
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
mod tests {
    use super::*;

    /// A folder that goes with its test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let name = format!("fanfare-spool-{name}-{}", std::process::id());
            Self(std::env::temp_dir().join(name))
        }

        /// A process, and when the events happened that it takes over.
        fn process(&self) -> (Spool, Vec<u64>) {
            let spool = Spool::open(&self.0).unwrap();
            let taken = spool.take_over();
            (spool, taken.iter().map(|one| one.at).collect())
        }

        fn files(&self) -> usize {
            fs::read_dir(&self.0).unwrap().count()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn add(spool: &Spool, at: u64) -> u64 {
        let event = r#"{"name":"cache_miss","channel":"c"}"#;
        let mut one = SpooledEvent {
            n: 0,
            app: "1".to_owned(),
            index: 0,
            url: "http://a.test".to_owned(),
            at,
            event: RawValue::from_string(event.to_owned()).unwrap(),
        };
        spool.keep(&mut one);
        spool.flush();
        one.n
    }

    #[test]
    fn a_broken_end_costs_only_itself() {
        let folder = Folder::new("broken");
        let (spool, taken) = folder.process();
        assert!(taken.is_empty());
        for at in 1..=3 {
            add(&spool, at);
        }
        let text = fs::read(&spool.path).unwrap();
        spool.journal.borrow_mut().file.set_len(text.len() as u64 - 9).unwrap();
        drop(spool);
        assert_eq!(folder.process().1, [1, 2]);
    }

    #[test]
    fn an_event_stays_until_it_is_done() {
        let folder = Folder::new("done");
        let (spool, _) = folder.process();
        let numbers: Vec<u64> = (1..=3).map(|at| add(&spool, at)).collect();
        spool.done(vec![numbers[0], numbers[2]]);
        drop(spool);
        let (spool, taken) = folder.process();
        assert_eq!(taken, [2]);
        let more = add(&spool, 4);
        spool.done(vec![0]);
        drop(spool);
        let (spool, taken) = folder.process();
        assert_eq!((taken, more), (vec![4], 1));
        spool.done(vec![0]);
        assert_eq!(fs::metadata(&spool.path).unwrap().len(), 0);
        spool.end();
        assert_eq!(folder.files(), 0, "nothing is left");
    }

    #[test]
    fn a_file_is_taken_over_when_its_process_is_gone() {
        let folder = Folder::new("two");
        let (old, _) = folder.process();
        add(&old, 1);
        let (new, taken) = folder.process();
        assert_eq!(taken, [0; 0], "its process lives");
        add(&new, 2);
        add(&old, 3);
        old.done(vec![0]);
        drop(old);
        let taken: Vec<u64> = new.take_over().iter().map(|one| one.at).collect();
        assert_eq!(taken, [3]);
        assert_eq!(folder.files(), 1);
        drop(new);
        assert_eq!(folder.process().1, [2, 3]);
    }

    #[test]
    fn what_is_done_is_cleared_away_in_time() {
        let folder = Folder::new("long");
        let (spool, _) = folder.process();
        add(&spool, 1);
        let mut longest = 0;
        for at in 2..60_000 {
            let event =
                r#"{"name":"cache_miss","channel":"ccccccccccccccccccccccccccccccccccccc"}"#;
            let mut one = SpooledEvent {
                n: 0,
                app: "1".to_owned(),
                index: 0,
                url: "http://a.test".to_owned(),
                at,
                event: RawValue::from_string(event.to_owned()).unwrap(),
            };
            spool.keep(&mut one);
            spool.done(vec![one.n]);
            longest = longest.max(spool.journal.borrow().length);
        }
        assert!(longest < MOST_DONE + 4096, "{longest}");
        let last = add(&spool, 60_000);
        assert_eq!(last, 59_999);
        drop(spool);
        assert_eq!(folder.process().1, [1, 60_000]);
    }
}
