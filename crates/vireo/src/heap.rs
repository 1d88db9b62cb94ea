//! Keeps the process small.
#![allow(
    unsafe_code,
    reason = "two calls of the C library's allocator settings, and advice about the program's own mappings"
)]

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

/// Mappings that are smaller than this are not the guest's RAM, which never has less.
const SMALL: usize = 16 << 20;

/// One heap for all threads. glibc otherwise makes one for each thread, up to eight for each
/// processor, and what is freed in one is of no use to the others. Our threads do not allocate
/// while they serve the guest, so they do not contend for it. Call it before any thread starts.
pub(crate) fn keep_small() {
    // SAFETY: mallopt takes plain numbers and may be called at any time.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Gives back to the host what is free in the heap: the command line's parser and the texts of
/// its help, before the machine that lives for long.
pub(crate) fn give_back() {
    // SAFETY: malloc_trim takes a plain number and touches only free memory.
    unsafe { libc::malloc_trim(0) };
}

/// The mappings of the program and its libraries.
pub(crate) struct Program {
    /// Lines of /proc/self/maps.
    mappings: Vec<String>,
}

impl Program {
    /// Looks at what is mapped now, and asks for no huge pages for heap and stacks: of 2 MiB they
    /// would use a few KiB. Call it when all threads are there that live for long, and none of
    /// them loads a library: what is mapped only for the time of loading is not the program's.
    pub(crate) fn look() -> Self {
        let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
        for mapping in maps.lines().filter_map(Mapping::parse) {
            if mapping.is_heap_or_stack() {
                mapping.advise(libc::MADV_NOHUGEPAGE);
            }
        }
        let is_program = |line: &&str| Mapping::parse(line).is_some_and(|m| m.is_program());
        Self {
            mappings: maps.lines().filter(is_program).map(str::to_owned).collect(),
        }
    }

    /// Gives back code and constants, of which the most were only needed until now: parsers, help,
    /// loaders, relocations. What is needed comes back from the page cache when it is used, a few
    /// pages at a time.
    pub(crate) fn give_back(&self) {
        give_back();
        let Ok(maps) = fs::read_to_string("/proc/self/maps") else {
            return;
        };
        let Ok(pages) = File::open("/proc/self/pagemap") else {
            return;
        };
        let still_there = maps
            .lines()
            .filter(|line| self.mappings.iter().any(|known| known == line));
        for mapping in still_there.filter_map(Mapping::parse) {
            if matches!(mapping.is_as_in_file(&pages), Ok(true)) {
                mapping.advise(libc::MADV_DONTNEED);
            }
        }
    }
}

/// A line of /proc/PID/maps (proc(5)).
#[derive(Debug, PartialEq, Eq)]
struct Mapping<'a> {
    start: usize,
    length: usize,
    permissions: &'a str,
    /// Empty where there is none.
    name: &'a str,
}

impl<'a> Mapping<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let permissions = fields.next()?;
        let start = usize::from_str_radix(start, 16).ok()?;
        let end = usize::from_str_radix(end, 16).ok()?;
        Some(Self {
            start,
            length: end.checked_sub(start)?,
            permissions,
            name: fields.nth(3).unwrap_or_default(),
        })
    }

    fn is_program(&self) -> bool {
        matches!(self.permissions, "r-xp" | "r--p") && self.name.starts_with('/')
    }

    fn is_heap_or_stack(&self) -> bool {
        self.permissions == "rw-p"
            && self.length < SMALL
            && matches!(self.name, "" | "[heap]" | "[stack]")
    }

    /// Whether no page is the process's own: what was relocated or has a breakpoint differs from
    /// the file. By the bits of /proc/PID/pagemap (proc(5)): 63 present, 62 swapped, 61 of a file.
    fn is_as_in_file(&self, pagemap: &File) -> io::Result<bool> {
        const ENTRY: usize = size_of::<u64>();
        // SAFETY: takes a plain number and returns one.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let page = usize::try_from(page).map_err(io::Error::other)?;
        let mut entries = vec![0; self.length / page * ENTRY];
        pagemap.read_exact_at(&mut entries, (self.start / page * ENTRY) as u64)?;
        let (entries, _) = entries.as_chunks::<ENTRY>();
        Ok(entries.iter().all(|entry| {
            matches!(
                u64::from_ne_bytes(*entry) >> 61,
                // Not there, or there and of a file.
                0b000 | 0b001 | 0b101
            )
        }))
    }

    fn advise(&self, advice: libc::c_int) {
        // SAFETY: called with MADV_NOHUGEPAGE, which changes no content, or with MADV_DONTNEED for
        // a private mapping of a file that nobody can write and whose pages are all as the file has
        // them, so that they can be had from it again. That also holds for the page that this very
        // code is on.
        unsafe { libc::madvise(self.start as *mut libc::c_void, self.length, advice) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_and_constants_of_files_are_the_program() {
        let line = "55d0c000-55d0e000 r-xp 00002000 08:01 123 /usr/bin/vireo";
        let mapping = Mapping::parse(line).unwrap();
        assert_eq!((mapping.start, mapping.length), (0x55d0_c000, 0x2000));
        for (line, is_program, is_heap_or_stack) in [
            (line, true, false),
            (
                "1000-2000 r--p 00002000 08:01 123 /usr/bin/vireo",
                true,
                false,
            ),
            (
                "1000-2000 rw-p 00002000 08:01 123 /usr/bin/vireo",
                false,
                false,
            ),
            ("1000-2000 r-xp 00000000 00:00 0 [vdso]", false, false),
            ("1000-2000 r-xp 00000000 00:00 0", false, false),
            ("1000-2000 rw-p 00000000 00:00 0", false, true),
            ("1000-2000 rw-p 00000000 00:00 0 [heap]", false, true),
            ("1000-10001000 rw-p 00000000 00:00 0", false, false),
        ] {
            let mapping = Mapping::parse(line).unwrap();
            assert_eq!(mapping.is_program(), is_program, "{line}");
            assert_eq!(mapping.is_heap_or_stack(), is_heap_or_stack, "{line}");
        }
        assert_eq!(Mapping::parse(""), None);
        assert_eq!(Mapping::parse("2000-1000 r-xp"), None);
    }

    #[test]
    fn what_was_relocated_is_not_as_in_the_file() {
        // References are relocated when the program is loaded.
        static RELOCATED: [&[u8]; 2] = [b"one", b"two"];
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let as_in_file = |address: usize| {
            maps.lines()
                .filter_map(Mapping::parse)
                .find(|m| (m.start..m.start + m.length).contains(&address))
                .unwrap()
                .is_as_in_file(&pagemap)
                .unwrap()
        };
        let code = what_was_relocated_is_not_as_in_the_file as fn() as usize;
        assert!(as_in_file(code));
        assert!(!as_in_file(RELOCATED.as_ptr() as usize));
    }

    #[test]
    fn the_program_goes_on() {
        let program = Program::look();
        assert!(!program.mappings.is_empty());
        program.give_back();
        program.give_back();
        assert_eq!(format!("still {}", 10), "still 10");
    }
}
