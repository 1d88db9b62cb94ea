//! What was measured, and the tables of it.
//!
//! A record is one run of one monitor in one case. Records of the same case and monitor become a
//! median and a range; monitors stand beside each other with the ratio of the first one's median
//! to theirs. Machines are noisy: only ratios within one run mean something.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// One run of one monitor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// What was done.
    pub case: String,
    pub vmm: String,
    /// Values by name; a name ends with its unit in brackets.
    pub values: BTreeMap<String, f64>,
}

/// Values of one monitor in one case.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    /// In the order of the rounds.
    pub values: Vec<f64>,
}

impl Summary {
    fn of(values: Vec<f64>) -> Option<Self> {
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self {
            median,
            min,
            max,
            values,
        })
    }
}

/// All records, cases in the order in which they first came.
#[derive(Clone, Debug)]
pub struct Results {
    /// The columns; others follow them.
    vmms: Vec<String>,
    records: Vec<Record>,
}

impl Results {
    /// No results of `vmms` yet, of which ratios are those of the first.
    pub fn new(vmms: Vec<String>) -> Self {
        Self {
            vmms,
            records: Vec::new(),
        }
    }

    pub fn add(&mut self, record: Record) {
        self.records.push(record);
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    fn cases(&self) -> Vec<&str> {
        distinct(self.records.iter().map(|record| record.case.as_str()))
    }

    fn vmms(&self) -> Vec<&str> {
        let measured = distinct(self.records.iter().map(|record| record.vmm.as_str()));
        let named = self.vmms.iter().map(String::as_str);
        let mut vmms: Vec<&str> = named.filter(|name| measured.contains(name)).collect();
        vmms.extend(
            measured
                .iter()
                .filter(|name| !self.vmms.iter().any(|n| n == *name)),
        );
        vmms
    }

    fn metrics(&self, case: &str) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for record in self.records.iter().filter(|r| r.case == case) {
            for name in record.values.keys() {
                if !names.contains(&name.as_str()) {
                    names.push(name);
                }
            }
        }
        names.sort_unstable();
        names
    }

    /// What a monitor has of a value in a case.
    pub fn summary(&self, case: &str, vmm: &str, metric: &str) -> Option<Summary> {
        let runs = self.records.iter();
        let values = runs
            .filter(|r| r.case == case && r.vmm == vmm)
            .filter_map(|r| r.values.get(metric).copied())
            .collect();
        Summary::of(values)
    }

    /// A table per case: a line per value, and per monitor its median, its range, and the first
    /// monitor's median divided by it.
    pub fn table(&self) -> String {
        let vmms = self.vmms();
        let mut text = String::new();
        for case in self.cases() {
            let mut rows = vec![vec![case.to_owned()]];
            for (number, vmm) in vmms.iter().enumerate() {
                rows[0].push((*vmm).to_owned());
                rows[0].push("min - max".to_owned());
                if number > 0 {
                    rows[0].push(format!("{}/{vmm}", vmms[0]));
                }
            }
            for metric in self.metrics(case) {
                let first = self.summary(case, vmms[0], metric);
                let mut row = vec![metric.to_owned()];
                for (number, vmm) in vmms.iter().enumerate() {
                    let summary = self.summary(case, vmm, metric);
                    row.push(
                        summary
                            .as_ref()
                            .map_or("-".into(), |s| number_text(s.median)),
                    );
                    row.push(summary.as_ref().map_or(String::new(), |s| {
                        format!("{} - {}", number_text(s.min), number_text(s.max))
                    }));
                    if number > 0 {
                        row.push(match (&first, &summary) {
                            (Some(a), Some(b)) if b.median != 0.0 => {
                                format!("{:.2}", a.median / b.median)
                            }
                            _ => String::new(),
                        });
                    }
                }
                rows.push(row);
            }
            text.push_str(&aligned(&rows));
            text.push('\n');
        }
        text
    }

    /// The same for programs: case, metric, monitor, summary.
    pub fn json(&self) -> serde_json::Value {
        let mut cases = serde_json::Map::new();
        for case in self.cases() {
            let mut metrics = serde_json::Map::new();
            for metric in self.metrics(case) {
                let mut by_vmm = serde_json::Map::new();
                for vmm in self.vmms() {
                    if let Some(summary) = self.summary(case, vmm, metric) {
                        by_vmm.insert(vmm.to_owned(), serde_json::json!(summary));
                    }
                }
                metrics.insert(metric.to_owned(), by_vmm.into());
            }
            cases.insert(case.to_owned(), metrics.into());
        }
        cases.into()
    }
}

fn distinct<'a>(all: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut names = Vec::new();
    for name in all {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Three or four digits that mean something.
pub fn number_text(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

/// Rows in columns: the first to the left, the others to the right.
pub fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            let _ = match column {
                0 => write!(line, "{cell:<width$}"),
                _ => write!(line, "  {cell:>width$}"),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(vmm: &str, value: f64) -> Record {
        Record {
            case: "boot".into(),
            vmm: vmm.into(),
            values: [("init [s]".to_owned(), value)].into(),
        }
    }

    #[test]
    fn medians_ranges_and_ratios() {
        let mut results = Results::new(vec!["ours".into()]);
        for value in [1.0, 9.0, 2.0] {
            results.add(record("theirs", value * 4.0));
            results.add(record("ours", value));
        }
        assert_eq!(
            results.table(),
            "boot      ours    min - max  theirs    min - max  ours/theirs\n\
             init [s]  2.00  1.00 - 9.00    8.00  4.00 - 36.0         0.25\n\n"
        );
        let json = results.json();
        assert_eq!(json["boot"]["init [s]"]["ours"]["median"], 2.0);
        assert_eq!(json["boot"]["init [s]"]["theirs"]["values"][1], 36.0);
    }

    #[test]
    fn what_was_not_measured_is_left_open() {
        let mut results = Results::new(Vec::new());
        results.add(record("ours", 1.0));
        let mut other = record("theirs", 1.0);
        other.values = [("shell [s]".to_owned(), 3.0)].into();
        results.add(other);
        let table = results.table();
        let line = table.lines().find(|l| l.starts_with("shell")).unwrap();
        assert_eq!(line.split_whitespace().nth(2), Some("-"));
    }
}
