//! Underflow that the guest has unmasked: it is raised for every result that is tiny, not only
//! for those that are inexact as well (SDM vol. 1 11.5.2.5). The host runs with the exception
//! masked and says nothing of exact ones, which therefore are looked for in the result.

use iced_x86::{Instruction, Mnemonic, Register};

use super::vector;
use crate::state::XsaveArea;

/// Numbers of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Numbers {
    /// The lowest one.
    Scalar,
    /// All.
    Packed,
}

/// Which numbers of the destination an instruction computes, and their size in bytes; None for
/// those that cannot have tiny results, or only copy them.
fn computed(mnemonic: Mnemonic) -> Option<(Numbers, usize)> {
    use Mnemonic as M;
    use Numbers::{Packed, Scalar};
    Some(match mnemonic {
        M::Addss
        | M::Vaddss
        | M::Subss
        | M::Vsubss
        | M::Mulss
        | M::Vmulss
        | M::Divss
        | M::Vdivss
        | M::Cvtsd2ss
        | M::Vcvtsd2ss => (Scalar, 4),
        M::Addsd
        | M::Vaddsd
        | M::Subsd
        | M::Vsubsd
        | M::Mulsd
        | M::Vmulsd
        | M::Divsd
        | M::Vdivsd => (Scalar, 8),
        M::Addps
        | M::Vaddps
        | M::Subps
        | M::Vsubps
        | M::Mulps
        | M::Vmulps
        | M::Divps
        | M::Vdivps
        | M::Cvtpd2ps
        | M::Vcvtpd2ps
        | M::Addsubps
        | M::Vaddsubps
        | M::Haddps
        | M::Vhaddps
        | M::Hsubps
        | M::Vhsubps
        | M::Dpps
        | M::Vdpps => (Packed, 4),
        M::Addpd
        | M::Vaddpd
        | M::Subpd
        | M::Vsubpd
        | M::Mulpd
        | M::Vmulpd
        | M::Divpd
        | M::Vdivpd
        | M::Addsubpd
        | M::Vaddsubpd
        | M::Haddpd
        | M::Vhaddpd
        | M::Hsubpd
        | M::Vhsubpd
        | M::Dppd
        | M::Vdppd => (Packed, 8),
        M::Vfmadd132ss
        | M::Vfmadd213ss
        | M::Vfmadd231ss
        | M::Vfmsub132ss
        | M::Vfmsub213ss
        | M::Vfmsub231ss
        | M::Vfnmadd132ss
        | M::Vfnmadd213ss
        | M::Vfnmadd231ss
        | M::Vfnmsub132ss
        | M::Vfnmsub213ss
        | M::Vfnmsub231ss => (Scalar, 4),
        M::Vfmadd132sd
        | M::Vfmadd213sd
        | M::Vfmadd231sd
        | M::Vfmsub132sd
        | M::Vfmsub213sd
        | M::Vfmsub231sd
        | M::Vfnmadd132sd
        | M::Vfnmadd213sd
        | M::Vfnmadd231sd
        | M::Vfnmsub132sd
        | M::Vfnmsub213sd
        | M::Vfnmsub231sd => (Scalar, 8),
        M::Vfmadd132ps
        | M::Vfmadd213ps
        | M::Vfmadd231ps
        | M::Vfmsub132ps
        | M::Vfmsub213ps
        | M::Vfmsub231ps
        | M::Vfnmadd132ps
        | M::Vfnmadd213ps
        | M::Vfnmadd231ps
        | M::Vfnmsub132ps
        | M::Vfnmsub213ps
        | M::Vfnmsub231ps
        | M::Vfmaddsub132ps
        | M::Vfmaddsub213ps
        | M::Vfmaddsub231ps
        | M::Vfmsubadd132ps
        | M::Vfmsubadd213ps
        | M::Vfmsubadd231ps => (Packed, 4),
        M::Vfmadd132pd
        | M::Vfmadd213pd
        | M::Vfmadd231pd
        | M::Vfmsub132pd
        | M::Vfmsub213pd
        | M::Vfmsub231pd
        | M::Vfnmadd132pd
        | M::Vfnmadd213pd
        | M::Vfnmadd231pd
        | M::Vfnmsub132pd
        | M::Vfnmsub213pd
        | M::Vfnmsub231pd
        | M::Vfmaddsub132pd
        | M::Vfmaddsub213pd
        | M::Vfmaddsub231pd
        | M::Vfmsubadd132pd
        | M::Vfmsubadd213pd
        | M::Vfmsubadd231pd => (Packed, 8),
        _ => return None,
    })
}

/// Whether a number that the instruction has computed is denormal and not zero.
pub(super) fn tiny_result(area: &XsaveArea, i: &Instruction) -> bool {
    let Some((numbers, size)) = computed(i.mnemonic()) else {
        return false;
    };
    let register: Register = i.op0_register();
    if !(register.is_xmm() || register.is_ymm()) {
        return false;
    }
    let count = match numbers {
        Numbers::Scalar => 1,
        Numbers::Packed => register.size() / size,
    };
    (0..count).any(|n| {
        let bits = vector::element(area, register, n, size);
        let (magnitude, smallest) = if size == 4 {
            (bits & 0x7fff_ffff, 1 << 23)
        } else {
            (bits & !(1 << 63), 1 << 52)
        };
        magnitude != 0 && magnitude < smallest
    })
}
