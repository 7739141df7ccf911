//! Every link of the documentation leads somewhere: to a file that exists, and to a heading in it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::docs::documents;
use super::rust_files;

#[test]
fn every_link_leads_somewhere() {
    let (mut links, mut lost) = (0, Vec::new());
    for file in documents() {
        let text = fs::read_to_string(&file).unwrap();
        for target in link_targets(&text) {
            links += 1;
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = if path.is_empty() { file.clone() } else { file.with_file_name(path) };
            if !has_place(&path, anchor) {
                lost.push(format!("{} links to {target}", file.display()));
            }
        }
    }
    assert!(links > 100, "found {links} links, so little was checked");
    assert!(lost.is_empty(), "{lost:#?}");
}

/// Alerts, help texts and comments name pages by their path from the root, and some a heading.
#[test]
fn pages_named_elsewhere_exist() {
    let mut files = rust_files();
    // Its samples are no pages.
    files.retain(|file| !file.ends_with("tidy/links.rs"));
    files.extend(["docs/prometheus/alerts.yml", "tests/alerts.yml"].map(PathBuf::from));
    files.extend(["CHANGELOG.md", "config.example.toml"].map(PathBuf::from));
    let (mut named, mut lost) = (0, Vec::new());
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for place in named_pages(&text) {
            named += 1;
            let (path, anchor) = place.split_once('#').unwrap_or((place, ""));
            if !has_place(Path::new(path), anchor) {
                lost.push(format!("{} names {place}", file.display()));
            }
        }
    }
    assert!(named > 30, "found {named} pages, so little was checked");
    assert!(lost.is_empty(), "{lost:#?}");
}

#[test]
fn links_and_headings_are_read_as_a_forge_reads_them() {
    let text = "see [a](b.md#c-d), ![d](e.png)\n[f](https://g)\n```sh\n[h](i)\n```\n[j\nk](#l)";
    assert_eq!(link_targets(text), ["b.md#c-d", "e.png", "#l"]);
    let text = "# A `b.c` and d: e's\n```sh\n# no heading\n```\n## TLS\n";
    assert_eq!(anchors(text), BTreeSet::from(["a-bc-and-d-es".to_owned(), "tls".to_owned()]));
    assert_eq!(named_pages("(docs/a.md#b-c), docs/d.md."), ["docs/a.md#b-c", "docs/d.md"]);
}

/// Whether the file is there, with that heading if one is named.
fn has_place(path: &Path, anchor: &str) -> bool {
    if anchor.is_empty() {
        return path.exists();
    }
    fs::read_to_string(path).is_ok_and(|text| anchors(&text).contains(anchor))
}

/// The targets of a page's links to this repository.
fn link_targets(text: &str) -> Vec<&str> {
    let pieces = text.split("```").step_by(2);
    let targets = pieces.flat_map(|piece| piece.split("](").skip(1));
    let targets = targets.filter_map(|rest| Some(rest.split_once(')')?.0));
    targets.filter(|target| !target.contains("://") && !target.starts_with("mailto:")).collect()
}

/// The anchors of a page's headings, as a forge makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let pieces = text.split("```").step_by(2);
    let lines = pieces.flat_map(str::lines).filter(|line| line.starts_with('#'));
    let titles = lines.map(|line| line.trim_start_matches('#').trim().to_lowercase());
    let is_kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
    titles
        .map(|title| title.chars().filter(is_kept).collect::<String>().replace(' ', "-"))
        .collect()
}

/// The pages that a text names, `docs/…` with the heading if there is one.
fn named_pages(text: &str) -> Vec<&str> {
    let starts = text.match_indices("docs/").map(|(at, _)| &text[at..]);
    let names = starts.filter_map(|rest| {
        let end = rest.find(|c: char| !(c.is_alphanumeric() || "/.-_#".contains(c)));
        let name = rest[..end.unwrap_or(rest.len())].trim_end_matches('.');
        name.contains(".md").then_some(name)
    });
    names.collect()
}
