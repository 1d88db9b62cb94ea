#![allow(
    unsafe_code,
    reason = "reads the union in the run page that KVM shares with the process"
)]

use std::io;
use std::sync::Arc;

use accel::{AccelError, Exit, Kick, Vcpu, VcpuSetup, X86Vcpu};
use kvm_bindings as kb;
use kvm_ioctls::VcpuFd;
use x86::CpuState;

use crate::convert;
use crate::kick::Kicker;
use crate::kvm::host;

pub(crate) struct KvmVcpu {
    fd: VcpuFd,
    index: u32,
    kicker: Arc<Kicker>,
    xsave_size: usize,
}

impl KvmVcpu {
    pub(crate) fn new(
        fd: VcpuFd,
        setup: &VcpuSetup,
        xsave_size: usize,
    ) -> Result<Self, AccelError> {
        let cpuid = convert::cpuid(&setup.cpuid)?;
        fd.set_cpuid2(&cpuid)
            .map_err(host(format!("set the CPUID of processor {}", setup.index)))?;
        Ok(Self {
            fd,
            index: setup.index,
            kicker: Kicker::new(),
            xsave_size,
        })
    }

    /// Enters the guest once; tells whether it left by an exit (and not by a kick).
    fn enter(&mut self) -> Result<bool, AccelError> {
        let page: *mut kb::kvm_run = self.fd.get_kvm_run();
        let _running = self.kicker.enter(page);
        if self.kicker.take() {
            self.fd.set_kvm_immediate_exit(1);
        }
        let outcome = self.fd.run().map(|_| ());
        self.fd.set_kvm_immediate_exit(0);
        match outcome {
            Ok(()) => Ok(true),
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {
                self.kicker.take();
                Ok(false)
            }
            Err(e) => Err(AccelError::Host {
                what: format!("run processor {}", self.index),
                source: io::Error::from_raw_os_error(e.errno()),
            }),
        }
    }

    fn registers_as_text(&self) -> String {
        match (self.fd.get_regs(), self.fd.get_sregs()) {
            (Ok(r), Ok(s)) => format!(
                "rip={:#x} rsp={:#x} rflags={:#x} cs={:#x} cr0={:#x} cr3={:#x} cr4={:#x} efer={:#x}",
                r.rip, r.rsp, r.rflags, s.cs.selector, s.cr0, s.cr3, s.cr4, s.efer
            ),
            _ => "registers cannot be read".into(),
        }
    }
}

impl Vcpu for KvmVcpu {
    fn run(&mut self) -> Result<Exit<'_>, AccelError> {
        if !self.enter()? {
            return Ok(Exit::Interrupted);
        }
        let reason = self.fd.get_kvm_run().exit_reason;
        if !matches!(reason, kb::KVM_EXIT_IO | kb::KVM_EXIT_MMIO) {
            return Ok(self.rare_exit(reason));
        }
        let run = self.fd.get_kvm_run();
        if reason == kb::KVM_EXIT_MMIO {
            // SAFETY: the exit reason says that this member of the union is the valid one.
            let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
            let length = (mmio.len as usize).min(mmio.data.len());
            let data = &mut mmio.data[..length];
            return Ok(match mmio.is_write {
                0 => Exit::MemoryRead {
                    address: mmio.phys_addr,
                    data,
                },
                _ => Exit::MemoryWrite {
                    address: mmio.phys_addr,
                    data,
                },
            });
        }
        // SAFETY: as above.
        let io = unsafe { run.__bindgen_anon_1.io };
        let size = usize::from(io.size).max(1);
        let start: *mut u8 = std::ptr::from_mut(run).cast();
        // SAFETY: KVM puts count * size bytes at this offset of the mapping behind the run page,
        // which lives as long as the processor; the exclusive borrow of the processor covers it.
        let data = unsafe {
            std::slice::from_raw_parts_mut(
                start.add(io.data_offset as usize),
                size * io.count as usize,
            )
        };
        Ok(match u32::from(io.direction) {
            kb::KVM_EXIT_IO_IN => Exit::PortRead {
                port: io.port,
                size,
                data,
            },
            _ => Exit::PortWrite {
                port: io.port,
                size,
                data,
            },
        })
    }

    fn finish_exit(&mut self) -> Result<(), AccelError> {
        // With immediate_exit set KVM_RUN completes the pending instruction and comes back.
        self.fd.set_kvm_immediate_exit(1);
        let outcome = self.fd.run().map(|_| ());
        self.fd.set_kvm_immediate_exit(0);
        match outcome {
            Err(e) if e.errno() != libc::EINTR => Err(host("complete an exit")(e)),
            _ => Ok(()),
        }
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        Arc::clone(&self.kicker) as Arc<dyn Kick>
    }

    fn x86(&mut self) -> &mut dyn X86Vcpu {
        self
    }
}

impl KvmVcpu {
    fn rare_exit(&mut self, reason: u32) -> Exit<'static> {
        let run = self.fd.get_kvm_run();
        match reason {
            kb::KVM_EXIT_IOAPIC_EOI => {
                // SAFETY: the exit reason says that this member of the union is the valid one.
                let vector = unsafe { run.__bindgen_anon_1.eoi.vector };
                Exit::EndOfInterrupt { vector }
            }
            kb::KVM_EXIT_IRQ_WINDOW_OPEN => Exit::InterruptWindow,
            kb::KVM_EXIT_INTR => Exit::Interrupted,
            kb::KVM_EXIT_SHUTDOWN => Exit::TripleFault,
            kb::KVM_EXIT_INTERNAL_ERROR => {
                // SAFETY: as above.
                let internal = unsafe { run.__bindgen_anon_1.internal };
                let words: Vec<String> = internal
                    .data
                    .iter()
                    .take(internal.ndata as usize)
                    .map(|w| format!("{w:#x}"))
                    .collect();
                let kind = match internal.suberror {
                    kb::KVM_INTERNAL_ERROR_EMULATION => {
                        "it cannot emulate an instruction of the guest"
                    }
                    kb::KVM_INTERNAL_ERROR_SIMUL_EX => "exceptions came at the same time",
                    kb::KVM_INTERNAL_ERROR_DELIVERY_EV => "an event could not be delivered",
                    _ => "internal error",
                };
                let registers = self.registers_as_text();
                Exit::Failed {
                    why: format!(
                        "KVM: {kind} (suberror {}, data {}; {registers})",
                        internal.suberror,
                        words.join(" ")
                    ),
                }
            }
            kb::KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: as above.
                let entry = unsafe { run.__bindgen_anon_1.fail_entry };
                let registers = self.registers_as_text();
                Exit::Failed {
                    why: format!(
                        "KVM: the processor refused to enter the guest (hardware reason {:#x}; {registers})",
                        entry.hardware_entry_failure_reason
                    ),
                }
            }
            other => Exit::Failed {
                why: format!(
                    "KVM: unexpected exit reason {other} ({})",
                    self.registers_as_text()
                ),
            },
        }
    }
}

impl X86Vcpu for KvmVcpu {
    fn state(&mut self) -> Result<CpuState, AccelError> {
        convert::read_state(&self.fd, self.xsave_size)
    }

    fn set_state(&mut self, state: &CpuState) -> Result<(), AccelError> {
        convert::write_state(&self.fd, state, self.xsave_size)
    }

    fn ready_for_interrupt(&mut self) -> bool {
        self.fd.get_kvm_run().ready_for_interrupt_injection != 0
    }

    fn inject_interrupt(&mut self, vector: u8) -> Result<(), AccelError> {
        convert::inject_interrupt(&self.fd, vector)
    }

    fn request_interrupt_window(&mut self, wanted: bool) {
        self.fd.get_kvm_run().request_interrupt_window = u8::from(wanted);
    }

    fn inject_nmi(&mut self) -> Result<(), AccelError> {
        self.fd
            .nmi()
            .map_err(host("raise a non-maskable interrupt"))
    }
}
