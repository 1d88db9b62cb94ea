use super::*;
use crate::testing::Bench;
use crate::tests::{read32, write32};

#[derive(Default)]
struct Told(Mutex<Vec<LpcSettings>>);

impl LpcHandler for Told {
    fn settings_changed(&self, settings: &LpcSettings) {
        self.0.lock().unwrap().push(*settings);
    }
}

impl Told {
    fn last(&self) -> LpcSettings {
        *self.0.lock().unwrap().last().unwrap()
    }

    fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

fn lpc(pm_base: Option<u16>) -> (Arc<Lpc>, Arc<Told>) {
    let told = Arc::new(Told::default());
    let lpc = Lpc::new(pm_base, Arc::clone(&told) as Arc<dyn LpcHandler>);
    Arc::clone(&lpc).attach(Bench::new().slot());
    (lpc, told)
}

#[test]
fn it_is_an_ich9() {
    let (lpc, told) = lpc(None);
    assert_eq!(read32(&*lpc, 0), 0x2918_8086);
    assert_eq!(read32(&*lpc, 8), 0x0601_0002);
    assert_eq!(read32(&*lpc, 0x0c) >> 16 & 0xff, 0x80, "multifunction");
    assert_eq!(read32(&*lpc, 0x2c), 0x1100_1af4);
    let quiet = LpcSettings {
        pm_base: None,
        sci: 9,
        pirq_routes: [None; 8],
        rcba: None,
    };
    assert_eq!(told.last(), quiet);
    assert_eq!(told.count(), 1);
}

#[test]
fn firmware_moves_the_pm_block_and_the_sci() {
    let (lpc, told) = lpc(None);
    write32(&*lpc, PMBASE, 0xffff_0601);
    assert_eq!(read32(&*lpc, PMBASE), 0x601);
    assert_eq!(told.count(), 1, "not decoded yet");
    let _ = lpc.config_write(ACPI_CNTL, &[0x80]);
    assert_eq!((told.last().pm_base, told.last().sci), (Some(0x600), 9));
    let _ = lpc.config_write(ACPI_CNTL, &[0x85]);
    assert_eq!(told.last().sci, 21);
    let _ = lpc.config_write(ACPI_CNTL, &[0x82]);
    assert_eq!(told.last().sci, 11);
    write32(&*lpc, PMBASE, 0xb000);
    assert_eq!(told.last().pm_base, Some(0xb000));
    write32(&*lpc, PMBASE, 0);
    assert_eq!(told.last().pm_base, None);
}

#[test]
fn pirqs_are_routed_to_possible_interrupts_only() {
    let (lpc, told) = lpc(None);
    let _ = lpc.config_write(PIRQA_ROUT, &[10, 11, 0x8a, 0]);
    let _ = lpc.config_write(PIRQE_ROUT, &[5, 2, 8, 13]);
    let routes = [Some(10), Some(11), None, None, Some(5), None, None, None];
    assert_eq!(told.last().pirq_routes, routes);
}

#[test]
fn rcba_is_decoded_when_enabled() {
    let (lpc, told) = lpc(None);
    write32(&*lpc, RCBA, 0xfed1_c000);
    assert_eq!(told.last().rcba, None);
    write32(&*lpc, RCBA, 0xfed1_ffff);
    assert_eq!(told.last().rcba, Some(0xfed1_c000));
}

#[test]
fn without_firmware_the_pm_block_is_there_after_each_reset() {
    let (lpc, told) = lpc(Some(0x600));
    assert_eq!(told.last().pm_base, Some(0x600));
    let _ = lpc.config_write(ACPI_CNTL, &[0]);
    assert_eq!(told.last().pm_base, None);
    lpc.reset();
    assert_eq!(told.last().pm_base, Some(0x600));
}

#[test]
fn a_restored_bridge_tells_the_saved_settings() {
    let (source, _) = lpc(Some(0x600));
    let _ = source.config_write(PIRQA_ROUT, &[11]);
    let payload = source.save().unwrap();
    let (target, told) = lpc(None);
    target.restore(payload.clone()).unwrap();
    assert_eq!(target.save().unwrap(), payload);
    assert_eq!(told.last(), source.settings());
    assert!(target.restore(state::no_state("ich9-lpc")).is_err());
    assert_eq!(told.last().pm_base, None);
}
