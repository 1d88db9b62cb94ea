use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use accel::{AccelError, Accelerator, Capabilities, Vm};
use kvm_ioctls::Cap;
use memory::GuestRam;
use x86::cpuid::{Cpuid, CpuidEntry};
use x86::{HostCpu, msr};

use crate::selftest;
use crate::vm::KvmVm;

/// What this accelerator cannot do without, and since which kernel it is there.
const REQUIRED: &[(Cap, &str)] = &[
    (Cap::UserMemory, "guest memory from the process"),
    (Cap::SplitIrqchip, "the split interrupt chip (Linux 4.4)"),
    (Cap::Irqfd, "irqfd"),
    (Cap::Ioeventfd, "ioeventfd"),
    (
        Cap::IoeventfdNoLength,
        "ioeventfd of any length (Linux 4.4)",
    ),
    (Cap::SignalMsi, "KVM_SIGNAL_MSI"),
    (Cap::ImmediateExit, "immediate_exit (Linux 4.13)"),
    (Cap::X2ApicApi, "32-bit APIC IDs (Linux 4.9)"),
    (Cap::AdjustClock, "a clock that can be set"),
];

const NAME: &str = "kvm";

/// Makes an error of a failed ioctl.
pub(crate) fn host(what: impl Into<String>) -> impl FnOnce(kvm_ioctls::Error) -> AccelError {
    move |e| AccelError::Host {
        what: what.into(),
        source: io::Error::from_raw_os_error(e.errno()),
    }
}

/// The host's KVM.
pub struct Kvm {
    host: Arc<Host>,
    selftest: Mutex<SelfTest>,
}

/// The device, and what it offers.
pub(crate) struct Host {
    kvm: kvm_ioctls::Kvm,
    pub(crate) capabilities: Capabilities,
}

/// How far the self-test is.
enum SelfTest {
    Running(JoinHandle<Result<(), AccelError>>),
    Passed,
    Failed(String),
}

impl Kvm {
    /// Opens `device` (normally /dev/kvm), and begins a self-test of a few milliseconds: whether
    /// it runs ordinary guests. [`Accelerator::ready`] has its result.
    ///
    /// # Errors
    /// [`AccelError::Unusable`] says what is missing: the device, the permission or a capability.
    pub fn open(device: &Path) -> Result<Self, AccelError> {
        let host = Arc::new(Host::open(device)?);
        let tested = Arc::clone(&host);
        let thread = std::thread::Builder::new()
            .name("kvm-selftest".into())
            .spawn(move || selftest::run(&tested))
            .map_err(|source| AccelError::Host {
                what: "start the self-test of KVM".into(),
                source,
            })?;
        Ok(Self {
            host,
            selftest: Mutex::new(SelfTest::Running(thread)),
        })
    }
}

impl Host {
    fn open(device: &Path) -> Result<Self, AccelError> {
        let unusable = |why: String| AccelError::Unusable {
            accelerator: NAME,
            why,
        };
        let shown = device.display();
        let path = std::ffi::CString::new(device.as_os_str().as_encoded_bytes())
            .map_err(|_| unusable(format!("{shown} is not a path")))?;
        let kvm = kvm_ioctls::Kvm::new_with_path(&path).map_err(|e| {
            let advice = match e.errno() {
                libc::ENOENT => "the host has no KVM: enable virtualization in its firmware and load kvm_intel or kvm_amd",
                libc::EACCES | libc::EPERM => "add the user to the group kvm",
                _ => "see the host's kernel log",
            };
            unusable(format!("{shown}: {}; {advice}", io::Error::from_raw_os_error(e.errno())))
        })?;
        let version = kvm.get_api_version();
        if version != 12 {
            return Err(unusable(format!(
                "{shown}: its interface has version {version}, not 12"
            )));
        }
        let missing: Vec<&str> = REQUIRED
            .iter()
            .filter(|(cap, _)| !kvm.check_extension(*cap))
            .map(|(_, what)| *what)
            .collect();
        if !missing.is_empty() {
            return Err(unusable(format!(
                "{shown}: the kernel lacks {}",
                missing.join(", ")
            )));
        }
        let supported = kvm
            .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(host("read the processor features that KVM supports"))?;
        let mut cpuid = Cpuid::default();
        for entry in supported.as_slice() {
            cpuid.set(CpuidEntry {
                leaf: entry.function,
                subleaf: entry.index,
                index_significant: entry.flags & kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0,
                eax: entry.eax,
                ebx: entry.ebx,
                ecx: entry.ecx,
                edx: entry.edx,
            });
        }
        let cpu = HostCpu {
            cpuid,
            arch_capabilities: read_feature_msr(&kvm, msr::ARCH_CAPABILITIES),
            tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
            // The I/O APIC and the MSI routes are ours, and carry 15 bits.
            msi_ext_dest_id: true,
        };
        let capabilities = Capabilities {
            cpu,
            max_vcpus: u32::try_from(kvm.get_max_vcpus()).unwrap_or(u32::MAX),
            max_apic_id: u32::try_from(kvm.get_max_vcpu_id()).unwrap_or(u32::MAX),
        };
        Ok(Self { kvm, capabilities })
    }

    pub(crate) fn create(&self, ram: GuestRam) -> Result<Arc<KvmVm>, AccelError> {
        KvmVm::new(&self.kvm, ram, self.capabilities.max_vcpus)
    }
}

/// A feature MSR as the host has it; zero where it has none.
fn read_feature_msr(kvm: &kvm_ioctls::Kvm, index: u32) -> u64 {
    let entry = kvm_bindings::kvm_msr_entry {
        index,
        ..Default::default()
    };
    let Ok(mut msrs) = kvm_bindings::Msrs::from_entries(&[entry]) else {
        return 0;
    };
    match kvm.get_msrs(&mut msrs) {
        Ok(1) => msrs.as_slice().first().map_or(0, |entry| entry.data),
        _ => 0,
    }
}

impl Accelerator for Kvm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> &Capabilities {
        &self.host.capabilities
    }

    fn ready(&self) -> Result<(), AccelError> {
        let mut selftest = self.selftest.lock().unwrap_or_else(PoisonError::into_inner);
        let verdict = match std::mem::replace(&mut *selftest, SelfTest::Passed) {
            SelfTest::Running(thread) => match thread.join() {
                Ok(Err(AccelError::Unusable { why, .. })) => SelfTest::Failed(why),
                Ok(Err(other)) => SelfTest::Failed(other.to_string()),
                Ok(Ok(())) => SelfTest::Passed,
                Err(_) => SelfTest::Failed("its self-test panicked".into()),
            },
            known => known,
        };
        let outcome = match &verdict {
            SelfTest::Failed(why) => Err(AccelError::Unusable {
                accelerator: NAME,
                why: why.clone(),
            }),
            SelfTest::Running(_) | SelfTest::Passed => Ok(()),
        };
        *selftest = verdict;
        outcome
    }

    fn create_vm(&self, ram: GuestRam) -> Result<Arc<dyn Vm>, AccelError> {
        Ok(self.host.create(ram)?)
    }
}
