//! Things that take long to build and are kept under the target folder, keyed by their recipe.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::project;

/// The folder `target/NAME/KEY` for a thing built from `recipe`.
///
/// If it is not there, `build` fills a fresh folder that then takes its name, so that a folder
/// found is complete. Two processes that want the same thing build it once. Older folders of the
/// same name, built from other recipes, are removed.
pub fn folder(
    name: &str,
    recipe: &str,
    rebuild: bool,
    build: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    let parent = project::target()?.join(name);
    folder_in(&parent, recipe, rebuild, build)
}

fn folder_in(
    parent: &Path,
    recipe: &str,
    rebuild: bool,
    build: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let folder = parent.join(format!("{:016x}", fnv1a(recipe.as_bytes())));
    if folder.is_dir() && !rebuild {
        return Ok(folder);
    }
    let lock_path = parent.join("lock");
    let lock = File::create(&lock_path)
        .with_context(|| format!("cannot create {}", lock_path.display()))?;
    lock.lock()
        .with_context(|| format!("cannot lock {}", lock_path.display()))?;
    if folder.is_dir() && !rebuild {
        return Ok(folder);
    }
    // Under the lock, whatever else stands here is old or was left by a build that was killed.
    let fresh = tempfile::Builder::new()
        .prefix("building-")
        .tempdir_in(parent)?;
    build(fresh.path())?;
    for entry in fs::read_dir(parent)? {
        let path = entry?.path();
        if path.is_dir() && path != fresh.path() {
            fs::remove_dir_all(&path)
                .with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    let fresh = fresh.keep();
    fs::rename(&fresh, &folder).with_context(|| format!("cannot rename {}", fresh.display()))?;
    Ok(folder)
}

/// The FNV-1a hash, 64 bits: the same on every machine and with every compiler.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fnv1a() {
        // Test vectors of draft-eastlake-fnv.
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn a_folder_is_built_once_per_recipe_and_never_half() {
        let parent = tempfile::tempdir().unwrap();
        let mut builds = 0;
        let mut get = |recipe, rebuild, fail: bool| {
            folder_in(parent.path(), recipe, rebuild, |path| {
                builds += 1;
                fs::write(path.join("recipe"), recipe)?;
                anyhow::ensure!(!fail, "no");
                Ok(())
            })
        };
        get("a", false, true).unwrap_err();
        let a = get("a", false, false).unwrap();
        assert_eq!(get("a", false, false).unwrap(), a);
        assert_eq!(get("a", true, false).unwrap(), a);
        let b = get("b", false, false).unwrap();
        assert_eq!(builds, 4);
        assert_eq!(fs::read_to_string(b.join("recipe")).unwrap(), "b");
        assert!(!a.exists());
        let folders = fs::read_dir(parent.path())
            .unwrap()
            .filter(|e| e.as_ref().unwrap().path().is_dir());
        assert_eq!(folders.count(), 1);
    }
}
