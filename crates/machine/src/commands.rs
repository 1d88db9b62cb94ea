//! The QMP commands that a machine answers, one line each.

use qmp::commands::machine::{
    Balloon, BalloonInfo, CpuInfoFast, CpuInstanceProperties, KvmInfo, MemoryInfo, QueryBalloon,
    QueryCpusFast, QueryKvm, QueryMemorySizeSummary, QueryUuid, UuidInfo,
};
use qmp::commands::misc::{
    CommandInfo, DeviceState, IoThreadInfo, NameInfo, QueryCommands, QueryDeviceStates,
    QueryIothreads, QueryName, QueryVersion, VersionInfo, VersionTriple,
};
use qmp::commands::run_state::{
    Cont, InjectNmi, QueryStatus, Quit, RunState, StatusInfo, Stop, SystemPowerdown, SystemReset,
};
use qmp::events::ShutdownCause;
use qmp::{Empty, ErrorClass, QmpError, Table};
use virtio::balloon::BalloonControl;

use crate::control::Control;
use crate::error::{MachineError, chain};
use crate::exit::Outcome;

/// The version of QEMU whose interface this is.
const QEMU: VersionTriple = VersionTriple {
    major: 9,
    minor: 2,
    micro: 0,
};

type Answer<T> = Result<T, QmpError>;

fn failed(error: MachineError) -> QmpError {
    QmpError::generic(chain(&error))
}

/// Version of the program as QMP tells it.
pub(crate) fn version() -> VersionInfo {
    VersionInfo {
        qemu: QEMU,
        package: format!("vireo-{}", env!("CARGO_PKG_VERSION")),
    }
}

/// Every command and its handler.
pub(crate) fn table() -> Table<Control> {
    Table::<Control>::new()
        .on::<QueryVersion>(|_, _| Ok(version()))
        .on::<QueryCommands>(|_, _| Ok(query_commands()))
        .on::<QueryName>(|control, _| {
            Ok(NameInfo {
                name: control.machine.plan.settings.name.clone(),
            })
        })
        .on::<QueryUuid>(|control, _| {
            Ok(UuidInfo {
                uuid: control.machine.uuid(),
            })
        })
        .on::<QueryKvm>(|control, _| {
            Ok(KvmInfo {
                enabled: control.machine.accelerator == "kvm",
                present: true,
            })
        })
        .on::<QueryStatus>(|control, _| Ok(query_status(control)))
        .on::<Stop>(|control, _| control.stop().map_err(failed).map(|()| Empty {}))
        .on::<Cont>(|control, _| cont(control))
        .on::<SystemPowerdown>(|control, _| {
            control.power_down();
            Ok(Empty {})
        })
        .on::<SystemReset>(|control, _| {
            control.reset(ShutdownCause::HostQmpSystemReset);
            Ok(Empty {})
        })
        .on::<Quit>(|control, _| {
            control.end(Outcome::Quit, ShutdownCause::HostQmpQuit);
            Ok(Empty {})
        })
        .on::<InjectNmi>(|control, _| {
            control
                .machine
                .inject_nmi()
                .map_err(failed)
                .map(|()| Empty {})
        })
        .on::<QueryCpusFast>(|control, _| Ok(query_cpus_fast(control)))
        .on::<QueryIothreads>(|control, _| Ok(query_iothreads(control)))
        .on::<QueryMemorySizeSummary>(|control, _| {
            Ok(MemoryInfo {
                base_memory: control.machine.ram_size(),
                plugged_memory: 0,
            })
        })
        .on::<QueryDeviceStates>(|control, _| query_device_states(control))
        .on::<QueryBalloon>(|control, _| query_balloon(control))
        .on::<Balloon>(|control, balloon| set_balloon(control, balloon.value))
}

fn query_commands() -> Vec<CommandInfo> {
    let own = ["qmp_capabilities"];
    own.into_iter()
        .chain(Control::command_names())
        .map(|name| CommandInfo {
            name: name.to_owned(),
        })
        .collect()
}

fn query_status(control: &Control) -> StatusInfo {
    StatusInfo {
        running: control.machine.is_running(),
        status: control.run_state(),
    }
}

fn cont(control: &mut Control) -> Answer<Empty> {
    match control.run_state() {
        RunState::GuestPanicked | RunState::InternalError => Err(QmpError::generic(
            "Resetting the Virtual Machine is required",
        )),
        _ => control.cont().map_err(failed).map(|()| Empty {}),
    }
}

fn query_cpus_fast(control: &Control) -> Vec<CpuInfoFast> {
    let topology = control.machine.cpu.topology();
    let info = |vcpu: &crate::vcpu::VcpuThread| {
        let place = topology.place(vcpu.index);
        CpuInfoFast {
            cpu_index: vcpu.index,
            qom_path: format!("/machine/unattached/device[{}]", vcpu.index),
            thread_id: vcpu.tid().into(),
            props: CpuInstanceProperties {
                socket_id: place.socket,
                core_id: place.core,
                thread_id: place.thread,
            },
            target: "x86_64",
        }
    };
    control.machine.vcpus.iter().map(info).collect()
}

fn query_iothreads(control: &Control) -> Vec<IoThreadInfo> {
    let info = |(name, thread, poll_us): (&str, &event::IoThread, u32)| IoThreadInfo {
        id: name.to_owned(),
        thread_id: thread.tid().into(),
        poll_max_ns: i64::from(poll_us) * 1000,
        poll_grow: 0,
        poll_shrink: 0,
        aio_max_batch: 0,
    };
    control.machine.threads.named().map(info).collect()
}

fn query_device_states(control: &mut Control) -> Answer<Vec<DeviceState>> {
    let states = control.machine.device_states().map_err(failed)?;
    Ok(states
        .into_iter()
        .map(|(id, payload)| DeviceState {
            id,
            state: payload.to_text(),
        })
        .collect())
}

fn balloon(control: &Control) -> Answer<&BalloonControl> {
    let found = control
        .machine
        .inventory
        .iter()
        .find_map(|item| item.abilities.balloon.as_ref());
    found.ok_or_else(|| QmpError {
        class: ErrorClass::DeviceNotActive,
        desc: "No balloon device has been activated".into(),
    })
}

fn query_balloon(control: &Control) -> Answer<BalloonInfo> {
    Ok(BalloonInfo {
        actual: balloon(control)?.actual(),
    })
}

fn set_balloon(control: &Control, value: u64) -> Answer<Empty> {
    let ram = control.machine.ram_size();
    if value == 0 || value > ram {
        return Err(QmpError::generic(format!(
            "Parameter 'value' expects 1 to {ram}, the guest's memory in bytes"
        )));
    }
    balloon(control)?.set_target(value);
    Ok(Empty {})
}
