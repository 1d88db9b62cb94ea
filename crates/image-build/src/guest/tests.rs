use super::*;

fn file<'a>(recipe: &'a Recipe, path: &str) -> Option<&'a str> {
    let file = recipe.files.iter().find(|f| f.path == path)?;
    std::str::from_utf8(&file.contents).ok()
}

const AUTOLOGIN: &str = "/etc/systemd/system/serial-getty@.service.d/autologin.conf";

#[test]
fn without_a_password_root_is_logged_in_on_the_console() {
    let recipe = DebianGuest::default().recipe().unwrap();
    assert!(
        file(&recipe, AUTOLOGIN)
            .unwrap()
            .contains("--autologin root")
    );
    assert!(!recipe.script.contains("chpasswd"));
    assert!(
        recipe
            .packages
            .iter()
            .any(|p| p == "linux-image-cloud-amd64")
    );
    assert!(!recipe.packages.iter().any(|p| p == "openssh-server"));
}

#[test]
fn a_password_reaches_the_script_by_the_environment_only() {
    let guest = DebianGuest {
        root_password: Some("se'cret".into()),
        ..DebianGuest::default()
    };
    let recipe = guest.recipe().unwrap();
    assert!(file(&recipe, AUTOLOGIN).is_none());
    assert!(!recipe.script.contains("se'cret") && recipe.script.contains("chpasswd"));
    assert_eq!(
        recipe.environment,
        [("IMAGE_ROOT_PASSWORD".to_owned(), "se'cret".to_owned())]
    );
}

#[test]
fn ssh_makes_its_own_host_keys_and_takes_the_users() {
    let guest = DebianGuest {
        openssh: true,
        authorized_keys: vec!["ssh-ed25519 AAAA me\n".into()],
        ..DebianGuest::default()
    };
    let recipe = guest.recipe().unwrap();
    assert!(recipe.packages.iter().any(|p| p == "openssh-server"));
    assert!(
        file(&recipe, "/etc/systemd/system/ssh.service.d/host-keys.conf")
            .unwrap()
            .contains("ssh-keygen -A")
    );
    assert_eq!(
        file(&recipe, "/root/.ssh/authorized_keys"),
        Some("ssh-ed25519 AAAA me\n")
    );
    assert!(file(&recipe, "/etc/ssh/sshd_config.d/root.conf").is_none());
}

#[test]
fn nonsense_is_refused_by_name() {
    let default = DebianGuest::default;
    for (guest, field) in [
        (
            DebianGuest {
                hostname: "a b".into(),
                ..default()
            },
            "host name",
        ),
        (
            DebianGuest {
                hostname: "-a".into(),
                ..default()
            },
            "host name",
        ),
        (
            DebianGuest {
                hostname: "a".repeat(64),
                ..default()
            },
            "host name",
        ),
        (
            DebianGuest {
                root_password: Some("a\nb:c".into()),
                ..default()
            },
            "root password",
        ),
        (
            DebianGuest {
                openssh: true,
                authorized_keys: vec!["a\nb".into()],
                ..default()
            },
            "authorized key",
        ),
        (
            DebianGuest {
                masked_units: vec!["a.timer; reboot".into()],
                ..default()
            },
            "unit",
        ),
        (
            DebianGuest {
                packages: vec!["--force".into()],
                ..default()
            },
            "package",
        ),
    ] {
        let error = guest.recipe().unwrap_err();
        assert!(
            matches!(error, Error::BadRecipe { field: f, .. } if f == field),
            "{error}"
        );
        assert!(
            !error.to_string().contains("b:c"),
            "a password must not be shown: {error}"
        );
    }
}

#[test]
fn units_are_masked_beside_the_usual_ones() {
    let guest = DebianGuest {
        masked_units: vec!["modprobe@drm.service".into()],
        ..DebianGuest::default()
    };
    let script = guest.recipe().unwrap().script;
    let mask = script
        .lines()
        .find(|line| line.starts_with("systemctl mask "))
        .unwrap();
    assert!(
        mask.contains(" man-db.timer ") && mask.ends_with(" modprobe@drm.service"),
        "{mask}"
    );
}
