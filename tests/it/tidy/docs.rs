//! The documentation says each thing once. Merges like to keep the old wording of a row beside the new one.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::{between_backticks, walk};

/// First cells that a table may have twice, with the reason.
const MAY_RECUR: &[(&str, &str)] = &[("", "a row that continues the one above it")];

#[test]
fn no_table_has_a_row_twice() {
    let mut tables = 0;
    for file in documents() {
        let text = fs::read_to_string(&file).unwrap();
        for table in tables_of(&text) {
            tables += 1;
            let doubles = doubles(&table);
            assert!(doubles.is_empty(), "{} has two rows for {doubles:?}", file.display());
        }
    }
    assert!(tables > 30, "found {tables} tables, so little was checked");
}

#[test]
fn no_list_has_an_item_twice() {
    let mut items = 0;
    for file in documents() {
        let text = fs::read_to_string(&file).unwrap();
        let mut seen = BTreeSet::new();
        for line in text.lines().filter(|line| line.starts_with("- ")) {
            items += 1;
            assert!(seen.insert(line), "{} has twice: {line}", file.display());
        }
    }
    assert!(items > 100, "found {items} items, so little was checked");
}

/// A newcomer finds each test module in the table of `docs/testing.md`, in one place.
#[test]
fn every_test_module_has_a_row() {
    let text = fs::read_to_string("docs/testing.md").unwrap();
    let table = tables_of(&text).swap_remove(0);
    let cells: Vec<&str> = table.iter().map(|row| first_cell(row)).collect();
    let rows: Vec<&str> = cells.iter().flat_map(|cell| between_backticks(cell)).collect();
    let main = fs::read_to_string("tests/it/main.rs").unwrap();
    let modules = main.lines().filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';'));
    let modules: Vec<&str> = modules.collect();
    assert!(modules.len() > 60, "found {} modules, so little was checked", modules.len());
    for module in modules {
        let names = [format!("tests/it/{module}.rs"), format!("tests/it/{module}/")];
        let count = rows.iter().filter(|row| names.iter().any(|name| name == *row)).count();
        assert_eq!(count, 1, "docs/testing.md has {count} rows for {module}");
    }
    let gone = |row: &&str| !row.contains('*') && !Path::new(row).exists();
    let gone: Vec<&&str> = rows.iter().filter(|row| gone(row)).collect();
    assert!(gone.is_empty(), "docs/testing.md names {gone:?}, which do not exist");
}

/// A reader follows an event from the handler to the write of the socket in one sitting. Files in brackets, and the
/// second of two that stand beside each other, are another reader's.
#[test]
fn the_way_of_an_event_is_a_short_read() {
    let text = fs::read_to_string("docs/architecture.md").unwrap();
    let (_, way) = text.split_once("needs seven files").unwrap();
    let (way, _) = way.split_once("(under load").unwrap();
    let way = way.replace('\n', " ");
    let steps = way.split('→').filter_map(|step| between_backticks(step).next());
    let files: Vec<PathBuf> = steps.map(|name| Path::new("src").join(name)).collect();
    assert_eq!(files.len(), 7, "{files:?}");
    let lines = files.iter().map(|file| fs::read_to_string(file).unwrap().lines().count());
    let lines: usize = lines.sum();
    assert!(lines < 1500, "{lines} lines in {files:?}");
}

#[test]
fn a_row_that_occurs_twice_is_seen() {
    let text = "| a | b |\n|---|---|\n| c | d |\n| c | e |\n\ntext\n| c | f |\n";
    let tables = tables_of(text);
    assert_eq!(tables.len(), 2);
    assert_eq!(doubles(&tables[0]), ["c"]);
    assert!(doubles(&tables[1]).is_empty());
}

/// The tables of a text, each as its rows.
fn tables_of(text: &str) -> Vec<Vec<&str>> {
    let mut tables: Vec<Vec<&str>> = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        let is_row = line.starts_with('|');
        if is_row && !inside {
            tables.push(Vec::new());
        }
        inside = is_row;
        if let (true, Some(table)) = (is_row, tables.last_mut()) {
            table.push(line);
        }
    }
    tables
}

/// What the first cells of a table's rows say more than once.
fn doubles<'a>(table: &[&'a str]) -> Vec<&'a str> {
    let mut seen = BTreeSet::new();
    let cells = table.iter().map(|row| first_cell(row));
    let cells = cells.filter(|cell| !MAY_RECUR.iter().any(|(text, _)| text == cell));
    cells.filter(|cell| !seen.insert(*cell)).collect()
}

fn first_cell(row: &str) -> &str {
    row.trim_start_matches('|').split('|').next().unwrap().trim()
}

/// Every document that is written by hand for readers.
pub(super) fn documents() -> Vec<PathBuf> {
    let mut documents = walk("docs", "md");
    documents
        .extend(["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"].map(PathBuf::from));
    documents
}
