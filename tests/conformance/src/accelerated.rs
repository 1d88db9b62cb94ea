//! A processor behind the boundary of the accelerators: `accel`'s traits, whatever is behind them.

use std::sync::Arc;

use accel::{Accelerator, Exit, Vcpu, VcpuSetup, Vm};
use memory::GuestRam;
use x86::FeatureSet;

use crate::system::{Machine, PORT};
use crate::{Backend, Case, Outcome};

/// One processor of an accelerator, in the machine of a case.
pub struct Accelerated {
    machine: Machine,
    vcpu: Box<dyn Vcpu>,
    components: u64,
    features: FeatureSet,
    name: &'static str,
    /// See [`Backend::exact_jumps`].
    pub exact_jumps: bool,
    _vm: Arc<dyn Vm>,
}

impl Accelerated {
    /// With everything that the accelerator has to show.
    ///
    /// # Panics
    /// The accelerator does not work.
    #[must_use]
    pub fn new(accelerator: &dyn Accelerator, name: &'static str) -> Self {
        let ready = accelerator.ready();
        assert!(ready.is_ok(), "{ready:?}");
        let machine = Machine::new();
        let ram = GuestRam::from(Arc::clone(&machine.ram));
        let vm = accelerator.create_vm(ram);
        let vm = vm.unwrap_or_else(|e| panic!("{e}"));
        let cpuid = accelerator.capabilities().cpu.cpuid.clone();
        let components = cpuid.xcr0_mask();
        let vcpu = vm.create_vcpu(VcpuSetup {
            index: 0,
            apic_id: 0,
            cpuid,
        });
        Accelerated {
            machine,
            vcpu: vcpu.unwrap_or_else(|e| panic!("{e}")),
            components,
            features: accelerator.capabilities().cpu.features(),
            name,
            exact_jumps: true,
            _vm: vm,
        }
    }
}

impl Backend for Accelerated {
    fn name(&self) -> &'static str {
        self.name
    }

    fn features(&self) -> FeatureSet {
        self.features
    }

    fn exact_jumps(&self) -> bool {
        self.exact_jumps
    }

    fn run(&mut self, case: &Case) -> Outcome {
        self.machine.load(case);
        let state = self.machine.state(case, self.components);
        let set = self.vcpu.x86().set_state(&state);
        assert!(set.is_ok(), "{set:?}");
        loop {
            match self.vcpu.run() {
                Ok(Exit::PortWrite { port: PORT, .. }) => break,
                Ok(Exit::Interrupted) => {}
                other => panic!("{other:?}"),
            }
        }
        let finished = self.vcpu.finish_exit();
        assert!(finished.is_ok(), "{finished:?}");
        let state = self.vcpu.x86().state();
        let state = state.unwrap_or_else(|e| panic!("{e}"));
        self.machine.outcome(&state, case)
    }
}
