//! Running a machine from beginning to end.

use std::sync::Arc;

use accel::Accelerator;
use accel_kvm::Kvm;
use accel_soft::{EngineKind, Soft};
use event::{IoThread, IoThreadConfig, Sender};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::assemble::{Ears, assemble};
use crate::control::{Control, Message, inbox};
use crate::error::MachineError;
use crate::exit::Outcome;
use crate::plan::Plan;
use crate::server::{Owed, Server};
use crate::settings::{AccelKind, AccelSpec, Engine};

/// Signals that end the machine, in order if the guest agrees.
const ENDING: [Signal; 4] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
];

/// Bytes of the control thread's stack: it loads kernels, which the I/O threads never do.
const CONTROL_STACK: usize = 1 << 20;

/// Opens the accelerator that the plan asks for.
///
/// # Errors
/// It is not to be had; the error says why and what to do.
pub fn accelerator(plan: &Plan) -> Result<Arc<dyn Accelerator>, MachineError> {
    let device = &plan.settings.kvm_device;
    match plan.accel.kind {
        AccelKind::Kvm => Ok(Arc::new(Kvm::open(device)?)),
        AccelKind::Soft => Ok(Arc::new(soft(&plan.accel))),
        AccelKind::Auto => match Kvm::open(device).and_then(|kvm| kvm.ready().map(|()| kvm)) {
            Ok(kvm) => Ok(Arc::new(kvm)),
            Err(e) => {
                log::warn!(
                    "the guest runs on the software processor, several times slower: {}",
                    crate::error::chain(&e)
                );
                Ok(Arc::new(soft(&plan.accel)))
            }
        },
    }
}

fn soft(spec: &AccelSpec) -> Soft {
    Soft::new(accel_soft::Options {
        engine: match spec.engine {
            Engine::Translate => EngineKind::Translate,
            Engine::Interpret => EngineKind::Interpret,
        },
        cache: spec.cache.0,
        exact_flags: spec.exact_flags,
    })
}

/// Builds the machine, runs it, and says how it ended. Call it before any other thread is
/// started: it blocks the signals that it wants to receive.
///
/// # Errors
/// The machine could not be built.
pub fn run(plan: Plan, accelerator: &dyn Accelerator) -> Result<Outcome, MachineError> {
    let announce = Announce {
        built: || Ok(()),
        quieter: || (),
    };
    run_announced(plan, accelerator, announce)
}

/// What a caller of [`run_announced`] is told, and when.
pub struct Announce<B, S> {
    /// The machine is complete, before the guest's first instruction. An error ends it there.
    pub built: B,
    /// What only the start needs is done: called on the control thread when the guest's first
    /// instruction is due, and again when most guests have started.
    pub quieter: S,
}

/// As [`run`], and tells how far it is.
///
/// # Errors
/// The machine could not be built, or `built` failed.
pub fn run_announced<B, S>(
    plan: Plan,
    accelerator: &dyn Accelerator,
    announce: Announce<B, S>,
) -> Result<Outcome, MachineError>
where
    B: FnOnce() -> Result<(), MachineError>,
    S: Fn() + Send + 'static,
{
    let Announce { built, quieter } = announce;
    let signals = block_signals()?;
    let control = IoThread::spawn(IoThreadConfig {
        stack_size: CONTROL_STACK,
        ..IoThreadConfig::new("control")
    })
    .map_err(MachineError::step("start the control thread"))?;
    let (sender, receiver) = inbox();
    let servers = plan
        .qmp
        .iter()
        .map(|path| Server::bind(path))
        .collect::<Result<Vec<_>, _>>()?;
    let ears = Ears {
        vcpus: {
            let sender = sender.clone();
            // Control ends before the processors only when the process does.
            Arc::new(move |index, event| _ = sender.send(Message::Vcpu(index, event)))
        },
        escape: {
            let sender = sender.clone();
            Arc::new(move || _ = sender.send(Message::Escape))
        },
        io_errors: {
            let sender = sender.clone();
            Arc::new(move |id: &str, error| _ = sender.send(Message::IoError(id.to_owned(), error)))
        },
        events: {
            let sender = sender.clone();
            Arc::new(move |event| _ = sender.send(Message::Event(event)))
        },
    };
    let machine = assemble(plan, accelerator, control.clone(), ears).map_err(|error| {
        // An accelerator that does not work here may have failed in some odd way before.
        match (error, accelerator.ready()) {
            (MachineError::Accelerator(_), Err(unusable)) => unusable.into(),
            (error, _) => error,
        }
    })?;
    built()?;
    let task = control.spawn_task(move || async move {
        let owed = Owed::default();
        for server in servers {
            event::spawn_local(server.serve(sender.clone(), owed.clone())).detach();
        }
        event::spawn_local(forward_signals(signals, sender.clone())).detach();
        let outcome = Control::new(machine, sender).run(receiver, quieter).await;
        // The clients hear of the end before the process goes.
        owed.paid().await;
        outcome
    });
    task.join()
        .map_err(|_| MachineError::Description("the control thread ended unexpectedly".into()))
}

fn block_signals() -> Result<SignalFd, MachineError> {
    let mut set = SigSet::empty();
    ENDING.into_iter().for_each(|signal| set.add(signal));
    set.thread_block()
        .map_err(MachineError::step("block signals"))?;
    SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(MachineError::step("receive signals"))
}

async fn forward_signals(signals: SignalFd, inbox: Sender<Message>) {
    loop {
        if let Err(e) = event::readable(&signals).await {
            log::error!("signals cannot be received: {e}");
            return;
        }
        while let Ok(Some(info)) = signals.read_signal() {
            let number = i32::try_from(info.ssi_signo).unwrap_or_default();
            if let Ok(signal) = Signal::try_from(number) {
                _ = inbox.send(Message::Signal(signal));
            }
        }
    }
}
