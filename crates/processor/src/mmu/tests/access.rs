use std::sync::Mutex;

use proptest::prelude::*;

use super::*;
use crate::ram::CodeWatch;
use crate::stop::{Access, DeviceRequest, Exception, Stop};

pub(super) const LINEAR: u64 = 0xffff_8000_0020_0000;

fn flat() -> Bench {
    let mut b = Bench::new(256 << 10);
    b.flat();
    b
}

/// Two neighbouring pages at [`LINEAR`], mapped to 0x9000 and 0x20000.
pub(super) fn two_pages() -> Bench {
    let mut b = Bench::new(256 << 10);
    b.long(TABLES[0], 0);
    b.map_page(LINEAR, 0x9000, pte::ALL, pte::ALL);
    b.map_page(LINEAR + 0x1000, 0x2_0000, pte::ALL, pte::ALL);
    b
}

pub(super) fn page_fault<T>(got: Result<T, Stop>) -> Option<(u64, u32)> {
    match got {
        Err(Stop::Exception(e)) if e.vector == Exception::PF => {
            Some((e.payload, e.error_code.unwrap_or(u32::MAX)))
        }
        _ => None,
    }
}

#[test]
fn a_word_across_pages_is_put_together_from_both() {
    let mut b = two_pages();
    for offset in 0xff8..0x1001 {
        let at = LINEAR + offset;
        let value = 0x8877_6655_4433_2211 ^ offset;
        b.cpu.write(&mut b.p, at, value, As::Current).unwrap();
        assert_eq!(b.cpu.read::<u64>(&mut b.p, at, As::Current), Ok(value));
        for n in 0..8 {
            let byte = offset + n;
            let physical = if byte < 0x1000 {
                0x9000 + byte
            } else {
                0x2_0000 + byte - 0x1000
            };
            assert_eq!(b.peek(physical) as u8, (value >> (8 * n)) as u8);
        }
    }
}

#[test]
fn a_fault_on_the_second_page_leaves_the_first_as_it_was() {
    let mut b = two_pages();
    b.poke(0x9ff8, u64::MAX);
    let second = entries(LINEAR + 0x1000)[3];
    let at = LINEAR + 0xffd;
    b.poke(second, 0x2_0000 | pte::P | pte::U);
    b.cpu.cr0 |= cr0::WP;
    let got = b.cpu.write(&mut b.p, at, 0u64, As::Current);
    assert_eq!(page_fault(got), Some((LINEAR + 0x1000, 3)));
    let got = b
        .cpu
        .write_bytes(&mut b.p, LINEAR + 0xff8, &[0; 16], As::Current);
    assert_eq!(page_fault(got), Some((LINEAR + 0x1000, 3)));
    let got = b.cpu.update(&mut b.p, at, true, &mut |v: u32| v + 1);
    assert_eq!(page_fault(got), Some((LINEAR + 0x1000, 3)));
    assert_eq!(b.peek(0x9ff8), u64::MAX);
    assert!(b.cpu.read::<u64>(&mut b.p, at, As::Current).is_ok());
    assert!(
        b.cpu
            .probe(LINEAR, 0x1000, Access::Write, As::Current)
            .is_ok()
    );
    assert!(
        b.cpu
            .probe(LINEAR, 0x1001, Access::Write, As::Current)
            .is_err()
    );
}

#[test]
fn the_last_and_the_first_linear_address_are_found_and_never_by_chance() {
    let mut b = Bench::new(256 << 10);
    b.long(TABLES[0], 0);
    let never = b.cpu.read::<u8>(&mut b.p, u64::MAX, As::Current);
    assert_eq!(page_fault(never), Some((u64::MAX, 0)));
    let never = b.cpu.read::<u8>(&mut b.p, 0, As::Current);
    assert_eq!(page_fault(never), Some((0, 0)));
    for entry in b.cpu.tlb.as_flattened().iter().take(TLB_ENTRIES) {
        assert_eq!(entry.read & 0xfff, 0);
    }
    b.map_page(!0xfff, 0x9000, pte::ALL, pte::ALL);
    b.poke(0x9ff8, 0x42 << 56);
    assert_eq!(b.cpu.read::<u8>(&mut b.p, u64::MAX, As::Current), Ok(0x42));
}

#[test]
fn an_empty_slot_matches_nothing_that_begins_in_it() {
    let b = Bench::new(256 << 10);
    for view in b.cpu.tlb.iter() {
        for (at, entry) in view.iter().enumerate() {
            assert_eq!(*entry, TlbEntry::never(at));
            for tag in [entry.read, entry.write] {
                // An access may begin in the page before, and end in the tag's.
                assert_ne!(slot(tag), at);
                assert_ne!(slot(tag.wrapping_sub(4096)), at);
            }
        }
    }
}

#[test]
fn the_dirty_bit_is_set_by_the_first_store_after_a_load() {
    let mut b = two_pages();
    let at = entries(LINEAR)[3];
    assert_eq!(b.cpu.read::<u32>(&mut b.p, LINEAR, As::Current), Ok(0));
    assert_eq!(b.peek(at) & (pte::A | pte::D), pte::A);
    assert_eq!(b.cpu.fill(LINEAR, Access::Read, VIEW_SUPERVISOR), Ok(true));
    b.cpu.write(&mut b.p, LINEAR, 1u8, As::Current).unwrap();
    assert_eq!(b.peek(at) & (pte::A | pte::D), pte::A | pte::D);
    assert_eq!(b.cpu.tlb[VIEW_SUPERVISOR][slot(LINEAR)].write, LINEAR);
}

#[test]
fn views_do_not_share_entries() {
    let mut b = two_pages();
    b.poke(entries(LINEAR)[3], 0x9000 | pte::P | pte::W);
    assert!(b.cpu.read::<u64>(&mut b.p, LINEAR, As::Current).is_ok());
    b.set_cpl(3);
    let got = b.cpu.read::<u64>(&mut b.p, LINEAR, As::Current);
    assert_eq!(page_fault(got), Some((LINEAR, 5)));
    assert!(b.cpu.read::<u64>(&mut b.p, LINEAR, As::System).is_ok());
}

#[derive(Default)]
struct Log(Mutex<Vec<(u64, u64)>>);

impl CodeWatch for Log {
    fn written(&self, physical: u64, len: u64) {
        self.0.lock().unwrap().push((physical, len));
    }

    fn marked(&self, page: u64) {
        self.0.lock().unwrap().push((page, 0));
    }
}

#[test]
fn stores_into_code_are_told_and_others_are_not() {
    let mut b = two_pages();
    let log = Arc::new(Log::default());
    assert!(b.code.set_watch(log.clone()).is_ok());
    let seen = || std::mem::take(&mut *log.0.lock().unwrap());
    b.cpu
        .write(&mut b.p, LINEAR + 8, 1u32, As::Current)
        .unwrap();
    assert!(seen().is_empty());

    assert!(b.code.mark(0x9abc));
    assert!(!b.code.mark(0x9000));
    assert!(b.code.is_code(0x9fff) && !b.code.is_code(0xa000));
    assert_eq!(seen(), [(0x9000, 0)]);
    assert!(b.cpu.drop_writes(0x9000));
    assert!(!b.cpu.drop_writes(0x9000));
    assert_eq!(
        b.cpu.fill(LINEAR, Access::Write, VIEW_SUPERVISOR),
        Ok(false)
    );
    assert_eq!(b.cpu.fill(LINEAR, Access::Read, VIEW_SUPERVISOR), Ok(true));
    b.cpu
        .write(&mut b.p, LINEAR + 8, 2u32, As::Current)
        .unwrap();
    b.cpu
        .write(&mut b.p, LINEAR + 0xfff, 3u16, As::Current)
        .unwrap();
    b.cpu
        .update(&mut b.p, LINEAR, true, &mut |v: u8| v + 1)
        .unwrap();
    let got = b.cpu.compare_exchange_16(&mut b.p, LINEAR + 16, 1, 2);
    assert_eq!(got, Ok((false, 0)));
    b.cpu
        .write_bytes(&mut b.p, LINEAR + 64, &[1; 32], As::Current)
        .unwrap();
    let expected = [
        (0x9008, 4),
        (0x9fff, 1),
        (0x9000, 1),
        (0x9010, 16),
        (0x9040, 32),
    ];
    assert_eq!(seen(), expected);
    assert_eq!(b.peek(0x9008), 2);

    b.code.unmark(0x9000);
    assert!(b.code.is_code(0x9000), "there was a second holder");
    b.code.unmark(0x9000);
    b.cpu
        .write(&mut b.p, LINEAR + 8, 3u32, As::Current)
        .unwrap();
    assert!(seen().is_empty());
    assert_eq!(b.cpu.fill(LINEAR, Access::Write, VIEW_SUPERVISOR), Ok(true));
}

#[test]
fn accessed_bits_set_in_a_code_page_are_told_too() {
    let mut b = two_pages();
    let log = Arc::new(Log::default());
    assert!(b.code.set_watch(log.clone()).is_ok());
    b.code.mark(TABLES[3]);
    log.0.lock().unwrap().clear();
    assert!(b.cpu.read::<u8>(&mut b.p, LINEAR, As::Current).is_ok());
    assert_eq!(*log.0.lock().unwrap(), [(entries(LINEAR)[3], 8)]);
}

#[test]
fn a_device_access_stops_and_finds_its_answers_when_run_again() {
    let mut b = flat();
    b.p.value = 7;
    let (device, own) = (0xd000_0010, OWN + 0x20);
    // An "instruction" that reads the platform's register and a device, and writes both.
    let run = |b: &mut Bench| {
        b.cpu.begin();
        let x = b.cpu.read::<u32>(&mut b.p, own, As::Current)?;
        let y = b.cpu.read::<u16>(&mut b.p, device, As::Current)?;
        b.cpu.write(&mut b.p, own, x + 1, As::Current)?;
        b.cpu
            .write(&mut b.p, device + 4, u32::from(y) + x, As::Current)?;
        b.cpu.forget_answers();
        Ok::<_, Stop>(())
    };
    let first = DeviceRequest::MemoryRead {
        address: device,
        size: 2,
    };
    assert_eq!(run(&mut b), Err(Stop::Device(first)));
    assert_eq!(run(&mut b), Err(Stop::Device(first)));
    assert_eq!(b.p.reads, 1, "the platform is asked once");
    b.cpu.answer(first, 0x1_0005);
    let second = DeviceRequest::MemoryWrite {
        address: device + 4,
        size: 4,
        value: 5 + 7,
    };
    assert_eq!(run(&mut b), Err(Stop::Device(second)));
    b.cpu.answer(second, 0);
    assert_eq!(run(&mut b), Ok(()));
    assert_eq!((b.p.value, b.p.reads), (8, 1));
    // The next one begins anew.
    assert_eq!(run(&mut b), Err(Stop::Device(first)));
    assert_eq!(b.p.reads, 2);
}

#[test]
fn operands_of_devices_are_asked_for_in_pieces_and_ram_waits_for_them() {
    let mut b = flat();
    // The last bytes of RAM, and a device behind them.
    let end = 256 << 10;
    b.poke(end - 8, 0x55 << 56);
    b.cpu.begin();
    let got = b.cpu.write(&mut b.p, end - 2, 0xaabb_ccdd_u32, As::Current);
    let request = DeviceRequest::MemoryWrite {
        address: end,
        size: 2,
        value: 0xaabb,
    };
    assert_eq!(got, Err(Stop::Device(request)));
    assert_eq!(b.peek(end - 8), 0x55 << 56, "nothing has happened yet");
    b.cpu.answer(request, 0);
    b.cpu.begin();
    assert!(
        b.cpu
            .write(&mut b.p, end - 2, 0xaabb_ccdd_u32, As::Current)
            .is_ok()
    );
    assert_eq!(b.peek(end - 8) >> 48, 0xccdd);
    b.cpu.forget_answers();

    let mut bytes = [0; 12];
    for (address, size, value) in [(end, 8, 0x1122_3344_5566_7788), (end + 8, 4, 0x99)] {
        let request = DeviceRequest::MemoryRead { address, size };
        b.cpu.begin();
        let got = b.cpu.read_bytes(&mut b.p, end, &mut bytes, As::Current);
        assert_eq!(got, Err(Stop::Device(request)));
        b.cpu.answer(request, value);
    }
    b.cpu.begin();
    assert!(
        b.cpu
            .read_bytes(&mut b.p, end, &mut bytes, As::Current)
            .is_ok()
    );
    assert_eq!(
        bytes[..9],
        [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0x99]
    );
}

#[test]
fn updates_of_devices_read_and_write() {
    let mut b = flat();
    b.p.value = 41;
    b.cpu.begin();
    let old = b.cpu.update(&mut b.p, OWN, true, &mut |v: u32| v + 1);
    assert_eq!((old, b.p.value), (Ok(41), 42));
}

#[test]
fn locked_updates_lose_nothing() {
    const EACH: u64 = 5000;
    let mut b = flat();
    // In a word, across cache lines, across pages.
    let places = [0x8000u64, 0x903d, 0xaffe];
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let (map, code) = (b.map.clone(), b.code.clone());
            scope.spawn(move || {
                let mut other = Bench::new(4096);
                other.cpu = Bench::cpu(&map, &code);
                other.flat();
                for _ in 0..EACH {
                    for at in places {
                        let add = &mut |v: u32| v + 1;
                        other.cpu.update(&mut other.p, at, true, add).unwrap();
                    }
                    loop {
                        let at = 0xc000;
                        let old = other
                            .cpu
                            .read::<u64>(&mut other.p, at, As::Current)
                            .unwrap();
                        let old = u128::from(old) << 64 | u128::from(old);
                        let new = old + (1 << 64) + 1;
                        let got = other.cpu.compare_exchange_16(&mut other.p, at, old, new);
                        if got.unwrap().0 {
                            break;
                        }
                    }
                }
            });
        }
    });
    for at in places {
        let got = b.cpu.read::<u32>(&mut b.p, at, As::Current);
        assert_eq!(got, Ok(2 * EACH as u32));
    }
    assert_eq!((b.peek(0xc000), b.peek(0xc008)), (2 * EACH, 2 * EACH));
    let odd = b.cpu.compare_exchange_16(&mut b.p, 0xc008, 0, 0);
    assert_eq!(odd, Err(Exception::gp(0).into()));
}

#[test]
fn alignment_is_checked_only_where_all_three_ask_for_it() {
    let mut b = two_pages();
    b.cpu.cr0 |= cr0::AM;
    b.cpu.rflags |= rflags::AC;
    b.set_cpl(0);
    assert!(b.cpu.read::<u32>(&mut b.p, LINEAR + 2, As::Current).is_ok());
    b.set_cpl(3);
    let ac = Stop::from(Exception::with_code(Exception::AC, 0));
    assert!(b.cpu.read::<u16>(&mut b.p, LINEAR + 2, As::Current).is_ok());
    let got = b.cpu.read::<u32>(&mut b.p, LINEAR + 2, As::Current);
    assert_eq!(got, Err(ac));
    let got = b.cpu.write(&mut b.p, LINEAR + 0xfff, 0u16, As::Current);
    assert_eq!(got, Err(ac));
    assert!(b.cpu.read::<u32>(&mut b.p, LINEAR + 2, As::System).is_ok());
    b.cpu.rflags &= !rflags::AC;
    b.cpu.update_mode();
    assert!(b.cpu.read::<u32>(&mut b.p, LINEAR + 2, As::Current).is_ok());
}

#[test]
fn data_breakpoints_are_noted_on_reads_writes_and_overlap_only() {
    let mut b = two_pages();
    let at = LINEAR + 0x100;
    assert!(b.cpu.read::<u8>(&mut b.p, at, As::Current).is_ok());
    b.cpu.dr = [at, at + 8, at + 16, 0];
    // DR0: writes of 4 bytes; DR1: all accesses to 8; DR2: execution; local and global.
    b.cpu.dr7 = 0x400 | 1 | 2 << 2 | 3 << 4 | 0b1101 << 16 | 0b1011 << 20;
    b.cpu.debug_changed();
    let mut hits = |write: bool, at: u64, len: usize| {
        b.cpu.begin();
        let mut bytes = [0; 32];
        if write {
            b.cpu
                .write_bytes(&mut b.p, at, &bytes[..len], As::Current)
                .unwrap();
        } else {
            b.cpu
                .read_bytes(&mut b.p, at, &mut bytes[..len], As::Current)
                .unwrap();
        }
        b.cpu.breakpoints
    };
    assert_eq!(hits(false, at, 8), 0);
    assert_eq!(hits(true, at, 1), 1);
    assert_eq!(hits(true, at + 3, 1), 1);
    assert_eq!(hits(true, at + 4, 4), 0);
    assert_eq!(hits(true, at - 1, 2), 1);
    assert_eq!(hits(false, at + 15, 1), 2);
    assert_eq!(hits(false, at + 16, 8), 0);
    assert_eq!(hits(true, at, 32), 3);
    b.cpu.begin();
    b.cpu.write(&mut b.p, at + 2, 1u16, As::Current).unwrap();
    assert_eq!(b.cpu.breakpoints, 1);
}

/// What the property test does next.
#[derive(Debug, Clone)]
enum Step {
    Read {
        at: u64,
        len: usize,
    },
    Write {
        at: u64,
        bytes: Vec<u8>,
    },
    Word {
        at: u64,
        size: u32,
        value: u64,
    },
    Update {
        at: u64,
        locked: bool,
        value: u64,
    },
    /// Gives a page another frame.
    Remap {
        page: u64,
        frame: u64,
        global: bool,
    },
    Flush,
    FlushLocal,
    Mark {
        frame: u64,
    },
}

const PAGES: u64 = 6;
const FRAMES: u64 = 8;
const BASE: u64 = 0x1_0000;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let at = || {
        // Around the ends of pages rather than anywhere.
        (0..PAGES, prop_oneof![0u64..4096, 4070u64..4096, 0u64..16])
            .prop_map(|(page, offset)| page * 4096 + offset)
    };
    let step = prop_oneof![
        (at(), 0usize..600).prop_map(|(at, len)| Step::Read { at, len }),
        (at(), prop::collection::vec(any::<u8>(), 0..70))
            .prop_map(|(at, bytes)| Step::Write { at, bytes }),
        (at(), 0u32..4, any::<u64>()).prop_map(|(at, size, value)| Step::Word { at, size, value }),
        (at(), any::<bool>(), any::<u64>()).prop_map(|(at, locked, value)| Step::Update {
            at,
            locked,
            value
        }),
        (0..PAGES, 0..FRAMES, any::<bool>()).prop_map(|(page, frame, global)| Step::Remap {
            page,
            frame,
            global
        }),
        Just(Step::Flush),
        Just(Step::FlushLocal),
        (0..FRAMES).prop_map(|frame| Step::Mark { frame }),
    ];
    prop::collection::vec(step, 1..60)
}

/// Pages, frames and their bytes, without any cleverness.
struct Model {
    frames: Vec<u8>,
    frame_of: [u64; PAGES as usize],
}

impl Model {
    /// Where each byte is, or the first address that is not mapped.
    fn places(&self, at: u64, len: usize) -> Result<Vec<usize>, u64> {
        (at..at + len as u64)
            .map(|at| {
                let frame = self.frame_of.get((at / 4096) as usize).ok_or(at)?;
                Ok((frame * 4096 + at % 4096) as usize)
            })
            .collect()
    }

    fn read(&self, at: u64, len: usize) -> Result<Vec<u8>, u64> {
        let places = self.places(at, len)?;
        Ok(places.into_iter().map(|at| self.frames[at]).collect())
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), u64> {
        let places = self.places(at, bytes.len())?;
        for (at, byte) in places.into_iter().zip(bytes) {
            self.frames[at] = *byte;
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn memory_is_what_was_written(steps in steps()) {
        let mut b = Bench::new(256 << 10);
        b.long(TABLES[0], 0);
        b.cpu.cr4 |= cr4::PGE;
        let mut model = Model {
            frames: vec![0; (FRAMES * 4096) as usize],
            frame_of: std::array::from_fn(|n| n as u64),
        };
        for page in 0..PAGES {
            b.map_page(LINEAR + page * 4096, BASE + page * 4096, pte::ALL, pte::ALL);
        }
        let fault = |got: Result<(), Stop>| match got {
            Ok(()) => Ok(()),
            Err(Stop::Exception(e)) => Err(e.payload.wrapping_sub(LINEAR)),
            Err(other) => panic!("{other:?}"),
        };
        for step in steps {
            match step {
                Step::Read { at, len } => {
                    let mut bytes = vec![0; len];
                    let got = b.cpu.read_bytes(&mut b.p, LINEAR + at, &mut bytes, As::Current);
                    prop_assert_eq!(fault(got).map(|()| bytes), model.read(at, len));
                }
                Step::Write { at, bytes } => {
                    let got = b.cpu.write_bytes(&mut b.p, LINEAR + at, &bytes, As::Current);
                    prop_assert_eq!(fault(got), model.write(at, &bytes));
                }
                Step::Word { at, size, value } => {
                    let len = 1 << size;
                    let old = model.read(at, len);
                    let linear = LINEAR + at;
                    macro_rules! word {
                        ($type:ty) => {{
                            let got = b.cpu.read::<$type>(&mut b.p, linear, As::Current);
                            let value = value as $type;
                            let written = b.cpu.write(&mut b.p, linear, value, As::Current);
                            let got = got.map(|v| v.to_le_bytes().to_vec());
                            let mut read = None;
                            let outcome = fault(got.map(|v| read = Some(v)));
                            prop_assert_eq!(outcome.map(|()| read.unwrap_or_default()), old);
                            let expected = model.write(at, &value.to_le_bytes());
                            prop_assert_eq!(fault(written), expected);
                        }};
                    }
                    match size {
                        0 => word!(u8),
                        1 => word!(u16),
                        2 => word!(u32),
                        _ => word!(u64),
                    }
                }
                Step::Update { at, locked, value } => {
                    let add = &mut |old: u64| old.wrapping_add(value);
                    let got = b.cpu.update(&mut b.p, LINEAR + at, locked, add);
                    let old = model.read(at, 8);
                    match (got, old) {
                        (Ok(got), Ok(old)) => {
                            prop_assert_eq!(&got.to_le_bytes()[..], &old[..]);
                            let new = got.wrapping_add(value).to_le_bytes();
                            model.write(at, &new).unwrap();
                        }
                        (got, old) => prop_assert_eq!(fault(got.map(drop)), old.map(drop)),
                    }
                }
                Step::Remap { page, frame, global } => {
                    let linear = LINEAR + page * 4096;
                    let bits = pte::ALL | if global { pte::G } else { 0 };
                    b.poke(entries(linear)[3], (BASE + frame * 4096) | bits);
                    b.cpu.flush_page(linear);
                    model.frame_of[page as usize] = frame;
                }
                Step::Flush => b.cpu.flush_tlb(),
                Step::FlushLocal => b.cpu.flush_local(),
                Step::Mark { frame } => {
                    b.code.mark(BASE + frame * 4096);
                    b.cpu.drop_writes(BASE + frame * 4096);
                }
            }
        }
        for (n, expected) in model.frames.chunks(8).enumerate() {
            let got = b.peek(BASE + 8 * n as u64).to_le_bytes();
            prop_assert_eq!(&got[..], expected, "at {:#x}", 8 * n);
        }
    }
}

#[test]
fn what_devices_write_into_code_is_told_like_a_store() {
    let b = flat();
    let ram = b.ram.memory();
    let pages = CodePages::of(&ram);
    let log = Arc::new(Log::default());
    assert!(pages.set_watch(log.clone()).is_ok());
    assert!(pages.set_watch(log.clone()).is_err());
    pages.mark(0x9000);
    memory::written(&ram, 0x8ff8, 16);
    memory::written(&ram, 0xa000, 16);
    pages.written(0x9100, 4);
    let told = log.0.lock().unwrap();
    assert_eq!(*told, [(0x9000, 0), (0x9000, 8), (0x9100, 4)]);
}
