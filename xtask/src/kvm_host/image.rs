//! The box's own system, built once: root file system, kernel, initramfs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use image_build::progress::{Bar, Progress as _, Stage, Update};
use image_build::{Ext4, Recipe, Tree, vmlinux};

use super::cpio::Archive;
use crate::{cache, project};

/// Counts up when this file changes what it makes from the same recipe.
const REVISION: u32 = 1;

/// The kernel (kvm-amd is not in Debian's cloud kernel), the rivals, and what tests call.
const PACKAGES: [&str; 26] = [
    "acpica-tools",
    "busybox-static",
    "ca-certificates",
    "curl",
    "dmidecode",
    "fio",
    "iperf3",
    "iproute2",
    "iputils-ping",
    "kmod",
    "libslirp0",
    "linux-image-amd64",
    "numactl",
    "openssh-client",
    "ovmf",
    "pciutils",
    "procps",
    "psmisc",
    "python3",
    "qemu-system-x86",
    "qemu-utils",
    "seabios",
    "socat",
    "strace",
    "util-linux",
    "xxd",
];

/// Drivers that no box has the hardware for; they are most of the kernel package.
const EXCLUDED: [&str; 9] = [
    "path-exclude=/lib/modules/*/kernel/drivers/gpu/*",
    "path-exclude=/lib/modules/*/kernel/drivers/media/*",
    "path-exclude=/lib/modules/*/kernel/drivers/net/wireless/*",
    "path-exclude=/lib/modules/*/kernel/drivers/net/ethernet/mellanox/*",
    "path-exclude=/lib/modules/*/kernel/drivers/infiniband/*",
    "path-exclude=/lib/modules/*/kernel/drivers/staging/*",
    "path-exclude=/lib/modules/*/kernel/sound/*",
    "path-exclude=/usr/share/doc/*",
    "path-exclude=/usr/share/man/*",
];

/// What the initramfs loads, with all it depends on: enough to mount the root file system and to
/// talk to the outside. ext4 asks for crc32c by its algorithm's name, which no dependency says.
const BOOT_MODULES: [&str; 5] = [
    "crc32c_generic",
    "virtio_pci",
    "virtio_blk",
    "ext4",
    "virtio_console",
];

/// Size of the root file system in bytes; sparse, and the command may write into its throw-away
/// copy.
const SIZE: u64 = 4 << 30;

/// The files of a built box.
#[derive(Clone, Debug)]
pub struct Image {
    pub root: PathBuf,
    pub vmlinux: PathBuf,
    /// busybox and modules; the init script comes with each run.
    pub initramfs: PathBuf,
}

fn recipe() -> Recipe {
    Recipe {
        packages: PACKAGES.map(str::to_owned).into(),
        dpkg_options: EXCLUDED.map(str::to_owned).into(),
        // Debian's kernel hook then makes no initramfs.
        environment: vec![("INITRD".to_owned(), "No".to_owned())],
        ..Recipe::default()
    }
}

/// The box's files, built if they are not there.
pub fn ensure(rebuild: bool) -> anyhow::Result<Image> {
    let recipe = recipe();
    let key = format!(
        "{REVISION} {SIZE} {BOOT_MODULES:?} {}",
        recipe.fingerprint()
    );
    let folder = cache::folder("kvm-host", &key, rebuild, |folder| build(&recipe, folder))?;
    Ok(files(&folder))
}

fn files(folder: &Path) -> Image {
    Image {
        root: folder.join("root.img"),
        vmlinux: folder.join("vmlinux"),
        initramfs: folder.join("modules.cpio"),
    }
}

fn build(recipe: &Recipe, folder: &Path) -> anyhow::Result<()> {
    eprintln!("building the KVM test host");
    let mut bar = Bar::new();
    let step = |bar: &mut Bar, stage, fraction| {
        bar.update(&Update {
            stage,
            fraction,
            detail: String::new(),
        });
    };
    let files = files(folder);
    let tree = Tree::bootstrap(
        recipe,
        folder,
        Some(&project::target()?.join("apt")),
        &mut bar,
    )?;
    step(&mut bar, Stage::Kernel, 0.90);
    let kernel = tree.kernel()?;
    vmlinux::extract(&kernel.vmlinuz, &files.vmlinux)?;
    let modules = tree.path().join("lib/modules").join(&kernel.version);
    let initramfs = initramfs(&tree.path().join("bin/busybox"), &modules)?;
    fs::write(&files.initramfs, initramfs).context("cannot write the initramfs")?;
    // The box boots vmlinux from outside.
    fs::remove_file(&kernel.vmlinuz).context("cannot remove the kernel")?;
    step(&mut bar, Stage::FileSystem, 0.92);
    tree.write_ext4(
        &files.root,
        &Ext4 {
            size: SIZE,
            label: "kvm-host",
        },
    )?;
    step(&mut bar, Stage::Done, 1.0);
    Ok(())
}

fn initramfs(busybox: &Path, modules: &Path) -> anyhow::Result<Vec<u8>> {
    let mut archive = Archive::default();
    for name in ["bin", "box", "dev", "modules", "root", "sys"] {
        archive.directory(name);
    }
    archive.character_device("dev/console", 5, 1);
    let busybox =
        fs::read(busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    archive.file("bin/busybox", 0o755, &busybox);
    let dependencies = modules.join("modules.dep");
    let text = fs::read_to_string(&dependencies)
        .with_context(|| format!("cannot read {}", dependencies.display()))?;
    let builtin = fs::read_to_string(modules.join("modules.builtin")).unwrap_or_default();
    let mut order = String::new();
    for (number, path) in load_order(&text, &builtin, &BOOT_MODULES)?
        .iter()
        .enumerate()
    {
        let name = format!("{number:02}-{}", path.rsplit('/').next().unwrap_or(path));
        let contents =
            fs::read(modules.join(path)).with_context(|| format!("cannot read module {path}"))?;
        archive.file(&format!("modules/{name}"), 0o644, &contents);
        order.push_str(&name);
        order.push('\n');
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    Ok(archive.finish())
}

/// The paths of `wanted` and of all they depend on, each after its dependencies; what is built in
/// is left out. `dep` is modules.dep(5): "path: dependency dependency".
pub fn load_order(dep: &str, builtin: &str, wanted: &[&str]) -> anyhow::Result<Vec<String>> {
    let mut by_name = BTreeMap::new();
    for line in dep.lines() {
        if let Some((path, dependencies)) = line.split_once(':') {
            by_name.insert(module_name(path), (path, dependencies));
        }
    }
    let mut order: Vec<String> = Vec::new();
    for name in wanted {
        let Some((path, dependencies)) = by_name.get(*name) else {
            let is_builtin = builtin.lines().any(|path| module_name(path) == *name);
            ensure!(is_builtin, "the kernel has no module {name}");
            continue;
        };
        // The list is complete and goes from the nearest to the farthest.
        for path in dependencies.split_whitespace().rev().chain([*path]) {
            if !order.iter().any(|known| known == path) {
                order.push(path.to_owned());
            }
        }
    }
    Ok(order)
}

/// `virtio_pci` of `kernel/drivers/virtio/virtio_pci.ko`; dashes and underscores are the same.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_what_they_need_and_once() {
        let dep = "kernel/a/virtio.ko:\nkernel/a/virtio_ring.ko: kernel/a/virtio.ko\n\
                   kernel/a/virtio-pci.ko: kernel/a/virtio_ring.ko kernel/a/virtio.ko\n\
                   kernel/b/virtio_blk.ko: kernel/a/virtio_ring.ko kernel/a/virtio.ko\n";
        let order = load_order(
            dep,
            "kernel/fs/ext4/ext4.ko\n",
            &["virtio_pci", "ext4", "virtio_blk"],
        )
        .unwrap();
        assert_eq!(
            order,
            [
                "kernel/a/virtio.ko",
                "kernel/a/virtio_ring.ko",
                "kernel/a/virtio-pci.ko",
                "kernel/b/virtio_blk.ko"
            ]
        );
        assert!(
            load_order(dep, "", &["ext4"])
                .unwrap_err()
                .to_string()
                .contains("ext4")
        );
    }
}
