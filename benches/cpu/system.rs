//! What the kernel does for programs: calls, switches between processes, new processes, memory.

use std::error::Error;
use std::ffi::{c_char, c_int, c_long, c_void};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::{io, ptr, thread};

use crate::Work;

type Anything = Box<dyn Error>;

// Of the C library that std is linked with.
unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn fork() -> c_int;
    fn execv(path: *const c_char, arguments: *const *const c_char) -> c_int;
    fn waitpid(process: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn _exit(status: c_int) -> !;
    fn pipe2(ends: *mut [c_int; 2], flags: c_int) -> c_int;
    fn read(file: c_int, buffer: *mut c_void, count: usize) -> isize;
    fn write(file: c_int, buffer: *const c_void, count: usize) -> isize;
    fn close(file: c_int) -> c_int;
    fn sched_getaffinity(process: c_int, size: usize, set: *mut Set) -> c_int;
    fn sched_setaffinity(process: c_int, size: usize, set: *const Set) -> c_int;
    fn mmap(
        address: *mut c_void,
        length: usize,
        protection: c_int,
        flags: c_int,
        file: c_int,
        offset: i64,
    ) -> *mut c_void;
    fn munmap(address: *mut c_void, length: usize) -> c_int;
    fn madvise(address: *mut c_void, length: usize, advice: c_int) -> c_int;
}

/// A set of processors, as the C library has it: 1,024 bits.
type Set = [u64; 16];

const SYS_GETPPID: c_long = 110;
const SYS_FUTEX: c_long = 202;
const FUTEX_WAIT_PRIVATE: c_int = 128;
const FUTEX_WAKE_PRIVATE: c_int = 129;
const PROT_READ_WRITE: c_int = 3;
const MAP_PRIVATE_ANONYMOUS: c_int = 0x22;
const MADV_NOHUGEPAGE: c_int = 15;

fn checked(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// The shortest system call.
pub fn getppid() -> Work {
    const CALLS: u32 = 100_000;
    Work::counted(CALLS, || {
        // SAFETY: the call has no arguments and cannot fail.
        let parent = unsafe { syscall(SYS_GETPPID) };
        for _ in 1..CALLS {
            // SAFETY: as above.
            if unsafe { syscall(SYS_GETPPID) } != parent {
                return Err("the parent changed".into());
            }
        }
        Ok(CALLS.into())
    })
}

/// The processors that this process may use.
fn processors() -> io::Result<Vec<usize>> {
    let mut set = [0; 16];
    // SAFETY: the set has the size that is given.
    checked(unsafe { sched_getaffinity(0, size_of::<Set>(), &raw mut set) })?;
    let is_in = |cpu: &usize| set[cpu / 64] >> (cpu % 64) & 1 == 1;
    Ok((0..1024).filter(is_in).collect())
}

/// Lets this thread run nowhere else.
fn stay_on(cpu: usize) -> io::Result<()> {
    let mut set = [0; 16];
    set[cpu / 64] = 1 << (cpu % 64);
    // SAFETY: the set has the size that is given.
    checked(unsafe { sched_setaffinity(0, size_of::<Set>(), &raw const set) })?;
    Ok(())
}

fn two() -> Result<[usize; 2], Anything> {
    match processors()?[..] {
        [first, second, ..] => Ok([first, second]),
        _ => Err("skip: there is one processor".into()),
    }
}

struct Pipe {
    reading: c_int,
    writing: c_int,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let mut ends = [0; 2];
        // SAFETY: room for both ends.
        checked(unsafe { pipe2(&raw mut ends, 0) })?;
        let [reading, writing] = ends;
        Ok(Self { reading, writing })
    }

    /// The next byte, if there will be one.
    fn get(&self) -> Option<u8> {
        let mut byte = 0_u8;
        // SAFETY: room for one byte.
        let count = unsafe { read(self.reading, (&raw mut byte).cast(), 1) };
        (count == 1).then_some(byte)
    }

    fn put(&self, byte: u8) -> bool {
        // SAFETY: there is one byte.
        unsafe { write(self.writing, (&raw const byte).cast(), 1) == 1 }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        // SAFETY: both ends are this pipe's and used no more.
        unsafe {
            close(self.reading);
            close(self.writing);
        }
    }
}

/// Two processes send a byte to and fro: on one processor each byte is a switch.
pub fn pipe(on_two: bool) -> Result<Work, Anything> {
    const TRIPS: u32 = 4000;
    let [here, there] = if on_two {
        two()?
    } else {
        let first = *processors()?.first().ok_or("there is no processor")?;
        [first, first]
    };
    Ok(Work::counted(TRIPS * 2, move || {
        let (to, back) = (Pipe::new()?, Pipe::new()?);
        stay_on(here)?;
        // SAFETY: this process has one thread; the child only uses the pipes and ends.
        let child = checked(unsafe { fork() })?;
        if child == 0 {
            let mut is_well = stay_on(there).is_ok();
            for _ in 0..TRIPS {
                is_well = is_well && to.get().is_some_and(|byte| back.put(byte.wrapping_add(1)));
            }
            // SAFETY: nothing of the child has to be cleaned up.
            unsafe { _exit(c_int::from(!is_well)) };
        }
        let mut sum = 0_u64;
        for trip in 0..TRIPS {
            let byte = trip.to_le_bytes()[0];
            let answer = to.put(byte).then(|| back.get()).flatten();
            sum += u64::from(answer.ok_or("the other process is gone")?);
        }
        wait(child)?;
        Ok(sum)
    }))
}

/// Waits for a child to end well.
fn wait(child: c_int) -> Result<(), Anything> {
    let mut status = 0;
    // SAFETY: room for the status.
    checked(unsafe { waitpid(child, &raw mut status, 0) })?;
    if status != 0 {
        return Err(format!("a process ended with {status:#x}").into());
    }
    Ok(())
}

/// New processes that execute this static program, which ends at once.
pub fn fork_exec() -> Work {
    const PROCESSES: u32 = 30;
    Work::counted(PROCESSES, || {
        let path = c"/proc/self/exe".as_ptr();
        let arguments = [c"cpu".as_ptr(), c"nothing".as_ptr(), ptr::null()];
        for _ in 0..PROCESSES {
            // SAFETY: this process has one thread; the child executes a program or ends.
            let child = checked(unsafe { fork() })?;
            if child == 0 {
                // SAFETY: strings that end with a zero, and a list that ends with null.
                unsafe {
                    execv(path, arguments.as_ptr());
                    _exit(127);
                }
            }
            wait(child)?;
        }
        Ok(PROCESSES.into())
    })
}

/// First touches of pages of 4 KiB.
pub fn faults() -> Work {
    const PAGE: usize = 4096;
    const PAGES: u32 = 8192;
    const LENGTH: usize = PAGES as usize * PAGE;
    Work::counted(PAGES, || {
        // SAFETY: new memory wherever the kernel likes.
        let memory = unsafe {
            mmap(
                ptr::null_mut(),
                LENGTH,
                PROT_READ_WRITE,
                MAP_PRIVATE_ANONYMOUS,
                -1,
                0,
            )
        };
        if memory.addr() == usize::MAX {
            return Err(io::Error::last_os_error().into());
        }
        // SAFETY: advice about this memory; a kernel without huge pages refuses it, which is well.
        unsafe { madvise(memory, LENGTH, MADV_NOHUGEPAGE) };
        let mut sum = 0;
        for page in 0..PAGES as usize {
            // SAFETY: within the memory, which is zero at first.
            sum += unsafe {
                let byte = memory.cast::<u8>().add(page * PAGE);
                let old = byte.read_volatile();
                byte.write_volatile(1);
                u64::from(old) + u64::from(byte.read_volatile())
            };
        }
        // SAFETY: the memory is used no more.
        checked(unsafe { munmap(memory, LENGTH) })?;
        Ok(sum)
    })
}

/// Runs a function on two processors at once; both get the number of their turn.
fn on_two(
    cpus: [usize; 2],
    function: impl Fn(u64) -> Result<u64, Anything> + Clone + Send + 'static,
) -> Result<u64, Anything> {
    let threads = [0, 1].map(|turn: u64| {
        let function = function.clone();
        thread::spawn(move || {
            stay_on(cpus[turn as usize]).map_err(|e| e.to_string())?;
            function(turn).map_err(|e| e.to_string())
        })
    });
    let mut sum = 0_u64;
    for thread in threads {
        sum = sum.wrapping_add(thread.join().map_err(|_| "a thread failed")??);
    }
    Ok(sum)
}

/// Integer loops that have nothing to do with each other.
pub fn two_loops() -> Result<Work, Anything> {
    const LOOPS: u32 = 10_000_000;
    let cpus = two()?;
    Ok(Work::counted(LOOPS * 2, move || {
        on_two(cpus, |turn| {
            let mut number = black_box(turn);
            for _ in 0..LOOPS {
                number = number
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                number ^= number >> 29;
            }
            Ok(number)
        })
    }))
}

/// Both add to one number.
pub fn two_atomic() -> Result<Work, Anything> {
    const ADDITIONS: u32 = 500_000;
    let cpus = two()?;
    Ok(Work::counted(ADDITIONS * 2, move || {
        let number = Arc::new(AtomicU64::new(0));
        let shared = number.clone();
        on_two(cpus, move |_| {
            for _ in 0..ADDITIONS {
                shared.fetch_add(1, Ordering::Relaxed);
            }
            Ok(0)
        })?;
        Ok(number.load(Ordering::Relaxed))
    }))
}

/// Threads on two processors that wake each other up.
pub fn two_futex() -> Result<Work, Anything> {
    const TURNS: u32 = 2000;
    let cpus = two()?;
    Ok(Work::counted(TURNS * 2, move || {
        let word = Arc::new(AtomicU32::new(0));
        on_two(cpus, move |turn| {
            for round in 0..TURNS {
                // Even numbers are the first thread's turn, odd ones the second's.
                let mine = round * 2 + turn as u32;
                loop {
                    let now = word.load(Ordering::Acquire);
                    if now == mine {
                        break;
                    }
                    let address = word.as_ptr();
                    let no_time = ptr::null::<c_void>();
                    // SAFETY: the word lives as long as both threads.
                    unsafe { syscall(SYS_FUTEX, address, FUTEX_WAIT_PRIVATE, now, no_time) };
                }
                word.store(mine + 1, Ordering::Release);
                // SAFETY: as above.
                unsafe { syscall(SYS_FUTEX, word.as_ptr(), FUTEX_WAKE_PRIVATE, 1) };
            }
            Ok(TURNS.into())
        })
    }))
}
