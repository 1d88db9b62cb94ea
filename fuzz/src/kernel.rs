use board::boot::{self, BootRequest, Decompress, Image};
use board::memory_map::{MemoryMap, MemoryMapConfig};
use memory::{GuestAddressSpace, GuestRam};

use crate::Script;

/// 64 MiB is the least that a machine has.
const RAM: u64 = 64 << 20;

thread_local! {
    static MEMORY: GuestRam = memory::small(RAM as usize).expect("guest memory");
}

/// A file that is said to be a kernel.
pub fn kernel(data: &[u8]) {
    let mut script = Script::new(data);
    let options = script.u8();
    let kernel = image(script.u8(), script);
    let initrd = vec![0x42_u8; 5000];
    let config = MemoryMapConfig {
        ram: RAM,
        hotplug: 0,
        phys_bits: 40,
    };
    let memory = MemoryMap::new(&config).expect("the smallest machine");
    let request = BootRequest {
        kernel: &kernel,
        kernel_name: "fuzzed",
        initrd: (options & 1 != 0).then_some(&initrd as &dyn Image),
        cmdline: "console=ttyS0",
        memory: &memory,
        acpi: None,
        decompress: if options & 2 != 0 {
            Decompress::Host
        } else {
            Decompress::Guest
        },
    };
    let ram = MEMORY.with(|ram| ram.memory());
    if let Ok(plan) = boot::load(&ram, &request) {
        for loaded in &plan.loaded {
            let last = loaded.range.last();
            let inside = last.is_none_or(|last| last < memory.low_ram_end);
            assert!(inside, "{loaded:?}");
        }
    }
}

/// The script's bytes where a loader of one kind looks, so that it need not guess the magic.
fn image(kind: u8, mut script: Script) -> Vec<u8> {
    let mut image = match kind % 6 {
        0 => Vec::new(),
        // The setup header of a bzImage (Linux x86 boot protocol), field by field.
        1 => bzimage(script.bytes(0x80), &[]),
        // A bzImage whose header is in order, and whose payload may be anything.
        2 => return bzimage(&good_header(script), script.rest()),
        3 => b"\x7fELF\x02\x01\x01".to_vec(),
        4 => b"\x7fELF\x01\x01\x01".to_vec(),
        _ => {
            let flags = script.u32();
            let sum = 0x1bad_b002_u32.wrapping_add(flags);
            [0x1bad_b002, flags, sum.wrapping_neg()]
                .map(u32::to_le_bytes)
                .concat()
        }
    };
    image.extend_from_slice(script.rest());
    if kind & 0x80 != 0 {
        image.resize(image.len().max(1 << 16), 0);
    }
    image
}

fn bzimage(header: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 0x1000];
    image[0x1f1..0x1f1 + header.len()].copy_from_slice(header);
    image[0x1fe..0x200].copy_from_slice(b"\x55\xaa");
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image.extend_from_slice(payload);
    image
}

fn good_header(script: Script) -> [u8; 0x80] {
    let payload = script.clone().rest().len() as u32;
    let mut header = [0; 0x80];
    let mut put = |offset: usize, bytes: &[u8]| {
        header[offset - 0x1f1..][..bytes.len()].copy_from_slice(bytes);
    };
    put(0x1f1, &[1]);
    put(0x200, &[0xeb, 0x66]);
    put(0x206, &0x20f_u16.to_le_bytes());
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(0x230, &0x20_0000_u32.to_le_bytes());
    put(0x234, &[1, 21, 3, 0]);
    put(0x238, &2047_u32.to_le_bytes());
    // Payload offset and length, behind 4 sectors of setup.
    put(0x248, &0xc00_u32.to_le_bytes());
    put(0x24c, &payload.to_le_bytes());
    put(0x258, &0x100_0000_u64.to_le_bytes());
    put(0x260, &0x200_0000_u32.to_le_bytes());
    header
}
