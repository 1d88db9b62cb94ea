//! What firmware would have done: tables and kernel into memory, processors into their states.

use accel::{Vcpu, X86Vcpu};
use board::acpi::AcpiTables;
use board::boot::{BootRequest, FileImage, Image};
use board::memory_map::MemoryMap;
use board::smbios::SmbiosTables;
use memory::{GuestAddressSpace, GuestRam};
use x86::model::CpuTemplate;
use x86::{CpuState, LapicState};

use crate::error::MachineError;
use crate::plan::KernelPlan;
use crate::settings::Decompress;

/// LVT of LINT0 as firmware leaves it on the bootstrap processor: ExtINT, from the PIC.
const LINT0_EXTINT: u32 = 0x700;
/// LVT of LINT1 as firmware leaves it everywhere: NMI.
const LINT1_NMI: u32 = 0x400;

/// Everything that is put into memory at power-on and at each reset.
pub(crate) struct BootSource {
    pub(crate) map: MemoryMap,
    pub(crate) acpi: AcpiTables,
    pub(crate) smbios: SmbiosTables,
    pub(crate) kernel: Option<KernelPlan>,
}

impl BootSource {
    /// Fills memory; returns the state in which the bootstrap processor begins.
    pub(crate) fn load(&self, ram: &GuestRam) -> Result<CpuState, MachineError> {
        let ram = ram.memory();
        let area = self
            .acpi
            .install(&ram, &self.map)
            .map_err(MachineError::step("place the ACPI tables"))?;
        self.smbios
            .install(&ram)
            .map_err(MachineError::step("place the SMBIOS tables"))?;
        let Some(kernel) = &self.kernel else {
            return Err(MachineError::Description(
                "there is nothing to boot: give a kernel with --kernel (firmware that boots from disks is not there yet)".into(),
            ));
        };
        let unreadable = |what: &str| MachineError::step(format!("read the {what}"));
        let image = FileImage::new(&kernel.image).map_err(unreadable("kernel"))?;
        let initrd = kernel
            .initrd
            .as_ref()
            .map(FileImage::new)
            .transpose()
            .map_err(unreadable("initrd"))?;
        let request = BootRequest {
            kernel: &image,
            kernel_name: &kernel.name,
            initrd: initrd.as_ref().map(|initrd| initrd as &dyn Image),
            cmdline: &kernel.spec.cmdline,
            memory: &self.map,
            acpi: Some(area),
            decompress: match kernel.spec.decompress {
                Decompress::Host => board::boot::Decompress::Host,
                Decompress::Guest => board::boot::Decompress::Guest,
            },
        };
        let plan =
            board::boot::load(&ram, &request).map_err(MachineError::step("load the kernel"))?;
        memory::all_written(&ram);
        log::debug!("boot protocol {:?}", plan.protocol);
        Ok(plan.cpu)
    }
}

/// The state of processor `index` at power-on; `boot` is where the bootstrap processor begins.
pub(crate) fn initial_state(cpu: &CpuTemplate, index: u32, boot: &CpuState) -> CpuState {
    let mut state = cpu.reset_state(index);
    if index == 0 {
        state.regs = boot.regs;
        state.sregs = boot.sregs;
    }
    let mut lapic = LapicState::reset(cpu.apic_id(index));
    lapic.set(LapicState::LVT_LINT1, LINT1_NMI);
    if index == 0 {
        lapic.set(LapicState::LVT_LINT0, LINT0_EXTINT);
    }
    state.lapic = Some(lapic);
    state
        .msrs
        .extend(board::boot::FIRMWARE_MSRS.iter().copied());
    state
        .msrs
        .extend(cpu.msrs().iter().map(|(index, value)| (*index, *value)));
    state
}

/// Sets a processor's state; for use at its gate.
pub(crate) fn apply(vcpu: &mut dyn Vcpu, state: &CpuState) -> Result<(), accel::AccelError> {
    let x86: &mut dyn X86Vcpu = vcpu.x86();
    x86.set_state(state)
}
