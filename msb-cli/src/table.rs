//! Lists for people: columns that stay where they are, whatever is in them.

use std::time::SystemTime;

use crate::{Failure, terminal};

/// Prints rows of the same length, the first of which is the heading. The columns that
/// `right` names are aligned to the right.
pub(crate) fn print(rows: &[Vec<String>], right: &[usize]) -> Result<(), Failure> {
    for line in lines(rows, right) {
        terminal::say(&line)?;
    }
    Ok(())
}

/// The same as one text.
pub(crate) fn text(rows: &[Vec<String>], right: &[usize]) -> String {
    let lines = lines(rows, right).into_iter();
    lines.map(|line| line + "\n").collect()
}

fn lines(rows: &[Vec<String>], right: &[usize]) -> Vec<String> {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..columns).filter_map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(column, (cell, width))| {
            if right.contains(&column) {
                format!("{cell:>width$}")
            } else {
                format!("{cell:<width$}")
            }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// How long ago it was.
pub(crate) fn age(time: SystemTime) -> String {
    let seconds = time.elapsed().map_or(0, |age| age.as_secs());
    let (count, unit) = match seconds {
        0..60 => return "just now".into(),
        60..3_600 => (seconds / 60, "minute"),
        3_600..86_400 => (seconds / 3_600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let rows = [row(["NAME", "SIZE", "X"]), row(["longer name", "7", ""])];
        assert_eq!(
            lines(&rows, &[1]),
            ["NAME         SIZE  X", "longer name     7"]
        );
    }
}
