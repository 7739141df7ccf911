//! Files that import each other in a circle. A reader who wants to know one of them has to know all. The names that
//! a file takes from the module above it (`super::Node`) are not counted: a module and the files that its type's
//! methods are spread over are read as one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::walk;

/// Most files of `src` that are in a circle, all rooms together.
const MAX_IN_CIRCLES: usize = 12;

/// A module, as the words of its path.
type Module = Vec<String>;

#[test]
fn few_files_import_each_other_in_a_circle() {
    let files: BTreeMap<Module, String> = walk("src", "rs")
        .iter()
        .filter(|file| !file.ends_with("tests.rs") && file.iter().all(|part| part != "tests"))
        .map(|file| (module(file), fs::read_to_string(file).unwrap()))
        .collect();
    let imports: BTreeMap<&Module, BTreeSet<&Module>> =
        files.iter().map(|(own, text)| (own, imports(own, text, &files))).collect();
    assert!(imports.values().map(BTreeSet::len).sum::<usize>() > 300, "hardly any import was seen");
    let circles = circles(&imports);
    let count: usize = circles.iter().map(Vec::len).sum();
    assert!(count <= MAX_IN_CIRCLES, "{count} files are in circles: {circles:#?}");
}

/// The module that a file of `src` is.
fn module(file: &Path) -> Module {
    let name = file.strip_prefix("src").unwrap().with_extension("");
    let mut words: Module = name.iter().map(|word| word.to_str().unwrap().to_owned()).collect();
    words.pop_if(|word| word == "mod" || word == "main");
    words
}

/// The modules of the same room that a file names, other than those above it.
fn imports<'a>(
    own: &Module,
    text: &str,
    files: &'a BTreeMap<Module, String>,
) -> BTreeSet<&'a Module> {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let code: String = text.lines().map(|line| line.split("//").next().unwrap()).collect();
    let mut found = BTreeSet::new();
    for statement in code.split(';') {
        let paths = match statement.rsplit_once("use ") {
            Some((_, tree)) => expand(tree),
            None => inline_paths(statement),
        };
        for path in paths {
            if let Some(named) = resolve(own, &path, files)
                && named[0] == own[0]
                && !own.starts_with(named)
            {
                found.insert(named);
            }
        }
    }
    found
}

/// The file that a path leads to, as seen from the module `own`.
fn resolve<'a>(
    own: &Module,
    path: &str,
    files: &'a BTreeMap<Module, String>,
) -> Option<&'a Module> {
    // The program in `bin/fanfare` is a crate of its own.
    let root = if own[0] == "bin" { &own[..2] } else { &[] };
    let mut at = if path.starts_with("crate::") { root.to_vec() } else { own.clone() };
    let mut found = None;
    for word in path.split("::").map(str::trim) {
        match word {
            "crate" | "self" => {}
            "super" => drop(at.pop()),
            word => {
                at.push(word.to_owned());
                let Some((module, _)) = files.get_key_value(&at) else { break };
                found = Some(module);
            }
        }
    }
    found
}

/// The paths of a tree of imports: `a::{b, c::{d, e}}` has `a::b`, `a::c::d` and `a::c::e`.
fn expand(tree: &str) -> Vec<String> {
    let Some((before, inner)) = tree.trim().split_once('{') else {
        return vec![tree.trim().split(" as ").next().unwrap().to_owned()];
    };
    let inner = inner.rsplit_once('}').map_or(inner, |(inner, _)| inner);
    let (mut paths, mut depth, mut item) = (Vec::new(), 0, String::new());
    for letter in inner.chars().chain([',']) {
        match letter {
            ',' if depth == 0 => {
                let item = std::mem::take(&mut item);
                let below = expand(&item).into_iter().filter(|path| !path.is_empty());
                paths.extend(below.map(|path| format!("{}{path}", before.trim())));
                continue;
            }
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        item.push(letter);
    }
    paths
}

/// The paths in code that begin at the crate or above.
fn inline_paths(code: &str) -> Vec<String> {
    let is_path = |letter: char| letter.is_alphanumeric() || letter == '_' || letter == ':';
    let words = code.split(|letter: char| !is_path(letter));
    words.filter(|word| word.contains("::")).map(str::to_owned).collect()
}

/// The groups of modules each of which leads to every other of its group.
fn circles<'a>(imports: &BTreeMap<&'a Module, BTreeSet<&'a Module>>) -> Vec<Vec<String>> {
    let reachable = |from: &'a Module| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(next) = open.pop() {
            open.extend(imports.get(next).into_iter().flatten().filter(|to| seen.insert(**to)));
        }
        seen
    };
    let reach: BTreeMap<&Module, BTreeSet<&Module>> =
        imports.keys().map(|from| (*from, reachable(from))).collect();
    let mut groups: Vec<Vec<String>> = Vec::new();
    let mut taken = BTreeSet::new();
    for (from, to) in &reach {
        let group: Vec<&Module> =
            to.iter().copied().filter(|other| reach[*other].contains(*from)).collect();
        if group.len() > 1 && group.iter().all(|module| taken.insert(*module)) {
            groups.push(group.iter().map(|module| module.join("::")).collect());
        }
    }
    groups
}

#[test]
fn a_circle_is_seen() {
    let source = |texts: &[(&str, &str)]| -> BTreeMap<Module, String> {
        let module = |name: &str| name.split("::").map(str::to_owned).collect();
        texts.iter().map(|(name, text)| (module(name), (*text).to_owned())).collect()
    };
    let files = source(&[
        ("a", "pub use b::{B, C}; use crate::a::d;"),
        ("a::b", "use super::{A, c::{C, D}};"),
        ("a::c", "fn f() -> crate::a::d::D { g() }"),
        ("a::d", "use super::b::B; // nothing"),
        ("a::e", "// use super::b::B;"),
    ]);
    let imports = files.iter().map(|(own, text)| (own, imports(own, text, &files))).collect();
    assert_eq!(circles(&imports), [["a::b", "a::c", "a::d"]]);
}
