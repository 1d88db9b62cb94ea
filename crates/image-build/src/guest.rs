//! The Debian guest that `vireo image build debian` offers.

use std::fmt::Write as _;

use crate::{Error, File, Recipe};

/// What every guest holds beside Debian's required packages.
///
/// dbus is for systemd-logind, which answers the ACPI power button; lz4 packs the initramfs.
/// libpam-systemd is left out: a user manager for root would double the time from login to shell.
const PACKAGES: [&str; 15] = [
    "ca-certificates",
    "curl",
    "dbus",
    "dmidecode",
    "initramfs-tools",
    "iproute2",
    "iputils-ping",
    "kmod",
    "lz4",
    "pciutils",
    "procps",
    "systemd-resolved",
    "systemd-sysv",
    "udev",
    "util-linux",
];

/// Modules that mount the root file system; the cloud kernel has ext4 built in, others do not.
const INITRAMFS_MODULES: &str = "virtio_pci\nvirtio_blk\nvirtio_net\next4\n";

/// Housekeeping that a throw-away guest does not want in its first minutes.
const MASKED_UNITS: &str = "apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
     e2scrub_reap.service fstrim.timer man-db.timer";

/// A stock Debian with systemd, a console on the first serial port and networking by DHCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DebianGuest {
    /// The guest's host name.
    pub hostname: String,
    /// Size of the disk in bytes; the file is sparse.
    pub size: u64,
    /// The kernel's package.
    pub kernel_package: String,
    /// More packages.
    pub packages: Vec<String>,
    /// Root's password. Without one root is logged in on the serial console by itself and cannot
    /// log in any other way.
    pub root_password: Option<String>,
    /// Installs an SSH server, which makes its host keys at first boot.
    pub openssh: bool,
    /// systemd units that shall not run, beside apt's and the file system's timers.
    pub masked_units: Vec<String>,
    /// Public keys that may log in as root by SSH.
    pub authorized_keys: Vec<String>,
}

impl Default for DebianGuest {
    fn default() -> Self {
        Self {
            hostname: "debian".to_owned(),
            size: 2 << 30,
            kernel_package: "linux-image-cloud-amd64".to_owned(),
            packages: Vec::new(),
            root_password: None,
            openssh: false,
            masked_units: Vec::new(),
            authorized_keys: Vec::new(),
        }
    }
}

impl DebianGuest {
    /// The label of the root file system.
    pub const LABEL: &str = "debian-root";

    /// Packages, files and script of this guest.
    ///
    /// # Errors
    /// [`Error::BadRecipe`] for a host name outside RFC 1123 section 2.1, a password or key with a
    /// line break, or a bad package name.
    pub fn recipe(&self) -> Result<Recipe, Error> {
        check_hostname(&self.hostname)?;
        let mut recipe = Recipe::default();
        recipe.packages.extend(PACKAGES.map(str::to_owned));
        recipe.packages.push(self.kernel_package.clone());
        recipe.packages.extend(self.packages.iter().cloned());
        recipe.early_files = vec![
            File::new(
                "/etc/initramfs-tools/conf.d/image",
                "MODULES=list\nCOMPRESS=lz4\nRESUME=none\n",
            ),
            File::new(
                "/usr/share/initramfs-tools/modules.d/image",
                INITRAMFS_MODULES,
            ),
        ];
        recipe.files = vec![
            File::new("/etc/hostname", format!("{}\n", self.hostname)),
            File::new(
                "/etc/hosts",
                format!(
                    "127.0.0.1 localhost\n127.0.1.1 {}\n::1 localhost\n",
                    self.hostname
                ),
            ),
            File::new(
                "/etc/fstab",
                format!("LABEL={} / ext4 errors=remount-ro 0 1\n", Self::LABEL),
            ),
            File::new("/etc/default/locale", "LANG=C.UTF-8\n"),
            File::new(
                "/etc/systemd/network/80-dhcp.network",
                "[Match]\nName=en* eth*\n\n[Network]\nDHCP=yes\n\n[DHCPv4]\nClientIdentifier=mac\n",
            ),
        ];
        for unit in &self.masked_units {
            check_unit(unit)?;
        }
        let mut script = format!(
            "systemctl enable systemd-networkd.service systemd-resolved.service\n\
             systemctl mask {MASKED_UNITS} {}\n\
             rm -f /etc/.resolv.conf.systemd-resolved.bak\n",
            self.masked_units.join(" ")
        );
        self.login(&mut recipe, &mut script)?;
        if self.openssh {
            self.ssh(&mut recipe, &mut script)?;
        }
        recipe.script = script;
        recipe.check()?;
        Ok(recipe)
    }

    fn login(&self, recipe: &mut Recipe, script: &mut String) -> Result<(), Error> {
        let Some(password) = &self.root_password else {
            recipe.files.push(File::new(
                "/etc/systemd/system/serial-getty@.service.d/autologin.conf",
                "[Service]\nExecStart=\n\
                 ExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200,57600,38400,9600 - $TERM\n",
            ));
            return Ok(());
        };
        if password.is_empty() || password.contains(['\n', '\0']) {
            return Err(Error::BadRecipe {
                field: "root password",
                value: "(not shown)".to_owned(),
                reason: "it is empty or has a line break",
            });
        }
        recipe
            .environment
            .push(("IMAGE_ROOT_PASSWORD".to_owned(), password.clone()));
        script.push_str("printf 'root:%s\\n' \"$IMAGE_ROOT_PASSWORD\" | chpasswd\n");
        Ok(())
    }

    fn ssh(&self, recipe: &mut Recipe, script: &mut String) -> Result<(), Error> {
        recipe.packages.push("openssh-server".to_owned());
        // Keys made now would be the same in every copy of the image.
        script.push_str("rm -f /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub\n");
        recipe.files.push(File::new(
            "/etc/systemd/system/ssh.service.d/host-keys.conf",
            "[Service]\nExecStartPre=\nExecStartPre=/usr/bin/ssh-keygen -A\nExecStartPre=/usr/sbin/sshd -t\n",
        ));
        if self.root_password.is_some() {
            recipe.files.push(File::new(
                "/etc/ssh/sshd_config.d/root.conf",
                "PermitRootLogin yes\n",
            ));
        }
        if !self.authorized_keys.is_empty() {
            let mut keys = String::new();
            for key in &self.authorized_keys {
                let key = key.trim();
                if key.is_empty() || key.contains(['\n', '\0']) {
                    return Err(Error::BadRecipe {
                        field: "authorized key",
                        value: key.to_owned(),
                        reason: "one key is one line, as in a .pub file",
                    });
                }
                let _ = writeln!(keys, "{key}");
            }
            recipe
                .files
                .push(File::new("/root/.ssh/authorized_keys", keys).with_mode(0o600));
            script.push_str("chmod 700 /root/.ssh\n");
        }
        Ok(())
    }
}

fn check_hostname(name: &str) -> Result<(), Error> {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if !plain || name.is_empty() || name.len() > 63 || name.starts_with('-') || name.ends_with('-')
    {
        return Err(Error::BadRecipe {
            field: "host name",
            value: name.to_owned(),
            reason: "a host name has 1 to 63 letters, digits and inner dashes",
        });
    }
    Ok(())
}

/// The names that systemd.unit(5) allows, without the backslash: they stand in a shell script.
fn check_unit(name: &str) -> Result<(), Error> {
    let plain = name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b":-_.@".contains(&b));
    if !plain || !name.contains('.') || name.starts_with('-') {
        return Err(Error::BadRecipe {
            field: "unit",
            value: name.to_owned(),
            reason: "a unit's name is like systemd-binfmt.service",
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
