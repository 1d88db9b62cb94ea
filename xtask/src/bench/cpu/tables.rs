//! What came out, and the table of it.

use std::collections::BTreeMap;

use serde_json::json;

use super::super::results::{aligned, number_text};
use super::rows::{Kind, ROWS, Row, Unit};

/// The column of this machine's own processor.
pub const NATIVE: &str = "native";

/// What a row gave in one round.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Measured {
        /// Depends on all that was computed; `-` where nothing is.
        number: String,
        /// Seconds of a thing, or an amount.
        cost: f64,
    },
    /// Cannot be had there.
    Skipped(String),
    /// Ought to be had there.
    Failed(String),
}

impl Outcome {
    /// A cost of something that computes nothing.
    pub fn cost(cost: f64) -> Self {
        Self::Measured {
            number: "-".to_owned(),
            cost,
        }
    }

    /// What follows "@end NAME" (benches/cpu/job.sh), and the seconds that the guest's clock says
    /// it all took.
    pub fn parse(text: &str) -> (Self, f64) {
        let words: Vec<&str> = text.split_whitespace().collect();
        let number = |text: &str| text.parse::<f64>().ok().filter(|n| n.is_finite());
        match words[..] {
            ["skip", ..] => (Self::Skipped(text[4..].trim().to_owned()), 0.0),
            [result, seconds, _pieces, things, all] => {
                match (number(seconds), number(things), number(all)) {
                    (Some(seconds), Some(things), Some(all)) if seconds > 0.0 && things > 0.0 => {
                        let number = result.to_owned();
                        let cost = seconds / things;
                        (Self::Measured { number, cost }, all)
                    }
                    _ => (Self::Failed(text.to_owned()), 0.0),
                }
            }
            _ => (
                match text.split_once("skip: ") {
                    Some((_, why)) => Self::Skipped(why.trim().to_owned()),
                    None => Self::Failed(text.to_owned()),
                },
                0.0,
            ),
        }
    }
}

/// All outcomes.
pub struct Table {
    columns: Vec<String>,
    outcomes: BTreeMap<(&'static str, String), Vec<Outcome>>,
}

/// Those of a row and a column.
struct Cell {
    /// Of the costs, sorted.
    costs: Vec<f64>,
    /// In the order of the rounds.
    values: Vec<f64>,
}

impl Cell {
    fn median(&self) -> Option<f64> {
        let middle = self.costs.len() / 2;
        match self.costs.len() % 2 {
            1 => self.costs.get(middle).copied(),
            _ => {
                let low = self.costs.get(middle.checked_sub(1)?)?;
                Some(f64::midpoint(*low, *self.costs.get(middle)?))
            }
        }
    }
}

/// A mean of ratios, of so many rows.
struct Mean {
    of: String,
    rows: usize,
    ratio: f64,
}

impl Table {
    pub fn new(columns: Vec<String>) -> Self {
        Self {
            columns,
            outcomes: BTreeMap::new(),
        }
    }

    pub fn add(&mut self, row: &'static Row, column: &str, outcome: Outcome) {
        let key = (row.name, column.to_owned());
        self.outcomes.entry(key).or_default().push(outcome);
    }

    pub fn is_empty(&self) -> bool {
        let mut all = self.outcomes.values().flatten();
        !all.any(|outcome| matches!(outcome, Outcome::Measured { .. }))
    }

    fn of(&self, row: &Row, column: &str) -> &[Outcome] {
        let key = (row.name, column.to_owned());
        self.outcomes.get(&key).map_or(&[], Vec::as_slice)
    }

    fn cell(&self, row: &Row, column: &str) -> Cell {
        let measured = self
            .of(row, column)
            .iter()
            .filter_map(|outcome| match outcome {
                Outcome::Measured { cost, .. } => Some(*cost),
                _ => None,
            });
        let values: Vec<f64> = measured.collect();
        let mut costs = values.clone();
        costs.sort_by(f64::total_cmp);
        Cell { costs, values }
    }

    /// Rows that have any outcome.
    fn rows(&self) -> impl Iterator<Item = &'static Row> {
        let is_there = |row: &&Row| self.columns.iter().any(|c| !self.of(row, c).is_empty());
        ROWS.iter().filter(is_there)
    }

    /// Whether two columns, or two rounds of one, computed different things.
    fn is_wrong(&self, row: &Row) -> bool {
        let mut numbers = self.numbers(row).into_iter();
        numbers
            .next()
            .is_some_and(|(_, first)| numbers.any(|(_, other)| other != first))
    }

    /// All numbers of a row with their columns.
    fn numbers<'a>(&'a self, row: &Row) -> Vec<(&'a str, &'a str)> {
        let of_column = |column: &'a String| {
            self.of(row, column)
                .iter()
                .filter_map(|outcome| match outcome {
                    Outcome::Measured { number, .. } => Some((column.as_str(), number.as_str())),
                    _ => None,
                })
        };
        self.columns.iter().flat_map(of_column).collect()
    }

    /// What failed, and what was computed wrongly: a line each.
    pub fn failures(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for row in self.rows() {
            if self.is_wrong(row) {
                let numbers: Vec<String> = self
                    .numbers(row)
                    .iter()
                    .map(|(column, number)| format!("{column} {number}"))
                    .collect();
                lines.push(format!(
                    "{}: results differ: {}",
                    row.name,
                    numbers.join(", ")
                ));
            }
            for column in &self.columns {
                for outcome in self.of(row, column) {
                    if let Outcome::Failed(why) = outcome {
                        lines.push(format!("{}: {column} failed: {why}", row.name));
                    }
                }
            }
        }
        lines
    }

    /// What was left out.
    fn skipped(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for row in self.rows() {
            for column in &self.columns {
                if let Some(Outcome::Skipped(why)) = self.of(row, column).first() {
                    lines.push(format!("{}: {column} left out: {why}", row.name));
                }
            }
        }
        lines
    }

    /// Pairs of columns whose ratios say something: how much more the first costs.
    fn ratios(&self) -> Vec<(&str, &str)> {
        let is_native = |name: &&String| *name == NATIVE;
        let natives = self.columns.iter().filter(is_native);
        let machines: Vec<&String> = self.columns.iter().filter(|c| !is_native(c)).collect();
        let mut pairs = Vec::new();
        // Vireo comes first, its rivals after it.
        if let [first, others @ ..] = &machines[..] {
            pairs.extend(others.iter().map(|other| (other.as_str(), first.as_str())));
        }
        for native in natives {
            pairs.extend(
                machines
                    .iter()
                    .map(|machine| (machine.as_str(), native.as_str())),
            );
        }
        pairs
    }

    fn ratio(&self, row: &Row, (above, below): (&str, &str)) -> Option<f64> {
        let (above, below) = (
            self.cell(row, above).median()?,
            self.cell(row, below).median()?,
        );
        (above > 0.0 && below > 0.0).then(|| above / below)
    }

    /// Geometric means of the ratios, over the workloads and over all rows that are times or rates.
    fn means(&self) -> Vec<Mean> {
        let mut means = Vec::new();
        type Choice = (&'static str, fn(&Row) -> bool);
        let choices: [Choice; 2] = [
            ("workloads", |row| row.kind == Kind::Workload),
            ("all rows", |row| !matches!(row.unit, Unit::Amount(_))),
        ];
        for pair in self.ratios() {
            for (name, choose) in choices {
                let ratios: Vec<f64> = self
                    .rows()
                    .filter(|row| choose(row) && !self.is_wrong(row))
                    .filter_map(|row| self.ratio(row, pair))
                    .collect();
                if let Ok(count @ 1..) = u32::try_from(ratios.len()) {
                    let sum: f64 = ratios.iter().map(|ratio| ratio.ln()).sum();
                    means.push(Mean {
                        of: format!("{}/{}, {name}", pair.0, pair.1),
                        rows: ratios.len(),
                        ratio: (sum / f64::from(count)).exp(),
                    });
                }
            }
        }
        means
    }

    /// A line per row: medians, ratios of cost; then what failed, and the means.
    pub fn text(&self) -> String {
        let pairs = self.ratios();
        let mut lines = vec![vec!["row".to_owned(), "unit".to_owned()]];
        lines[0].extend(self.columns.iter().cloned());
        lines[0].extend(
            pairs
                .iter()
                .map(|(above, below)| format!("{above}/{below}")),
        );
        for row in self.rows() {
            let mut line = vec![row.title.to_owned(), row.unit.name().to_owned()];
            for column in &self.columns {
                line.push(
                    match (self.cell(row, column).median(), self.of(row, column)) {
                        (Some(cost), _) => number_text(row.unit.show(cost)),
                        (None, [Outcome::Failed(_), ..]) => "failed".to_owned(),
                        (None, [Outcome::Skipped(_), ..]) => "n/a".to_owned(),
                        _ => "-".to_owned(),
                    },
                );
            }
            for pair in &pairs {
                let ratio = self.ratio(row, *pair);
                line.push(ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}")));
            }
            if self.is_wrong(row) {
                line.push("WRONG RESULT".to_owned());
            }
            lines.push(line);
        }
        let mut text = aligned(&lines);
        text.push('\n');
        for Mean { of, rows, ratio } in self.means() {
            text.push_str(&format!("geometric mean {of} ({rows}): {ratio:.2}\n"));
        }
        for line in self.skipped() {
            text.push_str(&format!("{line}\n"));
        }
        for line in self.failures() {
            text.push_str(&format!("FAILED {line}\n"));
        }
        text
    }

    /// The same for programs.
    pub fn json(&self) -> serde_json::Value {
        let mut rows = serde_json::Map::new();
        for row in self.rows() {
            let mut columns = serde_json::Map::new();
            for column in &self.columns {
                let cell = self.cell(row, column);
                let values: Vec<f64> = cell.values.iter().map(|c| row.unit.show(*c)).collect();
                let median = cell.median().map(|cost| row.unit.show(cost));
                columns.insert(
                    column.clone(),
                    json!({ "median": median, "values": values }),
                );
            }
            let mut ratios = serde_json::Map::new();
            for pair in self.ratios() {
                let name = format!("{}/{}", pair.0, pair.1);
                ratios.insert(name, json!(self.ratio(row, pair)));
            }
            rows.insert(
                row.name.to_owned(),
                json!({
                    "title": row.title,
                    "unit": row.unit.name(),
                    "columns": columns,
                    "cost-ratios": ratios,
                    "results-equal": !self.is_wrong(row),
                }),
            );
        }
        let mut means = serde_json::Map::new();
        for Mean { of, rows, ratio } in self.means() {
            means.insert(of, json!({ "rows": rows, "ratio": ratio }));
        }
        json!({
            "rows": rows,
            "geometric-means": means,
            "left-out": self.skipped(),
            "failures": self.failures(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows::find;
    use super::*;

    fn measured(number: &str, cost: f64) -> Outcome {
        Outcome::Measured {
            number: number.to_owned(),
            cost,
        }
    }

    fn table() -> Table {
        let mut table = Table::new([NATIVE, "vireo", "tcg"].map(str::to_owned).into());
        for (column, costs) in [
            (NATIVE, [0.001, 0.002, 0.009]),
            ("vireo", [0.004, 0.004, 0.004]),
            ("tcg", [0.032, 0.016, 0.032]),
        ] {
            for cost in costs {
                table.add(find("fib").unwrap(), column, measured("ab", cost));
            }
        }
        table
    }

    #[test]
    fn what_a_job_says_is_understood() {
        assert_eq!(
            Outcome::parse("00ff 0.5 3 100 2.5"),
            (measured("00ff", 0.005), 2.5)
        );
        let (skipped, _) = Outcome::parse("skip gcc is not in the image");
        assert_eq!(skipped, Outcome::Skipped("gcc is not in the image".into()));
        let (skipped, _) = Outcome::parse("fail status 1: skip: there is one processor");
        assert_eq!(skipped, Outcome::Skipped("there is one processor".into()));
        for text in [
            "",
            "fail status 139: ",
            "00ff 0 3 100 2.5",
            "00ff x 3 100 1",
        ] {
            assert_eq!(Outcome::parse(text).0, Outcome::Failed(text.into()));
        }
    }

    #[test]
    fn medians_and_ratios_of_cost() {
        let text = table().text();
        let line = text.lines().find(|line| line.starts_with("calls")).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(
            words[2..],
            ["ms", "2.00", "4.00", "32.0", "8.00", "2.00", "16.00"]
        );
        assert!(text.contains("tcg/vireo, workloads (1): 8.00"));
        let json = table().json();
        assert_eq!(json["rows"]["fib"]["cost-ratios"]["tcg/vireo"], 8.0);
        assert!(table().failures().is_empty());
    }

    #[test]
    fn a_wrong_result_is_seen_and_counts_nowhere() {
        let mut table = table();
        table.add(find("fib").unwrap(), "vireo", measured("ac", 0.004));
        let text = table.text();
        assert!(text.contains("WRONG RESULT") && !text.contains("geometric"));
        assert!(table.failures()[0].contains("vireo ac"));
    }

    #[test]
    fn a_failure_is_no_measurement() {
        let mut table = Table::new(vec!["vireo".to_owned()]);
        table.add(
            find("gcc").unwrap(),
            "vireo",
            Outcome::Failed("died".into()),
        );
        assert!(table.is_empty());
        assert_eq!(table.failures(), ["gcc: vireo failed: died"]);
    }
}
