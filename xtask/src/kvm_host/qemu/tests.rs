use super::*;

#[test]
fn folders_of_killed_runs_go_and_those_of_running_ones_stay() {
    let parent = tempfile::tempdir().unwrap();
    let running = RunFolder::new(parent.path()).unwrap();
    let killed = RunFolder::new(parent.path()).unwrap();
    // What a killed process leaves: the folder without anyone who holds its lock.
    let left = killed.directory.keep();
    fs::write(left.join("scratch"), "big").unwrap();
    drop(killed._lock);
    let next = RunFolder::new(parent.path()).unwrap();
    assert!(!left.exists());
    assert!(running.path().exists() && next.path().exists());
}

#[test]
fn shares_cover_the_project_and_no_folder_twice() {
    let outside = tempfile::tempdir().unwrap();
    let inner = outside.path().join("inner");
    fs::create_dir(&inner).unwrap();
    let all = shares(&[
        inner.clone(),
        outside.path().to_owned(),
        inner,
        project::root().join("crates"),
    ])
    .unwrap();
    assert_eq!(
        all.iter()
            .filter(|share| share.starts_with(outside.path()))
            .collect::<Vec<_>>(),
        [outside.path()]
    );
    assert_eq!(
        all.iter()
            .filter(|share| share.starts_with(project::root()))
            .count(),
        1
    );
    assert!(shares(&["/".into()]).is_err());
    assert!(shares(&["/no/such/folder".into()]).is_err());
}

#[test]
fn commas_in_paths_do_not_end_an_option() {
    assert_eq!(with_doubled_commas(Path::new("/a,b/,c")), "/a,,b/,,c");
}

#[test]
fn a_reader_that_is_gone_does_not_stop_the_box() {
    struct Gone(usize);
    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            self.0 += 1;
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let data = vec![0; 300_000];
    let mut rest = data.as_slice();
    let mut gone = Gone(0);
    copy(&mut rest, &mut gone);
    assert!(rest.is_empty());
    assert_eq!(gone.0, 1);
}
