//! What the guest boots: the Debian guest's kernel, and an initramfs with benches/guest/init.rs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use image_build::Outputs;

use crate::kvm_host::cpio::Archive;
use crate::kvm_host::image::load_order;
use crate::project;

/// The drivers of the guest's devices; ext4 is built in.
const MODULES: [&str; 4] = ["virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net"];

/// Builds the initramfs that runs the script `job` into `folder`. The job finds `tools` in /run.
pub fn initramfs(
    guest: &Outputs,
    job: &Path,
    tools: &[&Path],
    folder: &Path,
) -> anyhow::Result<PathBuf> {
    let init = folder.join("init");
    compile(&project::root().join("benches/guest/init.rs"), &init)?;
    let mut archive = Archive::default();
    for name in ["dev", "modules", "proc", "root", "tools"] {
        archive.directory(name);
    }
    archive.character_device("dev/console", 5, 1);
    archive.file("init", 0o755, &read(&init)?);
    archive.file("job.sh", 0o644, &read(job)?);
    for tool in tools {
        let name = tool.file_name().context("a tool needs a name")?;
        let name = format!("tools/{}", name.to_string_lossy());
        archive.file(&name, 0o755, &read(tool)?);
    }

    let image = &guest.image;
    let version = kernel_version(image)?;
    let modules = format!("/lib/modules/{version}");
    let text = |name: &str| {
        let bytes = file_of(image, &format!("{modules}/{name}"), folder)?;
        anyhow::Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let mut order = String::new();
    for path in load_order(&text("modules.dep")?, &text("modules.builtin")?, &MODULES)? {
        let name = path.rsplit('/').next().unwrap_or(&path);
        let contents = file_of(image, &format!("{modules}/{path}"), folder)?;
        archive.file(&format!("modules/{name}"), 0o644, &contents);
        order.push_str(name);
        order.push('\n');
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    let path = folder.join("job.cpio");
    fs::write(&path, archive.finish()).context("cannot write the initramfs")?;
    Ok(path)
}

/// A static program, so that it runs in an initramfs that holds nothing else.
pub fn compile(source: &Path, program: &Path) -> anyhow::Result<()> {
    let status = Command::new("rustc")
        .args(["--edition=2024", "-O", "-C", "target-feature=+crt-static"])
        .args(["-C", "panic=abort", "-C", "strip=symbols", "-o"])
        .arg(program)
        .arg(source)
        .status()
        .context("cannot run rustc")?;
    ensure!(status.success(), "cannot compile {}", source.display());
    Ok(())
}

/// The kernel in the ext4 file system `image`: the folder of its modules.
fn kernel_version(image: &Path) -> anyhow::Result<String> {
    // Lines of the form /inode/mode/uid/gid/name/size/.
    let listing = debugfs(image, "ls -p /lib/modules")?;
    let version = listing
        .lines()
        .filter_map(|line| line.split('/').nth(5))
        .find(|name| name.starts_with(|c: char| c.is_ascii_digit()));
    let version = version.with_context(|| format!("{} has no kernel", image.display()))?;
    Ok(version.to_owned())
}

/// A file in the ext4 file system `image`, read without mounting it.
fn file_of(image: &Path, path: &str, folder: &Path) -> anyhow::Result<Vec<u8>> {
    let copy = folder.join("copy");
    // Whether it worked is seen by the copy: debugfs ends with 0 in any case.
    let _ = fs::remove_file(&copy);
    debugfs(image, &format!("dump {path} {}", copy.display()))?;
    fs::read(&copy).with_context(|| format!("{} has no {path}", image.display()))
}

fn debugfs(image: &Path, request: &str) -> anyhow::Result<String> {
    let output = Command::new("/sbin/debugfs")
        .args(["-R", request])
        .arg(image)
        .stdin(Stdio::null())
        .output()
        .context("cannot run debugfs")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
