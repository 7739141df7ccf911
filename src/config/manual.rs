//! `fanfare.toml(5)`: the manual page of the settings, generated from the example file, which a test compares with the
//! tables of `keys.rs`.

use std::fmt::Write;

use super::version::VERSION;

/// Every setting with its default and meaning. Prose is `# text`; an optional setting is `#key = value`.
const EXAMPLE: &str = include_str!("../../config.example.toml");

/// Sections that the example has nothing of, in the order in which `man` pages have them.
const HEAD: &str = "\
.SH NAME
fanfare.toml \\- settings of the broadcast server fanfare
.SH SYNOPSIS
.B fanfare \\-\\-config
.I FILE
.br
.I /etc/fanfare/fanfare.toml
.SH DESCRIPTION
";

/// The sections after the settings.
const TAIL: &str = "\
.SH SIGNALS
SIGHUP reads the file again. Apps, their limits and the level of the log change at once; what holds from the next
start on is named in the log.
.SH FILES
.TP
.I /etc/fanfare/fanfare.toml
The settings of the service.
.TP
.I /usr/share/doc/fanfare/examples/fanfare.toml
Every setting with its default.
.SH SEE ALSO
.BR fanfare (1),
.B fanfare config show
for what is in force and where it comes from.
";

/// The page, for `man`.
pub fn manual() -> String {
    let mut page =
        format!(".TH FANFARE.TOML 5 \"\" \"fanfare {VERSION}\" \"File formats\"\n{HEAD}");
    let (mut prose, mut table, mut settings) = (Vec::new(), String::new(), 0);
    for line in EXAMPLE.lines() {
        let bare = line.strip_prefix('#').unwrap_or(line);
        if let Some(text) = line.strip_prefix("# ") {
            prose.push(text);
        } else if let Some(name) = bare.strip_prefix('[') {
            // Keys before the first `[[apps]]` apply to all of them.
            bare.trim_matches(['[', ']']).clone_into(&mut table);
            let form = if name.starts_with('[') { bare } else { table.as_str() };
            if settings == 0 {
                flush(&mut page, &mut prose);
                page.push_str(".SH SETTINGS\n");
            }
            _ = writeln!(page, ".SS {}", escaped(form));
            flush(&mut page, &mut prose);
        } else if let Some((name, value)) = bare.split_once(" = ") {
            settings += 1;
            _ = writeln!(page, ".TP\n.BR {} \" = {}\"", escaped(name), quoted(value));
            flush(&mut page, &mut prose);
            if prose.is_empty() && !table.starts_with("apps") {
                let path = format!("{table}.{name}").to_uppercase().replace('.', "__");
                _ = writeln!(page, "({})", escaped(&format!("FANFARE_{path}")));
            }
        } else if line.trim() == "#" || line.trim().is_empty() {
            if settings == 0 {
                prose.push("");
            } else if !prose.is_empty() {
                flush(&mut page, &mut prose);
            }
        }
    }
    page + TAIL
}

/// Writes down what was said so far, a paragraph for each empty line in it.
fn flush(page: &mut String, prose: &mut Vec<&str>) {
    for text in prose.drain(..) {
        let text = if text.is_empty() { ".PP".to_owned() } else { escaped(text) };
        _ = writeln!(page, "{text}");
    }
}

/// A text as it is printed: nothing in it is an order to the formatter.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

/// The same inside quotes.
fn quoted(text: &str) -> String {
    escaped(text).replace('"', "\\(dq")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{APP, SERVER, WEBHOOK};

    #[test]
    fn the_page_has_every_setting() {
        let page = manual();
        let names = SERVER.iter().map(|key| key.name);
        for name in
            names.chain(APP.iter().map(|key| key.name)).chain(WEBHOOK.iter().map(|k| k.name))
        {
            // Those of a table on one line stand in its value, others by their whole name.
            let is_there = name.split('.').rev().take(2).chain([name]).any(|part| {
                let part = escaped(part);
                page.contains(&format!(".BR {part} \" = "))
            });
            assert!(is_there, "{name}");
        }
        assert!(page.contains(".SS [[apps]]") && page.contains(".SS [[apps.webhooks]]"), "{page}");
        assert!(page.contains("(FANFARE_SERVER__PORT)"));
        assert!(!page.lines().any(|line| line.starts_with("# ")));
    }
}
