//! The command from outside: what it prints and how it ends.

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs `vireo` with nothing to read.
fn vireo(arguments: &[&str]) -> Output {
    vireo_in(Path::new("."), arguments)
}

fn vireo_in(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vireo"))
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .expect("the command starts")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn succeeds(arguments: &[&str]) -> String {
    let output = vireo(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    stdout(&output)
}

/// The one line on standard error of a command that ends with `status`.
fn fails(status: i32, arguments: &[&str]) -> String {
    let output = vireo(arguments);
    let error = String::from_utf8(output.stderr.clone()).expect("UTF-8");
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {error}");
    assert!(
        error.starts_with("vireo: ") && error.lines().count() == 1,
        "{error}"
    );
    error
}

const EXAMPLE: &[&str] = &[
    "run",
    "--kernel",
    "vmlinuz",
    "--initrd",
    "initrd.img",
    "--append",
    "console=ttyS0 root=/dev/vda",
    "--disk",
    "root.img",
    "--cpus",
    "2",
    "--memory",
    "1G",
];

#[test]
fn help_mentions_every_section_and_device_with_its_properties() {
    let (short, long) = (succeeds(&["run", "-h"]), succeeds(&["run", "--help"]));
    let devices = succeeds(&["devices"]);
    for section in machine::sections() {
        assert!(short.contains(&format!("--{}", section.name)), "{short}");
        for property in (section.properties)() {
            assert!(
                long.contains(&format!("{}={}", property.name, property.kind)),
                "{}",
                property.name
            );
        }
    }
    for device in machine::catalog() {
        assert!(devices.contains(device.name), "{devices}");
        let one = succeeds(&["devices", device.name]);
        let by_option = succeeds(&["run", "--device", &format!("{},help", device.name)]);
        assert_eq!(one, by_option);
        for property in (device.properties)()
            .into_iter()
            .chain(machine::common_properties(device.place))
        {
            assert!(
                one.contains(&format!("{}={}", property.name, property.kind)),
                "{one}"
            );
        }
        if let Some(shorthand) = device.shorthand {
            assert!(short.contains(&format!("--{shorthand}")), "{short}");
            assert!(long.contains(device.name), "{long}");
            assert_eq!(succeeds(&["run", &format!("--{shorthand}"), "help"]), one);
        }
    }
    assert!(
        long.lines().all(|line| line.len() <= 120),
        "lines of help fit a terminal"
    );
    assert!(
        long.lines().count() > 2 * short.lines().count(),
        "short help is short"
    );
}

#[test]
fn devices_are_described_for_programs_too() {
    let all: serde_json::Value =
        serde_json::from_str(&succeeds(&["devices", "-o", "json"])).unwrap();
    assert_eq!(all.as_array().unwrap().len(), machine::catalog().len());
    let disk: serde_json::Value =
        serde_json::from_str(&succeeds(&["devices", "disk", "--output", "json"])).unwrap();
    assert_eq!(disk["type"], "virtio-blk-pci");
    assert_eq!(disk["option"], "disk");
    let file = disk["properties"]
        .as_array()
        .unwrap()
        .iter()
        .find(|p| p["name"] == "file")
        .unwrap();
    assert_eq!(
        (&file["kind"], &file["required"]),
        (&"path".into(), &true.into())
    );
    assert!(fails(2, &["devices", "dsk"]).contains("did you mean \"disk\"?"));
}

#[test]
fn processor_models_are_listed() {
    let table = succeeds(&["cpus"]);
    assert!(
        table.contains("Haswell") && table.contains("EPYC-Milan"),
        "{table}"
    );
    assert_eq!(succeeds(&["run", "--cpu", "help"]), table);
    let json: serde_json::Value =
        serde_json::from_str(&succeeds(&["cpus", "--output", "json"])).unwrap();
    let models = json["models"].as_array().unwrap();
    assert!(models.iter().any(|model| model["name"] == "Skylake-Server"));
    assert_eq!(models[0]["name"], "host");
}

#[test]
fn without_kvm_the_models_of_the_software_processor_are_listed() {
    let json = succeeds(&["cpus", "--output", "json", "--device", "/dev/null"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["accelerator"]["name"], "soft");
    assert!(json["accelerator"]["kvm-unusable"].is_string());
    let models = json["models"].as_array().unwrap();
    assert_eq!(models[0]["runnable"], true, "{json}");
}

#[test]
fn a_configuration_says_the_same_as_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let mut words = EXAMPLE.to_vec();
    words.extend([
        "--cpu",
        "EPYC,-avx2,+x2apic",
        "--memory",
        "2G,prealloc=on",
        "--root-port",
        "rp1",
        "--disk",
        "b,,c.img,cache=none,bus=rp1,read-only=yes,iothread=io1,iothread=io2",
        "--device",
        "virtio-blk-pci,file=d.img,serial=\"S\\1\",num-queues=0x2",
        "--iothread",
        "io1,cpus=0-1",
        "--iothread",
        "io2,poll-us=0",
        "--qmp",
        "vm.sock",
        "--machine",
        "name=one,on-crash=pause",
        "--accel",
        "kvm",
        "--log",
        "debug,file=vm.log",
        "--pidfile",
        "vm.pid",
        "--print-config",
    ]);
    let first = vireo_in(folder.path(), &words);
    assert!(first.status.success(), "{first:?}");
    std::fs::write(folder.path().join("vm.toml"), &first.stdout).unwrap();
    let again = vireo_in(
        folder.path(),
        &["run", "--config", "vm.toml", "--print-config"],
    );
    assert_eq!(stdout(&again), stdout(&first), "{again:?}");

    let text = stdout(&first);
    for line in [
        "count = 2",
        "size = \"2G\"",
        "prealloc = true",
        "model = \"EPYC,-avx2,+x2apic\"",
        "cmdline = \"console=ttyS0 root=/dev/vda\"",
        "initrd = \"initrd.img\"",
        "kind = \"kvm\"",
        "to = \"stdio\"",
        "file = \"b,c.img\"",
        "read-only = true",
        "iothread = [\"io1\", \"io2\"]",
        "pidfile = \"vm.pid\"",
        "level = \"debug\"",
    ] {
        assert!(
            text.lines().any(|l| l == line),
            "{line} is missing in\n{text}"
        );
    }
    let (root, second) = (
        text.find("file = \"root.img\""),
        text.find("file = \"b,c.img\""),
    );
    assert!(
        root < text.find("id = \"rp1\"") && text.find("id = \"rp1\"") < second,
        "devices keep their order"
    );
}

#[test]
fn the_command_line_wins_over_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let config = "[memory]\nsize = \"1G\"\nshared = true\n[kernel]\nimage = \"k\"\n[[disk]]\nfile = \"a.img\"\n\
                  [log]\nlevel = \"warn\"\n";
    std::fs::write(folder.path().join("vm.toml"), config).unwrap();
    let path = folder.path().join("vm.toml");
    let words = [
        "run",
        "--memory",
        "2G",
        "--config",
        path.to_str().unwrap(),
        "--disk",
        "b.img",
        "--serial",
        "null",
        "--log",
        "info",
        "--print-config",
    ];
    let text = succeeds(&words);
    for line in [
        "size = \"2G\"",
        "shared = true",
        "level = \"info\"",
        "to = \"null\"",
        "file = \"b.img\"",
    ] {
        assert!(
            text.lines().any(|l| l == line),
            "{line} is missing in\n{text}"
        );
    }
    assert!(!text.contains("stdio") && !text.contains("warn"), "{text}");
    let image = folder.path().join("k").display().to_string();
    assert!(
        text.contains(&format!("image = \"{image}\"")),
        "paths are relative to the file: {text}"
    );
}

#[test]
fn mistakes_are_told_with_what_is_near() {
    let told = |arguments: &[&str], words: &[&str]| {
        let error = fails(2, arguments);
        words
            .iter()
            .for_each(|word| assert!(error.contains(word), "{word:?} is missing in {error}"));
    };
    told(
        &["run", "--disk", "a.img,cahce=none"],
        &["virtio-blk-pci", "cahce", "did you mean \"cache\"?"],
    );
    told(&["run", "--disk", "cache=none"], &["\"file\" is missing"]);
    told(
        &["run", "--disk", "a.img,cache=nome"],
        &["cache=nome", "did you mean \"none\"?"],
    );
    told(
        &["run", "--disk", "a.img,packed=maybe"],
        &["packed=maybe", "on or off"],
    );
    told(&["run", "--dsk", "a.img"], &["--dsk", "--disk"]);
    told(&["run", "--memory", "12Q"], &["memory", "size=12Q", "512M"]);
    told(&["run", "--memory", "size=-1"], &["size=-1"]);
    told(&["run", "--cpus", "many"], &["count=many", "integer"]);
    told(&["run", "--serial", "foo"], &["to=foo", "pty"]);
    told(
        &["run", "--machine", "on-crahs=exit"],
        &["did you mean \"on-crash\"?"],
    );
    told(
        &["run", "--device", "virtio-blk-pic,file=a"],
        &["virtio-blk-pic", "did you mean \"virtio-blk-pci\"?"],
    );
    told(&["run", "--log", "loud"], &["level=loud", "debug"]);
    told(
        &["run", "--initrd", "a"],
        &["kernel", "\"image\" is missing"],
    );
    told(&["rnu"], &["rnu", "run"]);
}

#[test]
fn files_that_are_not_there_are_named() {
    let error = fails(1, &["run", "--kernel", "/nowhere/vmlinuz"]);
    assert!(
        error.contains("/nowhere/vmlinuz") && error.contains("No such file"),
        "{error}"
    );
    let error = fails(1, &["run", "--config", "/nowhere/vm.toml"]);
    assert!(
        error.contains("/nowhere/vm.toml") && error.contains("No such file"),
        "{error}"
    );
    let error = fails(
        1,
        &[
            "run",
            "--kernel",
            "/dev/null",
            "--log",
            "info,file=/nowhere/log",
        ],
    );
    assert!(error.contains("/nowhere/log"), "{error}");
}

#[test]
fn a_kvm_that_cannot_run_guests_is_found_out() {
    let output = vireo(&["accel-check"]);
    let verdict = stdout(&output);
    match output.status.code() {
        Some(0) => assert!(
            verdict.contains("usable; the self-test passed in"),
            "{verdict}"
        ),
        Some(1) => {
            assert!(verdict.starts_with("/dev/kvm: not usable: "), "{verdict}");
            // A device that is there fails its test; one that is not says what to do.
            assert!(
                verdict.contains("self-test") || verdict.contains(';'),
                "{verdict}"
            );
        }
        other => panic!("status {other:?}: {output:?}"),
    }
    let output = vireo(&["accel-check", "--device", "/nowhere/kvm"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stdout(&output).contains("/nowhere/kvm: No such file"),
        "{output:?}"
    );
    let error = fails(
        1,
        &[
            "run",
            "--kernel",
            "/dev/null",
            "--serial",
            "null",
            "--accel",
            "kvm",
            "--machine",
            "kvm-device=/nowhere/kvm",
        ],
    );
    assert!(
        error.contains("kvm cannot be used here") && error.contains("load kvm_intel"),
        "{error}"
    );
}

#[test]
fn a_pidfile_is_not_left_behind_by_a_machine_that_was_not_built() {
    let folder = tempfile::tempdir().unwrap();
    let pidfile = folder.path().join("vm.pid").display().to_string();
    let error = fails(
        1,
        &[
            "run",
            "--kernel",
            "/dev/null",
            "--pidfile",
            &pidfile,
            "--serial",
            "null",
            "--accel",
            "kvm",
            "--machine",
            "kvm-device=/nowhere/kvm",
        ],
    );
    assert!(error.contains("/nowhere/kvm"), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn images_are_not_begun_on_bad_input() {
    let error = fails(
        2,
        &[
            "image",
            "build",
            "debian",
            "-o",
            "/nowhere/a.img",
            "--size",
            "big",
        ],
    );
    assert!(error.contains("--size big"), "{error}");
    let error = fails(
        2,
        &[
            "image",
            "build",
            "debian",
            "-o",
            "/nowhere/a.img",
            "--release",
            "potato",
        ],
    );
    assert!(
        error.contains("potato") && error.contains("sources"),
        "{error}"
    );
    let error = fails(
        1,
        &[
            "image",
            "build",
            "debian",
            "-o",
            "/nowhere/a.img",
            "--packages",
            "Bad_Name",
        ],
    );
    assert!(error.contains("Bad_Name"), "{error}");
    fails(2, &["image", "build", "debian"]);
}

#[test]
fn shells_get_completions_that_know_the_options() {
    for shell in ["bash", "zsh", "fish"] {
        let script = succeeds(&["completions", shell]);
        assert!(
            script.contains("root-port") && script.contains("accel-check"),
            "{shell}"
        );
    }
    fails(2, &["completions", "tcsh"]);
}

#[test]
fn the_version_is_told() {
    assert_eq!(
        succeeds(&["--version"]),
        format!("vireo {}\n", env!("CARGO_PKG_VERSION"))
    );
}
