//! Plain English: a sentence says what it is about at its beginning. A subject such as "what is queued" or "who
//! has left" makes the reader wait for the verb and then go back.

use std::fs;

use super::docs::documents;
use super::walk;

/// First words of a question, or else of a subject that is a clause.
const CLAUSES: [&str; 6] = ["What", "Whatever", "Who", "Whoever", "Whom", "Whose"];

#[test]
fn no_sentence_has_a_clause_for_its_subject() {
    let (mut sentences, mut wrong) = (0, Vec::new());
    for file in documents() {
        let text = prose(&fs::read_to_string(&file).unwrap());
        sentences += text.matches(". ").count();
        wrong.extend(clauses(&text).map(|it| format!("{}: {it}", file.display())));
    }
    for file in walk("src", "rs") {
        let text = comments(&fs::read_to_string(&file).unwrap());
        sentences += text.matches(". ").count();
        wrong.extend(clauses(&text).map(|it| format!("{}: {it}", file.display())));
    }
    for file in walk("tests/it", "rs") {
        let text = fs::read_to_string(&file).unwrap();
        let header: String =
            text.split_inclusive('\n').filter(|it| it.starts_with("//!")).collect();
        wrong.extend(clauses(&comments(&header)).map(|it| format!("{}: {it}", file.display())));
    }
    let example = prose(&fs::read_to_string("config.example.toml").unwrap().replace('#', ""));
    wrong.extend(clauses(&example).map(|it| format!("config.example.toml: {it}")));
    assert!(sentences > 2000, "found {sentences} sentences, so little was checked");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_clause_is_told_from_a_question() {
    let found = |text: &str| clauses(&prose(text)).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(found("Sent. What is left\nwaits. Then\n"), ["What is left waits."]);
    assert_eq!(found("- Who left is gone.\n| a | What is b |\n").len(), 2);
    assert!(found("## What holds\n\nWho may come? Anybody. `What`\n```\nWhat\n```\n").is_empty());
    assert_eq!(comments("/// A.\n    //! B\nlet c = 1; // D\n"), ". A. B . ");
}

/// A page's sentences and cells, each behind a full stop; without headings and samples.
fn prose(text: &str) -> String {
    let pieces = text.split("```").step_by(2);
    let lines = pieces.flat_map(str::lines).filter(|line| !line.starts_with('#'));
    let begins_anew = |line: &str| line.is_empty() || line.starts_with(['-', '|']);
    let lines = lines.map(|line| line.trim_start_matches(['>', ' ']));
    let lines = lines.map(|line| if begins_anew(line) { format!(". {line}") } else { line.into() });
    let text = lines.collect::<Vec<String>>().join(" ");
    format!(". {} ", text.replace("- ", "").replace('|', "."))
}

/// The documentation in a source, each block behind a full stop.
fn comments(text: &str) -> String {
    let lines = text.lines().map(str::trim);
    let docs = lines.map(|line| line.strip_prefix("///").or_else(|| line.strip_prefix("//!")));
    let mut text = ". ".to_owned();
    for line in docs {
        match line.map(str::trim) {
            Some(line) if !line.is_empty() => text.extend([line, " "]),
            _ if text.ends_with(". . ") => (),
            _ => text.push_str(". "),
        }
    }
    text
}

/// The sentences that begin with a clause.
fn clauses(text: &str) -> impl Iterator<Item = &str> {
    let ends = [". ", "? ", "! ", ": ", "; "];
    let starts = ends.into_iter().flat_map(|end| text.match_indices(end));
    let sentences = starts.map(|(at, end)| &text[at + end.len()..]);
    let sentences =
        sentences.filter(|rest| CLAUSES.iter().any(|it| rest.starts_with(&format!("{it} "))));
    let whole = |rest: &'_ str| rest.find(['.', '?', '!']).map_or(rest.len(), |end| end + 1);
    sentences.map(move |rest| &rest[..whole(rest)]).filter(|sentence| !sentence.ends_with('?'))
}
