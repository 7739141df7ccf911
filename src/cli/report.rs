//! The findings of `fanfare doctor`: printed as they become known, or as one JSON list at the end. `doctor.rs` has the
//! checks and their order.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::{CommandError, coloured, without_controls};

/// How well what was looked at does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Grade {
    /// Works as it should, or does not apply and why.
    Ok,
    /// Works, but is worth a look.
    Warn,
    /// Does not work: the command exits with 1.
    Fail,
}

/// The result of one check.
struct Finding {
    /// Two words at most, such as `public address`; a column of the lines.
    subject: &'static str,
    /// How bad it is.
    grade: Grade,
    /// The finding and its remedy.
    text: String,
}

/// Collects findings in order, and prints each at once if it is to.
pub(super) struct Report {
    /// All findings, in the order in which they were made.
    findings: Vec<Finding>,
    /// Whether each finding is printed at once.
    form: ReportForm,
}

/// The form of a report.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ReportForm {
    /// A line each, at once.
    Lines,
    /// A list at the end.
    Json,
    /// The caller prints it.
    Silent,
}

impl Report {
    pub(super) fn new(form: ReportForm) -> Self {
        Self { findings: Vec::new(), form }
    }

    /// A line that cannot be written is no reason to look no further: the exit code still counts.
    pub(super) fn add(&mut self, subject: &'static str, grade: Grade, text: impl Into<String>) {
        let finding = Finding { subject, grade, text: text.into() };
        if self.form == ReportForm::Lines {
            // Each line is printed at once, since later checks may take seconds. A closed stdout does not stop
            // them.
            let _ = writeln!(io::stdout(), "{}", finding.line());
        }
        self.findings.push(finding);
    }

    /// Ends a report of one look.
    ///
    /// # Errors
    /// At least one finding is a [`Grade::Fail`]; warnings alone are none.
    pub(super) fn finish_report(self) -> Result<(), CommandError> {
        let failed = self.findings.iter().filter(|finding| finding.grade == Grade::Fail).count();
        if self.form == ReportForm::Json {
            // The exit code carries the result even where stdout is closed.
            let _ = writeln!(io::stdout(), "{}", self.json());
        }
        match failed {
            0 => Ok(()),
            1 => Err(CommandError("one thing is wrong".to_owned())),
            count => Err(CommandError(format!("{count} things are wrong"))),
        }
    }
}

impl Report {
    /// All findings as a list of `{"subject", "grade", "text"}`.
    pub(super) fn json(&self) -> Value {
        self.findings.iter().map(Finding::to_json).collect()
    }

    /// Its lines.
    pub(super) fn lines(&self) -> Vec<String> {
        self.findings.iter().map(Finding::line).collect()
    }

    /// The part of a report that must be equal for it to count as unchanged: all grades, and the texts of those
    /// that are not `ok`.
    pub(super) fn state(&self) -> Vec<(&'static str, Grade, String)> {
        let said = |finding: &Finding| match finding.grade {
            Grade::Ok => String::new(),
            Grade::Warn | Grade::Fail => finding.text.clone(),
        };
        self.findings.iter().map(|one| (one.subject, one.grade, said(one))).collect()
    }
}

impl Finding {
    /// For a person: `ok    API: a signed request is taken`.
    fn line(&self) -> String {
        let mark = match self.grade {
            // As wide as the others.
            Grade::Ok => coloured(32, "ok  "),
            Grade::Warn => coloured(33, "warn"),
            Grade::Fail => coloured(31, "FAIL"),
        };
        format!("{mark}  {}: {}", self.subject, without_controls(&self.text))
    }

    /// For programs: `{"subject": …, "grade": "ok", "text": …}`. The words stay (docs/commands.md).
    fn to_json(&self) -> Value {
        let grade = match self.grade {
            Grade::Ok => "ok",
            Grade::Warn => "warn",
            Grade::Fail => "fail",
        };
        json!({ "subject": self.subject, "grade": grade, "text": self.text })
    }
}
