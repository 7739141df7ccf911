//! Rules about the code itself. Prefer a rule here over a remark in review. Each rule walks files, and
//! each walk asserts that it found some: a rule that looks at nothing must not pass.

mod circles;
mod comments;
mod docs;
mod language;
mod links;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::dialogue;

/// The rooms of `src/`, lowest first. A room may name only rooms on lower lines; rooms on one line do
/// not know each other.
const ROOMS: &[&[&str]] = &[
    &["protocol"],
    &["app"],
    &["config", "metrics", "console"],
    &["hub", "cluster", "webhook", "lookup"],
    &["node"],
    &["session"],
    &["socket"],
    &["http"],
    &["server"],
    &["cli"],
];

/// Rooms that are told what they need and never look at the settings, though they stand above them.
const NO_CONFIG: &[&str] = &["hub", "cluster", "webhook", "lookup", "node", "session"];

/// Rooms that reach what stands below only through the one in the second place.
const BEHIND_NODE: &[(&str, &str)] =
    &[("http", "cluster"), ("socket", "cluster"), ("session", "cluster")];

/// Files that may ask whether there are other nodes: those of the cluster, and the one that answers.
const KNOWS_OTHERS: &[&str] = &["src/cluster", "src/node/scope.rs"];

/// Most branches elsewhere on whether there are other nodes; each is a verb with two ways.
const MAX_BRANCHES: usize = 10;

/// Names that say nothing about what is inside.
const EMPTY_NAMES: &[&str] = &[
    "common", "factory", "handler", "handlers", "helper", "helpers", "manager", "managers", "misc",
    "prelude", "shared", "traits", "types", "util", "utils",
];

/// Longest file, in lines.
const MAX_LINES: usize = 500;

/// Most packages in the lock file, this one and those of its tests included, but not those that only an
/// optional feature brings.
const MAX_CRATES: usize = 200;

#[test]
fn rooms_are_entered_one_way() {
    let mut wrong = Vec::new();
    for file in walk("src", "rs") {
        let own = room(&file);
        for (number, line) in lines(&file) {
            let code = line.split("//").next().unwrap();
            let place = format!("{}:{number}", file.display());
            for named in named_after(code, "crate::") {
                if named.is_empty() {
                    wrong.push(format!("{place}: write one `use crate::…` for each room"));
                } else if let Some(reason) = forbidden(&own, named) {
                    wrong.push(format!("{place}: {reason}"));
                }
            }
            for named in named_after(code, "super::") {
                let sibling = format!("{named}.rs");
                let inside = file.with_file_name(&sibling).exists()
                    || Path::new("src").join(&own).join(&sibling).exists();
                if floor(named).is_some() && !inside && named != own {
                    wrong.push(format!("{place}: name {named:?} as `crate::{named}`"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Why a file of the room `own` may not name `named`; none if it may.
fn forbidden(own: &str, named: &str) -> Option<String> {
    // The library's root and the program see everything.
    let own_floor = floor(own)?;
    if named == own {
        return None;
    }
    let lower = floor(named).is_some_and(|floor| floor < own_floor);
    if !lower || (named == "config" && NO_CONFIG.contains(&own)) {
        return Some(format!("{own} must not know {named:?}"));
    }
    None
}

/// Whatever is asked or said of other nodes goes through `Node`, so that one room knows what there is beside it.
#[test]
fn the_node_is_the_only_door_to_the_cluster() {
    let mut seen = 0;
    for file in walk("src", "rs") {
        let own = room(&file);
        let hidden = BEHIND_NODE.iter().filter(|(above, _)| *above == own);
        for (_, below) in hidden {
            seen += 1;
            let text = fs::read_to_string(&file).unwrap();
            let named = text.contains(&format!("crate::{below}"));
            assert!(!named, "{} names {below:?}, which is behind `Node`", file.display());
        }
    }
    assert!(seen > 20, "looked at {seen} files, so little was checked");
}

#[test]
fn few_places_ask_whether_there_are_other_nodes() {
    let mut places = Vec::new();
    for file in walk("src", "rs") {
        if KNOWS_OTHERS.iter().any(|known| file.starts_with(known)) {
            continue;
        }
        for (number, line) in lines(&file) {
            if ["scope.others()", "scope.is_alone()", "Scope::"].iter().any(|it| line.contains(it))
            {
                places.push(format!("{}:{number}", file.display()));
            }
        }
    }
    assert!(!places.is_empty(), "found none, so nothing was checked");
    assert!(places.len() <= MAX_BRANCHES, "{} branches: {places:#?}", places.len());
}

#[test]
fn the_order_is_the_one_that_is_meant() {
    assert_eq!(forbidden("node", "hub"), None);
    assert_eq!(forbidden("hub", "hub"), None);
    assert_eq!(forbidden("lib", "server"), None);
    for (own, named) in
        [("protocol", "hub"), ("hub", "cluster"), ("hub", "config"), ("app", "nowhere")]
    {
        assert!(forbidden(own, named).is_some(), "{own} may name {named}");
    }
}

#[test]
fn every_room_is_known() {
    for file in walk("src", "rs") {
        let own = room(&file);
        // The program in `bin` uses the library from outside, so no room can name it.
        let known = floor(&own).is_some() || own == "lib" || own == "bin";
        assert!(known, "{} belongs to no room of the order above", file.display());
    }
}

#[test]
fn the_map_and_the_sources_agree() {
    let map = fs::read_to_string("docs/architecture.md").unwrap();
    let on_map: BTreeSet<&str> = between_backticks(&map)
        .filter(|name| name.starts_with("src/") && name.ends_with(".rs"))
        .collect();
    let files = walk("src", "rs");
    let sources: BTreeSet<&str> = files.iter().map(|file| file.to_str().unwrap()).collect();
    let unmapped: Vec<_> = sources.difference(&on_map).collect();
    assert!(unmapped.is_empty(), "docs/architecture.md does not mention {unmapped:?}");
    let gone: Vec<_> = on_map.difference(&sources).collect();
    assert!(gone.is_empty(), "docs/architecture.md mentions {gone:?}, which do not exist");
}

#[test]
fn files_are_short_and_say_what_they_are() {
    for file in rust_files() {
        let text = fs::read_to_string(&file).unwrap();
        let count = text.lines().count();
        assert!(count <= MAX_LINES, "{} has {count} lines, over {MAX_LINES}", file.display());
        assert!(text.starts_with("//! "), "{} does not say what lives in it", file.display());
    }
}

#[test]
fn names_say_something() {
    for file in rust_files() {
        for part in &file {
            let name = part.to_str().unwrap().trim_end_matches(".rs");
            assert!(!EMPTY_NAMES.contains(&name), "{}: find {name:?} an owner", file.display());
        }
    }
}

/// A reader who meets a type's name knows which type it is. `Error` is the one word that every room has.
#[test]
fn a_type_name_occurs_once() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in walk("src", "rs") {
        if file.ends_with("tests.rs") || file.iter().any(|part| part == "tests") {
            continue;
        }
        for (number, line) in lines(&file) {
            // Unindented: what a test or a function has for itself is its own business.
            if let Some(name) = declared_type(&line) {
                places.entry(name).or_default().push(format!("{}:{number}", file.display()));
            }
        }
    }
    assert!(places.len() > 100, "found {} types, so little was checked", places.len());
    let shared: Vec<_> =
        places.iter().filter(|(name, places)| *name != "Error" && places.len() > 1).collect();
    assert!(shared.is_empty(), "{shared:#?}");
}

/// The type that a line at the outer level of a file declares.
fn declared_type(line: &str) -> Option<String> {
    // Whoever may see it: `pub`, `pub(super)`, `pub(in crate::hub)`.
    let line = match line.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => rest.split_once(") ")?.1,
        Some(rest) => rest.trim_start(),
        None => line,
    };
    let mut words = line.split(|c: char| !(c.is_alphanumeric() || "_()".contains(c)));
    let word = words.next()?;
    let is_kind = ["struct", "enum", "trait", "type", "union"].contains(&word);
    let name = words.next()?;
    let name = name.split('(').next()?;
    (is_kind && !name.is_empty()).then(|| name.to_owned())
}

/// `take` and `tell` make a reader look up of what and to whom; `take_tasks` does not.
#[test]
fn most_functions_name_their_objects() {
    let (mut all, mut of_one_word) = (0, 0);
    for file in walk("src", "rs") {
        for (_, line) in lines(&file) {
            if let Some((_, name)) = line.trim_start().split_once("fn ")
                && !line.contains("//")
            {
                all += 1;
                let name = name.split(['(', '<']).next().unwrap();
                of_one_word += usize::from(!name.contains('_'));
            }
        }
    }
    assert!(all > 1000, "found {all} functions, so little was checked");
    let share = of_one_word * 100 / all;
    assert!(share <= 40, "{share} % of the functions have a name of one word");
}

#[test]
fn declarations_of_types_are_seen() {
    for line in ["struct Hub {", "pub enum Hub {", "pub(super) struct Hub(u8);", "type Hub = u8;"] {
        assert_eq!(declared_type(line).as_deref(), Some("Hub"), "{line}");
    }
    assert_eq!(declared_type("    struct Inner;"), None);
    assert_eq!(declared_type("pub fn struct_of() {"), None);
}

#[test]
fn nothing_is_left_for_later() {
    let words = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("#[ign", "ore"),
        concat!("#[all", "ow"),
    ];
    let mut files = rust_files();
    files.extend(walk("docs", "md"));
    files.extend(walk("tests/it/scripts", "txt"));
    for file in files {
        for (number, line) in lines(&file) {
            for word in words {
                assert!(!line.contains(word), "{}:{number} has {word}", file.display());
            }
        }
    }
}

#[test]
fn every_test_file_is_compiled() {
    for file in walk("tests/it", "rs") {
        let name = file.file_stem().unwrap().to_str().unwrap();
        let folder = file.parent().unwrap();
        let parents: Vec<PathBuf> = match name {
            "main" => continue,
            "mod" => vec![folder.parent().unwrap().join("main.rs")],
            _ => vec![folder.join("main.rs"), folder.join("mod.rs")],
        };
        let module =
            if name == "mod" { folder.file_name().unwrap().to_str().unwrap() } else { name };
        let declared = parents.iter().filter_map(|parent| fs::read_to_string(parent).ok());
        assert!(
            declared.into_iter().any(|text| text.contains(&format!("mod {module};"))),
            "{} belongs to no module",
            file.display()
        );
    }
}

#[test]
fn every_script_is_run() {
    let run: BTreeSet<String> = dialogue::FILES.iter().map(|name| format!("{name}.txt")).collect();
    let there: BTreeSet<String> = walk("tests/it/scripts", "txt")
        .iter()
        .map(|file| file.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(run, there, "left: run, right: there");
}

#[test]
fn no_case_has_two_scripts() {
    let mut seen = BTreeSet::new();
    for script in dialogue::all() {
        assert!(seen.insert(script.title.clone()), "two scripts are called {:?}", script.title);
    }
    assert!(!seen.is_empty(), "found no scripts, so nothing was checked");
}

/// In `docs/protocol.md` a test is a script file, a case's number or `module::test`, in backticks.
#[test]
fn the_protocol_names_tests_that_exist() {
    let text = fs::read_to_string("docs/protocol.md").unwrap();
    let scripts = dialogue::all();
    let code: String =
        walk("tests/it", "rs").iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    let mut found = 0;
    for name in between_backticks(&text) {
        let exists = if let Some(file) = name.strip_suffix(".txt") {
            dialogue::FILES.contains(&file)
        } else if is_case(name) {
            scripts.iter().any(|script| script.cases().any(|case| case == name))
                || code.contains(&format!("fn {}_", name.to_lowercase()))
        } else if let Some((module, test)) = name.split_once("::") {
            Path::new("tests/it").join(format!("{module}.rs")).exists()
                && code.contains(&format!("fn {test}("))
        } else {
            continue;
        };
        assert!(exists, "docs/protocol.md names {name}, which is no test");
        found += 1;
    }
    assert!(found > 0, "docs/protocol.md names no tests");
}

/// Whether `name` is a case's number, such as P15.
fn is_case(name: &str) -> bool {
    let [letter, digits @ ..] = name.as_bytes() else { return false };
    letter.is_ascii_uppercase() && digits.len() == 2 && digits.iter().all(u8::is_ascii_digit)
}

/// The identifiers that follow `prefix` in `code`.
fn named_after<'a>(code: &'a str, prefix: &str) -> impl Iterator<Item = &'a str> {
    code.split(prefix).skip(1).map(|rest| {
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        &rest[..end]
    })
}

fn between_backticks(text: &str) -> impl Iterator<Item = &str> {
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2))
}

#[test]
fn few_crates_are_built_upon() {
    let lock = toml(Path::new("Cargo.lock"));
    let manifest = toml(Path::new("Cargo.toml"));
    let optional = |name: &str| {
        let wanted = manifest["dependencies"].get(name).and_then(|wanted| wanted.get("optional"));
        wanted.is_some_and(|optional| optional.as_bool() == Some(true))
    };
    // What a package needs is named as `name`, or `name version` where there are several of the name.
    let mut needs = BTreeMap::new();
    for package in lock["package"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        let needed = package.get("dependencies").and_then(toml::Value::as_array);
        let needed = needed.into_iter().flatten().map(|needed| needed.as_str().unwrap());
        let needed: Vec<_> =
            needed.filter(|needed| name != "fanfare" || !optional(needed)).collect();
        needs.insert(name.to_owned(), needed.clone());
        needs.insert(format!("{name} {}", package["version"].as_str().unwrap()), needed);
    }
    let (mut counted, mut open) = (BTreeSet::new(), vec!["fanfare"]);
    while let Some(name) = open.pop() {
        if counted.insert(name) {
            open.extend(&needs[name]);
        }
    }
    assert!(counted.len() > 50, "only {} were found", counted.len());
    assert!(counted.len() <= MAX_CRATES, "{} crates: {counted:?}", counted.len());
}

/// How high the room `name` stands.
fn floor(name: &str) -> Option<usize> {
    ROOMS.iter().position(|rooms| rooms.contains(&name))
}

/// The room that `file` belongs to.
fn room(file: &Path) -> String {
    let first = file.strip_prefix("src").unwrap().iter().next().unwrap();
    first.to_str().unwrap().trim_end_matches(".rs").to_owned()
}

fn toml(file: &Path) -> toml::Table {
    fs::read_to_string(file).unwrap().parse().unwrap()
}

/// The lines of `file` with their numbers.
fn lines(file: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(file).unwrap();
    text.lines().enumerate().map(|(index, line)| (index + 1, line.to_owned())).collect()
}

fn rust_files() -> Vec<PathBuf> {
    let mut files = walk("src", "rs");
    files.extend(walk("tests/it", "rs"));
    files
}

/// All files below `folder` with this extension; at least one.
fn walk(folder: &str, extension: &str) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![PathBuf::from(folder)]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                files.push(path);
            }
        }
    }
    assert!(!files.is_empty(), "found no .{extension} below {folder}, so nothing was checked");
    files
}
