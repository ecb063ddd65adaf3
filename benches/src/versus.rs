//! Several contenders, measured in turn: a table with ratios and verdicts, and
//! lines of JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::report::{Row, Unit};

/// Which of two figures is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// The larger, as with bytes per second.
    More,
    /// The smaller, as with times.
    Less,
}

/// One quantity of several contenders.
#[derive(Clone, Debug)]
pub struct Versus {
    name: String,
    better: Better,
    /// One for each contender, ours first.
    rows: Vec<Row>,
}

impl Versus {
    /// A quantity without samples.
    pub fn new(name: impl Into<String>, unit: Unit, better: Better, contenders: &[&str]) -> Self {
        Self {
            name: name.into(),
            better,
            rows: contenders
                .iter()
                .map(|name| Row::new(*name, unit))
                .collect(),
        }
    }

    /// Adds a measurement of a contender.
    pub fn push(&mut self, contender: usize, value: f64) {
        self.rows[contender].push(value);
    }

    /// How many times better ours is than the best of the others; below 1 it is
    /// worse. Of medians; a contender that failed has none.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        let ours = self.rows[0].median();
        let others = self.rows[1..].iter().map(Row::median);
        match self.better {
            Better::More => ours / others.fold(f64::NAN, f64::max),
            Better::Less => {
                let best = others.fold(f64::NAN, f64::min);
                // Nothing at all cannot be bettered.
                if best == ours { 1.0 } else { best / ours }
            }
        }
    }

    fn verdict(&self) -> &'static str {
        if self.ratio() >= 1.0 { "met" } else { "MISSED" }
    }

    /// For a file of results.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "kind": "versus",
            "name": self.name,
            "contenders": self.rows.iter().map(Row::json).collect::<Vec<_>>(),
            "ratio": self.ratio(),
            "met": self.ratio() >= 1.0,
        })
    }
}

/// The quantities as a table of medians.
#[must_use]
pub fn table(quantities: &[Versus]) -> String {
    let width = quantities
        .iter()
        .map(|versus| versus.name.chars().count())
        .max()
        .unwrap_or(0);
    let head = quantities.first().map(|first| {
        let names: Vec<_> = first.rows.iter().map(Row::name).collect();
        head(&names, width)
    });
    let lines = quantities.iter().map(|versus| line(versus, width));
    head.into_iter()
        .chain(lines)
        .fold(String::new(), |text, line| text + &line + "\n")
}

/// What stands above the lines of quantities of these contenders.
#[must_use]
pub fn head(contenders: &[&str], width: usize) -> String {
    shown("", width, contenders.iter().copied(), "ratio", "verdict")
}

/// One quantity as a line of a table, its name padded to `width`.
#[must_use]
pub fn line(versus: &Versus, width: usize) -> String {
    let cells: Vec<_> = versus.rows.iter().map(Row::shown).collect();
    let cells = cells.iter().map(String::as_str);
    let ratio = Unit::Ratio.shown(versus.ratio());
    shown(&versus.name, width, cells, &ratio, versus.verdict())
}

fn shown<'a>(
    name: &str,
    width: usize,
    cells: impl Iterator<Item = &'a str>,
    ratio: &str,
    verdict: &str,
) -> String {
    let mut text = format!("{name:<width$}");
    for cell in cells {
        let _ = write!(text, "  {cell:>13}");
    }
    let _ = write!(text, "  {ratio:>7}  {verdict}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versus(better: Better, figures: [&[f64]; 3]) -> Versus {
        let mut versus = Versus::new("x", Unit::Micros, better, &["a", "b", "c"]);
        for (contender, samples) in figures.into_iter().enumerate() {
            for sample in samples {
                versus.push(contender, *sample);
            }
        }
        versus
    }

    #[test]
    fn the_best_of_the_others_counts() {
        let figures: [&[f64]; 3] = [&[6.0], &[3.0], &[4.0]];
        assert_eq!(versus(Better::More, figures).ratio(), 1.5);
        assert_eq!(versus(Better::Less, figures).ratio(), 0.5);
        assert_eq!(versus(Better::Less, figures).verdict(), "MISSED");
    }

    #[test]
    fn nothing_is_as_good_as_nothing() {
        assert_eq!(versus(Better::Less, [&[0.0], &[0.0], &[4.0]]).ratio(), 1.0);
        let less = versus(Better::Less, [&[0.0], &[1.0], &[4.0]]);
        assert_eq!(less.verdict(), "met");
    }

    #[test]
    fn a_contender_that_failed_is_no_rival_and_a_failure_of_ours_is_none_met() {
        assert_eq!(versus(Better::More, [&[6.0], &[], &[4.0]]).ratio(), 1.5);
        assert_eq!(
            versus(Better::More, [&[], &[1.0], &[1.0]]).verdict(),
            "MISSED"
        );
        assert!(table(&[versus(Better::More, [&[6.0], &[], &[4.0]])]).contains("–"));
    }
}
