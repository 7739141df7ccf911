//! What `fanfare doctor` found: a line each for people as soon as it is known, or a list in JSON at the end.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::{CommandError, coloured, harmless};

/// How well what was looked at does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Grade {
    Ok,
    /// Works, but is worth a look.
    Warn,
    Fail,
}

/// What came of one look.
struct Finding {
    subject: &'static str,
    grade: Grade,
    text: String,
}

pub(super) struct Report {
    findings: Vec<Finding>,
    as_json: bool,
}

impl Report {
    pub(super) fn new(as_json: bool) -> Self {
        Self { findings: Vec::new(), as_json }
    }

    pub(super) fn add(&mut self, subject: &'static str, grade: Grade, text: impl Into<String>) {
        let finding = Finding { subject, grade, text: text.into() };
        if !self.as_json {
            let mark = match finding.grade {
                // As wide as the others.
                Grade::Ok => coloured(32, "ok  "),
                Grade::Warn => coloured(33, "warn"),
                Grade::Fail => coloured(31, "FAIL"),
            };
            let _ = writeln!(io::stdout(), "{mark}  {subject}: {}", harmless(&finding.text));
        }
        self.findings.push(finding);
    }

    /// Fails if anything does.
    pub(super) fn end(self) -> Result<(), CommandError> {
        let failed = self.findings.iter().filter(|finding| finding.grade == Grade::Fail).count();
        if self.as_json {
            let all: Vec<Value> = self.findings.iter().map(Finding::json).collect();
            let _ = writeln!(io::stdout(), "{}", Value::Array(all));
        }
        match failed {
            0 => Ok(()),
            1 => Err(CommandError("one thing is wrong".to_owned())),
            count => Err(CommandError(format!("{count} things are wrong"))),
        }
    }
}

impl Finding {
    fn json(&self) -> Value {
        let grade = match self.grade {
            Grade::Ok => "ok",
            Grade::Warn => "warn",
            Grade::Fail => "fail",
        };
        json!({ "subject": self.subject, "grade": grade, "text": self.text })
    }
}
