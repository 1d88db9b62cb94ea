//! What a box prints, taken apart.

use std::io::{self, Write};

/// A line that the box's script prints before and after a unit.
pub const MARK: &str = "guest-tests: unit";

/// How a unit ended, as far as the box could say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// The unit's number in its batch.
    pub unit: usize,
    /// Exit status; none if the box ended first.
    pub status: Option<u8>,
    /// From the test programs' summaries.
    pub passed: u64,
    pub failed: u64,
    /// All that it printed.
    pub text: Vec<u8>,
}

/// Splits a batch's output at its marks, and adds up the summaries of the test programs. Each
/// unit's text is passed on when it is complete, so that two boxes do not mix theirs.
pub struct Counter<W> {
    out: W,
    line: Vec<u8>,
    pub verdicts: Vec<Verdict>,
}

impl<W: Write> Counter<W> {
    pub fn new(out: W) -> Self {
        Self {
            out,
            line: Vec::new(),
            verdicts: Vec::new(),
        }
    }

    /// Passes on what a unit that did not end has printed.
    pub fn finish(&mut self) -> io::Result<()> {
        if let Some(last) = self.verdicts.last_mut()
            && last.status.is_none()
        {
            last.text.append(&mut self.line);
            self.out.write_all(&last.text)?;
        }
        self.out.flush()
    }

    fn end_of_line(&mut self) -> io::Result<()> {
        let bytes = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&bytes);
        if let Some(mark) = line.trim_end().strip_prefix(MARK) {
            let numbers: Vec<usize> = mark
                .split_whitespace()
                .filter_map(|word| word.parse().ok())
                .collect();
            match (numbers.as_slice(), self.verdicts.last_mut()) {
                (&[unit], _) => self.verdicts.push(Verdict {
                    unit,
                    ..Verdict::default()
                }),
                (&[_, status], Some(last)) => {
                    last.status = Some(u8::try_from(status).unwrap_or(u8::MAX));
                    self.out.write_all(&last.text)?;
                    self.out.flush()?;
                }
                _ => {}
            }
            return Ok(());
        }
        let Some(unit) = self.verdicts.last_mut() else {
            return self.out.write_all(&bytes);
        };
        unit.text.extend_from_slice(&bytes);
        if let Some(summary) = line.trim().strip_prefix("test result: ") {
            unit.add(summary);
        }
        Ok(())
    }
}

impl Verdict {
    /// "ok. 3 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out; ..."
    fn add(&mut self, summary: &str) {
        let words: Vec<&str> = summary
            .split([' ', ';', '.'])
            .filter(|word| !word.is_empty())
            .collect();
        for pair in words.windows(2) {
            let count = pair[0].parse().unwrap_or(0);
            match pair[1] {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                _ => {}
            }
        }
    }
}

impl<W: Write> Write for Counter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for &byte in bytes {
            self.line.push(byte);
            if byte == b'\n' {
                self.end_of_line()?;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_told_apart_however_their_output_comes() {
        let mut counter = Counter::new(Vec::new());
        let text = format!(
            "{MARK} 0\ntest a ... ok\n\ntest result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; \
             2 filtered out; finished in 1.20s\n{MARK} 0 0\n{MARK} 4\ntest b ... FAILED\n\
             test result: FAILED. 10 passed; 4 failed; 0 ignored\n{MARK} 4 101\n{MARK} 5\ntest c"
        );
        for piece in text.as_bytes().chunks(7) {
            counter.write_all(piece).unwrap();
        }
        counter.finish().unwrap();
        let verdicts: Vec<_> = counter
            .verdicts
            .iter()
            .map(|v| (v.unit, v.status, v.passed, v.failed))
            .collect();
        assert_eq!(
            verdicts,
            [(0, Some(0), 3, 0), (4, Some(101), 10, 4), (5, None, 0, 0)]
        );
        let shown = String::from_utf8(counter.out).unwrap();
        assert!(!shown.contains(MARK), "{shown}");
        assert!(shown.starts_with("test a") && shown.ends_with("test c"));
    }
}
