use std::sync::Arc;

use accel::{AccelError, Accelerator, Capabilities, Vm};
use memory::GuestRam;
use x86::cpuid::{CpuidEntry, Feature, HYPERVISOR_LEAF, KVM_FEATURES_LEAF, KVM_SIGNATURE};

use crate::options::Options;
use crate::vm::SoftVm;
use crate::{NAME, pmu};

/// Processors of one machine, as under KVM.
const MAX_VCPUS: u32 = 1024;
/// First APIC ID that cannot be given: MSIs carry 15 bits.
const MAX_APIC_ID: u32 = 1 << 15;

/// What of KVM's paravirtual interface there is.
const PARAVIRTUAL: &[Feature] = &[
    Feature::of("kvmclock-legacy"),
    Feature::of("kvm-nopiodelay"),
    Feature::of("kvmclock"),
    Feature::of("kvm-steal-time"),
    Feature::of("kvm-pv-eoi"),
    Feature::of("kvm-pv-unhalt"),
    Feature::of("kvm-pv-tlb-flush"),
    Feature::of("kvm-pv-ipi"),
    Feature::of("kvm-poll-control"),
    Feature::of("kvm-pv-sched-yield"),
    Feature::of("kvm-msi-ext-dest-id"),
    Feature::of("kvmclock-stable-bit"),
];

/// The software accelerator: it needs nothing of the host but a processor.
pub struct Soft {
    capabilities: Capabilities,
    options: Options,
}

impl Soft {
    /// An accelerator that executes so.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let mut cpu = processor::classify::supported_features();
        let [ebx, ecx, edx] = KVM_SIGNATURE;
        cpu.cpuid.set(CpuidEntry::leaf(
            HYPERVISOR_LEAF,
            [KVM_FEATURES_LEAF, ebx, ecx, edx],
        ));
        cpu.cpuid.set(CpuidEntry::leaf(KVM_FEATURES_LEAF, [0; 4]));
        for feature in PARAVIRTUAL {
            cpu.cpuid.set_feature(*feature, true);
        }
        cpu.cpuid.set(pmu::leaf());
        cpu.tsc_deadline = true;
        cpu.msi_ext_dest_id = true;
        Self {
            capabilities: Capabilities {
                cpu,
                max_vcpus: MAX_VCPUS,
                max_apic_id: MAX_APIC_ID,
            },
            options,
        }
    }
}

impl Accelerator for Soft {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn ready(&self) -> Result<(), AccelError> {
        Ok(())
    }

    fn create_vm(&self, ram: GuestRam) -> Result<Arc<dyn Vm>, AccelError> {
        Ok(SoftVm::new(ram, self.options, MAX_VCPUS))
    }
}
