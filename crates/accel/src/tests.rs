use std::sync::Arc;

use super::testing::{FakeAccelerator, Script, Step};
use super::*;

#[test]
fn a_scripted_processor_exits_as_told_and_wakes_when_kicked() {
    let script = Arc::new(Script::default());
    script.push([
        Step::PortWrite(0x80, vec![1]),
        Step::PortRead(0x60, 1),
        Step::TripleFault,
    ]);
    let accelerator = FakeAccelerator::new(Arc::clone(&script));
    let vm = accelerator
        .create_vm(memory::small(1 << 20).unwrap())
        .unwrap();
    let mut vcpu = vm
        .create_vcpu(VcpuSetup {
            index: 0,
            apic_id: 0,
            cpuid: Cpuid::default(),
        })
        .unwrap();
    assert!(matches!(
        vcpu.run().unwrap(),
        Exit::PortWrite {
            port: 0x80,
            size: 1,
            data: [1]
        }
    ));
    match vcpu.run().unwrap() {
        Exit::PortRead {
            port: 0x60, data, ..
        } => data[0] = 0x42,
        other => panic!("{other:?}"),
    }
    assert!(matches!(vcpu.run().unwrap(), Exit::TripleFault));
    assert_eq!(script.reads(), [[0x42]]);
    let kicker = vcpu.kicker();
    let thread = std::thread::spawn(move || matches!(vcpu.run(), Ok(Exit::Interrupted)));
    kicker.kick();
    assert!(thread.join().unwrap());
}
