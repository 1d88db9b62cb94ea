//! Keeps the process small.
#![allow(
    unsafe_code,
    reason = "two calls of the C library's allocator settings, and advice about the program's own code"
)]

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

/// Gives back the code that only the start needed: parsers, help, loaders. The pages of code
/// that the guest needs come back from the page cache when they are run, a few at a time.
pub(crate) fn give_back_program() {
    give_back();
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else {
        return;
    };
    for (start, length) in maps.lines().filter_map(code) {
        // SAFETY: the range is a private mapping of a file that is readable and executable and
        // was never written to, so that every page of it can be had from the file again. That
        // also holds for the page that this very code is on.
        unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
    }
}

/// Address and length of a mapping of a file's code; `None` for every other line of
/// /proc/PID/maps (proc(5)).
fn code(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let is_code = fields.next()? == "r-xp";
    let is_file = fields.nth(3).is_some_and(|path| path.starts_with('/'));
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    (is_code && is_file).then_some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_is_given_back() {
        let line = "55d0c000-55d0e000 r-xp 00002000 08:01 123 /usr/bin/vireo";
        assert_eq!(code(line), Some((0x55d0_c000, 0x2000)));
        for line in [
            "55d0c000-55d0e000 r--p 00002000 08:01 123 /usr/bin/vireo",
            "55d0c000-55d0e000 rw-p 00002000 08:01 123 /usr/bin/vireo",
            "7ffc0000-7ffc2000 r-xp 00000000 00:00 0 [vdso]",
            "7ffc0000-7ffc2000 r-xp 00000000 00:00 0",
            "",
        ] {
            assert_eq!(code(line), None, "{line}");
        }
        // And the program goes on.
        give_back_program();
        assert_eq!("still here".len(), 10);
    }
}
