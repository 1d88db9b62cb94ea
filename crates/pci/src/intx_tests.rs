use super::*;
use bus::testing::RecordingSink;

#[test]
fn neighbours_on_the_root_bus_use_different_pins() {
    let gsi = |device| intx_gsi(device, IntxPin::A);
    assert_eq!([0, 1, 2, 3, 4].map(gsi), [20, 21, 22, 23, 20]);
    assert_eq!(intx_gsi(2, IntxPin::B), 23);
    assert_eq!(intx_gsi(2, IntxPin::C), 20);
}

#[test]
fn the_chipsets_own_devices_use_the_first_four() {
    assert_eq!(IntxPin::ALL.map(|p| intx_gsi(31, p)), [16, 17, 18, 19]);
    assert_eq!(IntxPin::ALL.map(|p| intx_gsi(25, p)), [16, 17, 18, 19]);
    assert_eq!(IntxPin::ALL.map(|p| intx_gsi(30, p)), [20, 21, 22, 23]);
}

#[test]
fn a_routed_pirq_appears_at_both_controllers() {
    let apic = Arc::new(RecordingSink::default());
    let pic = Arc::new(RecordingSink::default());
    let isa: Vec<_> = (0..16)
        .map(|irq| SharedLine::new(IrqLine::new(Arc::clone(&pic) as Arc<dyn IrqSink>, irq)))
        .collect();
    let router = PirqRouter::new(Arc::clone(&apic) as Arc<dyn IrqSink>, &isa);
    let lines = router.lines();

    lines[4].set(true);
    assert!(apic.level(20));
    let mut routes = [None; 8];
    routes[4] = Some(10);
    routes[5] = Some(10);
    router.set_routes(routes);
    assert!(pic.level(10), "the level moves along with a new route");

    lines[5].set(true);
    lines[4].set(false);
    assert!(pic.level(10), "two PIRQs share the ISA interrupt");
    routes[5] = Some(11);
    router.set_routes(routes);
    assert_eq!((pic.level(10), pic.level(11)), (false, true));
    router.set_routes([None; 8]);
    assert!(!pic.level(11));
    assert!(apic.level(21));
    lines[5].set(false);
    assert!(!apic.level(21));
}
