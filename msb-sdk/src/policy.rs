//! Checking and explaining policies, without a sandbox.

use std::path::Path;

use msb_net::policy::Document;

use crate::error::Error;
use crate::network::{read_document, shown_rule};

/// What came of a policy file's `expect` lines.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// How many there are.
    pub total: usize,
    /// Those that do not hold: which, and what happens instead.
    pub failures: Vec<String>,
}

/// Runs the `expect` lines of a policy file.
///
/// # Errors
/// [`Error::PolicyFile`] with line and column of a mistake, [`Error::Unreadable`] when the file
/// can't be read.
pub fn check(path: &Path) -> Result<Report, Error> {
    let document = read_document(path)?;
    let failures = document.failures().map(|failure| failure.to_string());
    Ok(Report {
        total: document.expectations.len(),
        failures: failures.collect(),
    })
}

/// Says what a policy file does with a flow or a query, which rule decides and why no
/// earlier one did. The subject is written as in an `expect` line: `tcp 443 api.example`,
/// `dns api.example`.
///
/// # Errors
/// As [`check`], and [`Error::PolicyRule`] for a subject that is none.
pub fn explain(path: &Path, subject: &str) -> Result<String, Error> {
    let policy = read_document(path)?.policy;
    // The subject is what a line expects something of.
    let question = format!("expect allow {subject}");
    let question: Document = question.parse().map_err(|source| Error::PolicyRule {
        rule: shown_rule(&question),
        source,
    })?;
    let explained = question.expectations.iter();
    let explained = explained.map(|one| policy.explain_subject(&one.subject).to_string());
    Ok(explained.collect::<Vec<_>>().join("\n"))
}
