//! What somebody may have meant who typed a command that there is not.
//!
//! The parser finds words that are nearly the same; not those with two letters exchanged, nor
//! those of other container tools.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory, Error};

use crate::args::Args;

/// Words of other tools, and what they are here.
const ELSEWHERE: &[(&str, &str)] = &[
    ("delete", "rm"),
    ("down", "stop"),
    ("load", "image load"),
    ("save", "image save"),
    ("stats", "metrics"),
    ("unpause", "resume"),
    ("up", "run -d"),
    ("version", "--version"),
];

/// So many letters may be wrong, missing, added or exchanged.
const MAX_DISTANCE: usize = 2;

/// Adds what may have been meant, where the parser does not know.
pub(crate) fn suggest(error: &mut Error) {
    if error.kind() != ErrorKind::InvalidSubcommand {
        return;
    }
    let Some(ContextValue::String(typed)) = error.get(ContextKind::InvalidSubcommand) else {
        return;
    };
    let elsewhere = ELSEWHERE.iter().find(|(word, _)| word == typed);
    let known = error.get(ContextKind::SuggestedSubcommand).is_some();
    let meant = match (elsewhere, nearest(typed)) {
        (Some((_, here)), _) => vec![(*here).to_owned()],
        (None, (1, names)) => names,
        (None, (2..=MAX_DISTANCE, names)) if !known => names,
        (None, _) => return,
    };
    error.insert(
        ContextKind::SuggestedSubcommand,
        ContextValue::Strings(meant),
    );
}

/// The nearest commands, and how many letters are wrong.
fn nearest(typed: &str) -> (usize, Vec<String>) {
    let command = Args::command();
    let names = command
        .get_subcommands()
        .flat_map(Command::get_name_and_visible_aliases);
    let scored = names.map(|name| (strsim::damerau_levenshtein(typed, name), name));
    let scored: Vec<_> = scored.collect();
    let least = scored.iter().map(|(distance, _)| *distance).min();
    // Of a short word there must be something left.
    let least = least.filter(|least| *least < typed.chars().count());
    let least = least.unwrap_or(usize::MAX);
    let near = scored.iter().filter(|(distance, _)| *distance == least);
    (least, near.map(|(_, name)| (*name).to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn told(word: &str) -> String {
        let mut error = Args::try_parse_from(["msb", word]).expect_err(word);
        suggest(&mut error);
        error.to_string()
    }

    #[test]
    fn exchanged_letters_and_words_of_other_tools_are_understood() {
        for (word, meant) in [
            ("rnu", "'run'"),
            ("rum", "'run'"),
            ("sotp", "'stop'"),
            ("exce", "'exec'"),
            ("restrat", "'restart'"),
            ("stats", "'metrics'"),
            ("version", "'--version'"),
        ] {
            assert!(told(word).contains(meant), "{}", told(word));
        }
        assert!(!told("zzz").contains("similar"), "{}", told("zzz"));
    }
}
