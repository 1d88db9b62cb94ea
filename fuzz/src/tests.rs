//! The seeds, and scripts of a fixed pseudo-random sequence: a target that has rotted is seen
//! without the fuzzer.

use std::fs;
use std::path::Path;

/// Numbers of a sequence that is always the same (Marsaglia's xorshift).
struct Sequence(u64);

impl Sequence {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn script(&mut self) -> Vec<u8> {
        let len = self.next() % 400;
        (0..len).map(|_| self.next() as u8).collect()
    }
}

fn run(name: &str, target: fn(&[u8]), scripts: u32) {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("seeds")
        .join(name);
    for seed in fs::read_dir(seeds).into_iter().flatten() {
        target(&fs::read(seed.unwrap().path()).unwrap());
    }
    let mut sequence = Sequence(0x9e37_79b9_7f4a_7c15);
    target(&[]);
    for _ in 0..scripts {
        target(&sequence.script());
    }
}

macro_rules! targets {
    ($($name:ident: $scripts:literal,)*) => {
        $(#[test]
        fn $name() {
            run(stringify!($name), super::$name, $scripts);
        })*

        #[test]
        fn every_target_is_here() {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("targets");
            let names = [$(stringify!($name)),*];
            for file in fs::read_dir(folder).unwrap() {
                let path = file.unwrap().path();
                let name = path.file_stem().unwrap().to_str().unwrap();
                assert!(names.contains(&name), "{name}");
            }
        }
    };
}

targets! {
    chipset: 500,
    kernel: 500,
    luks: 300,
    nbd_client: 200,
    nbd_server: 300,
    pci_config: 100,
    qcow2: 300,
    qmp_session: 500,
    queue: 1000,
    specs: 200,
    state_payload: 500,
    virtio_blk: 100,
    virtio_devices: 50,
    virtio_transport: 200,
}
