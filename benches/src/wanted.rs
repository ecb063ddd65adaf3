//! Which rows of a benchmark are measured.

use std::env;

/// Parts of what a variable says, which commas separate, each of them words.
pub struct Wanted(Vec<Vec<String>>);

impl Wanted {
    /// Reads a variable of the environment; all rows are wanted if it says nothing.
    #[must_use]
    pub fn read(variable: &str) -> Self {
        Self::of(&env::var(variable).unwrap_or_default())
    }

    fn of(text: &str) -> Self {
        let parts = text.split(',').map(words).filter(|part| !part.is_empty());
        Self(parts.collect())
    }

    /// Tells whether all words of one of the parts are in a row's name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        let words = words(name);
        let whole = |part: &Vec<String>| part.iter().all(|word| words.contains(word));
        self.0.is_empty() || self.0.iter().any(whole)
    }
}

fn words(text: &str) -> Vec<String> {
    let words = text.split_whitespace().map(|word| word.trim_matches(','));
    words.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_chosen_by_their_words() {
        let wanted = Wanted::of("DNS 65520, TCP bridged");
        assert!(wanted.has("DNS queries, 100 names, MTU 65520"));
        assert!(wanted.has("TCP up, MTU 1500, bridged"));
        assert!(!wanted.has("TCP up, MTU 1500"));
        assert!(Wanted::of("").has("anything"));
    }
}
