//! The file that tells others which process the machine is.

use std::path::{Path, PathBuf};

use machine::MachineError;

/// A file with the process's number, there as long as this value.
pub(crate) struct Pidfile(PathBuf);

impl Pidfile {
    /// Writes the file, whole at once: a reader that sees it can read the number.
    pub(crate) fn write(path: &Path) -> Result<Self, MachineError> {
        let pid = std::process::id();
        let mut draft = path.as_os_str().to_owned();
        draft.push(format!(".{pid}"));
        let draft = PathBuf::from(draft);
        let written =
            std::fs::write(&draft, format!("{pid}\n")).and_then(|()| std::fs::rename(&draft, path));
        match written {
            Ok(()) => Ok(Self(path.to_owned())),
            Err(source) => {
                // It may not have come to be.
                _ = std::fs::remove_file(&draft);
                let what = format!("write the pidfile {}", path.display());
                Err(MachineError::Step {
                    what,
                    source: source.into(),
                })
            }
        }
    }
}

impl Drop for Pidfile {
    fn drop(&mut self) {
        // Somebody else may have removed it already.
        _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_lives_as_long_as_the_machine() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm.pid");
        std::fs::write(&path, "of a dead machine").unwrap();
        let pidfile = Pidfile::write(&path).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            format!("{}\n", std::process::id())
        );
        drop(pidfile);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named() {
        let error = Pidfile::write(Path::new("/nowhere/vm.pid"))
            .err()
            .expect("refused");
        assert!(machine::chain(&error).contains("/nowhere/vm.pid: No such file"));
    }
}
