//! What can be said about the machine itself; devices have their own specs.

use std::path::PathBuf;

use chardev::Target;
use spec::{Size, choice, spec};

choice! {
    /// Which page sizes back the guest's memory.
    pub enum HugePages {
        /// Transparent huge pages where the host has them.
        Transparent = "thp",
        /// Small pages only.
        Off = "off",
        /// hugetlbfs pages of 2 MiB.
        Hugetlb2M = "2M",
        /// hugetlbfs pages of 1 GiB.
        Hugetlb1G = "1G",
    }
}

choice! {
    /// How a bzImage is entered.
    pub enum Decompress {
        /// The host decompresses it and enters the kernel proper: faster, without KASLR.
        Host = "host",
        /// The kernel decompresses itself, as on hardware.
        Guest = "guest",
    }
}

choice! {
    /// What executes the guest's instructions.
    pub enum AccelKind {
        /// KVM where it passes its self-test, the software processor elsewhere.
        Auto = "auto",
        /// KVM.
        Kvm = "kvm",
        /// The software processor, which needs nothing of the host.
        Soft = "soft",
    }
}

choice! {
    /// How the software processor executes.
    pub enum Engine {
        /// 64-bit code is translated, the rest is interpreted.
        Translate = "translate",
        /// Everything is interpreted: slow, and the reference.
        Interpret = "interpret",
    }
}

choice! {
    /// What happens when the guest panics or its processor shuts down by a triple fault.
    pub enum OnCrash {
        /// The process ends with a status of its own.
        Exit = "exit",
        /// The machine resets.
        Reset = "reset",
        /// The machine stops and waits for control.
        Pause = "pause",
    }
}

choice! {
    /// What happens when the guest asks for a reset.
    pub enum OnReset {
        /// The machine resets.
        Reset = "reset",
        /// The process ends with status 0.
        Exit = "exit",
    }
}

choice! {
    /// What the clock of the machine shows at the start.
    pub enum RtcBase {
        /// Coordinated universal time.
        Utc = "utc",
        /// The host's local time.
        Localtime = "localtime",
    }
}

spec! {
    /// The processor's model and features.
    pub struct CpuSpec("cpu") {
        /// Model and features as in MODEL[,+feature][,-feature]: "host", "Haswell", "EPYC,-avx2". "vireo cpus" lists the models.
        model: String = "host".to_owned(),
    }
}

spec! {
    /// Number of virtual processors and their topology.
    pub struct CpusSpec("cpus") {
        /// Number of virtual processors.
        count: u32 = 1,
        /// Number of sockets; the product with cores and threads must be the count.
        sockets: Option<u32>,
        /// Cores of a socket.
        cores: Option<u32>,
        /// Threads of a core.
        threads: Option<u32>,
    }
}

spec! {
    /// The guest's memory.
    pub struct MemorySpec("memory") {
        /// Size in bytes with the units K, M, G, T; at least 64M and a multiple of 2M.
        size: Size = Size(512 << 20),
        /// Whether other processes may share it (a memfd; vhost-user needs it).
        shared: bool = false,
        /// Page sizes: thp (transparent), off, or 2M and 1G from hugetlbfs.
        hugepages: HugePages = HugePages::Transparent,
        /// Touch all of it at the start, so that it cannot run out later.
        prealloc: bool = false,
        /// Let the kernel merge equal pages (KSM).
        mergeable: bool = false,
        /// Number of NUMA nodes, each with an equal part of memory and processors.
        numa_nodes: u32 = 1,
    }
}

spec! {
    /// The kernel that is booted directly, without firmware.
    pub struct KernelSpec("kernel") {
        /// Path of a bzImage, an ELF vmlinux with a PVH entry, or a 32-bit ELF with a Multiboot 1 header.
        image: PathBuf,
        /// Path of the initial RAM disk (Multiboot: of the module).
        initrd: Option<PathBuf>,
        /// The kernel's command line.
        cmdline: String = String::new(),
        /// Who decompresses a bzImage: host (fast) or guest (with KASLR).
        decompress: Decompress = Decompress::Guest,
    }
}

spec! {
    /// What executes the guest's instructions.
    pub struct AccelSpec("accel") {
        /// auto (KVM where it passes its self-test, soft elsewhere), kvm, or soft (a software processor).
        kind: AccelKind = AccelKind::Auto,
        /// Software processor: translate or interpret.
        engine: Engine = Engine::Translate,
        /// Software processor: bytes of translated code that each processor keeps, with the units K, M, G.
        cache: Size = Size(64 << 20),
        /// Software processor: exact flags at every fault, also those that no correct program looks at.
        exact_flags: bool = false,
    }
}

spec! {
    /// The machine as a whole.
    pub struct MachineSettings("machine") {
        /// Name of the machine, for logs, the thread list and query-name.
        name: String = "vireo".to_owned(),
        /// UUID that SMBIOS shows; random when not given.
        uuid: Option<String>,
        /// The KVM device.
        kvm_device: PathBuf = PathBuf::from("/dev/kvm"),
        /// On a guest panic or triple fault: exit, reset or pause.
        on_crash: OnCrash = OnCrash::Exit,
        /// On a reset by the guest: reset or exit.
        on_reset: OnReset = OnReset::Reset,
        /// What the real-time clock shows: utc or localtime.
        rtc: RtcBase = RtcBase::Utc,
        /// Seconds that a guest has to power down after SIGTERM before the process ends anyway.
        shutdown_grace: u32 = 30,
        /// Begin with the processors stopped, until "cont" comes over QMP.
        paused: bool = false,
        /// Whether there is an i8042 keyboard controller; without one Linux boots a little faster.
        i8042: bool = true,
    }
}

spec! {
    /// An I/O thread that devices can name as theirs.
    pub struct IoThreadSpec("iothread") {
        /// Its name.
        id: String,
        /// Host processors to pin it to, each as N or N-M.
        cpus: Vec<String>,
        /// Longest time in microseconds to poll for more work before sleeping; 0 never polls.
        poll_us: u32 = 32,
    }
}

spec! {
    /// A control socket that speaks QMP.
    pub struct QmpSpec("qmp") {
        /// Path of the unix socket to listen at.
        path: PathBuf,
    }
}

spec! {
    /// A 16550 serial port (COM1 to COM4 in order).
    pub struct SerialSpec("serial") {
        /// Where it leads: stdio, file:PATH, pty, unix:PATH, null.
        to: Target = Target::Stdio,
    }
}

spec! {
    /// A PCI Express root port: a place on bus 0 behind which one device can sit.
    pub struct RootPortSpec("pcie-root-port") {
        /// Name by which devices say bus=NAME.
        id: String,
        /// Slot number that the guest sees; counted up when not given.
        slot: Option<u16>,
    }
}

spec! {
    /// A port whose writes end the process, for people who write kernels.
    pub struct DebugExitSpec("isa-debug-exit") {
        /// First port.
        iobase: u16 = 0x501,
        /// Number of ports: 1, 2 or 4.
        iosize: u16 = 2,
    }
}
