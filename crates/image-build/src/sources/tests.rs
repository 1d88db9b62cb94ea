use proptest::prelude::*;

use super::*;

const DEBIAN: &str = "\
Types: deb deb-src
# a comment between fields
URIs: http://deb.debian.org/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://deb.debian.org/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
";

/// Sources out of files with the given names and contents.
fn read(files: &[(&str, &str)], codename: &str) -> Sources {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("sources.list.d")).unwrap();
    for (name, text) in files {
        fs::write(directory.path().join(name), text).unwrap();
    }
    Sources::in_directory(directory.path(), codename).unwrap()
}

#[test]
fn other_vendors_are_left_out() {
    let sources = read(
        &[
            ("sources.list.d/debian.sources", DEBIAN),
            (
                "sources.list.d/nodesource.sources",
                "Types: deb\nURIs: https://deb.nodesource.com/node_20.x\nSuites: nodistro\nComponents: main\n\
                 Signed-By: /usr/share/keyrings/nodesource.gpg\n",
            ),
            (
                "sources.list.d/cloud.list",
                "deb https://packages.cloud.google.com/apt cloud-sdk-bookworm main\n",
            ),
            (
                "sources.list.d/hashicorp.list",
                "deb [signed-by=/k.gpg] https://apt.releases.hashicorp.com bookworm main\n",
            ),
            (
                "sources.list.d/yarn.list",
                "deb https://dl.yarnpkg.com/debian/ stable main\n",
            ),
            (
                "sources.list.d/docker.list",
                "deb [arch=amd64] https://download.docker.com/linux/debian bookworm stable\n",
            ),
            (
                "sources.list.d/off.sources.disabled",
                "Types: deb\nURIs: http://deb.debian.org/x\nSuites: sid\nComponents: main\n",
            ),
        ],
        "bookworm",
    );
    assert_eq!(sources.suite, "bookworm");
    let uris: Vec<_> = sources
        .text
        .lines()
        .filter_map(|l| l.strip_prefix("URIs: "))
        .collect();
    assert_eq!(
        uris,
        [
            "http://deb.debian.org/debian",
            "http://deb.debian.org/debian-security"
        ]
    );
    assert!(!sources.text.contains("deb-src"), "{}", sources.text);
}

#[test]
fn a_mirror_in_one_line_format_is_recognised() {
    let list = "# mirror\n\
        deb [ arch=amd64 ] http://mirror.example:8080/debian/ bookworm main contrib # near\n\
        deb-src http://mirror.example:8080/debian bookworm main\n\
        deb http://mirror.example/debian-security bookworm-security main\n\
        deb http://mirror.example/debian bookworm-pgdg main\n";
    let sources = read(&[("sources.list", list)], "bookworm");
    assert_eq!(sources.suite, "bookworm");
    let suites: Vec<_> = sources
        .text
        .lines()
        .filter_map(|l| l.strip_prefix("Suites: "))
        .collect();
    assert_eq!(suites, ["bookworm", "bookworm-security"]);
}

#[test]
fn disabled_and_security_only_sources_fall_back_to_debians_own_mirror() {
    let off = DEBIAN.replace("Types: deb deb-src", "Types: deb\nEnabled: no");
    let sources = read(&[("sources.list.d/debian.sources", &off)], "bookworm");
    assert_eq!(sources.suite, "bookworm");
    assert!(
        sources.text.contains("Suites: bookworm bookworm-updates\n"),
        "{}",
        sources.text
    );
}

#[test]
fn another_distribution_gets_debian_stable() {
    let ubuntu = "deb http://archive.ubuntu.com/ubuntu noble main universe\n";
    let sources = read(&[("sources.list", ubuntu)], "");
    assert_eq!(sources.suite, "stable");
    assert!(
        sources.text.contains("http://deb.debian.org/debian\n") && !sources.text.contains("ubuntu")
    );
}

#[test]
fn embedded_keys_survive() {
    let key = "Types: deb\nURIs: http://deb.debian.org/debian\nSuites: sid\nComponents: main\nSigned-By:\n \
               -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n xsFN=\n -----END PGP PUBLIC KEY BLOCK-----\n";
    let sources = read(&[("sources.list.d/debian.sources", key)], "");
    assert_eq!(sources.text, key);
    assert_eq!(parse_deb822(&sources.text), parse_deb822(key));
}

#[test]
fn only_debian_has_a_codename() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("os-release");
    for (text, expected) in [
        ("ID=debian\nVERSION_CODENAME=bookworm\n", "bookworm"),
        (
            "VERSION_CODENAME=\"noble\"\nID=ubuntu\nID_LIKE=debian\n",
            "",
        ),
        ("ID=debian\n", ""),
    ] {
        fs::write(&path, text).unwrap();
        assert_eq!(codename(&path), expected);
    }
    assert_eq!(codename(&directory.path().join("absent")), "");
}

proptest! {
    #[test]
    fn whatever_is_written_deb822_reads_back(
        uris in proptest::collection::vec("[a-z]{1,6}://[a-z.]{1,12}/[a-z/]{0,8}", 1..3),
        suites in proptest::collection::vec("[a-z-]{1,12}", 1..3),
        components in proptest::collection::vec("[a-z]{1,9}", 1..3),
        signed_by in proptest::option::of("/[a-z./]{1,20}"),
    ) {
        let source = Source { uris, suites, components, signed_by };
        prop_assert_eq!(parse_deb822(&to_deb822(&source)), vec![source]);
    }

    #[test]
    fn any_text_is_read_without_trouble(text in "\\PC{0,200}|(deb|[a-z: \\[\\]\n#=/]){0,80}") {
        let count = parse_deb822(&text).len() + parse_one_line(&text).len();
        prop_assert!(count <= 2 * text.lines().count());
    }
}
