//! Samples to a table with verdicts, and to lines of JSON.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// What a row counts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Milliseconds.
    Ms,
    /// Seconds.
    Seconds,
    /// Millions of guest instructions.
    Millions,
    /// MiB of memory.
    Mib,
    /// One time divided by another of the same run.
    Ratio,
    /// Microseconds.
    Micros,
    /// Thousands of millions of bits in a second.
    Gigabits,
    /// So many in a second.
    PerSecond,
    /// MiB in a second.
    MibPerSecond,
    /// Seconds of processor time for 10⁹ bytes.
    SecondsPerGigabyte,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Unit::Ms => "ms",
            Unit::Seconds => "s",
            Unit::Millions => "M",
            Unit::Mib => "MiB",
            Unit::Ratio => "×",
            Unit::Micros => "µs",
            Unit::Gigabits => "Gbit/s",
            Unit::PerSecond => "/s",
            Unit::MibPerSecond => "MiB/s",
            Unit::SecondsPerGigabyte => "s/GB",
        }
    }

    pub(crate) fn shown(self, value: f64) -> String {
        let decimals = match self {
            Unit::PerSecond => 0,
            Unit::Ms | Unit::Micros | Unit::Millions | Unit::Mib | Unit::MibPerSecond => 1,
            Unit::Seconds | Unit::Ratio | Unit::Gigabits | Unit::SecondsPerGigabyte => 2,
        };
        format!("{value:.decimals$} {}", self.name())
    }
}

/// One quantity, measured several times.
#[derive(Clone, Debug)]
pub struct Row {
    name: String,
    unit: Unit,
    /// The median is to be at most this.
    goal: Option<f64>,
    samples: Vec<f64>,
}

impl Row {
    /// A row without samples.
    pub fn new(name: impl Into<String>, unit: Unit) -> Self {
        Self {
            name: name.into(),
            unit,
            goal: None,
            samples: Vec::new(),
        }
    }

    /// The median is to be at most `goal`.
    #[must_use]
    pub fn at_most(mut self, goal: f64) -> Self {
        self.goal = Some(goal);
        self
    }

    /// Adds a measurement.
    pub fn push(&mut self, value: f64) {
        self.samples.push(value);
    }

    /// Adds a time.
    pub fn push_time(&mut self, time: Duration) {
        let seconds = time.as_secs_f64();
        self.push(match self.unit {
            Unit::Ms => seconds * 1e3,
            _ => seconds,
        });
    }

    /// The middle of the samples; the lower one of two.
    #[must_use]
    pub fn median(&self) -> f64 {
        self.quantile(5)
    }

    fn p90(&self) -> f64 {
        self.quantile(9)
    }

    /// The least sample that `tenths` of all do not exceed.
    fn quantile(&self, tenths: usize) -> f64 {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * tenths).div_ceil(10).max(1);
        sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
    }

    fn verdict(&self) -> &'static str {
        match self.goal {
            None => "",
            Some(goal) if self.median() <= goal => "met",
            Some(_) => "MISSED",
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The median with its unit, or a dash when there is none.
    pub(crate) fn shown(&self) -> String {
        if self.samples.is_empty() {
            return "–".into();
        }
        self.unit.shown(self.median())
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "kind": "row",
            "name": self.name,
            "unit": self.unit.name(),
            "median": self.median(),
            "p90": self.p90(),
            "goal": self.goal,
            "met": self.goal.map(|goal| self.median() <= goal),
            "samples": self.samples,
        })
    }
}

/// The rows as a table.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let width = rows
        .iter()
        .map(|row| row.name.chars().count())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    let mut line = |name: &str, cells: [&str; 5]| {
        let [median, p90, goal, verdict, n] = cells;
        let _ = writeln!(
            text,
            "{name:<width$}  {median:>10}  {p90:>10}  {goal:>10}  {verdict:<7}  {n:>4}"
        );
    };
    line("", ["median", "p90", "goal", "verdict", "n"]);
    for row in rows {
        let goal = row
            .goal
            .map(|goal| format!("≤ {}", row.unit.shown(goal)))
            .unwrap_or_default();
        line(
            &row.name,
            [
                &row.unit.shown(row.median()),
                &row.unit.shown(row.p90()),
                &goal,
                row.verdict(),
                &row.samples.len().to_string(),
            ],
        );
    }
    text
}

/// Writes the conditions and all rows to a file, one JSON object a line.
///
/// # Errors
/// When the file can't be written.
pub fn write(path: &Path, conditions: &Value, rows: &[Row]) -> Result<()> {
    let rows: Vec<_> = rows.iter().map(Row::json).collect();
    write_lines(path, conditions, &rows)
}

/// As [`write()`], of results that are JSON already.
///
/// # Errors
/// When the file can't be written.
pub fn write_lines(path: &Path, conditions: &Value, results: &[Value]) -> Result<()> {
    keep_lines(path, conditions, results)?;
    println!("written to {}", path.display());
    Ok(())
}

/// As [`write_lines`], without a word: for what was measured so far.
///
/// # Errors
/// When the file can't be written.
pub fn keep_lines(path: &Path, conditions: &Value, results: &[Value]) -> Result<()> {
    let mut text = format!("{conditions}\n");
    for result in results {
        let _ = writeln!(text, "{result}");
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(samples: &[f64]) -> Row {
        let mut row = Row::new("x", Unit::Ms).at_most(3.0);
        samples.iter().for_each(|&sample| row.push(sample));
        row
    }

    #[test]
    fn quantiles_are_samples() {
        assert_eq!(row(&[5.0, 1.0, 3.0]).median(), 3.0);
        assert_eq!(row(&[4.0, 1.0]).median(), 1.0);
        let ten: Vec<f64> = (1..=10).map(f64::from).collect();
        assert_eq!((row(&ten).median(), row(&ten).p90()), (5.0, 9.0));
        assert!(row(&[]).median().is_nan());
    }

    #[test]
    fn a_goal_is_met_by_the_median() {
        assert_eq!(row(&[1.0, 3.0, 9.0]).verdict(), "met");
        assert_eq!(row(&[3.1]).verdict(), "MISSED");
        assert_eq!(row(&[]).verdict(), "MISSED");
        assert!(table(&[row(&[1.0])]).contains("≤ 3.0 ms"));
    }
}
