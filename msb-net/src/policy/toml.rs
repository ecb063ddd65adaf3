//! Policies as TOML: the statements of the policy text in four keys.
//!
//! ```toml
//! preset = "none"
//! block = ["tracker.example"]
//! rules = ["allow tcp 443 api.github.com", "deny metadata"]
//! expect = ["deny dns evil.example"]
//! ```

use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Policy;
use super::expect::Document;
use super::parse::{Words, expectation, nearest, preset, whole_rule};
use crate::Error;
use crate::error::{SyntaxError, excerpt};

const KEYS: &[&str] = &["preset", "block", "rules", "expect"];

impl Document {
    /// Reads the content of the file `path`, which is TOML if it is named `*.toml`.
    ///
    /// # Errors
    ///
    /// Those of [`from_toml`](Self::from_toml).
    pub fn from_file(path: &Path, text: &str) -> Result<Self, Error> {
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            Self::from_toml(text)
        } else {
            text.parse()
        }
    }

    /// Reads a policy that is written as TOML.
    ///
    /// ```
    /// use msb_net::policy::Document;
    ///
    /// let document = Document::from_toml(r#"
    ///     preset = "none"
    ///     block = ["tracker.example"]
    ///     rules = ["allow tcp 443 api.github.com"]
    ///     expect = ["allow tcp 443 api.github.com", "deny dns tracker.example"]
    /// "#)?;
    /// assert_eq!(document.failures().count(), 0);
    /// # Ok::<(), msb_net::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Policy`] with line and column of a mistake, [`Error::TooManyRules`],
    /// [`Error::TooManyBlocked`].
    pub fn from_toml(text: &str) -> Result<Self, Error> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let file = File(text);
        let table = DeTable::parse(text).map_err(|error| {
            let at = error.span().unwrap_or_default();
            file.error(&at, error.message().to_owned(), None)
        })?;
        let mut document = Self {
            policy: Policy::none(),
            expectations: Vec::new(),
        };
        for (key, value) in table.get_ref() {
            match key.get_ref().as_ref() {
                "preset" => {
                    let mut words = file.words(value)?;
                    document.policy.preset = preset(&mut words)?;
                    words.end()?;
                }
                "block" => file.each(value, |words| {
                    let suffix = words.name()?;
                    document.policy.block(suffix)
                })?,
                "rules" => file.each(value, |words| {
                    let rule = whole_rule(words)?;
                    document.policy.push(rule)
                })?,
                "expect" => file.each(value, |words| {
                    document.expectations.push(expectation(words)?);
                    Ok(())
                })?,
                other => {
                    let hint = match nearest(other, KEYS) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => format!("one of: {}", KEYS.join(", ")),
                    };
                    let message = format!("there is no key {:?}", excerpt(other));
                    return Err(file.error(&key.span(), message, Some(hint)));
                }
            }
        }
        Ok(document)
    }
}

/// The text, for saying where something stands in it.
struct File<'a>(&'a str);

impl File<'_> {
    /// Reads every string of a list.
    fn each(
        &self,
        value: &Spanned<DeValue<'_>>,
        mut read: impl FnMut(&mut Words<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let DeValue::Array(values) = value.get_ref() else {
            return Err(self.error(&value.span(), "expected a list of strings".into(), None));
        };
        for value in values {
            let mut words = self.words(value)?;
            read(&mut words)?;
            words.end()?;
        }
        Ok(())
    }

    /// The words of a string, which know where they stand.
    fn words<'v>(&self, value: &'v Spanned<DeValue<'_>>) -> Result<Words<'v>, Error> {
        match value.get_ref() {
            DeValue::String(text) if !text.contains(['\n', '\r']) => {
                let (line, column) = self.place(value.span().start);
                // Behind the quote.
                Ok(Words::at(text, line, column + 1))
            }
            _ => Err(self.error(&value.span(), "expected a string of one line".into(), None)),
        }
    }

    fn error(&self, at: &Range<usize>, message: String, hint: Option<String>) -> Error {
        let (line, column) = self.place(at.start);
        Error::Policy(SyntaxError {
            line,
            column,
            message,
            hint,
        })
    }

    /// Line and column, from 1.
    fn place(&self, offset: usize) -> (usize, usize) {
        let before = self.0.get(..offset).unwrap_or(self.0);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        (line, column)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistake(text: &str) -> (usize, usize, String) {
        match Document::from_toml(text).unwrap_err() {
            Error::Policy(SyntaxError {
                line,
                column,
                message,
                hint,
            }) => (
                line,
                column,
                format!("{message} {}", hint.unwrap_or_default()),
            ),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn it_says_what_the_text_says() {
        let toml = "preset = 'public-only'\nrules = [\n  'deny tcp 25', # mail\n  'allow udp 53 10.0.0.1',\n]\n\
                    block = ['a.example', 'b.example']\nexpect = ['deny dns x.a.example']\n";
        let text = "preset public-only\nblock a.example b.example\ndeny tcp 25\n\
                    allow udp 53 10.0.0.1\nexpect deny dns x.a.example\n";
        let toml = Document::from_toml(toml).unwrap();
        let text: Document = text.parse().unwrap();
        assert_eq!(toml.policy, text.policy);
        assert_eq!(toml.expectations[0].subject, text.expectations[0].subject);
        assert_eq!(toml.expectations[0].line, 7);
    }

    #[test]
    fn an_empty_file_allows_nothing() {
        assert_eq!(Document::from_toml("").unwrap().policy, Policy::none());
    }

    #[test]
    fn mistakes_have_their_place() {
        let (line, column, message) = mistake("rules = [\n  'allow tpc 443',\n]");
        assert_eq!((line, column), (2, 10), "{message}");
        let (line, column, message) = mistake("preset = 'none'\nrulse = []");
        assert_eq!((line, column), (2, 1), "{message}");
        assert!(message.contains("did you mean `rules`"), "{message}");
        assert_eq!(mistake("preset = 'nonne'").1, 11);
        assert_eq!(mistake("block = 'a.example'").1, 9);
        assert_eq!(mistake("block = [1]").1, 10);
        assert_eq!(mistake("rules = ['''\nallow\nx''']").0, 1);
        assert_eq!(mistake("a = 1\na = 1").0, 2);
    }

    proptest::proptest! {
        #[test]
        fn no_text_breaks_it(text in "[a-z =\\[\\]'\"#\n.0-9]{0,80}") {
            let _ = Document::from_toml(&text);
        }
    }
}
