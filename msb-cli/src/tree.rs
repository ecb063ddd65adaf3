//! `--tree`: all commands with their options, from the definitions that parse them.

use std::ffi::OsString;
use std::fmt::Write as _;

use clap::{Arg, Command, CommandFactory};

use crate::args::Args;

/// How wide the column of options is, at the left of what they do.
const COLUMN: usize = 36;

/// The tree, if that is what the words ask for: commands only, and `--tree`.
pub(crate) fn asked(words: impl Iterator<Item = OsString>) -> Option<String> {
    let words: Vec<_> = words.collect();
    let end = words.iter().position(|word| word == "--tree")?;
    let mut root = Args::command();
    root.build();
    let mut command = &root;
    for word in &words[..end] {
        command = command.find_subcommand(word)?;
    }
    let mut text = String::new();
    draw(command, 0, &mut text);
    Some(text.trim_end().to_owned())
}

fn draw(command: &Command, depth: usize, text: &mut String) {
    let mut head = command.get_name().to_owned();
    for alias in command.get_visible_aliases() {
        head.push('|');
        head.push_str(alias);
    }
    for place in command.get_positionals() {
        // Without what is usual for options.
        let _ = write!(head, " {place}");
    }
    let about = command.get_about().map(ToString::to_string);
    line(text, depth, &head, about.as_deref());
    let options = command.get_opts().chain(flags(command));
    for option in options.filter(|option| !option.is_hide_set()) {
        let help = option.get_help().map(ToString::to_string);
        line(text, depth + 2, &usage(option), help.as_deref());
    }
    for inner in command.get_subcommands() {
        if inner.get_name() != "help" {
            draw(inner, depth + 1, text);
        }
    }
}

/// What takes no value, but for what every command has.
fn flags(command: &Command) -> impl Iterator<Item = &Arg> {
    let flags = command
        .get_arguments()
        .filter(|arg| !arg.is_positional() && !arg.get_action().takes_values());
    flags.filter(|arg| !matches!(arg.get_id().as_str(), "help" | "version"))
}

/// An option with what it takes.
pub(crate) fn usage(option: &Arg) -> String {
    let short = option.get_short().map(|short| format!("-{short}"));
    let long = option.get_long().map(|long| format!("--{long}"));
    let mut usage = [short, long]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(", ");
    if option.get_action().takes_values() {
        for name in option.get_value_names().into_iter().flatten() {
            let _ = write!(usage, " <{name}>");
        }
    }
    usage
}

fn line(text: &mut String, depth: usize, head: &str, about: Option<&str>) {
    let indent = "  ".repeat(depth);
    let about = about.unwrap_or_default().lines().next().unwrap_or_default();
    let width = COLUMN.saturating_sub(indent.len());
    let _ = writeln!(
        text,
        "{}",
        format!("{indent}{head:<width$}  {about}").trim_end()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(words: &[&str]) -> Option<String> {
        asked(words.iter().map(OsString::from))
    }

    #[test]
    fn a_tree_has_every_command_and_its_options() {
        let all = tree(&["--tree"]).expect("a tree");
        for part in [
            "\n  run [IMAGE] [CMD]...",
            "\n      -m, --memory <SIZE>",
            "\n  ls|list",
            "\n  image ",
            "\n    rm|remove <IMAGE>...",
        ] {
            assert!(all.contains(part), "{part:?} is missing in:\n{all}");
        }
        let one = tree(&["image", "--tree"]).expect("a tree");
        assert!(one.starts_with("image "), "{one}");
        assert!(one.contains("\n  rm|remove"), "{one}");
        assert!(!one.contains("snapshot"), "{one}");
    }

    #[test]
    fn what_a_program_is_given_is_no_question() {
        for words in [
            &["run", "busybox", "--tree"][..],
            &["exec", "app", "--", "ls", "--tree"],
            &["run"],
            &[],
        ] {
            assert_eq!(tree(words), None, "{words:?}");
        }
    }
}
