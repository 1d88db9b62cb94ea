use super::*;

#[test]
fn the_files_beside_an_image_share_its_stem() {
    let outputs = Outputs::beside(Path::new("dir/debian.img")).unwrap();
    assert_eq!(outputs.vmlinux, Path::new("dir/debian.vmlinux"));
    assert_eq!(outputs.config, Path::new("dir/debian.toml"));
    assert_eq!(
        Outputs::beside(Path::new("plain")).unwrap().initrd,
        Path::new("plain.initrd")
    );
}

#[test]
fn names_that_would_collide_are_refused() {
    for name in ["x.toml", "x.vmlinux", "x.initrd", "..", "/", ""] {
        assert!(
            matches!(
                Outputs::beside(Path::new(name)),
                Err(Error::BadOutput { .. })
            ),
            "{name:?}"
        );
    }
}

#[test]
fn an_output_that_exists_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let initrd = directory.path().join("a.initrd");
    fs::write(&initrd, "mine").unwrap();
    let mut updates = 0;
    let result = build(
        &DebianGuest::default(),
        &directory.path().join("a.img"),
        &Options::default(),
        &mut |_: &Update| updates += 1,
    );
    let error = result.unwrap_err();
    assert!(
        matches!(&error, Error::OutputExists { path } if *path == initrd),
        "{error}"
    );
    assert_eq!(
        (fs::read_to_string(&initrd).unwrap().as_str(), updates),
        ("mine", 0)
    );
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}
