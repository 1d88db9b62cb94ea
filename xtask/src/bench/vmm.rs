//! The monitors that are compared, and how each is told to run the same guest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

/// A monitor in a certain configuration: a column of the tables.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Vmm {
    /// What the column is called.
    pub name: String,
    pub kind: Kind,
    /// The program; without a slash it is looked for in PATH.
    pub program: PathBuf,
    #[serde(default)]
    pub disk: DiskOptions,
    /// Let the host's kernel move packets (vhost-net), where there is a tap.
    #[serde(default)]
    pub vhost: bool,
    /// Without KVM, every instruction emulated.
    #[serde(default)]
    pub emulated: bool,
    /// More of the accelerator's options (Vireo).
    #[serde(default)]
    pub accel: toml::Table,
    /// More lines for the configuration file (Vireo).
    #[serde(default)]
    pub configuration: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    Vireo,
    QemuQ35,
    QemuMicrovm,
    Firecracker,
    CloudHypervisor,
}

/// How a disk is served.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DiskOptions {
    /// io_uring, native (QEMU), threads.
    pub aio: String,
    /// Packed rings.
    pub packed: bool,
}

impl Default for DiskOptions {
    fn default() -> Self {
        Self {
            aio: "io_uring".to_owned(),
            packed: false,
        }
    }
}

/// The guest, the same for every monitor.
#[derive(Clone, Debug)]
pub struct Guest {
    /// An ELF vmlinux.
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    pub command_line: String,
    /// Words for benches/guest/init.rs.
    pub init_words: Vec<&'static str>,
    pub memory_mib: u32,
    pub cpus: u32,
    pub disks: Vec<Disk>,
    pub net: Option<Net>,
}

#[derive(Clone, Debug)]
pub struct Disk {
    pub file: PathBuf,
    pub read_only: bool,
    /// writeback or none.
    pub cache: String,
}

#[derive(Clone, Debug)]
pub enum Net {
    /// User-mode networking.
    User,
    /// An interface that exists.
    Tap(String),
}

impl Vmm {
    pub fn new(name: &str, kind: Kind, program: &Path) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            program: program.to_owned(),
            disk: DiskOptions::default(),
            vhost: false,
            emulated: false,
            accel: toml::Table::new(),
            configuration: String::new(),
        }
    }

    /// Debian's QEMU in the configuration that users of virtual machines know.
    pub fn qemu() -> Self {
        Self::new("qemu", Kind::QemuQ35, Path::new("qemu-system-x86_64"))
    }

    /// The same where there is no KVM: TCG with all that it can do, a thread per processor.
    pub fn qemu_tcg() -> Self {
        Self {
            name: "tcg".to_owned(),
            emulated: true,
            ..Self::qemu()
        }
    }

    /// Debian's QEMU in its smallest configuration.
    pub fn microvm() -> Self {
        Self::new(
            "microvm",
            Kind::QemuMicrovm,
            Path::new("qemu-system-x86_64"),
        )
    }

    /// The command that runs `guest` with its first serial port at standard input and output.
    /// Configuration files go into `folder`.
    pub fn command(&self, guest: &Guest, folder: &Path) -> anyhow::Result<Command> {
        let mut command = Command::new(&self.program);
        match self.kind {
            Kind::Vireo => {
                let file = folder.join(format!("{}.toml", self.name));
                write(&file, &self.vireo_configuration(guest))?;
                command.arg("run").arg("--config").arg(file);
            }
            Kind::QemuQ35 | Kind::QemuMicrovm => self.qemu_arguments(guest, &mut command),
            Kind::Firecracker => {
                let file = folder.join(format!("{}.json", self.name));
                write(&file, &firecracker_configuration(guest)?.to_string())?;
                command.args(["--no-api", "--level", "Error", "--config-file"]);
                command.arg(file);
            }
            Kind::CloudHypervisor => cloud_hypervisor_arguments(guest, &mut command)?,
        }
        Ok(command)
    }

    fn vireo_configuration(&self, guest: &Guest) -> String {
        let mut text = String::new();
        let mut section = |name: &str, values: &[(&str, toml::Value)]| {
            text.push_str(name);
            text.push('\n');
            for (key, value) in values {
                text.push_str(&format!("{key} = {value}\n"));
            }
            text.push('\n');
        };
        let path = |path: &Path| toml::Value::from(path.to_string_lossy().into_owned());
        section(
            "[kernel]",
            &[
                ("image", path(&guest.kernel)),
                ("initrd", path(&guest.initramfs)),
                ("cmdline", guest.command_line.clone().into()),
            ],
        );
        section(
            "[memory]",
            &[("size", format!("{}M", guest.memory_mib).into())],
        );
        // Never auto, which would measure the other where one does not work.
        let accel = if self.emulated { "soft" } else { "kvm" };
        let mut accel = vec![("kind", accel.into())];
        let more = self.accel.iter();
        accel.extend(more.map(|(key, value)| (key.as_str(), value.clone())));
        section("[accel]", &accel);
        section("[cpus]", &[("count", i64::from(guest.cpus).into())]);
        section("[[serial]]", &[("to", "stdio".into())]);
        section("[[iothread]]", &[("id", "io0".into())]);
        for disk in &guest.disks {
            section(
                "[[disk]]",
                &[
                    ("file", path(&disk.file)),
                    ("format", "raw".into()),
                    ("read-only", disk.read_only.into()),
                    ("cache", disk.cache.clone().into()),
                    ("aio", self.disk.aio.clone().into()),
                    ("packed", self.disk.packed.into()),
                    ("num-queues", 1.into()),
                    ("iothread", toml::Value::Array(vec!["io0".into()])),
                ],
            );
        }
        match &guest.net {
            None => {}
            Some(Net::User) => section("[[net]]", &[("backend", "user".into())]),
            Some(Net::Tap(name)) => section(
                "[[net]]",
                &[
                    ("backend", "tap".into()),
                    ("ifname", name.clone().into()),
                    ("mac", MAC.into()),
                ],
            ),
        }
        text.push_str(&self.configuration);
        text
    }

    fn qemu_arguments(&self, guest: &Guest, command: &mut Command) {
        let microvm = self.kind == Kind::QemuMicrovm;
        // What a server does without is off: it takes time to find.
        let machine = if microvm {
            "microvm,acpi=on,pit=off,pic=off,rtc=off,isa-serial=on,x-option-roms=off"
        } else {
            "q35,vmport=off,hpet=off,smbus=off,sata=off,usb=off"
        };
        let bus = if microvm { "device" } else { "pci" };
        command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        command.args(["-no-reboot", "-machine", machine]);
        command.args(if self.emulated {
            ["-accel", "tcg,thread=multi", "-cpu", "max"]
        } else {
            ["-accel", "kvm", "-cpu", "host"]
        });
        command.arg("-m").arg(format!("{}M", guest.memory_mib));
        command.arg("-smp").arg(guest.cpus.to_string());
        command.arg("-kernel").arg(&guest.kernel);
        command.arg("-initrd").arg(&guest.initramfs);
        command.arg("-append").arg(&guest.command_line);
        command.args(["-chardev", "stdio,id=serial0,signal=off"]);
        command.args(["-serial", "chardev:serial0"]);
        command.args(["-object", "iothread,id=io0"]);
        if microvm {
            command.args(["-global", "virtio-mmio.force-legacy=false"]);
        }
        for (number, disk) in guest.disks.iter().enumerate() {
            let on = |yes| if yes { "on" } else { "off" };
            command.arg("-drive").arg(format!(
                "if=none,id=disk{number},file={},format=raw,cache={},aio={},discard=unmap,readonly={}",
                disk.file.display(),
                disk.cache,
                // Linux AIO is only for O_DIRECT.
                if self.disk.aio == "native" && disk.cache != "none" {
                    "io_uring"
                } else {
                    &self.disk.aio
                },
                on(disk.read_only),
            ));
            command.arg("-device").arg(format!(
                "virtio-blk-{bus},drive=disk{number},iothread=io0,num-queues=1,packed={}",
                on(self.disk.packed)
            ));
        }
        match &guest.net {
            None => return,
            Some(Net::User) => command.args(["-netdev", "user,id=net0"]),
            Some(Net::Tap(name)) => {
                let vhost = if self.vhost { "on" } else { "off" };
                command.arg("-netdev").arg(format!(
                    "tap,id=net0,ifname={name},script=no,downscript=no,vhost={vhost}"
                ))
            }
        };
        let rom = if microvm { "" } else { ",romfile=" };
        command
            .arg("-device")
            .arg(format!("virtio-net-{bus},netdev=net0,mac={MAC}{rom}"));
    }

    /// The kernel's command line: what all monitors tell it, and what this one has to; then the
    /// words for init.
    pub fn command_line(&self, common: &str, words: &[&str]) -> String {
        let mut text = common.to_owned();
        if self.kind == Kind::Firecracker {
            // As its own documentation has it.
            text.push_str(" pci=off");
        }
        let mut words = words.to_vec();
        if matches!(self.kind, Kind::Firecracker | Kind::QemuMicrovm) {
            words.push("mmio");
        }
        if !words.is_empty() {
            text.push_str(" -- ");
            text.push_str(&words.join(" "));
        }
        text
    }
}

/// The address of every guest's card.
const MAC: &str = "52:54:00:12:34:56";

fn firecracker_configuration(guest: &Guest) -> anyhow::Result<serde_json::Value> {
    let drives: Vec<_> = guest
        .disks
        .iter()
        .enumerate()
        .map(|(number, disk)| {
            serde_json::json!({
                "drive_id": format!("disk{number}"),
                "path_on_host": disk.file,
                "is_root_device": false,
                "is_read_only": disk.read_only,
                "cache_type": "Writeback",
            })
        })
        .collect();
    let mut json = serde_json::json!({
        "boot-source": {
            "kernel_image_path": guest.kernel,
            "initrd_path": guest.initramfs,
            "boot_args": guest.command_line,
        },
        "machine-config": { "vcpu_count": guest.cpus, "mem_size_mib": guest.memory_mib },
        "drives": drives,
    });
    if let Some(net) = &guest.net {
        json["network-interfaces"] = serde_json::json!([
            { "iface_id": "net0", "host_dev_name": tap(net)?, "guest_mac": MAC }
        ]);
    }
    Ok(json)
}

fn cloud_hypervisor_arguments(guest: &Guest, command: &mut Command) -> anyhow::Result<()> {
    command.arg("--kernel").arg(&guest.kernel);
    command.arg("--initramfs").arg(&guest.initramfs);
    command.arg("--cmdline").arg(&guest.command_line);
    command.arg("--cpus").arg(format!("boot={}", guest.cpus));
    command
        .arg("--memory")
        .arg(format!("size={}M", guest.memory_mib));
    command.args(["--serial", "tty", "--console", "off"]);
    if !guest.disks.is_empty() {
        command.arg("--disk");
    }
    for disk in &guest.disks {
        let on = |yes| if yes { "on" } else { "off" };
        command.arg(format!(
            "path={},readonly={},direct={}",
            disk.file.display(),
            on(disk.read_only),
            on(disk.cache == "none"),
        ));
    }
    if let Some(net) = &guest.net {
        command
            .arg("--net")
            .arg(format!("tap={},mac={MAC}", tap(net)?));
    }
    Ok(())
}

fn tap(net: &Net) -> anyhow::Result<&str> {
    match net {
        Net::Tap(name) => Ok(name),
        Net::User => bail!("this monitor has no user-mode networking"),
    }
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}
