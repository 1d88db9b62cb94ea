//! Instructions by their bytes, on a processor without paging.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use iced_x86::{Decoder, DecoderOptions};
use memory::{Bytes, GuestAddress};
use x86::cr::{cr0, cr4, xcr0};

use super::*;
use crate::ram::{CodePages, RamMap};
use crate::state::{CpuBox, CpuSetup, Seg, reg};
use crate::testing::Nothing;

const RAM: usize = 0x4000;
const RIP: u64 = 0x1000;
/// In guest memory: operands.
const DATA: u64 = 0x2000;

struct Guest {
    cpu: CpuBox,
    ram: Arc<memory::Ram>,
}

impl Guest {
    /// 64-bit code, all features of this host, RDI at the data.
    fn new() -> Self {
        let ram = Arc::new(memory::Ram::from_ranges(&[(GuestAddress(0), RAM)]).unwrap());
        let mut cpu = CpuBox::new(CpuSetup {
            cpuid: classify::supported_features().cpuid,
            attention: Arc::new(AtomicU32::new(0)),
            ram: RamMap::new(&memory::blocks(&ram), Arc::clone(&ram)),
            code: CodePages::new(),
        })
        .unwrap();
        cpu.cr0 = cr0::PE | cr0::ET | cr0::NE;
        cpu.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE;
        cpu.xcr0 = xcr0::X87 | xcr0::SSE | xcr0::AVX;
        cpu.efer = x86::cr::efer::LMA;
        cpu.segs[seg::CS] = Seg {
            attributes: Seg::L | Seg::P | Seg::S | 0xb,
            ..Seg::default()
        };
        cpu.gpr[reg::RDI] = DATA;
        cpu.update_mode();
        Guest { cpu, ram }
    }

    /// 32-bit code.
    fn narrow() -> Self {
        let mut guest = Self::new();
        let flat = |kind: u16| Seg {
            limit: u32::MAX,
            attributes: Seg::DB | Seg::G | Seg::P | Seg::S | kind,
            ..Seg::default()
        };
        guest.cpu.efer = 0;
        for s in &mut guest.cpu.segs {
            *s = flat(3);
        }
        guest.cpu.segs[seg::CS] = flat(0xb);
        guest.cpu.segs[seg::CS].selector = 0x18;
        guest.cpu.segs[seg::DS].selector = 0x20;
        guest.cpu.update_mode();
        guest
    }

    fn run(&mut self, code: &[u8]) -> Result<(), Stop> {
        let bits = if self.cpu.mode.has(Mode::CODE64) {
            64
        } else {
            32
        };
        self.cpu.rip = RIP;
        let i = Decoder::with_ip(bits, code, RIP, DecoderOptions::NONE).decode();
        assert_eq!(i.len(), code.len(), "{i}");
        classify::check(&self.cpu, &i)?;
        execute(&mut self.cpu, &mut Nothing, &i).map(|_| ())
    }

    fn fails(&mut self, code: &[u8]) -> u8 {
        match self.run(code) {
            Err(Stop::Exception(exception)) => exception.vector,
            other => panic!("{other:?}"),
        }
    }

    fn put(&self, bytes: &[u8]) {
        self.ram.write_slice(bytes, GuestAddress(DATA)).unwrap();
    }

    fn get<const N: usize>(&self) -> [u8; N] {
        let mut out = [0; N];
        self.ram.read_slice(&mut out, GuestAddress(DATA)).unwrap();
        out
    }

    fn set_xmm(&mut self, n: usize, value: u128) {
        let at = XsaveArea::XMM + 16 * n;
        self.cpu.fpu.0[at..at + 16].copy_from_slice(&value.to_le_bytes());
    }

    fn xmm(&self, n: usize) -> u128 {
        let at = XsaveArea::XMM + 16 * n;
        u128::from_le_bytes(self.cpu.fpu.0[at..at + 16].try_into().unwrap())
    }

    fn ymm_high(&self, n: usize) -> u128 {
        let at = XsaveArea::YMM_HIGH + 16 * n;
        u128::from_le_bytes(self.cpu.fpu.0[at..at + 16].try_into().unwrap())
    }

    fn mxcsr(&self) -> u32 {
        get32(&self.cpu.fpu, at::MXCSR)
    }

    fn has(&self, name: &str) -> bool {
        let feature = x86::cpuid::Feature::named(name).unwrap();
        self.cpu.features.contains(feature)
    }
}

fn floats(values: [f32; 4]) -> u128 {
    let bytes = values.map(f32::to_le_bytes).concat();
    u128::from_le_bytes(bytes.try_into().unwrap())
}

#[test]
fn operands_in_memory_and_registers_reach_the_host_and_come_back() {
    let mut g = Guest::new();
    g.put(&floats([1.0, 2.0, 3.0, 4.0]).to_le_bytes());
    g.set_xmm(9, floats([0.5; 4]));
    // addps xmm9, [rdi]
    g.run(&[0x44, 0x0f, 0x58, 0x0f]).unwrap();
    assert_eq!(g.xmm(9), floats([1.5, 2.5, 3.5, 4.5]));
    // cvtsi2sd xmm1, r12
    g.cpu.gpr[12] = (-3_i64) as u64;
    g.run(&[0xf2, 0x49, 0x0f, 0x2a, 0xcc]).unwrap();
    assert_eq!(g.xmm(1) as u64, (-3.0_f64).to_bits());
    // movmskpd r9d, xmm1
    g.cpu.gpr[9] = u64::MAX;
    g.run(&[0x66, 0x44, 0x0f, 0x50, 0xc9]).unwrap();
    assert_eq!(g.cpu.gpr[9], 1);
    // movups [rdi + 1], xmm9: anywhere
    g.run(&[0x44, 0x0f, 0x11, 0x4f, 0x01]).unwrap();
    assert_eq!(g.get::<17>()[1..], g.xmm(9).to_le_bytes());
    // movnti [rdi], rdx
    g.cpu.gpr[reg::RDX] = 0x1122_3344_5566_7788;
    g.run(&[0x48, 0x0f, 0xc3, 0x17]).unwrap();
    assert_eq!(u64::from_le_bytes(g.get()), 0x1122_3344_5566_7788);
    // ucomisd xmm1, xmm1: equal; the other flags stay or are cleared
    g.cpu.rflags = STATUS | rflags::IF | 2;
    g.run(&[0x66, 0x0f, 0x2e, 0xc9]).unwrap();
    assert_eq!(g.cpu.rflags, rflags::ZF | rflags::IF | 2);
}

#[test]
fn implied_registers_of_string_comparisons() {
    let mut g = Guest::new();
    if !g.has("sse4.2") {
        return;
    }
    g.set_xmm(1, u128::from_le_bytes(*b"xyzb............"));
    g.set_xmm(2, u128::from_le_bytes(*b"aaaab..........."));
    g.cpu.gpr[reg::RAX] = 4;
    g.cpu.gpr[reg::RDX] = 5;
    g.cpu.gpr[reg::RCX] = u64::MAX;
    // pcmpestri xmm1, xmm2, 0: the first byte of xmm2 that is one of xmm1's
    g.run(&[0x66, 0x0f, 0x3a, 0x61, 0xca, 0x00]).unwrap();
    assert_eq!(g.cpu.gpr[reg::RCX], 4);
    assert_ne!(g.cpu.rflags & rflags::CF, 0);
    assert_eq!(g.cpu.gpr[reg::RAX], 4);
}

#[test]
fn aligned_forms_insist_on_alignment() {
    let mut g = Guest::new();
    g.cpu.gpr[reg::RDI] = DATA + 8;
    // movaps xmm0, [rdi]; addps xmm0, [rdi]; movntps [rdi], xmm0
    assert_eq!(g.fails(&[0x0f, 0x28, 0x07]), Exception::GP);
    assert_eq!(g.fails(&[0x0f, 0x58, 0x07]), Exception::GP);
    assert_eq!(g.fails(&[0x0f, 0x2b, 0x07]), Exception::GP);
    // movdqu, addss, cvtps2pd (8 bytes) do not.
    g.run(&[0xf3, 0x0f, 0x6f, 0x07]).unwrap();
    g.run(&[0xf3, 0x0f, 0x58, 0x07]).unwrap();
    g.run(&[0x0f, 0x5a, 0x07]).unwrap();
    if g.has("avx") {
        // vaddps ymm0, ymm0, [rdi]; vmovaps ymm0, [rdi]; vmovaps xmm0, [rdi + 8]
        g.run(&[0xc5, 0xfc, 0x58, 0x07]).unwrap();
        assert_eq!(g.fails(&[0xc5, 0xfc, 0x28, 0x07]), Exception::GP);
        g.run(&[0xc5, 0xf8, 0x28, 0x47, 0x08]).unwrap();
    }
}

#[test]
fn an_unmasked_exception_is_raised_and_nothing_else_happens() {
    let mut g = Guest::new();
    g.set_xmm(0, floats([1.0; 4]));
    g.set_xmm(1, floats([3.0, 0.0, 3.0, 3.0]));
    // Division by zero unmasked, precision masked.
    put32(&mut g.cpu.fpu, at::MXCSR, 0x1f80 & !0x200);
    // divps xmm0, xmm1
    let div = [0x0f, 0x5e, 0xc1];
    assert_eq!(g.fails(&div), Exception::XM);
    assert_eq!(g.xmm(0), floats([1.0; 4]));
    // Precision is found later than division by zero, and so it is not found.
    assert_eq!(g.mxcsr(), 0x1f80 & !0x200 | 4);
    g.cpu.cr4 &= !cr4::OSXMMEXCPT;
    assert_eq!(g.fails(&div), Exception::UD);
    // Masked, it leaves its flag and the guest's masks.
    put32(&mut g.cpu.fpu, at::MXCSR, 0x1f80);
    g.run(&div).unwrap();
    assert_eq!(g.mxcsr(), 0x1f80 | 4 | 0x20);
    assert_eq!(g.xmm(0) as u32, (1.0_f32 / 3.0).to_bits());
}

#[test]
fn mxcsr_takes_only_bits_that_exist() {
    let mut g = Guest::new();
    g.put(&0x0001_1f80_u32.to_le_bytes());
    assert_eq!(g.fails(&[0x0f, 0xae, 0x17]), Exception::GP);
    g.put(&0xffff_u32.to_le_bytes());
    g.run(&[0x0f, 0xae, 0x17]).unwrap();
    assert_eq!(g.mxcsr(), 0xffff);
    g.put(&[0; 4]);
    g.run(&[0x0f, 0xae, 0x1f]).unwrap();
    assert_eq!(u32::from_le_bytes(g.get()), 0xffff);
}

#[test]
fn x87_exceptions_come_with_the_next_waiting_instruction() {
    let mut g = Guest::new();
    g.put(&0x037e_u16.to_le_bytes());
    // fldcw [rdi]: invalid operation unmasked; then fistp of an empty register
    g.run(&[0xd9, 0x2f]).unwrap();
    g.put(&[0x55; 8]);
    g.run(&[0xdf, 0x3f]).unwrap();
    assert_eq!(g.get::<8>(), [0x55; 8], "nothing is stored");
    assert!(x87_pending(&g.cpu));
    assert_ne!(get16(&g.cpu.fpu, at::FSW) & 0x8080, 0);
    // The guest's addresses, not the host's.
    assert_eq!(get32(&g.cpu.fpu, at::FIP), RIP as u32);
    assert_eq!(get32(&g.cpu.fpu, at::FIP + 4), 0);
    assert_eq!(get32(&g.cpu.fpu, at::FDP), DATA as u32);
    assert_eq!(get16(&g.cpu.fpu, at::FOP), 0x73f);
    // fld1, fwait, fldcw, paddb mm0, mm0
    for code in [
        &[0xd9, 0xe8][..],
        &[0x9b],
        &[0xd9, 0x2f],
        &[0x0f, 0xfc, 0xc0],
    ] {
        assert_eq!(g.fails(code), Exception::MF);
    }
    // fnstsw ax, fnclex
    g.run(&[0xdf, 0xe0]).unwrap();
    assert_eq!(g.cpu.gpr[reg::RAX] & 0xffff, 0x80c1);
    g.run(&[0xdb, 0xe2]).unwrap();
    g.run(&[0xd9, 0xe8]).unwrap();
    assert!(!x87_pending(&g.cpu));
}

#[test]
fn environments_come_back_as_they_were() {
    for (store, load) in [
        (&[0xd9, 0x37][..], &[0xd9, 0x27][..]),
        (&[0x66, 0xd9, 0x37], &[0x66, 0xd9, 0x27]),
        (&[0xdd, 0x37], &[0xdd, 0x27]),
        (&[0x66, 0xdd, 0x37], &[0x66, 0xdd, 0x27]),
    ] {
        let mut g = Guest::narrow();
        // fldpi, fldz, fld1, fsqrt, fcom st(1)
        for code in [
            [0xd9, 0xeb],
            [0xd9, 0xee],
            [0xd9, 0xe8],
            [0xd9, 0xfa],
            [0xd8, 0xd1],
        ] {
            g.run(&code).unwrap();
        }
        let before = g.cpu.fpu.0;
        g.run(store).unwrap();
        g.run(&[0xdb, 0xe3]).unwrap();
        g.run(load).unwrap();
        // FLDENV puts back the masks as FSTENV wrote them.
        assert_eq!(
            g.cpu.fpu.0[..at::FTW + 1],
            before[..at::FTW + 1],
            "{store:x?}"
        );
        for slot in 0..8 {
            let st = at::ST + 16 * slot;
            assert_eq!(g.cpu.fpu.0[st..st + 10], before[st..st + 10], "{store:x?}");
        }
        let fip = get32(&g.cpu.fpu, at::FIP);
        assert_eq!(fip, RIP as u32);
    }
}

#[test]
fn tags_in_memory_tell_what_registers_hold() {
    let mut g = Guest::new();
    // fldz, fld1, fnstenv [rdi]: R7 zero, R6 valid, others empty
    g.run(&[0xd9, 0xee]).unwrap();
    g.run(&[0xd9, 0xe8]).unwrap();
    g.run(&[0xd9, 0x37]).unwrap();
    let image = g.get::<28>();
    assert_eq!(image[8..10], 0x4fff_u16.to_le_bytes());
    assert_eq!(image[2..4], [0xff; 2]);
}

#[test]
fn mmx_registers_are_x87_registers_by_number() {
    let mut g = Guest::new();
    // fld1 moves TOP to 7; then mm7 holds its mantissa: movq rax, mm7
    g.run(&[0xd9, 0xe8]).unwrap();
    g.run(&[0x48, 0x0f, 0x7e, 0xf8]).unwrap();
    assert_eq!(g.cpu.gpr[reg::RAX], 1 << 63);
    assert_eq!(get16(&g.cpu.fpu, at::FSW), 0, "TOP");
    assert_eq!(g.cpu.fpu.0[at::FTW], 0xff);
    // emms
    g.run(&[0x0f, 0x77]).unwrap();
    assert_eq!(g.cpu.fpu.0[at::FTW], 0);
}

#[test]
fn masked_bytes_touch_nothing_else() {
    let mut g = Guest::new();
    // The last bytes of RAM: what follows is a device.
    let end = RAM as u64 - 4;
    g.cpu.gpr[reg::RDI] = end;
    g.set_xmm(1, u128::from_le_bytes(*b"abcdefghijklmnop"));
    g.set_xmm(2, 0x8000_0080);
    // maskmovdqu xmm1, xmm2
    let store = [0x66, 0x0f, 0xf7, 0xca];
    g.run(&store).unwrap();
    let mut tail = [0; 4];
    g.ram.read_slice(&mut tail, GuestAddress(end)).unwrap();
    assert_eq!(&tail, b"a\0\0d");
    g.set_xmm(2, 0x80_0000_0000);
    assert!(matches!(g.run(&store), Err(Stop::Device(_))));
    // maskmovq mm1, mm2 with TOP not zero
    g.cpu.gpr[reg::RDI] = DATA;
    g.run(&[0xd9, 0xe8]).unwrap();
    g.cpu.gpr[reg::RAX] = 0x8877_6655_4433_2211;
    g.cpu.gpr[reg::RDX] = 0x8000_0000_0000_0080;
    g.run(&[0x48, 0x0f, 0x6e, 0xc8]).unwrap();
    g.run(&[0x48, 0x0f, 0x6e, 0xd2]).unwrap();
    g.put(&[0; 8]);
    g.run(&[0x0f, 0xf7, 0xca]).unwrap();
    assert_eq!(g.get::<8>(), [0x11, 0, 0, 0, 0, 0, 0, 0x88]);
}

#[test]
fn gathers_and_masked_moves_skip_what_is_not_selected() {
    let mut g = Guest::new();
    if !g.has("avx2") {
        return;
    }
    g.put(&[1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0]);
    g.set_xmm(1, u128::MAX);
    // Indices 3, far outside, 1, -(nothing), of which the second is masked.
    g.set_xmm(2, 0x0000_0000_0000_0001_7fff_ffff_0000_0003);
    g.set_xmm(3, 0x8000_0000_8000_0000_0000_0000_8000_0000);
    // vpgatherdd xmm1, [rdi + xmm2 * 4], xmm3
    let gather = [0xc4, 0xe2, 0x61, 0x90, 0x0c, 0x97];
    g.run(&gather).unwrap();
    assert_eq!(g.xmm(1), 0x0000_0001_0000_0002_ffff_ffff_0000_0004);
    assert_eq!(g.xmm(3), 0);
    assert_eq!(g.ymm_high(1), 0);
    // vpgatherdd xmm1, [rdi + xmm2 * 4], xmm1
    assert_eq!(
        g.fails(&[0xc4, 0xe2, 0x71, 0x90, 0x0c, 0x97]),
        Exception::UD
    );
    // vpmaskmovd xmm4, xmm3, [rdi]; the mask is zero now, and the address is a device's
    g.cpu.gpr[reg::RDI] = RAM as u64;
    g.set_xmm(4, 7);
    g.run(&[0xc4, 0xe2, 0x61, 0x8c, 0x27]).unwrap();
    assert_eq!(g.xmm(4), 0);
    // vmaskmovps [rdi], xmm3, xmm1 at the end of RAM: two elements are inside
    g.cpu.gpr[reg::RDI] = RAM as u64 - 8;
    g.set_xmm(3, 1 << 31 | 1 << 63);
    g.run(&[0xc4, 0xe2, 0x61, 0x2e, 0x0f]).unwrap();
    let mut tail = [0; 8];
    g.ram
        .read_slice(&mut tail, GuestAddress(RAM as u64 - 8))
        .unwrap();
    assert_eq!(u64::from_le_bytes(tail), 0xffff_ffff_0000_0004);
}

#[test]
fn upper_registers_are_out_of_reach_of_narrow_code() {
    let mut g = Guest::narrow();
    if !g.has("avx") {
        return;
    }
    for n in 0..16 {
        let at = XsaveArea::YMM_HIGH + 16 * n;
        g.cpu.fpu.0[at..at + 16].fill(0xaa);
    }
    // vzeroupper, then vzeroall
    g.run(&[0xc5, 0xf8, 0x77]).unwrap();
    assert_eq!(g.ymm_high(7), 0);
    assert_ne!(g.ymm_high(8), 0);
    g.set_xmm(8, 5);
    g.run(&[0xc5, 0xfc, 0x77]).unwrap();
    assert_eq!(g.xmm(8), 5);
}

#[test]
fn control_bits_forbid_units() {
    let mut g = Guest::new();
    let (x87, mmx, sse, avx): (&[u8], &[u8], &[u8], &[u8]) = (
        &[0xd9, 0xe8],
        &[0x0f, 0xfc, 0xc0],
        &[0x0f, 0x58, 0xc0],
        &[0xc5, 0xf8, 0x58, 0xc0],
    );
    let wait: &[u8] = &[0x9b];
    // movnti [rdi], edx and vector registers' EM
    let plain: &[u8] = &[0x0f, 0xc3, 0x17];
    let set = |g: &mut Guest, cr0_bits: u64| {
        g.cpu.cr0 = cr0::PE | cr0::ET | cr0::NE | cr0_bits;
        g.cpu.update_mode();
    };
    set(&mut g, cr0::TS);
    for code in [x87, mmx, sse] {
        assert_eq!(g.fails(code), Exception::NM);
    }
    g.run(plain).unwrap();
    g.run(wait).unwrap();
    set(&mut g, cr0::TS | cr0::MP);
    assert_eq!(g.fails(wait), Exception::NM);
    set(&mut g, cr0::EM);
    assert_eq!(g.fails(x87), Exception::NM);
    assert_eq!(g.fails(mmx), Exception::UD);
    assert_eq!(g.fails(sse), Exception::UD);
    set(&mut g, 0);
    g.cpu.cr4 &= !cr4::OSFXSR;
    g.cpu.update_mode();
    assert_eq!(g.fails(sse), Exception::UD);
    g.run(mmx).unwrap();
    if g.has("avx") {
        g.run(avx).unwrap();
        g.cpu.xcr0 = 3;
        g.cpu.update_mode();
        assert_eq!(g.fails(avx), Exception::UD);
    }
    g.cpu.features = x86::cpuid::FeatureSet::default();
    assert_eq!(g.fails(mmx), Exception::UD);
    assert_eq!(g.fails(x87), Exception::UD);
}

/// More instructions than there is room for.
#[test]
fn stubs_are_made_again_when_the_cache_is_full() {
    let mut g = Guest::new();
    g.set_xmm(1, floats([1.0, 2.0, 3.0, 4.0]));
    for register in 0..16_u8 {
        for order in 0..=255_u8 {
            // pshufd xmmN, xmm1, order
            if register == 1 {
                continue;
            }
            let rex = 0x40 | (register >> 3) << 2;
            let modrm = 0xc1 | (register & 7) << 3;
            g.run(&[0x66, rex, 0x0f, 0x70, modrm, order]).unwrap();
            let first = u32::from(order & 3) + 1;
            assert_eq!(g.xmm(register.into()) as u32, (first as f32).to_bits());
        }
    }
}

/// A host without XSAVE has no AVX, and everything else all the same.
#[test]
fn fxsave_is_enough_for_all_but_avx() {
    host::use_fxsave();
    let mut g = Guest::new();
    g.set_xmm(0, floats([1.0, 2.0, 3.0, 4.0]));
    g.set_xmm(15, 7);
    let high = XsaveArea::YMM_HIGH;
    g.cpu.fpu.0[high..high + 16].fill(0x5a);
    // addps xmm0, xmm0; fldpi; fld1; movq rax, mm7
    g.run(&[0x0f, 0x58, 0xc0]).unwrap();
    assert_eq!(g.xmm(0), floats([2.0, 4.0, 6.0, 8.0]));
    assert_eq!(g.xmm(15), 7);
    assert_eq!(
        g.ymm_high(0),
        u128::from_le_bytes([0x5a; 16]),
        "legacy code keeps it"
    );
    g.run(&[0xd9, 0xeb]).unwrap();
    g.run(&[0xd9, 0xe8]).unwrap();
    assert_eq!(get16(&g.cpu.fpu, at::FSW) >> 11 & 7, 6);
    g.run(&[0x48, 0x0f, 0x7e, 0xf8]).unwrap();
    assert_eq!(g.cpu.gpr[reg::RAX], 0xc90f_daa2_2168_c235);
    assert_eq!(g.fails(&[0xc5, 0xf8, 0x58, 0xc0]), Exception::UD);
}
