//! The table against the decoder's description of every code.

use std::collections::BTreeSet;

use iced_x86::{
    Code, FlowControl, Instruction, InstructionInfoFactory, MemorySize, OpAccess,
    OpCodeOperandKind as Op, OpKind, Register,
};
use x86::cpuid::Feature;

use super::{Class, Unit, host, of, unit};

/// Some instruction of this code: each operand kind with a register, memory or immediate that it
/// can have. None if there is a kind that no copied instruction may have.
fn sample(code: Code, memory: bool) -> Option<Instruction> {
    let mut i = Instruction::new();
    i.set_code(code);
    for (n, &op) in code.op_code().op_kinds().iter().enumerate() {
        let n = n as u32;
        let register = match op {
            Op::r8_reg | Op::r8_opcode => Register::DL,
            Op::r16_reg | Op::r16_opcode | Op::r16_rm => Register::DX,
            Op::r32_reg | Op::r32_opcode | Op::r32_rm => Register::EDX,
            Op::r64_reg | Op::r64_opcode | Op::r64_rm => Register::RDX,
            Op::r32_vvvv => Register::EBX,
            Op::r64_vvvv => Register::RBX,
            Op::al => Register::AL,
            Op::ax => Register::AX,
            Op::eax => Register::EAX,
            Op::rax => Register::RAX,
            Op::xmm_reg => Register::XMM1,
            Op::xmm_vvvv => Register::XMM2,
            Op::xmm_rm => Register::XMM3,
            Op::xmm_is4 => Register::XMM4,
            Op::ymm_reg => Register::YMM1,
            Op::ymm_vvvv => Register::YMM2,
            Op::ymm_rm => Register::YMM3,
            Op::ymm_is4 => Register::YMM4,
            Op::r8_or_mem if !memory => Register::BL,
            Op::r16_or_mem if !memory => Register::BX,
            Op::r32_or_mem if !memory => Register::EBX,
            Op::r64_or_mem if !memory => Register::RBX,
            Op::xmm_or_mem if !memory => Register::XMM3,
            Op::ymm_or_mem if !memory => Register::YMM3,
            _ => Register::None,
        };
        if register != Register::None {
            i.set_op_kind(n, OpKind::Register);
            i.set_op_register(n, register);
            continue;
        }
        match op {
            Op::mem
            | Op::r8_or_mem
            | Op::r16_or_mem
            | Op::r32_or_mem
            | Op::r64_or_mem
            | Op::xmm_or_mem
            | Op::ymm_or_mem => {
                i.set_op_kind(n, OpKind::Memory);
                i.set_memory_base(Register::RSI);
            }
            Op::imm8 | Op::imm8_const_1 => i.set_op_kind(n, OpKind::Immediate8),
            Op::imm8sex16 => i.set_op_kind(n, OpKind::Immediate8to16),
            Op::imm8sex32 => i.set_op_kind(n, OpKind::Immediate8to32),
            Op::imm8sex64 => i.set_op_kind(n, OpKind::Immediate8to64),
            Op::imm16 => i.set_op_kind(n, OpKind::Immediate16),
            Op::imm32 => i.set_op_kind(n, OpKind::Immediate32),
            Op::imm32sex64 => i.set_op_kind(n, OpKind::Immediate32to64),
            Op::imm64 => i.set_op_kind(n, OpKind::Immediate64),
            // The second of two immediates, of SSE4A.
            _ => return None,
        }
    }
    if let [.., Op::imm8, Op::imm8] = code.op_code().op_kinds() {
        i.set_op_kind(code.op_code().op_count() - 1, OpKind::Immediate8_2nd);
    }
    Some(i)
}

/// The security boundary: whatever the lists say, nothing may be copied that does more than they
/// promise.
#[test]
fn copied_instructions_do_only_what_their_operands_say() {
    let mut factory = InstructionInfoFactory::new();
    let mut copied = 0;
    for code in Code::values().filter(|&c| of(c) == Class::Copy) {
        copied += 1;
        let info = code.op_code();
        assert!(info.mode64(), "{code:?}");
        assert_eq!(code.flow_control(), FlowControl::Next, "{code:?}");
        assert!(!code.is_stack_instruction(), "{code:?}");
        assert!(!code.is_privileged(), "{code:?}");
        assert!(!code.is_save_restore_instruction(), "{code:?}");
        assert!(!info.is_input_output(), "{code:?}");
        for memory in [false, true] {
            let i = sample(code, memory).unwrap_or_else(|| panic!("operands of {code:?}"));
            let named: BTreeSet<Register> = (0..i.op_count())
                .filter(|&op| i.op_kind(op) == OpKind::Register)
                .map(|op| i.op_register(op).full_register())
                .collect();
            let used = factory.info(&i);
            for register in used.used_registers() {
                let full = register.register().full_register();
                let address = i.memory_base().full_register() == full
                    || register.register().is_segment_register();
                let implied_xmm0 = full == Register::ZMM0 && register.access() == OpAccess::Read;
                assert!(
                    named.contains(&full) || address || implied_xmm0 || all_vectors(code, full),
                    "{code:?} uses {full:?}"
                );
            }
            let explicit = (0..i.op_count())
                .filter(|&op| i.op_kind(op) == OpKind::Memory)
                .count();
            assert!(explicit <= 1, "{code:?}");
            assert_eq!(used.used_memory().len(), explicit, "{code:?}");
            for m in used.used_memory() {
                assert_eq!(m.base(), Register::RSI, "{code:?}");
                assert_ne!(m.memory_size(), MemorySize::Unknown, "{code:?}");
                assert!((1..=32).contains(&m.memory_size().size()), "{code:?}");
                assert_ne!(m.access(), OpAccess::NoMemAccess, "{code:?}");
            }
        }
    }
    // The table is not empty by accident.
    assert!(copied > 900, "{copied} codes");
}

/// VZEROALL and VZEROUPPER name no register.
fn all_vectors(code: Code, full: Register) -> bool {
    matches!(code, Code::VEX_Vzeroall | Code::VEX_Vzeroupper) && full.is_zmm()
}

#[test]
fn dangerous_codes_are_never_copied() {
    for code in [
        Code::Syscall,
        Code::Sysenter,
        Code::Int_imm8,
        Code::Wrfsbase_r64,
        Code::Rdfsbase_r64,
        Code::Wrpkru,
        Code::Xbegin_rel32,
        Code::Xrstor_mem,
        Code::Ldmxcsr_m32,
        Code::Fldcw_m2byte,
        Code::Bt_rm64_r64,
        Code::Bts_rm32_r32,
        Code::Btc_rm16_r16,
        Code::Maskmovdqu_rDI_xmm_xmm,
        Code::VEX_Vpgatherdd_ymm_vm32y_ymm,
        Code::Xlat_m8,
        Code::Movsb_m8_m8,
        Code::Movdir64b_r64_m512,
        Code::Enqcmd_r64_m512,
        Code::Enclu,
        Code::Div_rm64,
        Code::Shl_rm32_CL,
        Code::Popfq,
        Code::Std,
        Code::Lea_r64_m,
        Code::Rdtsc,
        Code::Cpuid,
        Code::Mov_r64_cr,
        Code::Mov_Sreg_r32m16,
        Code::Mov_AL_moffs8,
        Code::Call_rel32_64,
        Code::Fadd_m32fp,
        Code::Paddb_mm_mmm64,
    ] {
        assert_ne!(of(code), Class::Copy, "{code:?}");
    }
}

#[test]
fn what_is_not_offered_does_not_exist() {
    for code in Code::values() {
        let name = format!("{code:?}");
        if ["EVEX_", "XOP_", "MVEX_", "D3NOW_", "VEX_K", "VEX_Tile"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
        {
            assert_eq!(of(code), Class::Undefined, "{code:?}");
        }
    }
    for code in [
        Code::INVALID,
        Code::Ud2,
        Code::Vmlaunch,
        Code::Vmrunq,
        Code::Xbegin_rel32,
        Code::Xtest,
        Code::Bndmov_bnd_bndm128,
        Code::Saveprevssp,
        Code::Wrpkru,
        Code::Rsm,
        Code::VEX_Vfmaddps_xmm_xmm_xmmm128_xmm,
        Code::Monitorxd,
        Code::Serialize,
        Code::Tpause_r32,
    ] {
        assert_eq!(of(code), Class::Undefined, "{code:?}");
    }
}

#[test]
fn common_codes_have_the_class_that_translators_expect() {
    use Class::{Copy, Helper, Rewrite};
    for (code, class) in [
        (Code::Mov_r64_rm64, Copy),
        (Code::Mov_r64_imm64, Copy),
        (Code::Add_rm8_r8, Copy),
        (Code::Add_RAX_imm32, Copy),
        (Code::Xadd_rm64_r64, Copy),
        (Code::Xchg_rm32_r32, Copy),
        (Code::Bt_rm64_imm8, Copy),
        (Code::Shl_rm64_imm8, Copy),
        (Code::Imul_r64_rm64_imm8, Copy),
        (Code::Setne_rm8, Copy),
        (Code::Movaps_xmm_xmmm128, Copy),
        (Code::Blendvps_xmm_xmmm128, Copy),
        (Code::Cvtsi2sd_xmm_rm64, Copy),
        (Code::Movnti_m64_r64, Copy),
        (Code::VEX_Vfmadd231pd_ymm_ymm_ymmm256, Copy),
        (Code::VEX_Shlx_r64_rm64_r64, Copy),
        (Code::Endbr64, Copy),
        (Code::Pcmpistri_xmm_xmmm128_imm8, Rewrite),
        (Code::Cmpxchg_rm64_r64, Rewrite),
        (Code::Push_r64, Rewrite),
        (Code::Retnq, Rewrite),
        (Code::Je_rel8_64, Rewrite),
        (Code::Jmp_rm64, Rewrite),
        (Code::Stosq_m64_RAX, Rewrite),
        (Code::Nop_rm32, Rewrite),
        (Code::Popw_FS, Helper),
        (Code::Jmp_m1664, Helper),
        (Code::Hlt, Helper),
        (Code::Vmcall, Helper),
        (Code::Rdsspq_r64, Helper),
        (Code::Fxsave_m512byte, Helper),
    ] {
        assert_eq!(of(code), class, "{code:?}");
    }
    assert_eq!(unit(Code::Pavgb_mm_mmm64), Unit::Mmx);
    assert_eq!(unit(Code::Cvtpi2ps_xmm_mmm64), Unit::Sse);
    assert_eq!(unit(Code::Movnti_m32_r32), Unit::Integer);
    assert_eq!(unit(Code::VEX_Andn_r32_r32_rm32), Unit::VexInteger);
    assert_eq!(unit(Code::Fcmovb_st0_sti), Unit::X87);
    assert_eq!(unit(Code::Xgetbv), Unit::Xsave);
}

#[test]
fn a_plain_host_shows_what_the_program_does_itself() {
    // A processor with SSE2, XSAVE that is not enabled, and AVX.
    let shown = host::host_cpu(&|leaf, _| match leaf {
        0 => [1, 0x756e_6547, 0x6c65_746e, 0x4965_6e69],
        1 => [0x6f0, 0, 1 << 28, 1 << 23 | 1 << 24 | 1 << 25 | 1 << 26],
        0x8000_0000 => [0x8000_0001, 0, 0, 0],
        _ => [0; 4],
    });
    let features = shown.features();
    for name in ["sse2", "smep", "x2apic", "tsc-deadline", "rdctl-no"] {
        let feature = Feature::named(name).unwrap();
        assert!(features.contains(feature), "{name}");
    }
    for name in ["avx", "xsave", "sse4.1", "vmx", "avx512f", "la57"] {
        let feature = Feature::named(name).unwrap();
        assert!(!features.contains(feature), "{name}");
    }
    assert_eq!(shown.cpuid.xcr0_mask(), 0);
}

#[test]
fn the_save_area_has_room_for_what_this_host_shows() {
    let shown = super::supported_features();
    let avx = shown.features().contains(Feature::of("avx"));
    let expected = match shown.cpuid.xcr0_mask() {
        0 => 576,
        3 => 576,
        7 => 832,
        other => panic!("components {other:#x}"),
    };
    assert_eq!(shown.cpuid.xsave_len(), expected);
    assert_eq!(avx, expected == 832);
    assert!(!shown.features().contains(Feature::of("avx512f")));
}

#[test]
fn models_without_keys_and_wide_vectors_are_complete() {
    let shown = |vendor: [u32; 3]| {
        host::host_cpu(&|leaf, _| match leaf {
            0 => [0xd, vendor[0], vendor[1], vendor[2]],
            0x8000_0000 => [0x8000_0008, 0, 0, 0],
            0x8000_0008 => [46, 0, 0, 0],
            4 | 0x8000_001d => [0; 4],
            _ => [u32::MAX; 4],
        })
    };
    let intel = shown([0x756e_6547, 0x6c65_746e, 0x4965_6e69]);
    let amd = shown([0x6874_7541, 0x444d_4163, 0x6974_6e65]);
    for name in [
        "kvm64",
        "x86-64-v2",
        "x86-64-v3",
        "Nehalem",
        "Westmere",
        "SandyBridge",
        "IvyBridge",
        "Haswell-noTSX",
        "Broadwell-noTSX",
        "Skylake-Client-noTSX-IBRS",
        "EPYC-v3",
        "EPYC-Rome-v2",
    ] {
        let shown = if name.starts_with("EPYC") {
            &amd
        } else {
            &intel
        };
        let models = x86::model::list_models(shown);
        let model = models.iter().find(|model| model.name == name).unwrap();
        assert!(model.is_runnable(), "{name} lacks {:?}", model.missing);
    }
}
