use super::*;

#[test]
fn the_linked_kernel_wins_over_the_last_by_name() {
    let root = tempfile::tempdir().unwrap();
    let boot = root.path().join("boot");
    fs::create_dir(&boot).unwrap();
    assert!(matches!(find_kernel(&boot), Err(Error::NoKernel { .. })));
    for name in [
        "vmlinuz-6.1.0-9",
        "vmlinuz-6.1.0-50",
        "initrd.img-6.1.0-50",
        "config-6.1.0-50",
    ] {
        fs::write(boot.join(name), "").unwrap();
    }
    let last = find_kernel(&boot).unwrap();
    assert_eq!((last.version.as_str(), &last.initrd), ("6.1.0-9", &None));
    symlink("boot/vmlinuz-6.1.0-50", root.path().join("vmlinuz")).unwrap();
    let linked = find_kernel(&boot).unwrap();
    assert_eq!(linked.vmlinuz, boot.join("vmlinuz-6.1.0-50"));
    assert_eq!(linked.initrd, Some(boot.join("initrd.img-6.1.0-50")));
    // A link to a kernel that is gone does not count.
    fs::remove_file(boot.join("vmlinuz-6.1.0-50")).unwrap();
    assert_eq!(find_kernel(&boot).unwrap().version, "6.1.0-9");
}

/// A tree as [`Tree::bootstrap`] leaves it, without running it.
fn small_tree() -> Tree {
    let tree = Tree {
        work: tempfile::tempdir().unwrap(),
        as_root: true,
    };
    fs::create_dir_all(tree.path().join("etc")).unwrap();
    fs::write(tree.path().join("etc/hostname"), "small\n").unwrap();
    tree
}

#[test]
fn a_tree_becomes_a_sparse_ext4_of_the_size_asked_for() {
    let tree = small_tree();
    let path = tree.work_directory().join("x.img");
    tree.write_ext4(
        &path,
        &Ext4 {
            size: 256 << 20,
            label: "some-label",
        },
    )
    .unwrap();
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(metadata.len(), 256 << 20);
    assert!(
        metadata.blocks() * 512 < 64 << 20,
        "not sparse: {} blocks",
        metadata.blocks()
    );
    // ext4's superblock at 1024: s_magic at 0x38, s_volume_name at 0x78 (kernel ext4 documentation).
    let image = fs::read(&path).unwrap();
    assert_eq!(&image[1024 + 0x38..][..2], &[0x53, 0xef]);
    assert_eq!(&image[1024 + 0x78..][..11], b"some-label\0");
}

#[test]
fn a_size_too_small_is_refused_with_what_is_needed() {
    let tree = small_tree();
    let path = tree.work_directory().join("x.img");
    let error = tree
        .write_ext4(
            &path,
            &Ext4 {
                size: 8 << 20,
                label: "x",
            },
        )
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "an image of 8 MiB is too small: the system needs at least 49 MiB"
    );
    assert!(!path.exists());
}

#[test]
fn packed_files_belong_to_root_and_bring_no_directories() {
    let tree = Tree {
        work: tempfile::tempdir().unwrap(),
        as_root: true,
    };
    let files = [
        File::new("/etc/a b", "1"),
        File::new("/usr/bin/-x", "22").with_mode(0o755),
    ];
    tree.pack("files", &files).unwrap();
    let mut command = TAR.command().unwrap();
    command.current_dir(tree.work.path()).args([
        "--list",
        "--verbose",
        "--numeric-owner",
        "--file=files.tar",
    ]);
    let listing = String::from_utf8(command.output().unwrap().stdout).unwrap();
    let lines: Vec<Vec<&str>> = listing
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(lines.len(), 2, "{listing}");
    assert_eq!(lines[0][..3], ["-rw-r--r--", "0/0", "1"]);
    assert_eq!(lines[1][..3], ["-rwxr-xr-x", "0/0", "2"]);
    assert!(lines[1].ends_with(&["usr/bin/-x"]));
}

#[test]
fn too_little_room_is_said_before_anything_is_done() {
    let error = check_room(Path::new("/"), u64::MAX).unwrap_err();
    assert!(
        matches!(&error, Error::NoSpace { need: u64::MAX, .. }),
        "{error}"
    );
}
