//! The control thread: everything that is done to the machine from outside, and what the guest
//! does that concerns the whole machine, one message after the other.
//!
//! ```text
//!   vCPU threads ─ Vcpu ─┐
//!   signals ──── Signal ─┤
//!   console ──── Escape ─┼─▶ inbox ─▶ Control::handle ─▶ Machine
//!   disks ───── IoError ─┤                  │
//!   QMP ────────── Qmp ──┘                  └─ events ─▶ QMP clients
//! ```

use std::time::Duration;

use blockdev::Blockdev;
use bus::{Action, ShutdownCause};
use chipset::pvpanic::PanicEvent;
use event::{OneshotSender, Receiver, Sender, channel};
use nix::sys::signal::Signal;
use qmp::commands::run_state::RunState;
use qmp::events::{BlockIoError, ShutdownCause as Reason};
use qmp::{AsyncTable, Event, QmpError, Request, Table};
use serde_json::Value;
use virtio::blk::{ErrorAction, IoError};

use crate::error::{MachineError, chain};
use crate::exit::Outcome;
use crate::machine::Machine;
use crate::settings::{OnCrash, OnReset};
use crate::vcpu::VcpuEvent;

/// What reaches the control thread.
pub(crate) enum Message {
    /// A processor's thread has something to tell.
    Vcpu(u32, VcpuEvent),
    /// The process got a signal.
    Signal(Signal),
    /// The host failed a request of the disk with this id.
    IoError(String, IoError),
    /// Ctrl-] was typed at the console.
    Escape,
    /// A QMP client wants something.
    Qmp(Request, OneshotSender<Result<Value, QmpError>>),
    /// Something happened that QMP clients are told.
    Event(Event),
    /// A QMP client wants to hear events from now on.
    Subscribe(Sender<Event>),
    /// The time that the guest had to power down is over.
    GraceOver,
    /// A guest that was stopped because a disk failed is to try again.
    TryAgain,
}

/// How long a guest waits that was stopped because a disk failed, where nobody can say `cont`.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// How long guests take to start, small ones and big ones: each after the one before.
const STARTING: [Duration; 4] = [
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(20),
    Duration::from_secs(40),
];

/// The machine and what is known about its life.
pub(crate) struct Control {
    pub(crate) machine: Machine,
    state: RunState,
    outcome: Option<Outcome>,
    subscribers: Vec<Sender<Event>>,
    commands: Table<Control>,
    /// Those of the block graph.
    disks: AsyncTable<Blockdev>,
    this: Sender<Message>,
    asked_to_end: Option<Signal>,
}

impl Control {
    /// A machine that has not run yet.
    pub(crate) fn new(machine: Machine, this: Sender<Message>) -> Self {
        Self {
            machine,
            state: RunState::Prelaunch,
            outcome: None,
            subscribers: Vec::new(),
            commands: crate::commands::table(),
            disks: Blockdev::commands(),
            this,
            asked_to_end: None,
        }
    }

    /// Starts the guest and serves until the machine ends.
    pub(crate) async fn run(
        mut self,
        mut inbox: Receiver<Message>,
        quieter: impl Fn() + 'static,
    ) -> Outcome {
        if let Err(e) = self.begin() {
            return Outcome::Failed(chain(&e));
        }
        quieter();
        event::spawn_local(async move {
            for pause in STARTING {
                event::sleep(pause).await;
                quieter();
            }
        })
        .detach();
        while self.outcome.is_none() {
            match inbox.recv().await {
                Some(message) => self.handle(message),
                None => break,
            }
        }
        self.try_to("stop the processors", Machine::pause);
        self.machine.close_disks();
        self.outcome.unwrap_or(Outcome::Quit)
    }

    fn begin(&mut self) -> Result<(), MachineError> {
        self.machine.power_on()?;
        if !self.machine.plan.settings.paused {
            self.machine.resume()?;
            self.state = RunState::Running;
        }
        Ok(())
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Vcpu(index, event) => self.vcpu_event(index, event),
            Message::IoError(id, error) => self.io_error(id, error),
            Message::Signal(signal) => self.signal(signal),
            Message::Escape => self.end(Outcome::Quit, Reason::HostSignal),
            Message::Subscribe(subscriber) => self.subscribers.push(subscriber),
            Message::GraceOver => self.end(Outcome::Killed, Reason::HostSignal),
            Message::TryAgain => {
                if self.state == RunState::IoError
                    && let Err(e) = self.cont()
                {
                    log::error!("cannot let the guest go on: {}", chain(&e));
                }
            }
            Message::Event(event) => self.tell(event),
            Message::Qmp(request, reply) => self.execute(request, reply),
        }
    }

    fn execute(&mut self, request: Request, reply: OneshotSender<Result<Value, QmpError>>) {
        let Request {
            execute, arguments, ..
        } = request;
        if self.disks.has(&execute) {
            // They take their time; the machine goes on meanwhile.
            let blockdev = &self.machine.blockdev;
            let begun = self.disks.begin(blockdev, &execute, arguments);
            event::spawn_local(async move {
                let result = match begun {
                    Ok(answer) => answer.await,
                    Err(error) => Err(error),
                };
                reply.send(result);
            })
            .detach();
            return;
        }
        // The table is taken out for the call, as handlers get all of control.
        let commands = std::mem::take(&mut self.commands);
        let result = commands.run(self, &execute, arguments);
        self.commands = commands;
        reply.send(result);
    }

    fn vcpu_event(&mut self, index: u32, event: VcpuEvent) {
        match event {
            VcpuEvent::Action(Action::None) => self.release(index),
            VcpuEvent::Action(Action::Reset) => match self.machine.plan.settings.on_reset {
                OnReset::Reset => self.reset(Reason::GuestReset),
                OnReset::Exit => self.end(Outcome::GuestPowerOff, Reason::GuestReset),
            },
            VcpuEvent::Action(Action::Shutdown(ShutdownCause::GuestPowerOff)) => {
                self.end(Outcome::GuestPowerOff, Reason::GuestShutdown);
            }
            VcpuEvent::Action(Action::Shutdown(ShutdownCause::DebugExit(value))) => {
                self.end(Outcome::DebugExit(value), Reason::GuestShutdown);
            }
            VcpuEvent::Action(Action::Panicked)
                if self.machine.power.pvpanic.take_event() == Some(PanicEvent::CrashLoaded) =>
            {
                log::warn!("the guest panicked, and its crash kernel takes over");
                self.tell(Event::now(
                    "GUEST_CRASHLOADED",
                    serde_json::json!({ "action": "run" }),
                ));
                self.release(index);
            }
            VcpuEvent::Action(Action::Shutdown(ShutdownCause::GuestPanic) | Action::Panicked) => {
                log::error!("the guest panicked");
                self.crashed(
                    index,
                    Outcome::GuestPanic,
                    RunState::GuestPanicked,
                    Reason::GuestPanic,
                );
            }
            VcpuEvent::TripleFault => {
                log::error!("processor {index} shut down by a triple fault");
                self.crashed(
                    index,
                    Outcome::TripleFault,
                    RunState::InternalError,
                    Reason::GuestReset,
                );
            }
            VcpuEvent::Failed(why) => {
                log::error!("processor {index}: {why}");
                self.end(
                    Outcome::Failed(format!("processor {index}: {why}")),
                    Reason::HostError,
                );
            }
        }
    }

    /// The host failed a request. When the disk has kept it, the guest waits for better times;
    /// the request is made again when the disk's queues start again.
    fn io_error(&mut self, id: String, error: IoError) {
        let operation = if error.is_read { "read" } else { "write" };
        let (action, reason) = (error.action, error.reason);
        self.tell(Event::block_io_error(&BlockIoError {
            qom_path: format!("/machine/peripheral/{id}/virtio-backend"),
            device: id.clone(),
            node_name: error.node,
            operation,
            action: action.word(),
            nospace: error.no_space,
            reason: reason.clone(),
        }));
        if action != ErrorAction::Stop {
            log::warn!("{id}: a {operation} failed: {reason}");
            return;
        }
        // It may be stopped already, or have been stopped and made the request again since.
        let disk = self.machine.inventory.get(&id);
        let disk = disk.and_then(|item| item.abilities.disk.as_ref());
        if !self.machine.is_running() || disk.is_none_or(|disk| disk.kept() == 0) {
            return;
        }
        let until = if self.machine.plan.qmp.is_empty() {
            self.later(TRY_AGAIN, Message::TryAgain);
            format!("and tries again every {} seconds", TRY_AGAIN.as_secs())
        } else {
            "until `cont`".to_owned()
        };
        log::warn!("{id}: a {operation} failed: {reason}; the guest is stopped {until}");
        self.try_to("stop the processors", Machine::pause);
        self.state = RunState::IoError;
        self.tell(Event::stop());
    }

    /// The guest cannot go on by itself: what the user wants then.
    fn crashed(&mut self, index: u32, outcome: Outcome, state: RunState, reason: Reason) {
        let action = match self.machine.plan.settings.on_crash {
            OnCrash::Exit => "poweroff",
            OnCrash::Reset => "run",
            OnCrash::Pause => "pause",
        };
        if state == RunState::GuestPanicked {
            self.tell(Event::guest_panicked(action));
        }
        match self.machine.plan.settings.on_crash {
            OnCrash::Exit => self.end(outcome, reason),
            OnCrash::Reset => self.reset(reason),
            OnCrash::Pause => {
                self.try_to("stop the processors", Machine::pause);
                self.release(index);
                self.state = state;
                self.tell(Event::stop());
            }
        }
    }

    fn release(&mut self, index: u32) {
        if let Some(vcpu) = self.machine.vcpus.get(index as usize) {
            vcpu.gate.release();
        }
    }

    fn signal(&mut self, signal: Signal) {
        match (signal, self.asked_to_end) {
            // The guest gets a chance to end in order; a second signal does not wait for it.
            (Signal::SIGTERM, None) if self.machine.is_running() => {
                self.asked_to_end = Some(signal);
                self.power_down();
                let grace = Duration::from_secs(self.machine.plan.settings.shutdown_grace.into());
                self.later(grace, Message::GraceOver);
            }
            _ => self.end(Outcome::Killed, Reason::HostSignal),
        }
    }

    fn later(&self, delay: Duration, message: Message) {
        let this = self.this.clone();
        event::spawn_local(async move {
            event::sleep(delay).await;
            // Nobody listens any more when the machine ended before.
            _ = this.send(message);
        })
        .detach();
    }

    /// Presses the power button.
    pub(crate) fn power_down(&mut self) {
        self.tell(Event::powerdown());
        self.machine.power.pm.press_power_button();
    }

    /// Presses the reset button.
    pub(crate) fn reset(&mut self, reason: Reason) {
        self.try_to("reset the machine", Machine::reset);
        // A machine that crashed is as good as new, and still stopped.
        if matches!(
            self.state,
            RunState::GuestPanicked | RunState::InternalError | RunState::IoError
        ) {
            self.state = match self.machine.is_running() {
                true => RunState::Running,
                false => RunState::Paused,
            };
        }
        self.tell(Event::reset(reason));
    }

    /// Stops the processors.
    pub(crate) fn stop(&mut self) -> Result<(), MachineError> {
        if self.machine.is_running() {
            self.machine.pause()?;
            self.state = RunState::Paused;
            self.tell(Event::stop());
        }
        Ok(())
    }

    /// Lets the processors go on.
    pub(crate) fn cont(&mut self) -> Result<(), MachineError> {
        if !self.machine.is_running() {
            self.machine.resume()?;
            self.state = RunState::Running;
            self.tell(Event::resume());
        }
        Ok(())
    }

    /// What the machine is doing.
    pub(crate) fn run_state(&self) -> RunState {
        self.state
    }

    /// The names of the QMP commands.
    pub(crate) fn command_names() -> Vec<&'static str> {
        let own = crate::commands::table();
        let disks = Blockdev::commands();
        let mut names: Vec<_> = own.names().chain(disks.names()).collect();
        names.sort_unstable();
        names
    }

    /// Ends the machine.
    pub(crate) fn end(&mut self, outcome: Outcome, reason: Reason) {
        if self.outcome.is_some() {
            return;
        }
        self.try_to("stop the processors", Machine::pause);
        self.state = RunState::Shutdown;
        self.tell(Event::shutdown(reason));
        self.outcome = Some(outcome);
    }

    fn try_to(&mut self, what: &str, step: impl FnOnce(&mut Machine) -> Result<(), MachineError>) {
        if let Err(e) = step(&mut self.machine) {
            let why = chain(&e);
            log::error!("cannot {what}: {why}");
            self.outcome
                .get_or_insert(Outcome::Failed(format!("cannot {what}: {why}")));
        }
    }

    /// Tells every QMP client.
    pub(crate) fn tell(&mut self, event: Event) {
        self.subscribers
            .retain(|subscriber| subscriber.send(event.clone()).is_ok());
    }
}

/// The control thread's inbox.
pub(crate) fn inbox() -> (Sender<Message>, Receiver<Message>) {
    channel()
}
