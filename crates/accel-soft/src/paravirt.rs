//! KVM's paravirtual interface as far as it is memory that guest and host share (Linux's
//! Documentation/virt/kvm/x86/msr.rst).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU8, Ordering};

use memory::{
    Bytes, GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestRam, VolatileMemory,
};
use x86::cpuid::{Cpuid, HYPERVISOR_LEAF, KVM_FEATURES_LEAF, KVM_SIGNATURE};
use x86::msr;

use crate::clock::{self, Base};
use crate::host;
use crate::lapic::Refused;

/// Bit 0 of the MSRs that have an address: enabled.
const ENABLED: u64 = 1;

/// Flags of the system time: it never jumps, whichever processor reads it.
const STABLE: u8 = 1 << 0;

/// Bits of the `preempted` byte.
const PREEMPTED: u8 = 1 << 0;
const FLUSH_TLB: u8 = 1 << 1;

/// Offsets in the structure for stolen time.
const STEAL: u64 = 0;
const STEAL_VERSION: u64 = 8;
const STEAL_PREEMPTED: u64 = 16;

/// How often the time that the host stole is read, in nanoseconds.
/// Bytes up to the end of the version.
const STEAL_LEN: u64 = 12;
const STEAL_PERIOD_NS: u64 = 10_000_000;

/// One processor's part.
#[derive(Debug)]
pub(crate) struct Paravirt {
    /// The bits of the features leaf; None where the interface is not shown.
    features: Option<u32>,
    wall_clock: u64,
    system_time: u64,
    /// Whether the system time was set by its old number, which says which one state carries.
    old_numbers: bool,
    steal_time: u64,
    eoi: u64,
    poll_control: u64,
    migration: u64,
    /// The flag in memory says that the guest need not tell the end of its interrupt.
    eoi_offered: bool,
    version: u32,
    steal_version: u32,
    steal: StealSource,
    /// What the guest has been told of it.
    told: u64,
    next_steal: u64,
}

/// Where the time is read that this thread was ready to run and did not.
#[derive(Debug, Default)]
struct StealSource {
    file: Option<(libc::pid_t, Option<File>)>,
    /// What the thread had waited before the guest looked.
    base: Option<u64>,
}

impl StealSource {
    /// Nanoseconds since the first call.
    fn read(&mut self) -> u64 {
        let thread = host::thread_id();
        if self.file.as_ref().is_none_or(|(of, _)| *of != thread) {
            let path = format!("/proc/self/task/{thread}/schedstat");
            self.file = Some((thread, File::open(path).ok()));
            self.base = None;
        }
        let Some((_, Some(file))) = &self.file else {
            return 0;
        };
        let mut text = [0; 96];
        let Ok(len) = file.read_at(&mut text, 0) else {
            return 0;
        };
        let text = String::from_utf8_lossy(text.get(..len).unwrap_or_default());
        let waited = text.split_whitespace().nth(1).and_then(|n| n.parse().ok());
        let waited: u64 = waited.unwrap_or(0);
        waited.saturating_sub(*self.base.get_or_insert(waited))
    }
}

impl Paravirt {
    pub(crate) fn new(cpuid: &Cpuid) -> Self {
        let shown = cpuid
            .get(HYPERVISOR_LEAF, 0)
            .is_some_and(|e| [e.ebx, e.ecx, e.edx] == KVM_SIGNATURE);
        Self {
            features: shown.then(|| cpuid.get(KVM_FEATURES_LEAF, 0).map_or(0, |e| e.eax)),
            wall_clock: 0,
            system_time: 0,
            old_numbers: false,
            steal_time: 0,
            eoi: 0,
            poll_control: msr::reset_value(msr::KVM_POLL_CONTROL),
            migration: 0,
            eoi_offered: false,
            version: 0,
            steal_version: 0,
            steal: StealSource::default(),
            told: 0,
            next_steal: 0,
        }
    }

    /// As after power-on.
    pub(crate) fn reset(&mut self) {
        *self = Self {
            features: self.features,
            poll_control: msr::reset_value(msr::KVM_POLL_CONTROL),
            ..Self::new(&Cpuid::default())
        };
    }

    fn has(&self, bit: u32) -> bool {
        self.features
            .is_some_and(|features| features >> bit & 1 != 0)
    }

    /// Whether the MSR is there, by the bit of the features leaf that stands for it.
    fn is_shown(&self, index: u32) -> bool {
        match index {
            msr::KVM_WALL_CLOCK | msr::KVM_SYSTEM_TIME => self.has(0),
            msr::KVM_WALL_CLOCK_NEW | msr::KVM_SYSTEM_TIME_NEW => self.has(3),
            msr::KVM_STEAL_TIME => self.has(5),
            msr::KVM_PV_EOI_EN => self.has(6),
            msr::KVM_POLL_CONTROL => self.has(12),
            msr::KVM_MIGRATION_CONTROL => self.has(17),
            _ => false,
        }
    }

    /// The MSRs that state carries.
    pub(crate) fn state(&self) -> impl Iterator<Item = (u32, u64)> {
        // The old and the new number are one register; the new one stands for both.
        [
            (msr::KVM_WALL_CLOCK_NEW, self.wall_clock),
            (msr::KVM_SYSTEM_TIME_NEW, self.system_time),
            (msr::KVM_STEAL_TIME, self.steal_time),
            (msr::KVM_PV_EOI_EN, self.eoi),
            (msr::KVM_POLL_CONTROL, self.poll_control),
            (msr::KVM_MIGRATION_CONTROL, self.migration),
        ]
        .into_iter()
        .filter(|(index, value)| *value != msr::reset_value(*index))
    }

    /// Takes over an MSR of a state; the guest's memory is left alone until the next
    /// [`Paravirt::write_time`].
    ///
    /// # Errors
    /// The register is not shown to the guest.
    pub(crate) fn set_state(&mut self, index: u32, value: u64) -> Result<(), Refused> {
        if !self.is_shown(index) && value != msr::reset_value(index) {
            return Err(Refused);
        }
        match index {
            msr::KVM_WALL_CLOCK_NEW => self.wall_clock = value,
            msr::KVM_SYSTEM_TIME_NEW => self.system_time = value,
            msr::KVM_STEAL_TIME => self.steal_time = value,
            msr::KVM_PV_EOI_EN => self.eoi = value,
            msr::KVM_POLL_CONTROL => self.poll_control = value,
            msr::KVM_MIGRATION_CONTROL => self.migration = value,
            _ => return Err(Refused),
        }
        Ok(())
    }

    /// RDMSR.
    ///
    /// # Errors
    /// The register is not shown to the guest.
    pub(crate) fn read_msr(&self, index: u32) -> Result<u64, Refused> {
        if !self.is_shown(index) {
            return Err(Refused);
        }
        Ok(match index {
            msr::KVM_WALL_CLOCK | msr::KVM_WALL_CLOCK_NEW => self.wall_clock,
            msr::KVM_SYSTEM_TIME | msr::KVM_SYSTEM_TIME_NEW => self.system_time,
            msr::KVM_STEAL_TIME => self.steal_time,
            msr::KVM_PV_EOI_EN => self.eoi,
            msr::KVM_POLL_CONTROL => self.poll_control,
            _ => self.migration,
        })
    }

    /// WRMSR.
    ///
    /// # Errors
    /// The register is not shown to the guest, or does not take the value.
    pub(crate) fn write_msr(
        &mut self,
        index: u32,
        value: u64,
        ram: &GuestRam,
        now: u64,
    ) -> Result<(), Refused> {
        if !self.is_shown(index) {
            return Err(Refused);
        }
        match index {
            msr::KVM_WALL_CLOCK | msr::KVM_WALL_CLOCK_NEW => {
                self.wall_clock = value;
                write_wall_clock(ram, value, now);
            }
            msr::KVM_SYSTEM_TIME | msr::KVM_SYSTEM_TIME_NEW => {
                self.old_numbers = index == msr::KVM_SYSTEM_TIME;
                self.system_time = value;
            }
            msr::KVM_STEAL_TIME => {
                if value & 0x3e != 0 {
                    return Err(Refused);
                }
                self.steal_time = value;
                self.next_steal = 0;
            }
            msr::KVM_PV_EOI_EN => {
                if value & 2 != 0 {
                    return Err(Refused);
                }
                self.eoi = value;
                self.eoi_offered = false;
            }
            msr::KVM_POLL_CONTROL => {
                if value & !1 != 0 {
                    return Err(Refused);
                }
                self.poll_control = value;
            }
            _ => {
                if value & !1 != 0 {
                    return Err(Refused);
                }
                self.migration = value;
            }
        }
        Ok(())
    }

    // Time.

    /// Writes the system time's structure: the guest computes the time from its own counter,
    /// which is `tsc_offset` ahead of the host's.
    pub(crate) fn write_time(&mut self, ram: &GuestRam, base: Base, tsc_offset: u64, stable: bool) {
        if self.system_time & ENABLED == 0 {
            return;
        }
        let address = self.system_time & !ENABLED;
        let (multiplier, shift) = clock::scale(clock::tsc_khz());
        let stable = stable && self.has(24);
        self.version = self.version.wrapping_add(2) & !1;
        let mut bytes = [0; 32];
        bytes[0..4].copy_from_slice(&(self.version | 1).to_le_bytes());
        bytes[8..16].copy_from_slice(&base.tsc.wrapping_add(tsc_offset).to_le_bytes());
        bytes[16..24].copy_from_slice(&base.ns.to_le_bytes());
        bytes[24..28].copy_from_slice(&multiplier.to_le_bytes());
        bytes[28] = shift.to_le_bytes()[0];
        bytes[29] = if stable { STABLE } else { 0 };
        let version = self.version.wrapping_add(2);
        // Odd while it is written; who reads meanwhile reads again.
        let ram = ram.memory();
        let at = GuestAddress(address);
        _ = ram.store(self.version | 1, at, Ordering::SeqCst);
        _ = ram.write_slice(&bytes, at);
        _ = ram.store(version, at, Ordering::SeqCst);
        memory::written(&ram, address, bytes.len() as u64);
        self.version = version;
    }

    // The end of interrupts.

    /// An interrupt is delivered whose end concerns nobody else: the guest may tell it by
    /// clearing a flag.
    pub(crate) fn offer_eoi(&mut self, ram: &GuestRam) {
        if self.eoi & ENABLED != 0 && !self.eoi_offered {
            self.eoi_offered = with_byte(ram, self.eoi & !3, |byte| {
                byte.fetch_or(1, Ordering::SeqCst);
            })
            .is_some();
        }
    }

    /// Takes the offer back; tells whether the guest had ended its interrupt by then.
    pub(crate) fn take_eoi(&mut self, ram: &GuestRam) -> bool {
        if !std::mem::take(&mut self.eoi_offered) {
            return false;
        }
        with_byte(ram, self.eoi & !3, |byte| {
            byte.fetch_and(!1, Ordering::SeqCst) & 1 == 0
        })
        .unwrap_or(false)
    }

    // Stolen time.

    /// Tells the guest, now and then, how long the host let it wait. `now` is in nanoseconds.
    pub(crate) fn update_steal(&mut self, ram: &GuestRam, now: u64) {
        if self.steal_time & ENABLED == 0 || now < self.next_steal {
            return;
        }
        self.next_steal = now.saturating_add(STEAL_PERIOD_NS);
        let steal = self.steal.read();
        if steal == self.told && self.steal_version != 0 {
            return;
        }
        let address = self.steal_time & !0x3f;
        let ram = ram.memory();
        let at = |offset: u64| GuestAddress(address.wrapping_add(offset));
        let before: u64 = ram.load(at(STEAL), Ordering::SeqCst).unwrap_or(0);
        let more = steal.saturating_sub(self.told);
        self.told = steal;
        let version = self.steal_version.wrapping_add(2) & !1;
        _ = ram.store(version.wrapping_sub(1), at(STEAL_VERSION), Ordering::SeqCst);
        _ = ram.store(before.wrapping_add(more), at(STEAL), Ordering::SeqCst);
        _ = ram.store(version, at(STEAL_VERSION), Ordering::SeqCst);
        memory::written(&ram, address, STEAL_LEN);
        self.steal_version = version;
    }

    /// The processor's thread is about to sleep: others need not wait for it.
    pub(crate) fn sleeps(&self, ram: &GuestRam) {
        self.with_preempted(ram, |byte| byte.store(PREEMPTED, Ordering::SeqCst));
    }

    /// It has woken up; tells whether its translations must go.
    pub(crate) fn wakes(&self, ram: &GuestRam) -> bool {
        self.with_preempted(ram, |byte| byte.swap(0, Ordering::SeqCst) & FLUSH_TLB != 0)
            .unwrap_or(false)
    }

    fn with_preempted<T>(&self, ram: &GuestRam, body: impl FnOnce(&AtomicU8) -> T) -> Option<T> {
        if self.steal_time & ENABLED == 0 {
            return None;
        }
        with_byte(ram, (self.steal_time & !0x3f) + STEAL_PREEMPTED, body)
    }
}

fn with_byte<T>(ram: &GuestRam, address: u64, body: impl FnOnce(&AtomicU8) -> T) -> Option<T> {
    let ram = ram.memory();
    let slice = ram.get_slice(GuestAddress(address), 1).ok()?;
    let byte = slice.get_atomic_ref::<AtomicU8>(0).ok()?;
    let result = body(byte);
    memory::written(&ram, address, 1);
    Some(result)
}

/// Writes the wall clock at time zero of the system time, `now` being the system time.
fn write_wall_clock(ram: &GuestRam, address: u64, now: u64) {
    if address == 0 {
        return;
    }
    let zero = clock::realtime_ns().saturating_sub(now);
    let ram = ram.memory();
    let at = GuestAddress(address);
    let version: u32 = ram.load(at, Ordering::SeqCst).unwrap_or(0);
    let odd = version.wrapping_add(1) | 1;
    _ = ram.store(odd, at, Ordering::SeqCst);
    let mut bytes = [0; 8];
    bytes[0..4].copy_from_slice(&((zero / 1_000_000_000) as u32).to_le_bytes());
    bytes[4..8].copy_from_slice(&((zero % 1_000_000_000) as u32).to_le_bytes());
    _ = ram.write_slice(&bytes, GuestAddress(address.wrapping_add(4)));
    _ = ram.store(odd.wrapping_add(1), at, Ordering::SeqCst);
    memory::written(&ram, address, 4 + bytes.len() as u64);
}

#[cfg(test)]
mod tests {
    use x86::cpuid::CpuidEntry;

    use super::*;

    fn shown(features: u32) -> Paravirt {
        let mut cpuid = Cpuid::default();
        let [ebx, ecx, edx] = KVM_SIGNATURE;
        cpuid.set(CpuidEntry::leaf(
            HYPERVISOR_LEAF,
            [KVM_FEATURES_LEAF, ebx, ecx, edx],
        ));
        cpuid.set(CpuidEntry::leaf(KVM_FEATURES_LEAF, [features, 0, 0, 0]));
        Paravirt::new(&cpuid)
    }

    fn u64_at(ram: &GuestRam, address: u64) -> u64 {
        ram.memory().read_obj(GuestAddress(address)).unwrap()
    }

    #[test]
    fn registers_are_there_when_their_feature_is() {
        let ram = memory::small(1 << 16).unwrap();
        let mut none = Paravirt::new(&Cpuid::default());
        assert_eq!(
            none.write_msr(msr::KVM_SYSTEM_TIME_NEW, 0x1001, &ram, 0),
            Err(Refused)
        );
        assert_eq!(none.read_msr(msr::KVM_STEAL_TIME), Err(Refused));
        let mut some = shown(1 << 3 | 1 << 5);
        some.write_msr(msr::KVM_SYSTEM_TIME_NEW, 0x1001, &ram, 0)
            .unwrap();
        assert_eq!(some.read_msr(msr::KVM_SYSTEM_TIME_NEW), Ok(0x1001));
        assert_eq!(
            some.write_msr(msr::KVM_SYSTEM_TIME, 0x1001, &ram, 0),
            Err(Refused)
        );
        assert_eq!(
            some.write_msr(msr::KVM_STEAL_TIME, 0x1003, &ram, 0),
            Err(Refused)
        );
        assert_eq!(
            some.state().collect::<Vec<_>>(),
            [(msr::KVM_SYSTEM_TIME_NEW, 0x1001)]
        );
        some.reset();
        assert_eq!(some.state().next(), None);
    }

    #[test]
    fn the_system_time_is_what_the_guest_computes() {
        let ram = memory::small(1 << 16).unwrap();
        let mut paravirt = shown(1 << 3 | 1 << 24);
        paravirt
            .write_msr(msr::KVM_SYSTEM_TIME_NEW, 0x1001, &ram, 0)
            .unwrap();
        let base = Base {
            ns: 1_000_000,
            tsc: 5000,
        };
        paravirt.write_time(&ram, base, 700, true);
        let first = u64_at(&ram, 0x1000) as u32;
        assert_eq!(first % 2, 0);
        assert_eq!(
            (u64_at(&ram, 0x1008), u64_at(&ram, 0x1010)),
            (5700, 1_000_000)
        );
        let word = u64_at(&ram, 0x1018);
        let (multiplier, shift) = clock::scale(clock::tsc_khz());
        assert_eq!((word as u32, (word >> 32) as u8 as i8), (multiplier, shift));
        assert_eq!(word >> 40 & 1, 1);
        paravirt.write_time(&ram, base, 700, false);
        assert_ne!(u64_at(&ram, 0x1000) as u32, first);
        assert_eq!(u64_at(&ram, 0x1018) >> 40 & 1, 0);
    }

    #[test]
    fn the_wall_clock_is_the_time_at_zero() {
        let ram = memory::small(1 << 16).unwrap();
        let mut paravirt = shown(1 << 3);
        let before = clock::realtime_ns() / 1_000_000_000;
        paravirt
            .write_msr(msr::KVM_WALL_CLOCK_NEW, 0x2000, &ram, 10_000_000_000)
            .unwrap();
        let seconds = u64_at(&ram, 0x2000) >> 32;
        assert!(
            (before - 10..=before - 9).contains(&seconds),
            "{seconds} {before}"
        );
    }

    #[test]
    fn an_interrupt_ends_by_the_flag_in_memory() {
        let ram = memory::small(1 << 16).unwrap();
        let mut paravirt = shown(1 << 6);
        assert!(!paravirt.take_eoi(&ram));
        paravirt
            .write_msr(msr::KVM_PV_EOI_EN, 0x3001, &ram, 0)
            .unwrap();
        paravirt.offer_eoi(&ram);
        assert_eq!(u64_at(&ram, 0x3000), 1);
        ram.memory().write_obj(0u8, GuestAddress(0x3000)).unwrap();
        assert!(paravirt.take_eoi(&ram), "the guest cleared it");
        paravirt.offer_eoi(&ram);
        assert!(!paravirt.take_eoi(&ram), "the guest did not");
        assert_eq!(u64_at(&ram, 0x3000), 0);
    }

    #[test]
    fn a_sleeper_says_so_and_hears_what_it_missed() {
        let ram = memory::small(1 << 16).unwrap();
        let mut paravirt = shown(1 << 5);
        paravirt
            .write_msr(msr::KVM_STEAL_TIME, 0x4001, &ram, 0)
            .unwrap();
        paravirt.update_steal(&ram, 1);
        assert_eq!(u64_at(&ram, 0x4008) as u32, 2);
        paravirt.sleeps(&ram);
        assert_eq!(u64_at(&ram, 0x4010), 1);
        ram.memory().write_obj(3u8, GuestAddress(0x4010)).unwrap();
        assert!(paravirt.wakes(&ram));
        assert_eq!(u64_at(&ram, 0x4010), 0);
    }
}
