use super::*;
use crate::regs::*;
use crate::testing::Bench;
use crate::tests::{Probe, capability, probe, read16, write16, write32};
use crate::{Function, RootComplex};

const AT: u64 = 0xfebd_0000;

fn attached() -> (Bench, Arc<Probe>) {
    let bench = Bench::new();
    let device = probe();
    Arc::clone(&device).attach(bench.slot());
    (bench, device)
}

fn enable(device: &Probe) {
    write32(device, BAR0, AT as u32);
    write16(device, COMMAND, COMMAND_MEMORY | COMMAND_BUS_MASTER);
}

#[test]
fn a_bar_is_on_the_bus_while_it_is_decoded() {
    let (bench, device) = attached();
    enable(&device);
    assert_eq!(device.pci.bar_address(0), Some(AT));
    let _ = bench.memory.write(AT + 0x7f0, &[0x5a]);
    let mut data = [0; 2];
    bench.memory.read(AT + 0xff0, &mut data);
    assert_eq!(data, [0x5a; 2]);

    write32(&*device, BAR0, AT as u32 + 0x8000);
    assert_eq!(bench.memory.ranges(), [Range::new(AT + 0x8000, 0x1000)]);
    write16(&*device, COMMAND, 0);
    assert!(bench.memory.ranges().is_empty());
    let moves = [Some(AT), None, Some(AT + 0x8000), None].map(|to| (0, to));
    assert_eq!(*device.moves.lock().unwrap(), moves);
}

#[test]
fn msix_tables_are_answered_before_the_device() {
    let (bench, device) = attached();
    enable(&device);
    let _ = bench.memory.write(AT, &0xfee0_0000_u64.to_le_bytes());
    let _ = bench.memory.write(AT + 8, &0x31_u64.to_le_bytes());
    let mut data = [0; 8];
    bench.memory.read(AT, &mut data);
    assert_eq!(u64::from_le_bytes(data), 0xfee0_0000);
    assert_eq!(*device.last.lock().unwrap(), [0; 6]);

    let control = capability(&*device, CAP_MSIX).unwrap() + 2;
    write16(&*device, control, MSIX_ENABLE);
    device.pci.msix().unwrap().trigger(0);
    assert_eq!(bench.host.take_sent().len(), 1);
    write16(&*device, control, MSIX_ENABLE | MSIX_FUNCTION_MASK);
    device.pci.msix().unwrap().trigger(0);
    assert!(bench.host.take_sent().is_empty());
    write16(&*device, control, MSIX_ENABLE);
    assert_eq!(bench.host.take_sent().len(), 1);
}

#[test]
fn a_bar_over_another_device_or_ram_stays_away_until_it_moves() {
    let (bench, first) = attached();
    let second = probe();
    Arc::clone(&second).attach(bench.slot());
    enable(&first);
    enable(&second);
    assert_eq!(second.pci.bar_address(0), None);
    assert_eq!(bench.memory.ranges(), [Range::new(AT, 0x1000)]);
    write32(&*first, BAR0, AT as u32 + 0x1000);
    assert_eq!(second.pci.bar_address(0), Some(AT), "the place is free now");
    assert_eq!(*second.moves.lock().unwrap(), [(0, Some(AT))]);
    write32(&*second, BAR0, AT as u32 + 0x1000);
    assert_eq!(second.pci.bar_address(0), None);
    first.detach();
    assert_eq!(second.pci.bar_address(0), Some(AT + 0x1000));

    write32(&*second, BAR0, Bench::RAM_END as u32 - 0x1000);
    assert_eq!(second.pci.bar_address(0), None);
    write32(&*second, BAR0, Bench::RAM_END as u32);
    assert_eq!(second.pci.bar_address(0), Some(Bench::RAM_END));
}

#[test]
fn the_wire_obeys_interrupt_disable_and_msix() {
    let (bench, device) = attached();
    device.pci.set_intx(true);
    assert!(bench.intx(IntxPin::A));
    assert_eq!(
        read16(&*device, STATUS) & STATUS_INTERRUPT,
        STATUS_INTERRUPT
    );
    write16(&*device, COMMAND, COMMAND_INTX_DISABLE);
    assert!(!bench.intx(IntxPin::A));
    assert_eq!(
        read16(&*device, STATUS) & STATUS_INTERRUPT,
        STATUS_INTERRUPT
    );
    write16(&*device, COMMAND, 0);
    assert!(bench.intx(IntxPin::A));

    let control = capability(&*device, CAP_MSIX).unwrap() + 2;
    write16(&*device, control, MSIX_ENABLE);
    assert!(!bench.intx(IntxPin::A));
    write16(&*device, control, 0);
    assert!(bench.intx(IntxPin::A));
    device.pci.set_intx(false);
    assert!(!bench.intx(IntxPin::A));
    assert_eq!(read16(&*device, STATUS) & STATUS_INTERRUPT, 0);
}

#[test]
fn a_detached_function_leaves_nothing_behind() {
    let (bench, device) = attached();
    enable(&device);
    device.pci.set_intx(true);
    device.detach();
    assert!(bench.memory.ranges().is_empty());
    assert!(!bench.intx(IntxPin::A));
    assert_eq!(Arc::strong_count(&device), 1);
    Arc::clone(&device).attach(bench.slot());
    assert_eq!(device.pci.bar_address(0), Some(AT));
    assert!(bench.intx(IntxPin::A));
}

#[test]
fn a_state_without_msix_is_refused_and_the_function_is_as_new() {
    let (bench, device) = attached();
    let fresh = device.pci.save();
    enable(&device);
    let mut state = device.pci.save();
    state.msix = None;
    assert!(device.pci.restore("probe", &state).is_err());
    assert_eq!(device.pci.save(), fresh);
    assert!(bench.memory.ranges().is_empty());
}

#[test]
fn processors_that_move_one_bar_at_once_leave_it_where_the_register_says() {
    let (bench, device) = attached();
    write16(&*device, COMMAND, COMMAND_MEMORY);
    std::thread::scope(|scope| {
        for cpu in 0..2_u32 {
            let device = &device;
            scope.spawn(move || {
                for i in 0..200 {
                    write32(&**device, BAR0, AT as u32 + 0x1000 * (2 * (i % 7) + cpu));
                }
            });
        }
    });
    let (_, range) = device.pci.with_config(|c| c.bar_range(0)).unwrap();
    assert_eq!(bench.memory.ranges(), [range]);
    assert_eq!(device.pci.bar_address(0), Some(range.base));
}

#[test]
fn functions_of_one_wire_hold_it_together() {
    let bench = Bench::new();
    let root: Arc<RootComplex> = bench.root_complex();
    let devices = ["1.0", "5.0"].map(|bdf| {
        let device = probe();
        root.add(bdf.parse().unwrap(), Arc::clone(&device) as _)
            .unwrap();
        device
    });
    let pirq = crate::intx_pirq(1, IntxPin::A);
    assert_eq!(pirq, crate::intx_pirq(5, IntxPin::A));
    devices[0].pci.set_intx(true);
    devices[1].pci.set_intx(true);
    devices[0].pci.set_intx(false);
    assert!(bench.pins.level(pirq as u32));
    devices[1].pci.set_intx(false);
    assert!(!bench.pins.level(pirq as u32));
}
