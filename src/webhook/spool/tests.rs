//! The spool keeps its events over crashes and restarts, and reports a failing disk.

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
        let taken = spool.adopt_orphans();
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

fn event(at: u64) -> SpooledEvent {
    let event = r#"{"name":"cache_miss","channel":"ccccccccccccccccccccccccccccccccccccc"}"#;
    SpooledEvent {
        n: 0,
        app: "1".to_owned(),
        index: 0,
        url: "http://a.test".to_owned(),
        at,
        event: RawValue::from_string(event.to_owned()).unwrap(),
    }
}

fn add(spool: &Spool, at: u64) -> u64 {
    let mut one = event(at);
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
    let taken: Vec<u64> = new.adopt_orphans().iter().map(|one| one.at).collect();
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
        let mut one = event(at);
        spool.keep(&mut one);
        spool.done(vec![one.n]);
        longest = longest.max(spool.journal.borrow().length);
    }
    assert!(longest < MAX_DONE + 4096, "{longest}");
    let last = add(&spool, 60_000);
    assert_eq!(last, 59_999);
    drop(spool);
    assert_eq!(folder.process().1, [1, 60_000]);
}

#[test]
fn a_disk_that_fails_is_told_of_once_and_once_when_it_works_again() {
    let folder = Folder::new("failing");
    let (spool, _) = folder.process();
    let numbers = [add(&spool, 1), add(&spool, 2)];
    let for_reading = File::open(&spool.path).unwrap();
    let writable = std::mem::replace(&mut spool.journal.borrow_mut().file, for_reading);
    let put = |at| {
        let mut one = event(at);
        spool.keep(&mut one);
        spool.flush_noting()
    };
    let told: Vec<_> = (3..9).map(put).chain([spool.flush_noting()]).collect();
    assert_eq!(told, [Some(FAILS), None, None, None, None, None, None]);
    spool.done(vec![numbers[0]]);
    spool.journal.borrow_mut().file = writable;
    assert_eq!(spool.flush_noting(), Some(WORKS));
    assert_eq!([put(9), spool.flush_noting()], [None, None]);
    drop(spool);
    assert_eq!(folder.process().1, [2, 3, 4, 5, 6, 7, 8, 9], "nothing was lost meanwhile");
}

#[test]
fn nobody_else_can_read_what_is_on_disk() {
    let folder = Folder::new("mode");
    let (spool, _) = folder.process();
    for at in 0..40_000 {
        let mut one = event(at);
        spool.keep(&mut one);
        spool.done(vec![one.n]);
    }
    add(&spool, 1);
    let mode = fs::metadata(&spool.path).unwrap().mode() & 0o777;
    assert_eq!(mode, 0o600, "{mode:o}");
}
