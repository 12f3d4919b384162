//! All rows: as a table, and as JSON.

use anyhow::Result;
use serde_json::{Value, json};

use crate::machine::Machine;
use crate::references::{GOALS, PEER_RATIOS, of};
use crate::row::{Better, Row};

/// What was measured so far.
#[derive(Debug)]
pub(crate) struct Report {
    machine: Machine,
    rows: Vec<Row>,
}

/// The table's columns: title and width; the first is aligned to the left.
const COLUMNS: [(&str, usize); 11] = [
    ("row", 22),
    ("unit", 9),
    ("plain", 9),
    ("mesh", 9),
    ("mesh/plain", 11),
    ("spread", 14),
    ("ztunnel", 9),
    ("goal", 10),
    ("agent CPU", 12),
    ("ztunnel", 9),
    ("goal", 9),
];

impl Report {
    pub(crate) fn new(machine: Machine) -> Self {
        Self {
            machine,
            rows: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table, on standard output.
    pub(crate) fn print(&self) {
        println!("\n{}\n", self.machine.line());
        println!("{}", line(&COLUMNS.map(|(title, _)| title.to_owned())));
        for row in &self.rows {
            println!("{}", line(&cells(row)));
        }
        println!(
            "\nMedians. mesh/plain: median of the pairs' ratios, beside it the least and the most; without a plain twin, the \
             spread of the figure. ztunnel and goal: of the ratio, or = of the figure; + reached, - not. Agent CPU: of all \
             agents, for a unit of work."
        );
    }

    pub(crate) fn json(&self) -> Result<Value> {
        let rows: Vec<_> = self.rows.iter().map(Row::json).collect();
        Ok(json!({ "machine": self.machine.json()?, "rows": rows }))
    }
}

fn line(cells: &[String; COLUMNS.len()]) -> String {
    let mut line = String::new();
    for (index, (cell, (_, width))) in cells.iter().zip(COLUMNS).enumerate() {
        let cell = if index == 0 {
            format!("{cell:<width$}")
        } else {
            format!("{cell:>width$}")
        };
        line.push_str(&cell);
    }
    line
}

fn cells(row: &Row) -> [String; COLUMNS.len()] {
    let (plain, mesh) = row.medians();
    let [least, most] = row.spread();
    let (peer, goal) = (of(PEER_RATIOS, &row.key), of(GOALS, &row.key));
    let cost = row.cost.as_ref();
    let name = match row.errors {
        0 => row.key.clone(),
        errors => format!("{} ({errors} errors)", row.key),
    };
    [
        name,
        row.unit.to_owned(),
        shown(plain),
        digits(mesh),
        shown(row.ratio()),
        format!("{}..{}", digits(least), digits(most)),
        either(peer.ratio, peer.value),
        judged(row, goal.ratio, goal.value),
        cost.map_or_else(String::new, |it| {
            format!("{} {}", digits(it.agents), it.unit)
        }),
        shown(peer.agent_cpu),
        mark(cost.map(|it| it.agents), goal.agent_cpu, Better::Less),
    ]
}

fn either(ratio: Option<f64>, value: Option<f64>) -> String {
    value.map_or_else(|| shown(ratio), |value| format!("={}", digits(value)))
}

/// The goal, and whether it is reached.
fn judged(row: &Row, ratio: Option<f64>, value: Option<f64>) -> String {
    match value {
        Some(_) => format!("={}", mark(Some(row.medians().1), value, row.better)),
        None => mark(row.ratio(), ratio, row.better),
    }
}

fn mark(figure: Option<f64>, goal: Option<f64>, better: Better) -> String {
    let Some(goal) = goal else {
        return String::new();
    };
    // A goal is told with two digits, and is reached with two digits.
    let slack = goal * 0.005;
    let reached = figure
        .is_some_and(|it| better.reaches(it, goal + slack) || better.reaches(it, goal - slack));
    format!("{} {}", digits(goal), if reached { '+' } else { '-' })
}

fn shown(figure: Option<f64>) -> String {
    figure.map_or_else(String::new, digits)
}

/// Three digits that say something.
pub(crate) fn digits(figure: f64) -> String {
    let decimals = match figure.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 0.1 => 2,
        _ => 3,
    };
    format!("{figure:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits() {
        let check = |figure: f64, expect: &str| assert_eq!(digits(figure), expect);
        check(12345.6, "12346");
        check(12.345, "12.3");
        check(0.456, "0.46");
        check(0.0123, "0.012");
    }

    #[test]
    fn goals_are_reached_from_the_right_side() {
        let check = |figure, goal, better, expect: &str| {
            assert_eq!(mark(Some(figure), Some(goal), better), expect);
        };
        check(0.56, 0.55, Better::More, "0.55 +");
        check(0.50, 0.55, Better::More, "0.55 -");
        check(3.0, 2.5, Better::Less, "2.50 -");
        check(2.51, 2.5, Better::Less, "2.50 +");
        assert_eq!(mark(Some(1.0), None, Better::Less), "");
    }

    #[test]
    fn a_line_has_every_column() {
        let row = Row::new("cross.bulk1", "Gbit/s", Better::More).pairs([[10.0, 5.0]]);
        let line = line(&cells(&row));
        assert!(
            line.contains("0.50") && line.contains("0.21") && line.contains("0.55 -"),
            "{line}"
        );
    }
}
