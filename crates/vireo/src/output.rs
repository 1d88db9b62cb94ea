//! Standard output: text, tables, JSON.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Arg, ArgMatches, builder::PossibleValuesParser};

use crate::failure::{Failure, Result};

/// Columns of a line of text.
pub(crate) const WIDTH: usize = 100;

/// Writes all of `text`. A reader that has seen enough (`| head`) is no error.
pub(crate) fn print(text: &str) -> Result<ExitCode> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Failed(format!(
            "cannot write to standard output: {e}"
        ))),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Writes JSON for people and programs.
pub(crate) fn print_json(value: &serde_json::Value) -> Result<ExitCode> {
    print(&format!("{value:#}\n"))
}

/// The option that chooses between the two.
pub(crate) fn format_option() -> Arg {
    Arg::new("output")
        .long("output")
        .short('o')
        .value_name("FORMAT")
        .value_parser(PossibleValuesParser::new(["table", "json"]))
        .default_value("table")
        .help("How to print it")
}

/// Whether JSON was asked for.
pub(crate) fn wants_json(matches: &ArgMatches) -> bool {
    matches
        .get_one::<String>("output")
        .is_some_and(|format| format == "json")
}

/// Lays out rows in columns as wide as their widest cell; the last one is wrapped at
/// [`WIDTH`].
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let indent = widths.iter().rev().skip(1).map(|w| w + 2).sum::<usize>();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            if column + 1 == columns {
                for (i, part) in wrap(cell, WIDTH.saturating_sub(indent)).iter().enumerate() {
                    if i > 0 {
                        line.push('\n');
                        line.push_str(&" ".repeat(indent));
                    }
                    line.push_str(part);
                }
            } else {
                line.push_str(&format!("{cell:width$}  ", width = widths[column]));
            }
        }
        for part in line.lines() {
            text.push_str(part.trim_end());
            text.push('\n');
        }
    }
    text
}

/// A space at which [`wrap`] does not break.
pub(crate) const TIED: char = '\u{a0}';

/// Breaks text at spaces into lines of at most `width` columns; a longer word has its own.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split([' ', '\n']).filter(|word| !word.is_empty()) {
        let line = match lines.last_mut() {
            Some(line)
                if line.is_empty() || line.chars().count() + 1 + word.chars().count() <= width =>
            {
                line
            }
            _ => {
                lines.push(String::new());
                match lines.last_mut() {
                    Some(line) => line,
                    None => continue,
                }
            }
        };
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines
        .into_iter()
        .map(|line| line.replace(TIED, " "))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_wrapped_at_spaces() {
        assert_eq!(wrap("a bc def", 4), ["a bc", "def"]);
        assert_eq!(wrap("abcdefgh i", 4), ["abcdefgh", "i"]);
        assert_eq!(wrap("a\u{a0}b cd", 4), ["a b", "cd"]);
        assert_eq!(wrap("", 4), [""]);
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            vec!["A".to_owned(), "B".to_owned()],
            vec!["long".to_owned(), "x y".to_owned()],
        ];
        assert_eq!(table(&rows), "A     B\nlong  x y\n");
    }
}
