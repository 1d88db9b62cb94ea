//! Work for a processor, the same on the host and in a guest: `cargo xtask bench cpu`.
//!
//! ```text
//!   cpu run NAME SECONDS          repeats a piece of work, and prints what one took
//!   cpu time SECONDS PROGRAM ...  the same with a program
//!   cpu data BYTES                bytes that are always the same, on standard output
//!   cpu source LINES              a C program of about so many lines that prints a number
//!   cpu list                      the names of all work
//! ```
//!
//! What is printed: a number that depends on all that was computed, seconds of a piece, pieces,
//! things in a piece (calls, bytes, ...), seconds in all. The number must be the same wherever it
//! runs, or the processor has computed something wrong. Time is that of the clock a program sees.
//!
//! | file        | work                                                             |
//! |-------------|------------------------------------------------------------------|
//! | `integer.rs`| branches, calls, arithmetic, short loads and stores              |
//! | `memory.rs` | dependent loads, copies                                          |
//! | `vector.rs` | doubles, SSE2, AVX2                                              |
//! | `programs.rs` | mixes that are like the well-known benchmarks                  |
//! | `system.rs` | what the kernel does for programs: calls, switches, processes, faults |
//! | `source.rs` | the C program                                                    |
//!
//! One static program built by `rustc` alone, so that the host and every guest run the same
//! instructions.

mod integer;
mod memory;
mod programs;
mod source;
mod system;
mod vector;

use std::error::Error;
use std::hint::black_box;
use std::io::Write;
use std::process::{Command, ExitCode, Stdio};
use std::sync::OnceLock;
use std::time::Instant;
use std::{env, io};

/// Does a piece of work and returns the number that stands for its result.
type Piece = Box<dyn FnMut() -> Result<u64, Box<dyn Error>>>;

/// A piece of work, and how many things it does.
struct Work {
    piece: Piece,
    things: f64,
}

impl Work {
    /// Work that cannot fail.
    fn new(mut piece: impl FnMut() -> u64 + 'static) -> Self {
        Self {
            piece: Box::new(move || Ok(piece())),
            things: 1.0,
        }
    }

    /// Work that counts `things` and needs the kernel's help.
    fn counted(things: u32, piece: impl FnMut() -> Result<u64, Box<dyn Error>> + 'static) -> Self {
        Self {
            piece: Box::new(piece),
            things: things.into(),
        }
    }
}

/// A name, and what prepares the work.
type Entry = (&'static str, fn() -> Result<Work, Box<dyn Error>>);

const ALL: [Entry; 25] = [
    ("collatz-crc", || Ok(integer::collatz_crc())),
    ("sha256", || Ok(integer::sha256())),
    ("quicksort", || Ok(integer::quicksort())),
    ("chase-32k", || Ok(memory::chase(32 << 10, 4_000_000))),
    ("chase-16m", || Ok(memory::chase(16 << 20, 400_000))),
    ("copy-1", || Ok(memory::copy::<u8>(8))),
    ("copy-8", || Ok(memory::copy::<u64>(64))),
    ("matmul", || Ok(vector::matmul())),
    ("parse", || Ok(integer::parse())),
    ("fib", || Ok(integer::fib())),
    ("bytecode", || Ok(programs::bytecode())),
    ("records", || Ok(programs::records())),
    ("embedded", || Ok(programs::embedded())),
    ("nbody", || Ok(vector::nbody())),
    ("sse2", || Ok(vector::sse2())),
    ("avx2", vector::avx2),
    ("memcpy", || Ok(memory::memcpy())),
    ("getppid", || Ok(system::getppid())),
    ("pipe", || system::pipe(false)),
    ("fork-exec", || Ok(system::fork_exec())),
    ("faults", || Ok(system::faults())),
    ("two-loops", system::two_loops),
    ("two-atomic", system::two_atomic),
    ("two-pipe", || system::pipe(true)),
    ("two-futex", system::two_futex),
];

/// When this program began.
static BEGIN: OnceLock<Instant> = OnceLock::new();

fn main() -> ExitCode {
    BEGIN.get_or_init(Instant::now);
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<(), Box<dyn Error>> {
    match words {
        ["run", name, seconds] => {
            let entry = ALL.iter().find(|(known, _)| known == name);
            let (_, prepare) = entry.ok_or("there is no such work")?;
            let Work { mut piece, things } = prepare()?;
            // One that fills caches and is not counted.
            let first = piece()?;
            measure(seconds.parse()?, things, Some(first), &mut *piece)
        }
        ["time", seconds, program, arguments @ ..] => {
            let mut command = Command::new(program);
            command
                .args(arguments)
                .stdin(Stdio::null())
                .stdout(Stdio::null());
            measure(seconds.parse()?, 1.0, None, &mut || {
                let status = command.status()?;
                if status.success() {
                    Ok(0)
                } else {
                    Err(format!("{program} ended with {status}").into())
                }
            })
        }
        ["data", bytes] => {
            let mut random = Random::new(1);
            let data: Vec<u8> = (0..bytes.parse()?).map(|_| random.byte()).collect();
            Ok(io::stdout().write_all(&data)?)
        }
        ["source", lines] => {
            print!("{}", source::program(lines.parse()?));
            Ok(())
        }
        ["list"] => {
            for (name, _) in ALL {
                println!("{name}");
            }
            Ok(())
        }
        // What the work "fork-exec" executes.
        ["nothing"] => Ok(()),
        _ => Err("run NAME SECONDS | time SECONDS PROGRAM ... | data BYTES | source LINES".into()),
    }
}

/// Repeats a piece for at least `seconds`, and compares results with each other and with `first`.
fn measure(
    seconds: f64,
    things: f64,
    first: Option<u64>,
    piece: &mut dyn FnMut() -> Result<u64, Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    let begin = Instant::now();
    let mut number = first;
    let mut pieces = 0_u32;
    let taken = loop {
        let result = black_box(piece()?);
        pieces += 1;
        let known = *number.get_or_insert(result);
        if result != known {
            return Err(format!("first the result is {known:x}, then {result:x}").into());
        }
        let taken = begin.elapsed().as_secs_f64();
        if taken >= seconds {
            break taken;
        }
    };
    let number = number.unwrap_or(0);
    let each = taken / f64::from(pieces);
    let all = BEGIN
        .get()
        .map_or(0.0, |begin| begin.elapsed().as_secs_f64());
    println!("{number:016x} {each:.9} {pieces} {things} {all:.3}");
    Ok(())
}

/// Numbers that look random and are always the same (xorshift64*, Vigna 2016).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[7]
    }

    /// Below `limit`.
    fn below(&mut self, limit: usize) -> usize {
        ((self.next() >> 32) as usize * limit) >> 32
    }
}

/// Adds a number to a result so that order and value count.
fn mix(result: u64, number: u64) -> u64 {
    (result.rotate_left(5) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
