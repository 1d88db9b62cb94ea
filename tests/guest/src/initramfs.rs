//! A small initramfs: busybox, the modules that reach the disk, and a shell at the console within
//! a second of the kernel's start.
//!
//! With `root=` on the kernel's command line the shell has Debian's file system as its root, read
//! only and with all its tools, but without systemd, which is most of a boot's time.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::Host;

/// What is loaded before the root file system; the rest is there to be loaded by name.
const MODULES: [&str; 3] = ["virtio_pci", "virtio_blk", "virtio_net"];

/// The first process. The mark tells the tests that a shell reads what they type.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /root
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
while read -r module; do /bin/busybox insmod /modules/$module; done < /modules/order
root=
read -r words < /proc/cmdline
for word in $words; do
    case $word in root=*) root=${word#root=} ;; esac
done
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/ TERM=dumb
if [ -z \"$root\" ]; then
    /bin/busybox --install -s /bin
    echo '@@SHELL@@'
    exec /bin/busybox sh
fi
until [ -e $root ]; do /bin/busybox sleep 0.1; done
/bin/busybox mount -t ext4 -o ro,noload $root /root
for place in proc sys dev; do /bin/busybox mount -o move /$place /root/$place; done
/bin/busybox mount -t tmpfs tmp /root/tmp
/bin/busybox mount -t tmpfs run /root/run
echo '@@SHELL@@'
exec /bin/busybox switch_root /root /bin/sh
";

/// Makes the initramfs in the scratch folder.
///
/// # Errors
/// The guest's disk cannot be read, or there is no static busybox.
pub fn build(host: &Host) -> anyhow::Result<PathBuf> {
    let folder = tempfile::tempdir_in(&host.scratch)?;
    let version = debugfs(&host.disk, "ls -p /usr/lib/modules")?
        .lines()
        .filter_map(|line| line.split('/').nth(5))
        .find(|name| name.starts_with(|c: char| c.is_ascii_digit()))
        .context("the guest has no kernel modules")?
        .to_owned();
    let modules = format!("/usr/lib/modules/{version}");
    let dependencies = debugfs(&host.disk, &format!("cat {modules}/modules.dep"))?;
    let order = load_order(&dependencies, &MODULES)?;
    let mut commands = String::new();
    for (number, module) in order.iter().enumerate() {
        let target = folder.path().join(number.to_string());
        commands.push_str(&format!("dump {modules}/{module} {}\n", target.display()));
    }
    let script = folder.path().join("script");
    fs::write(&script, commands)?;
    let status = Command::new("debugfs")
        .arg("-f")
        .args([&script, &host.disk])
        .output()
        .context("cannot run debugfs")?;
    ensure!(status.status.success(), "debugfs: {status:?}");

    let mut archive = Archive::default();
    for directory in ["bin", "dev", "modules"] {
        archive.add(directory, 0o040_755, (0, 0), b"");
    }
    archive.add("dev/console", 0o020_600, (5, 1), b"");
    let busybox = fs::read("/bin/busybox").context("there is no /bin/busybox")?;
    archive.add("bin/busybox", 0o100_755, (0, 0), &busybox);
    archive.add("bin/sh", 0o120_777, (0, 0), b"busybox");
    archive.add("init", 0o100_755, (0, 0), INIT.as_bytes());
    let mut names = String::new();
    for (number, module) in order.iter().enumerate() {
        let contents = fs::read(folder.path().join(number.to_string()))
            .with_context(|| format!("the guest's disk does not give {module}"))?;
        archive.add(&format!("modules/{number}"), 0o100_644, (0, 0), &contents);
        names.push_str(&format!("{number}\n"));
    }
    archive.add("modules/order", 0o100_644, (0, 0), names.as_bytes());
    host.file("small.initrd", &archive.finish())
}

/// What debugfs prints, without the line in which it introduces itself.
fn debugfs(disk: &Path, request: &str) -> anyhow::Result<String> {
    let output = Command::new("debugfs")
        .args(["-R", request])
        .arg(disk)
        .output()
        .context("cannot run debugfs")?;
    ensure!(output.status.success(), "debugfs {request}: {output:?}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The modules of `wanted` with all they need, each after its needs. `text` is modules.dep(5).
fn load_order(text: &str, wanted: &[&str]) -> anyhow::Result<Vec<String>> {
    let name = |path: &str| {
        let file = path.rsplit('/').next().unwrap_or(path);
        file.split('.').next().unwrap_or(file).replace('-', "_")
    };
    let lines: BTreeMap<String, (&str, &str)> = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(path, needs)| (name(path), (path, needs)))
        .collect();
    let mut order: Vec<String> = Vec::new();
    for module in wanted {
        let (path, needs) = lines
            .get(*module)
            .with_context(|| format!("the guest's kernel has no module {module}"))?;
        // The nearest need comes first and the farthest last.
        for path in needs.split_whitespace().rev().chain([*path]) {
            if !order.iter().any(|known| known == path) {
                order.push(path.to_owned());
            }
        }
    }
    Ok(order)
}

/// A cpio archive in the "newc" format (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, device: (u32, u32), contents: &[u8]) {
        self.inode += 1;
        let length = u32::try_from(contents.len()).unwrap_or(u32::MAX);
        let name_length = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        let links = 1;
        let fields = [
            self.inode,
            mode,
            0,
            0,
            links,
            0,
            length,
            0,
            0,
            device.0,
            device.1,
            name_length,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(contents);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, (0, 0), b"");
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_loaded_after_what_they_need() {
        let text = "a/virtio.ko: a/virtio_ring.ko\na/virtio_ring.ko:\n\
                    a/virtio_pci.ko: a/virtio.ko a/virtio_ring.ko\n\
                    b/virtio-blk.ko: a/virtio.ko a/virtio_ring.ko\n";
        assert_eq!(
            load_order(text, &["virtio_pci", "virtio_blk"]).unwrap(),
            [
                "a/virtio_ring.ko",
                "a/virtio.ko",
                "a/virtio_pci.ko",
                "b/virtio-blk.ko"
            ]
        );
        assert!(load_order(text, &["ext4"]).is_err());
    }

    #[test]
    fn cpio_reads_what_was_packed() {
        let mut archive = Archive::default();
        archive.add("dir", 0o040_755, (0, 0), b"");
        archive.add("dir/file", 0o100_640, (0, 0), b"hello");
        let bytes = archive.finish();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("archive");
        fs::write(&path, bytes).unwrap();
        let busybox = Command::new("busybox")
            .args(["cpio", "-i", "-F"])
            .arg(&path)
            .current_dir(folder.path())
            .output();
        // The packages of xtask/packages.txt may not be there yet.
        let Ok(output) = busybox else { return };
        assert!(output.status.success(), "{output:?}");
        let read = fs::read_to_string(folder.path().join("dir/file")).unwrap();
        assert_eq!(read, "hello");
    }
}
