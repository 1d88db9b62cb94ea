use super::*;
use crate::testing::Bench;
use crate::tests::{read16, read32, write32};
use crate::{ECAM_BASE, ECAM_SIZE};

#[derive(Default)]
struct Shadow(Mutex<Vec<[PamSegment; 13]>>);

impl PamHandler for Shadow {
    fn pam_changed(&self, segments: &[PamSegment; 13]) {
        self.0.lock().unwrap().push(*segments);
    }
}

fn bridge(ecam_at_reset: Option<u64>) -> (Bench, Arc<HostBridge>, Arc<Shadow>) {
    let bench = Bench::new();
    let root = bench.root_complex();
    let shadow = Arc::new(Shadow::default());
    let pam = Some(Arc::clone(&shadow) as Arc<dyn PamHandler>);
    let bridge = HostBridge::new(root.ecam(), ecam_at_reset, pam);
    Arc::clone(&bridge).attach(bench.slot());
    (bench, bridge, shadow)
}

#[test]
fn it_is_a_q35() {
    let (_, bridge, _) = bridge(None);
    assert_eq!(read32(&*bridge, 0), 0x29c0_8086);
    assert_eq!(read32(&*bridge, 8), 0x0600_0000);
    assert_eq!(read32(&*bridge, 0x2c), 0x1100_1af4);
    assert_eq!(
        read32(&*bridge, 0x100),
        !0,
        "conventional configuration space"
    );
}

#[test]
fn firmware_places_the_ecam_window() {
    let (bench, bridge, _) = bridge(None);
    assert!(bench.memory.ranges().is_empty());
    // OVMF writes the upper half first, then base and enable.
    write32(&*bridge, 0x64, 0);
    write32(&*bridge, 0x60, ECAM_BASE as u32 | 1);
    assert_eq!(bench.memory.ranges(), [Range::new(ECAM_BASE, ECAM_SIZE)]);
    write32(&*bridge, 0x60, 0xe000_0000 | 1 << 1 | 1);
    assert_eq!(bench.memory.ranges(), [Range::new(0xe000_0000, 128 << 20)]);
    write32(&*bridge, 0x60, 0xe400_0000 | 2 << 1 | 1);
    assert_eq!(bench.memory.ranges(), [Range::new(0xe400_0000, 64 << 20)]);
    write32(&*bridge, 0x60, 0xe400_0000 | 3 << 1 | 1);
    assert!(bench.memory.ranges().is_empty(), "a reserved size");
    write32(&*bridge, 0x60, 1);
    assert!(bench.memory.ranges().is_empty(), "over RAM");
    write32(&*bridge, 0x64, 1);
    assert_eq!(bench.memory.ranges(), [Range::new(1 << 32, ECAM_SIZE)]);
    bridge.detach();
    assert!(bench.memory.ranges().is_empty());
}

#[test]
fn without_firmware_the_window_is_there_after_each_reset() {
    let (bench, bridge, _) = bridge(Some(ECAM_BASE));
    let there = [Range::new(ECAM_BASE, ECAM_SIZE)];
    assert_eq!(bench.memory.ranges(), there);
    write32(&*bridge, 0x60, 0);
    assert!(bench.memory.ranges().is_empty());
    bridge.reset();
    assert_eq!(bench.memory.ranges(), there);
    assert_eq!(read32(&*bridge, 0x60), ECAM_BASE as u32 | 1);
}

#[test]
fn pam_registers_are_told_as_segments() {
    let (_, bridge, shadow) = bridge(None);
    let _ = bridge.config_write(PAM0, &[0xff, 0x13]);
    let told = shadow.0.lock().unwrap().clone();
    assert_eq!(told.len(), 1);
    let open: Vec<_> = told[0].iter().filter(|s| s.read || s.write).collect();
    let segment = |base, size, read, write| PamSegment {
        base,
        size,
        read,
        write,
    };
    assert_eq!(
        open,
        [
            &segment(0xc_0000, 0x4000, true, true),
            &segment(0xc_4000, 0x4000, true, false),
            &segment(0xf_0000, 0x1_0000, true, true),
        ]
    );
    let mut next = 0xc_0000;
    for segment in &told[0] {
        assert_eq!(segment.base, next);
        next += segment.size;
    }
    assert_eq!(next, 0x10_0000);

    let _ = bridge.config_write(0x40, &[0xff]);
    assert_eq!(shadow.0.lock().unwrap().len(), 1, "nothing changed");
    bridge.reset();
    let told = shadow.0.lock().unwrap().clone();
    assert!(told[1].iter().all(|s| !s.read && !s.write));
}

#[test]
fn locked_smram_stays_until_reset() {
    let (_, bridge, _) = bridge(None);
    let _ = bridge.config_write(SMRAM, &[0x48]);
    assert_eq!(read16(&*bridge, SMRAM), 0x384a);
    let _ = bridge.config_write(SMRAM, &[0x58]);
    assert_eq!(read16(&*bridge, SMRAM), 0x381a, "the lock closes");
    let _ = bridge.config_write(SMRAM, &[0x40, 0xff]);
    assert_eq!(read16(&*bridge, SMRAM), 0x381a);
    bridge.reset();
    assert_eq!(read16(&*bridge, SMRAM), 0x3802);
}

#[test]
fn a_restored_bridge_decodes_as_the_saved_one() {
    let (_, source, _) = bridge(None);
    write32(&*source, 0x60, 0xe000_0000 | 1);
    let _ = source.config_write(PAM0, &[0x30]);
    let payload = source.save().unwrap();
    let (bench, target, shadow) = bridge(None);
    target.restore(payload.clone()).unwrap();
    assert_eq!(target.save().unwrap(), payload);
    assert_eq!(bench.memory.ranges(), [Range::new(0xe000_0000, ECAM_SIZE)]);
    assert!(shadow.0.lock().unwrap()[0][12].write);
    assert!(target.restore(state::no_state("q35-host-bridge")).is_err());
    assert!(bench.memory.ranges().is_empty());
}
