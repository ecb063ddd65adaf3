//! The keys that let go of a program at a terminal.

use std::str::FromStr;

/// A sequence of keys; what is typed of it reaches the program only if something else follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DetachKeys {
    keys: Vec<u8>,
    /// How many of them were typed.
    typed: usize,
}

/// As container tools have them.
pub(crate) const DEFAULT: &str = "ctrl-p,ctrl-q";

/// Longer sequences are typing errors.
const MAX_KEYS: usize = 16;

impl FromStr for DetachKeys {
    type Err = String;

    /// Keys with commas between them: a character, or `ctrl-` and one of `a` to `z`, `@`, `[`,
    /// `\`, `]`, `^`, `_`. Nothing at all is no keys.
    fn from_str(text: &str) -> Result<Self, String> {
        let keys: Result<Vec<u8>, String> = match text {
            "" => Ok(Vec::new()),
            _ => text.split(',').map(key).collect(),
        };
        let keys = keys?;
        if keys.len() > MAX_KEYS {
            return Err(format!("more than {MAX_KEYS} keys"));
        }
        Ok(Self { keys, typed: 0 })
    }
}

fn key(text: &str) -> Result<u8, String> {
    match (text.as_bytes(), text.strip_prefix("ctrl-")) {
        ([key @ 0x20..0x7f], _) => Ok(*key),
        (_, Some(of)) => match of.as_bytes() {
            [key @ (b'a'..=b'z' | b'@' | b'['..=b'_')] => Ok(key & 0x1f),
            _ => Err(format!(
                "there is no key {text:?}; ctrl-a to ctrl-z, ctrl-@, ctrl-[ …"
            )),
        },
        _ => Err(format!(
            "{text:?} is no key: it is a character, or ctrl- and a letter"
        )),
    }
}

impl DetachKeys {
    /// Takes what was typed; returns what of it is for the program, and whether the keys were
    /// all typed. What follows them is for nobody.
    pub(crate) fn take(&mut self, input: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(input.len() + self.typed);
        for byte in input {
            if self.keys.is_empty() {
                passed.push(*byte);
                continue;
            }
            // The longest beginning of the keys that what was typed ends with.
            let mut held = self.keys[..self.typed].to_vec();
            held.push(*byte);
            let fits = |len: &usize| held.ends_with(&self.keys[..*len]);
            self.typed = (0..=held.len()).rev().find(fits).unwrap_or(0);
            passed.extend_from_slice(&held[..held.len() - self.typed]);
            if self.typed == self.keys.len() {
                self.typed = 0;
                return (passed, true);
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> DetachKeys {
        text.parse().expect(text)
    }

    #[test]
    fn the_keys_do_not_reach_the_program_and_all_else_does() {
        let mut keys = keys(DEFAULT);
        assert_eq!(keys.take(b"ls\x10"), (b"ls".to_vec(), false));
        // The shell's own use of ctrl-p.
        assert_eq!(keys.take(b"\x10"), (b"\x10".to_vec(), false));
        assert_eq!(keys.take(b"x"), (b"\x10x".to_vec(), false));
        assert_eq!(keys.take(b"a\x10"), (b"a".to_vec(), false));
        assert_eq!(keys.take(b"\x11b"), (Vec::new(), true));
    }

    #[test]
    fn keys_that_begin_again_within_themselves() {
        let mut keys = keys("a,a,b");
        assert_eq!(keys.take(b"aaab"), (b"a".to_vec(), true));
        assert_eq!(keys.take(b"aac"), (b"aac".to_vec(), false));
    }

    #[test]
    fn no_keys_let_go_of_nothing() {
        let mut keys = keys("");
        assert_eq!(keys.take(b"\x10\x11"), (b"\x10\x11".to_vec(), false));
    }

    #[test]
    fn keys_are_written_as_container_tools_do() {
        assert_eq!(keys("ctrl-@,ctrl-[,x").keys, [0, 0x1b, b'x']);
        assert_eq!(keys("ctrl-\\,ctrl-]").keys, [0x1c, 0x1d]);
        for wrong in ["ctrl-", "ctrl-1", "ctrl-P", "ab", "a,,b", "ä"] {
            assert!(wrong.parse::<DetachKeys>().is_err(), "{wrong}");
        }
        assert!(["a"; MAX_KEYS + 1].join(",").parse::<DetachKeys>().is_err());
    }
}
