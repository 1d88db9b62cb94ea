use proptest::prelude::*;

use super::*;

const RUN: &str = "\
I: automatically chosen mode: root
I: running apt-get update...
Get:1 http://deb.debian.org/debian bookworm InRelease [151 kB]
Get:2 http://deb.debian.org/debian bookworm/main amd64 Packages [8790 kB]
I: downloading packages with apt...
0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.
Get:1 http://deb.debian.org/debian bookworm/main amd64 libc6 amd64 2.36-9 [2757 kB]
Get:2 http://deb.debian.org/debian bookworm/main amd64 dash amd64 0.5.12-2 [97 kB]
I: installing essential packages...
Selecting previously unselected package libc6:amd64.
Unpacking libc6:amd64 (2.36-9) ...
Unpacking dash (0.5.12-2) ...
Setting up libc6:amd64 (2.36-9) ...
Setting up dash (0.5.12-2) ...
I: installing remaining packages inside the chroot...
0 upgraded, 1 newly installed, 0 to remove and 0 not upgraded.
Get:1 http://deb.debian.org/debian bookworm/main amd64 udev amd64 252.39-1 [1 kB]
Unpacking udev (252.39-1) ...
Setting up udev (252.39-1) ...
I: running --customize-hook in shell: sh -c 'true' exec /tmp/x
I: creating tarball...
I: done";

#[test]
fn a_run_goes_through_the_stages_and_names_packages() {
    let mut reader = LogReader::default();
    let updates: Vec<_> = RUN.lines().filter_map(|line| reader.line(line)).collect();
    let mut stages: Vec<_> = updates.iter().map(|u| u.stage).collect();
    stages.dedup();
    assert_eq!(
        stages,
        [
            Stage::Download,
            Stage::Install,
            Stage::Download,
            Stage::Install,
            Stage::Customize,
            Stage::Pack
        ]
    );
    let details: Vec<_> = updates
        .iter()
        .map(|u| u.detail.as_str())
        .filter(|d| !d.is_empty())
        .collect();
    assert_eq!(
        details,
        [
            "Packages", "libc6", "dash", "libc6", "dash", "libc6", "dash", "udev", "udev", "udev"
        ]
    );
    // Everything announced was set up, so the install phase stands at its end.
    let last_install = updates.iter().rfind(|u| u.stage == Stage::Install).unwrap();
    assert!(
        (last_install.fraction - 0.80).abs() < 1e-9,
        "{last_install:?}"
    );
}

proptest! {
    #[test]
    fn the_fraction_never_falls_and_stays_in_bounds(
        lines in proptest::collection::vec(
            prop_oneof![
                proptest::sample::select(RUN.lines().collect::<Vec<_>>()).prop_map(str::to_owned),
                "(Get:|Unpacking |Setting up |I: )?.{0,20}",
                (0u64..=u64::MAX).prop_map(|n| format!("0 upgraded, {n} newly installed, 0 to remove")),
            ],
            0..200,
        )
    ) {
        let mut reader = LogReader::default();
        let mut last = 0.0;
        for line in lines {
            if let Some(update) = reader.line(&line) {
                prop_assert!(update.fraction >= last && update.fraction <= 1.0);
                last = update.fraction;
            }
        }
    }
}
