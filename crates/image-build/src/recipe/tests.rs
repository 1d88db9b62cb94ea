use super::*;

fn with_package(name: &str) -> Recipe {
    Recipe {
        packages: vec![name.to_owned()],
        ..Recipe::default()
    }
}

#[test]
fn package_names_follow_debian_policy() {
    for good in ["curl", "libstdc++6", "python3.11", "0ad"] {
        with_package(good).check().unwrap();
    }
    // A comma or a blank would make two packages, a leading dash an option, "?" an apt pattern.
    for bad in [
        "",
        "a",
        "-y",
        "curl,vim",
        "curl vim",
        "?essential",
        "Curl",
        "./x.deb",
        "curl/sid",
    ] {
        let error = with_package(bad).check().unwrap_err();
        assert!(
            matches!(
                error,
                Error::BadRecipe {
                    field: "package",
                    ..
                }
            ),
            "{bad:?}: {error}"
        );
    }
}

#[test]
fn file_paths_stay_inside_the_image() {
    for (path, good) in [
        ("/etc/fstab", true),
        ("etc/fstab", false),
        ("/", false),
        ("/etc/../../x", false),
        ("/etc//x", false),
        ("/etc/a\nb", false),
    ] {
        let recipe = Recipe {
            files: vec![File::new(path, "")],
            ..Recipe::default()
        };
        assert_eq!(recipe.check().is_ok(), good, "{path:?}");
    }
}

#[test]
fn fingerprints_differ_with_the_recipe() {
    let recipe = with_package("curl");
    let mut other = recipe.clone();
    other.files.push(File::new("/x", "1").with_mode(0o755));
    assert_eq!(recipe.fingerprint(), recipe.clone().fingerprint());
    assert_ne!(recipe.fingerprint(), other.fingerprint());
}
