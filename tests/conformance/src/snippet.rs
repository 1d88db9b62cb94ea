//! Cases as text, with what must come out.
//!
//! ```text
//!   # addss: an overflow that nobody masked
//!   code f3 0f 58 c1
//!   in xmm0=7f7fffff xmm1=7f7fffff mxcsr=1b80
//!   out mxcsr=1b88
//!   fault 13
//! ```
//!
//! - `code`: bytes in hexadecimal.
//! - `bits`: 32 for code of that kind.
//! - `start`: offset of the first instruction, if it is not the first byte.
//! - `in`, `out`: registers (general ones, `rip`, `rflags`, `fcw`, `fsw`, `ftw`, `mxcsr`, `st0` to
//!   `st7`, `xmm0` to `xmm15`, `ymmh0` to `ymmh15` for the upper halves) and `mem+offset` as
//!   little-endian numbers in hexadecimal. What `in` does not name is as [`Registers::new`] has
//!   it, what `out` does not name is as before; RIP is behind the code, or where the fault was.
//! - `fault`: vector, and where there are any, error code and address, in hexadecimal.
//! - `undefined`: flags in hexadecimal that need not agree.
//! - A blank line ends a snippet; a line with `#` above it is its name.

use anyhow::{Context, bail, ensure};
use iced_x86::{Decoder, DecoderOptions, FlowControl};
use processor::classify;

use crate::case::{NAMES, hex};
use crate::{Backend, CODE, Case, DATA_LEN, Fault, Outcome, Registers};

/// A case with what must come out.
pub struct Snippet {
    /// Its first comment.
    pub name: String,
    /// What runs.
    pub case: Case,
    /// What comes out.
    pub expected: Outcome,
    /// Flags that do not count.
    pub undefined: u64,
}

/// The files of snippets.
const FILES: &[&str] = &[
    include_str!("../snippets/bits.txt"),
    include_str!("../snippets/control.txt"),
    include_str!("../snippets/faults.txt"),
    include_str!("../snippets/found.txt"),
    include_str!("../snippets/integers.txt"),
    include_str!("../snippets/strings.txt"),
    include_str!("../snippets/vectors.txt"),
    include_str!("../snippets/x87.txt"),
];

/// All snippets that there are.
///
/// # Errors
/// One of the files is wrong.
pub fn all() -> anyhow::Result<Vec<Snippet>> {
    let mut all = Vec::new();
    for text in FILES {
        all.append(&mut parse(text)?);
    }
    Ok(all)
}

/// Runs every snippet so many times and reports those that give something else. The second time
/// finds code and memory as the first has left them: translated, and in the soft TLB.
pub fn failures(backend: &mut dyn Backend, times: u32) -> Vec<String> {
    let all = match all() {
        Ok(all) => all,
        Err(error) => return vec![format!("{error:#}")],
    };
    let mut out = Vec::new();
    let features = backend.features();
    for one in all {
        // Whatever a backend lacks, undefined instructions are undefined there too.
        let lacks = one.expected.fault.is_none_or(|f| f.vector != 6)
            && Decoder::with_ip(one.case.bits(), &one.case.code, CODE, DecoderOptions::NONE)
                .iter()
                .any(|i| !classify::has_features(&features, i.code()));
        if lacks {
            continue;
        }
        if jumps_nowhere(&one) && !backend.exact_jumps() {
            continue;
        }
        for _ in 0..times {
            let got = backend.run(&one.case);
            let differences = one.expected.differences(&got, one.undefined);
            if !differences.is_empty() {
                out.push(format!(
                    "{}\n  expected / {}:\n  {}",
                    one.name,
                    backend.name(),
                    differences.join("\n  ")
                ));
            }
        }
    }
    out
}

/// Whether it ends with a jump to an address that is not canonical.
fn jumps_nowhere(one: &Snippet) -> bool {
    let at = one.expected.registers.rip.wrapping_sub(CODE) as usize;
    let code = one.case.code.get(at..).unwrap_or_default();
    let i = Decoder::with_ip(one.case.bits(), code, CODE, DecoderOptions::NONE).decode();
    let indirect = matches!(
        i.flow_control(),
        FlowControl::IndirectBranch | FlowControl::IndirectCall | FlowControl::Return
    );
    indirect && one.expected.fault.is_some_and(|f| f.vector == 13)
}

/// All snippets of a text.
///
/// # Errors
/// Names the line that says nothing known.
pub fn parse(text: &str) -> anyhow::Result<Vec<Snippet>> {
    let mut all = Vec::new();
    for block in text.split("\n\n") {
        let lines = block.lines().map(str::trim).filter(|l| !l.is_empty());
        if lines.clone().all(|l| l.starts_with('#')) {
            continue;
        }
        all.push(parse_one(lines).with_context(|| block.to_owned())?);
    }
    Ok(all)
}

fn parse_one<'a>(lines: impl Iterator<Item = &'a str>) -> anyhow::Result<Snippet> {
    let mut name = String::new();
    let mut case = Case::new();
    let (mut out, mut fault, mut undefined) = (Vec::new(), None, 0);
    for line in lines {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "#" if name.is_empty() => rest.clone_into(&mut name),
            "#" => {}
            "code" => {
                let digits: String = rest.split_whitespace().collect();
                case.code = bytes(&digits)?;
            }
            "bits" => {
                case.code32 = match rest {
                    "32" => true,
                    "64" => false,
                    _ => bail!("code has 32 or 64 bits"),
                }
            }
            "start" => case.registers.rip = CODE + number(rest)?,
            "in" => {
                for item in rest.split_whitespace() {
                    set(&mut case.registers, &mut case.memory, item)?;
                }
            }
            "out" => out.extend(rest.split_whitespace()),
            "undefined" => undefined = number(rest)?,
            "fault" => {
                let mut numbers = rest.split_whitespace().map(number);
                let mut next = || numbers.next().unwrap_or(Ok(0));
                fault = Some(Fault {
                    vector: next()? as u8,
                    error: next()? as u32,
                    address: next()?,
                });
            }
            _ => bail!("\"{line}\" begins with nothing known"),
        }
    }
    ensure!(!case.code.is_empty(), "there is no code");
    let mut registers = case.registers.clone();
    let mut memory = case.memory.clone();
    if fault.is_none() {
        registers.rip = CODE + case.code.len() as u64;
    }
    for item in out {
        set(&mut registers, &mut memory, item)?;
    }
    registers.normalize();
    Ok(Snippet {
        name,
        case,
        expected: Outcome {
            registers,
            memory,
            fault,
        },
        undefined,
    })
}

fn number(text: &str) -> anyhow::Result<u64> {
    u64::from_str_radix(text.trim(), 16).with_context(|| format!("\"{text}\" is no number"))
}

fn bytes(digits: &str) -> anyhow::Result<Vec<u8>> {
    ensure!(digits.len().is_multiple_of(2), "half a byte");
    (0..digits.len() / 2)
        .map(|n| {
            let pair = digits.get(2 * n..2 * n + 2).unwrap_or_default();
            u8::from_str_radix(pair, 16).with_context(|| format!("\"{pair}\" is no byte"))
        })
        .collect()
}

/// The parts of the XSAVE area that have names.
fn parts() -> impl Iterator<Item = (String, std::ops::Range<usize>)> {
    let single = [
        ("fcw", 0..2),
        ("fsw", 2..4),
        ("ftw", 4..5),
        ("mxcsr", 24..28),
    ];
    let single = single.into_iter().map(|(n, r)| (n.to_owned(), r));
    let st = (0..8).map(|n| (format!("st{n}"), 32 + 16 * n..42 + 16 * n));
    let xmm = (0..16).map(|n| (format!("xmm{n}"), 160 + 16 * n..176 + 16 * n));
    let high = (0..16).map(|n| (format!("ymmh{n}"), 576 + 16 * n..592 + 16 * n));
    single.chain(st).chain(xmm).chain(high)
}

fn set(registers: &mut Registers, memory: &mut [u8; DATA_LEN], item: &str) -> anyhow::Result<()> {
    let (name, value) = item.split_once('=').context("an item has no value")?;
    if let Some(n) = NAMES.iter().position(|known| *known == name) {
        registers.gpr[n] = number(value)?;
    } else if name == "rip" {
        registers.rip = number(value)?;
    } else if name == "rflags" {
        registers.rflags = number(value)?;
    } else if let Some(offset) = name.strip_prefix("mem+") {
        let offset = number(offset)? as usize;
        let value = bytes(&format!(
            "{}{value}",
            if value.len() % 2 == 1 { "0" } else { "" }
        ))?;
        let place = memory
            .get_mut(offset..offset + value.len())
            .context("beyond the data")?;
        for (to, from) in place.iter_mut().zip(value.iter().rev()) {
            *to = *from;
        }
    } else if let Some((_, range)) = parts().find(|(known, _)| known == name) {
        let digits = format!("{value:0>width$}", width = 2 * range.len());
        let value = bytes(&digits)?;
        ensure!(value.len() == range.len(), "{name} is not that long");
        for (to, from) in registers.fpu[range].iter_mut().zip(value.iter().rev()) {
            *to = *from;
        }
    } else {
        bail!("there is no {name}");
    }
    Ok(())
}

/// What differs between two states, as items.
fn items(
    (from, from_memory): (&Registers, &[u8; DATA_LEN]),
    (to, to_memory): (&Registers, &[u8; DATA_LEN]),
) -> Vec<String> {
    let mut out = Vec::new();
    for (n, name) in NAMES.iter().enumerate() {
        if from.gpr[n] != to.gpr[n] {
            out.push(format!("{name}={:x}", to.gpr[n]));
        }
    }
    if (from.rflags ^ to.rflags) & Registers::FLAGS != 0 {
        out.push(format!("rflags={:x}", to.rflags));
    }
    for (name, range) in parts() {
        if from.fpu[range.clone()] != to.fpu[range.clone()] {
            out.push(format!("{name}={}", hex(&to.fpu[range])));
        }
    }
    let lanes = from_memory.chunks(8).zip(to_memory.chunks(8));
    for (n, (from, to)) in lanes.enumerate() {
        if from != to {
            out.push(format!("mem+{:x}={}", 8 * n, hex(to)));
        }
    }
    out
}

/// A case and what must come out, as text.
#[must_use]
pub fn write(case: &Case, expected: &Outcome, start: usize, undefined: u64) -> String {
    let mut default = Registers::new();
    default.normalize();
    let mut before = case.registers.clone();
    before.normalize();
    let nothing = Box::new([0; DATA_LEN]);
    let mut lines = Vec::new();
    let title = crate::compare::disassemble(case.bits(), &case.code, CODE);
    lines.push(format!("# {}", title.replace('\n', "; ")));
    let code: Vec<String> = case.code.iter().map(|b| format!("{b:02x}")).collect();
    lines.push(format!("code {}", code.join(" ")));
    if case.code32 {
        lines.push("bits 32".to_owned());
    }
    if start != 0 {
        lines.push(format!("start {start:x}"));
    }
    let input = items((&default, &nothing), (&before, &case.memory));
    let mut output = items(
        (&before, &case.memory),
        (&expected.registers, &expected.memory),
    );
    let rip = if expected.fault.is_some() {
        case.registers.rip
    } else {
        CODE + case.code.len() as u64
    };
    if expected.registers.rip != rip {
        output.push(format!("rip={:x}", expected.registers.rip));
    }
    for (word, items) in [("in", input), ("out", output)] {
        for line in items.chunks(4) {
            lines.push(format!("{word} {}", line.join(" ")));
        }
    }
    if let Some(fault) = expected.fault {
        lines.push(format!(
            "fault {:x} {:x} {:x}",
            fault.vector, fault.error, fault.address
        ));
    }
    if undefined != 0 {
        lines.push(format!("undefined {undefined:x}"));
    }
    lines.join("\n")
}
