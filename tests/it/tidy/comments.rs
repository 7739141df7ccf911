//! How much is said about the code, and that what is said names files that exist. Whether a comment is worth reading
//! nobody can count; a share that falls says that code came without any.

use std::fs;
use std::path::{Path, PathBuf};

use super::{between_backticks, walk};

/// Lines of documentation and of other comments for a thousand lines of code, tests left out; at least.
const MIN_DOC: usize = 190;
const MIN_INLINE: usize = 30;

#[test]
fn the_code_is_explained() {
    let (mut code, mut doc, mut inline) = (0, 0, 0);
    for file in sources() {
        let text = fs::read_to_string(&file).unwrap();
        let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            match line {
                line if line.starts_with("///") || line.starts_with("//!") => doc += 1,
                line if line.starts_with("//") => inline += 1,
                _ => code += 1,
            }
        }
    }
    assert!(code > 10_000, "found {code} lines, so little was checked");
    let (doc, inline) = (doc * 1000 / code, inline * 1000 / code);
    assert!(doc >= MIN_DOC, "{doc} lines of documentation for a thousand of code");
    assert!(inline >= MIN_INLINE, "{inline} lines of comments for a thousand of code");
}

/// A default that stands in for a value, and an order of memory, are decisions that the code cannot explain. The reason
/// stands on the line or on one of the four above; documentation counts that names the order.
#[test]
fn defaults_and_orders_of_memory_have_a_reason() {
    let (mut checked, mut bare) = (0, Vec::new());
    for file in sources() {
        let text = fs::read_to_string(&file).unwrap();
        let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (number, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap();
            if needs_reason(code) {
                checked += 1;
                if !lines[number.saturating_sub(4)..=number].iter().any(|line| gives_reason(line)) {
                    bare.push(format!("{}:{}: {line}", file.display(), number + 1));
                }
            }
        }
    }
    assert!(checked > 300, "found {checked} of them, so little was checked");
    assert!(bare.is_empty(), "{bare:#?}");
}

fn needs_reason(code: &str) -> bool {
    let orders = ["Relaxed", "Acquire", "Release", "AcqRel", "SeqCst"];
    let names_order = orders.iter().any(|order| code.contains(&format!("Ordering::{order}")));
    !code.starts_with("use ") && (names_order || code.contains(".unwrap_or_default()"))
}

fn gives_reason(line: &str) -> bool {
    let is_doc = line.starts_with("///") || line.starts_with("//!");
    let names_order = ["elaxed", "cquire", "elease", "SeqCst"].iter().any(|it| line.contains(it));
    if is_doc { names_order } else { line.contains("//") }
}

/// Files move, and headers that point to them stay behind.
#[test]
fn comments_name_files_that_exist() {
    let files = walk("src", "rs");
    let exists =
        |name: &str| files.iter().any(|file| file.ends_with(name)) || Path::new(name).exists();
    let mut checked = 0;
    for file in &files {
        let text = fs::read_to_string(file).unwrap();
        let comments = text.lines().filter_map(|line| line.trim().strip_prefix("//"));
        let comments: Vec<&str> = comments.collect();
        for name in between_backticks(&comments.join("\n")).filter(|name| name.ends_with(".rs")) {
            checked += 1;
            assert!(exists(name), "{} names {name:?}, which does not exist", file.display());
        }
    }
    assert!(checked > 20, "found {checked} names of files, so little was checked");
}

/// The sources without files that have tests alone.
fn sources() -> Vec<PathBuf> {
    let is_code =
        |file: &PathBuf| !file.ends_with("tests.rs") && file.iter().all(|part| part != "tests");
    walk("src", "rs").into_iter().filter(is_code).collect()
}
