//! `vireo image`, with qemu-img as the oracle.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tmp");
        std::fs::create_dir_all(&target).unwrap();
        let folder = Self(tempfile::tempdir_in(target).unwrap());
        folder.fill("source.raw");
        folder
    }

    /// A disk with data, zeros that are stored, and holes.
    fn fill(&self, name: &str) {
        let path = self.0.path().join(name);
        let mut bytes: Vec<u8> = (0..3_000_000u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> (8 + i / 500_000)) as u8)
            .collect();
        bytes[100_000..400_000].fill(0);
        std::fs::write(&path, &bytes).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(8 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 5000], (8 << 20) - 5000).unwrap();
    }

    fn output(&self, words: &[&str]) -> Output {
        let program = match words[0] {
            "vireo" => env!("CARGO_BIN_EXE_vireo"),
            other => other,
        };
        let mut command = Command::new(program);
        command.args(&words[1..]).current_dir(self.0.path());
        command.output().unwrap()
    }

    fn run(&self, line: &str) -> String {
        // A tab stands for a space inside a word.
        let words: Vec<String> = line
            .split(' ')
            .map(|word| word.replace('\t', " "))
            .collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let output = self.output(&words);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {text}{errors}");
        text
    }

    /// Exit status and what was said.
    fn fails(&self, line: &str) -> (i32, String) {
        let words: Vec<&str> = line.split(' ').collect();
        let output = self.output(&words);
        let text = [output.stdout, output.stderr].concat();
        let status = output.status.code().unwrap();
        assert_ne!(status, 0, "{line}");
        (status, String::from_utf8_lossy(&text).into_owned())
    }

    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.run(line)).unwrap()
    }
}

#[test]
fn copies_are_the_same_for_both() {
    let folder = Folder::new();
    for options in [
        "",
        " -o cluster_size=512",
        " -c",
        " -c -o compression_type=zstd,cluster_size=2M",
        " -o extended_l2=on,lazy_refcounts=on",
        " -o compat=0.10",
    ] {
        folder.run(&format!(
            "vireo image convert -q -O qcow2{options} source.raw a.qcow2"
        ));
        folder.run("qemu-img check -q a.qcow2");
        folder.run("vireo image check a.qcow2");
        folder.run("qemu-img compare -f raw -F qcow2 source.raw a.qcow2");
        folder.run("vireo image compare source.raw a.qcow2");
        folder.run("vireo image convert -q a.qcow2 back.raw");
        folder.run("cmp source.raw back.raw");
    }
    folder.run("qemu-img convert -c -O qcow2 source.raw b.qcow2");
    folder.run("vireo image compare -s b.qcow2 source.raw");
}

#[test]
fn a_difference_is_found_where_it_is() {
    let folder = Folder::new();
    folder.run("vireo image convert -q -O qcow2 source.raw a.qcow2");
    let file = std::fs::File::options()
        .write(true)
        .open(folder.0.path().join("source.raw"))
        .unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"x", 5_000_123).unwrap();
    let (status, text) = folder.fails("vireo image compare a.qcow2 source.raw");
    assert_eq!(status, 1);
    assert!(text.contains("offset 5000123"), "{text}");
}

#[test]
fn what_is_told_is_what_qemu_tells() {
    let folder = Folder::new();
    for options in [
        "compat=0.10",
        "cluster_size=4k,refcount_bits=1",
        "extended_l2=on,compression_type=zstd",
        "lazy_refcounts=on",
    ] {
        folder.run(&format!(
            "vireo image create -q -f qcow2 -o {options} a.qcow2 7M"
        ));
        let ours = folder.json("vireo image info --output json a.qcow2");
        let theirs = folder.json("qemu-img info --output json a.qcow2");
        for key in ["virtual-size", "format", "cluster-size", "dirty-flag"] {
            assert_eq!(ours[key], theirs[key], "{options}: {key}");
        }
        let theirs = &theirs["format-specific"]["data"];
        let ours = &ours["format-specific"]["data"];
        for key in [
            "compat",
            "compression-type",
            "refcount-bits",
            "lazy-refcounts",
            "extended-l2",
        ] {
            assert_eq!(ours[key], theirs[key], "{options}: {key}");
        }
    }
    folder.run("qemu-img convert -O qcow2 source.raw b.qcow2");
    let ours = folder.json("vireo image check --output json b.qcow2");
    let theirs = folder.json("qemu-img check --output json b.qcow2");
    for key in [
        "total-clusters",
        "allocated-clusters",
        "image-end-offset",
        "check-errors",
    ] {
        assert_eq!(ours[key], theirs[key], "{key}");
    }
    let data = |map: Value| -> Vec<(u64, u64)> {
        let list = map.as_array().unwrap().clone();
        let number = |part: &Value, key: &str| part[key].as_u64().unwrap();
        list.iter()
            .filter(|part| part["data"] == true)
            .map(|part| (number(part, "start"), number(part, "length")))
            .collect()
    };
    assert_eq!(
        data(folder.json("vireo image map --output json b.qcow2")),
        data(folder.json("qemu-img map --output json b.qcow2"))
    );
}

#[test]
fn sizes_change_and_chains_are_told() {
    let folder = Folder::new();
    folder.run("vireo image convert -q -O qcow2 source.raw base.qcow2");
    folder.run("vireo image create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2");
    folder.run("vireo image compare top.qcow2 source.raw");
    let chain = folder.json("vireo image info --backing-chain --output json top.qcow2");
    assert_eq!(chain[0]["backing-filename"], "base.qcow2");
    assert_eq!(chain[1]["virtual-size"], 8 << 20);
    folder.run("vireo image resize top.qcow2 +1M");
    folder.run("qemu-img check -q top.qcow2");
    let (status, text) = folder.fails("vireo image resize top.qcow2 1M");
    assert!(status == 2 && text.contains("--shrink"), "{text}");
    folder.run("vireo image resize --shrink top.qcow2 1M");
    assert_eq!(
        folder.json("qemu-img info --output json top.qcow2")["virtual-size"],
        1 << 20
    );
    let (_, text) = folder.fails("vireo image create -f qcow2 -b base.qcow2 x.qcow2");
    assert!(text.contains("-F"), "{text}");
    let (_, text) = folder.fails("vireo image create -f qcow2 -o cluster_sise=1M x.qcow2 1G");
    assert!(text.contains("cluster_size"), "{text}");
}

#[test]
fn snapshots_are_those_that_qemu_knows() {
    let folder = Folder::new();
    folder.run("vireo image convert -q -O qcow2 source.raw a.qcow2");
    folder.run("vireo image snapshot -c first a.qcow2");
    folder.run("qemu-io -f qcow2 -c discard\t0\t4M a.qcow2");
    folder.run("qemu-img snapshot -c second a.qcow2");
    folder.run("qemu-img check -q a.qcow2");
    let list = folder.json("vireo image snapshot --output json a.qcow2");
    assert_eq!(
        (&list[0]["name"], &list[1]["name"]),
        (&"first".into(), &"second".into())
    );
    assert!(folder.run("qemu-img snapshot -l a.qcow2").contains("first"));
    let (_, text) = folder.fails("vireo image snapshot -a third a.qcow2");
    assert!(text.contains("third"), "{text}");
    folder.run("vireo image snapshot -a first a.qcow2");
    folder.run("vireo image compare source.raw a.qcow2");
    folder.run("vireo image snapshot -d second a.qcow2");
    folder.run("qemu-img check -q a.qcow2");
    folder.run("qemu-img snapshot -d first a.qcow2");
    folder.run("qemu-img compare -f raw -F qcow2 source.raw a.qcow2");
    folder.run("vireo image check a.qcow2");
}

#[test]
fn bitmaps_are_those_that_qemu_knows() {
    let folder = Folder::new();
    folder.run("vireo image create -q -f qcow2 a.qcow2 8M");
    folder.run("vireo image bitmap --add -g 32K a.qcow2 one");
    folder.run("qemu-img bitmap --add --disable a.qcow2 two");
    folder.run("qemu-img bitmap --merge one a.qcow2 two");
    folder.run("vireo image bitmap --enable --merge one a.qcow2 two");
    folder.run("qemu-img check -q a.qcow2");
    let ours = folder.json("vireo image info --output json a.qcow2");
    let theirs = folder.json("qemu-img info --output json a.qcow2");
    let list = |info: &Value| info["format-specific"]["data"]["bitmaps"].clone();
    assert_eq!(list(&ours), list(&theirs));
    folder.run("vireo image bitmap --remove a.qcow2 one");
    folder.run("qemu-img bitmap --remove a.qcow2 two");
    folder.run("vireo image check a.qcow2");
    let (_, text) = folder.fails("vireo image bitmap --clear a.qcow2 one");
    assert!(text.contains("one"), "{text}");
}

#[test]
fn images_move_onto_others_and_into_them() {
    let folder = Folder::new();
    folder.run("qemu-img create -q -f raw old.raw 8M");
    folder.run("qemu-io -f raw -c write\t-P\t3\t0\t1M old.raw");
    folder.run("vireo image create -q -f qcow2 -b old.raw -F raw top.qcow2");
    folder.run("qemu-io -f qcow2 -c write\t-P\t4\t2M\t70000 -c write\t-z\t0\t128K top.qcow2");
    folder.run("qemu-img convert -O raw top.qcow2 model.raw");
    for target in ["-b source.raw -F raw", "-b\u{20}", "-u -b old.raw -F raw"] {
        let target = target.replace("-b\u{20}", "-b=");
        folder.run(&format!("vireo image rebase {target} top.qcow2"));
        folder.run("qemu-img check -q top.qcow2");
        folder.run("qemu-img compare -f raw -F qcow2 model.raw top.qcow2");
    }
    folder.run("vireo image commit -q top.qcow2");
    folder.run("cmp model.raw old.raw");
    folder.run("qemu-img check -q top.qcow2");
    folder.run("vireo image compare model.raw top.qcow2");
    let map = folder.json("vireo image map --output json top.qcow2");
    let own = |part: &Value| part["depth"] == 0 && part["present"] == true;
    assert!(!map.as_array().unwrap().iter().any(own), "{map}");
}

#[test]
fn a_benchmark_leaves_a_whole_image() {
    let folder = Folder::new();
    folder.run("vireo image create -q -f qcow2 a.qcow2 4M");
    let report = folder.json("vireo image bench -w --random -c 2000 -d 16 --output json a.qcow2");
    assert_eq!(report["requests"], 2000);
    folder.run("vireo image bench -c 100 -s 64K a.qcow2");
    folder.run("qemu-img check -q a.qcow2");
    let (status, _) = folder.fails("vireo image bench -s 5M a.qcow2");
    assert_eq!(status, 2);
}

#[test]
fn leaks_and_errors_are_found_and_repaired() {
    let folder = Folder::new();
    folder.run("vireo image convert -q -O qcow2 source.raw a.qcow2");
    let path = folder.0.path().join("a.qcow2");
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    use std::os::unix::fs::FileExt;
    let mut table = [0; 8];
    let mut block = [0; 8];
    file.read_exact_at(&mut table, 48).unwrap();
    file.read_exact_at(&mut block, u64::from_be_bytes(table))
        .unwrap();
    let block = u64::from_be_bytes(block);
    // One cluster is counted that nobody uses, another one is not counted.
    file.write_all_at(&1u16.to_be_bytes(), block + 2 * 1000)
        .unwrap();
    let (status, text) = folder.fails("vireo image check a.qcow2");
    assert_eq!(status, 3, "{text}");
    file.write_all_at(&0u16.to_be_bytes(), block + 2 * 10)
        .unwrap();
    let (status, text) = folder.fails("vireo image check a.qcow2");
    assert_eq!(status, 2, "{text}");
    folder.run("vireo image check --repair all a.qcow2");
    folder.run("qemu-img check -q a.qcow2");
    folder.run("vireo image compare source.raw a.qcow2");
}

/// An image as QEMU names it, with the passphrase in `key`.
const QEMU: &str = "--object secret,id=k,file=key --image-opts";

#[test]
fn encrypted_images_are_those_that_qemu_knows() {
    let folder = Folder::new();
    std::fs::write(folder.0.path().join("key"), "secret").unwrap();
    let options = "encrypt.format=luks,encrypt.key-file=key,encrypt.iter-time=1";
    folder.run(&format!(
        "vireo image convert -O qcow2 -o {options} source.raw ours.qcow2"
    ));
    let theirs = "driver=qcow2,file.filename=ours.qcow2,encrypt.key-secret=k";
    folder.run(&format!("qemu-img check {QEMU} {theirs}"));
    folder.run(&format!(
        "qemu-img convert {QEMU} -O raw {theirs} plain.raw"
    ));
    folder.run("qemu-img compare -f raw -F raw source.raw plain.raw");
    folder.run("vireo image compare --key-file key -f qcow2 -F raw ours.qcow2 source.raw");

    // What is told without the passphrase.
    let (ours, qemus) = (
        folder.json("vireo image info --output json ours.qcow2"),
        folder.json("qemu-img info --output json ours.qcow2"),
    );
    assert_eq!(ours["encrypted"], true);
    let encrypt = &ours["format-specific"]["data"]["encrypt"];
    assert_eq!(encrypt, &qemus["format-specific"]["data"]["encrypt"]);
    assert_eq!(encrypt["cipher-alg"], "aes-256");
    let text = folder.run("vireo image info ours.qcow2");
    assert!(text.contains("cipher: aes-xts-plain64"), "{text}");
    assert!(text.contains("key slots in use: 1 of 8 (0)"), "{text}");
    folder.run("vireo image check ours.qcow2");
    folder.run("vireo image map ours.qcow2");

    let (status, text) = folder.fails("vireo image convert ours.qcow2 other.raw");
    assert!(status == 1 && text.contains("say key-file=FILE"), "{text}");
    std::fs::write(folder.0.path().join("wrong"), "other").unwrap();
    let (_, text) = folder.fails("vireo image convert --key-file wrong ours.qcow2 other.raw");
    assert!(text.contains("the passphrase is wrong"), "{text}");
}

#[test]
fn luks_files_are_those_that_qemu_and_cryptsetup_know() {
    let folder = Folder::new();
    std::fs::write(folder.0.path().join("key"), "secret").unwrap();
    let options = "key-file=key,iter-time=1,cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv";
    folder.run(&format!(
        "vireo image convert -O luks -o {options} source.raw ours.luks"
    ));
    let theirs = "driver=luks,file.filename=ours.luks,key-secret=k";
    folder.run(&format!(
        "qemu-img convert {QEMU} -O raw {theirs} plain.raw"
    ));
    folder.run("qemu-img compare -f raw -F raw source.raw plain.raw");
    let (ours, qemus) = (
        folder.json("vireo image info -f luks --output json ours.luks"),
        folder.json("qemu-img info -f luks --output json ours.luks"),
    );
    assert_eq!(ours["format-specific"], qemus["format-specific"]);
    assert_eq!(ours["virtual-size"], 8 << 20);
    // Nobody is told what to guess.
    let (_, text) = folder.fails("vireo image info ours.luks");
    assert!(text.contains("looks like a LUKS image"), "{text}");

    // Passphrases come and go.
    std::fs::write(folder.0.path().join("second"), "second").unwrap();
    let amend = "vireo image amend -f luks";
    let add = "-o state=active,new-key-file=second,iter-time=1";
    folder.run(&format!("{amend} --key-file key {add} ours.luks"));
    folder.run("cryptsetup open --test-passphrase --key-file second ours.luks");
    let erase = "-o state=inactive,old-key-file=key";
    folder.run(&format!("{amend} {erase} ours.luks"));
    folder.fails("cryptsetup open --test-passphrase --key-file key ours.luks");
    let (_, text) = folder.fails(&format!("{amend} -o state=inactive,keyslot=1 ours.luks"));
    assert!(text.contains("is the last one"), "{text}");
    folder.run("vireo image convert -f luks --key-file second ours.luks back.raw");
    folder.run("qemu-img compare -f raw -F raw source.raw back.raw");
    folder.run(&format!(
        "{amend} --force -o state=inactive,keyslot=1 ours.luks"
    ));
    folder.fails("cryptsetup open --test-passphrase --key-file second ours.luks");
}

#[test]
fn what_is_said_about_encryption_is_understood_or_refused() {
    let folder = Folder::new();
    std::fs::write(folder.0.path().join("key"), "secret").unwrap();
    for (words, says) in [
        (
            "-f raw -o encrypt.format=luks,encrypt.key-file=key",
            "only qcow2",
        ),
        (
            "-f qcow2 -o encrypt.key-file=key",
            "say encrypt.format=luks",
        ),
        (
            "-f qcow2 -o encrypt.format=aes,encrypt.key-file=key",
            "not secure",
        ),
        (
            "-f qcow2 -o encrypt.format=luks",
            "say encrypt.key-file=FILE",
        ),
        ("-f luks", "say key-file=FILE"),
        ("-f luks -o key-secret=k", "no secret objects"),
        ("-f luks -o key-file=none", "cannot read the key file none"),
        (
            "-f luks -o key-file=key,iter-time=x",
            "expected milliseconds",
        ),
        (
            "-f luks -o key-file=key,cipher-alg=cast5-128",
            "is not supported",
        ),
        (
            "-f luks -o key-file=key,cipher-alg=aes-512",
            "no keys of 1024 bits",
        ),
        (
            "-f luks -o key-file=key,cipher-algo=aes-256",
            "did you mean",
        ),
    ] {
        let (_, text) = folder.fails(&format!("vireo image create {words} new 1M"));
        assert!(text.contains(says), "{words}: {text}");
        assert!(!folder.0.path().join("new").exists(), "{words}");
    }
}
