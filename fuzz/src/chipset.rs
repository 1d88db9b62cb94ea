use std::sync::{Arc, Mutex};

use bus::testing::{RecordingHost, RecordingSink};
use bus::{Action, Device, IrqLine, Range, SharedLine};
use chipset::acpi_pm::{AcpiPm, TimerWidth};
use chipset::debug_exit::DebugExit;
use chipset::debugcon::DebugCon;
use chipset::fw_cfg::{FwCfg, GuestMemoryAccess};
use chipset::i8042::I8042;
use chipset::ioapic::IoApic;
use chipset::pic::{ExtIntSink, Pic};
use chipset::pit::Pit;
use chipset::post::Post;
use chipset::pvpanic::PvPanic;
use chipset::rtc::{Rtc, RtcBase, RtcConfig};
use chipset::testing::FakeClock;
use chipset::uart::{COM_PORTS, SerialOutput, Uart};
use chipset::{ChipsetError, Gsi, PortMap};
use state::{Payload, Stateful};

use crate::{Script, assert_same};

/// A device of the chipset as this target sees it.
struct Part {
    ranges: PortMap,
    device: Arc<dyn Stateful + Sync>,
    /// What comes from outside of the machine.
    outside: Box<dyn Fn(&mut Script)>,
}

struct NoIntr;

impl ExtIntSink for NoIntr {
    fn set_intr(&self, _asserted: bool) {}
}

/// Takes a byte at a time, and every fourth time none.
struct Slow(u8);

impl SerialOutput for Slow {
    fn write(&mut self, bytes: &[u8]) -> usize {
        self.0 = self.0.wrapping_add(1);
        usize::from(!self.0.is_multiple_of(4)).min(bytes.len())
    }

    fn space(&mut self) {}
}

/// 64 KiB of memory at 0, and nothing behind.
struct Small(Mutex<Vec<u8>>);

impl Small {
    fn with(
        &self,
        address: u64,
        len: usize,
        f: impl FnOnce(&mut [u8]),
    ) -> Result<(), ChipsetError> {
        let mut memory = self.0.lock().expect("one thread");
        let range = usize::try_from(address)
            .ok()
            .and_then(|start| Some(start..start.checked_add(len)?));
        let slice = range.and_then(|range| memory.get_mut(range));
        slice.map(f).ok_or(ChipsetError::GuestAddress {
            address,
            length: len,
        })
    }
}

impl GuestMemoryAccess for Small {
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), ChipsetError> {
        self.with(address, data.len(), |memory| data.copy_from_slice(memory))
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), ChipsetError> {
        self.with(address, data.len(), |memory| memory.copy_from_slice(data))
    }
}

fn part<D: Stateful + Sync + 'static>(
    device: &Arc<D>,
    ranges: PortMap,
    outside: impl Fn(&D, &mut Script) + 'static,
) -> Part {
    let outer = Arc::clone(device);
    Part {
        ranges,
        device: Arc::clone(device) as _,
        outside: Box::new(move |script| outside(&outer, script)),
    }
}

fn make(which: u8, clock: &FakeClock) -> Part {
    let host = clock.host();
    let sink: Arc<RecordingSink> = Arc::default();
    let line = |pin| IrqLine::new(sink.clone(), pin);
    let messages: Arc<RecordingHost> = Arc::default();
    match which % 12 {
        0 => {
            let pic = Pic::new(Arc::new(NoIntr));
            part(&pic, pic.ports(), |pic, script| match script.flag() {
                true => _ = pic.acknowledge(),
                false => bus::IrqSink::set_level(pic, script.u8().into(), script.flag()),
            })
        }
        1 => {
            let pit = Pit::new(&host, line(0));
            part(&pit, pit.ports(), |_, _| {})
        }
        2 => {
            let ioapic = IoApic::new(messages, None);
            let ranges: PortMap = vec![(chipset::ioapic::MMIO, ioapic.clone() as Arc<dyn Device>)];
            part(&ioapic, ranges, |ioapic, script| match script.flag() {
                true => ioapic.eoi(script.u8()),
                false => bus::IrqSink::set_level(ioapic, script.u8().into(), script.flag()),
            })
        }
        3 => {
            let config = RtcConfig {
                base: RtcBase::Utc,
                ram_below_4g: 1 << 30,
                ram_above_4g: 0,
                cpus: 1,
            };
            let rtc = Rtc::new(&host, line(8), &config);
            part(&rtc, rtc.ports(), |_, _| {})
        }
        4 => {
            let i8042 = I8042::new(line(1), line(12));
            part(&i8042, i8042.ports(), |i8042, script| match script.flag() {
                true => _ = i8042.key(script.u8(), script.flag()),
                false => {
                    let (dx, dy) = (script.u32() as i32, script.u32() as i32);
                    _ = i8042.pointer(dx, dy, i32::from(script.u8() as i8), script.u8());
                }
            })
        }
        5 => {
            let uart = Uart::new(COM_PORTS[0], line(4), Box::new(Slow(0)));
            part(&uart, uart.ports(), |uart, script| match script.u8() % 4 {
                0 => uart.receive_break(),
                1 => uart.resume_output(),
                n => _ = uart.receive(script.bytes(usize::from(n) * 7)),
            })
        }
        6 | 7 => {
            let width = if which % 12 == 6 {
                TimerWidth::Bits24
            } else {
                TimerWidth::Bits32
            };
            let pm = AcpiPm::new(&host, SharedLine::new(line(9)), width);
            part(&pm, pm.ports(), |pm, script| match script.u8() % 3 {
                0 => _ = pm.press_power_button(),
                1 => _ = pm.press_sleep_button(),
                _ => _ = pm.raise_gpe(script.u8().into()),
            })
        }
        8 => {
            let memory = Small(Mutex::new(vec![0; 64 << 10]));
            let fw_cfg = FwCfg::new(Arc::new(memory));
            fw_cfg.add_file("etc/one", [1; 100]).expect("a file");
            let ranges = fw_cfg.ports();
            part(&fw_cfg, ranges, |_, _| {})
        }
        9 => {
            let pvpanic = PvPanic::new();
            part(&pvpanic, pvpanic.ports(), |pvpanic, _| {
                _ = pvpanic.take_event()
            })
        }
        10 => {
            let exit = DebugExit::new(0x501, 4).expect("ports that exist");
            part(&exit, exit.ports(), |_, _| {})
        }
        _ => {
            let debugcon = DebugCon::new(0xe9, Box::new(|_| {}));
            let mut ranges = debugcon.ports();
            ranges.extend(Post::new().ports());
            // Both interrupt controllers on the board's wires.
            let gsi = Gsi::new(Pic::new(Arc::new(NoIntr)), IoApic::new(messages, None));
            part(&debugcon, ranges, move |_, script| {
                bus::IrqSink::set_level(&*gsi, script.u8().into(), script.flag());
            })
        }
    }
}

/// One device of the chipset (the first byte says which) under any accesses, at any times.
pub fn chipset(data: &[u8]) {
    let mut script = Script::new(data);
    let which = script.u8();
    let clock = FakeClock::new(script.u32().into());
    let part = make(which, &clock);
    if script.flag() {
        restore_anything(&mut script, &part);
    }
    let mut steps = 0;
    while !script.is_over() && steps < 2000 {
        steps += 1;
        step(&mut script, which, &part, &clock);
    }
    save_and_restore(which, &part, &clock);
}

fn step(script: &mut Script, which: u8, part: &Part, clock: &FakeClock) {
    match script.u8() % 16 {
        0..=6 => {
            let (offset, device) = place(script, part);
            let len = script.access();
            let action = device.write(offset, script.bytes(len));
            if action == Action::Reset {
                part.device.reset();
            }
        }
        7..=11 => {
            let (offset, device) = place(script, part);
            let mut data = vec![0; script.access()];
            device.read(offset, &mut data);
        }
        12 => {
            // A timer that always asks for the same instant would never let time pass.
            let calls = clock.advance(script.pause_ns().min(10_000_000));
            assert!(calls < 200_000, "{calls} timer calls in 10 ms");
        }
        13 => _ = clock.stall(script.pause_ns()),
        14 => (part.outside)(script),
        _ => match script.u8() {
            0 => part.device.reset(),
            1 => save_and_restore(which, part, clock),
            _ => {}
        },
    }
}

fn place<'a>(script: &mut Script, part: &'a Part) -> (u64, &'a dyn Device) {
    let (range, device): &(Range, Arc<dyn Device>) =
        &part.ranges[usize::from(script.u8()) % part.ranges.len()];
    let offset = if range.size > 256 {
        u64::from(script.u16())
    } else {
        script.u8().into()
    };
    (offset % range.size, device.as_ref())
}

/// A state of this kind that no machine ever saved.
fn restore_anything(script: &mut Script, part: &Part) {
    let like = part
        .device
        .save()
        .expect("every device of the chipset can be saved");
    let mut data = like.data;
    for _ in 0..script.u8() % 8 {
        let at = usize::from(script.u16()) % data.len();
        data[at] = script.u8();
    }
    _ = part.device.restore(Payload { data, ..like });
}

/// What was saved is what a fresh device of the kind saves after it was restored.
fn save_and_restore(which: u8, part: &Part, clock: &FakeClock) {
    let saved = part
        .device
        .save()
        .expect("every device of the chipset can be saved");
    let other = make(which, clock);
    other.device.restore(saved.clone()).expect("its own state");
    let again = other.device.save().expect("a restored device");
    assert_same(&saved, &again);
}
