use std::process::{Command, Stdio};

use serde_json::json;

use crate::tests::{Bench, SIZE, tool};

/// What libvirt sends for a secret: encrypted by openssl with the master key.
fn encrypted(secret: &str, key: &str, iv: &str) -> String {
    use std::io::Write;
    let mut openssl = Command::new("openssl")
        .args(["enc", "-aes-256-cbc", "-a", "-A", "-K", key, "-iv", iv])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = openssl.stdin.take().unwrap();
    input.write_all(secret.as_bytes()).unwrap();
    drop(input);
    let output = openssl.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_secret_is_decrypted_with_another() {
    let bench = Bench::new();
    let key = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    let iv = "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff";
    std::fs::write(bench.path("master"), (0..32).collect::<Vec<u8>>()).unwrap();
    bench.run(
        "object-add",
        json!({"qom-type": "secret", "id": "masterKey0", "format": "raw",
               "file": bench.text("master")}),
    );
    let data = encrypted("open sesame", key, iv);
    let secret = json!({
        "qom-type": "secret", "id": "s", "keyid": "masterKey0", "format": "base64",
        "iv": "8PHy8/T19vf4+fr7/P3+/w==", "data": data,
    });
    bench.run("object-add", secret.clone());
    assert_eq!(bench.blockdev.secret("s").unwrap().bytes(), b"open sesame");
    assert!(bench.refused("object-add", secret).contains("duplicate"));
    for (what, value, why) in [
        ("iv", json!("AAAA"), "16 bytes"),
        ("iv", json!("AAAAAAAAAAAAAAAAAAAAAA=="), ""),
        ("keyid", json!("nobody"), "nobody"),
        ("keyid", json!("s"), "32"),
        ("data", json!("!"), "base64"),
        ("data", json!("AAAA"), "not encrypted with"),
        ("file", json!("/dev/null"), "mutually exclusive"),
        ("frmt", json!("raw"), "frmt"),
    ] {
        let mut wrong = json!({
            "qom-type": "secret", "id": "w", "keyid": "masterKey0", "format": "base64",
            "iv": "8PHy8/T19vf4+fr7/P3+/w==", "data": encrypted("open sesame", key, iv),
        });
        wrong[what] = value;
        // Another IV changes the first block only; here that is also the padding.
        let refused = bench.refused("object-add", wrong);
        assert!(refused.contains(why), "{what}: {refused}");
    }
    bench.run("object-del", json!({"id": "s"}));
    assert!(
        bench
            .refused("object-del", json!({"id": "s"}))
            .contains("not found")
    );
    bench.blockdev.close();
}

#[test]
fn encrypted_images_are_made_and_opened_with_secrets() {
    let bench = Bench::new();
    for (id, data) in [("s", "b3BlbiBzZXNhbWU="), ("wrong", "d3Jvbmc=")] {
        bench.run(
            "object-add",
            json!({"qom-type": "secret", "id": id, "format": "base64", "data": data}),
        );
    }
    for (driver, encryption) in [
        (
            "qcow2",
            json!({"encrypt": {"format": "luks", "key-secret": "s", "iter-time": 10}}),
        ),
        (
            "luks",
            json!({"key-secret": "s", "cipher-alg": "aes-128", "iter-time": 10}),
        ),
    ] {
        let path = bench.path(driver);
        std::fs::write(&path, b"").unwrap();
        bench.run(
            "blockdev-add",
            json!({"driver": "file", "node-name": "f", "filename": path}),
        );
        let mut create = json!({"driver": driver, "file": "f", "size": SIZE});
        for (name, value) in encryption.as_object().unwrap() {
            create[name] = value.clone();
        }
        bench.run("blockdev-create", json!({"job-id": "c", "options": create}));
        bench.wait_for("JOB_STATUS_CHANGE", |data| data["status"] == "concluded");
        let jobs = bench.run("query-jobs", json!({}));
        assert_eq!(jobs[0]["error"], json!(null), "{jobs}");
        bench.run("job-dismiss", json!({"id": "c"}));
        bench.events.lock().unwrap().clear();

        let open = |secret: Option<&str>| {
            let mut options = json!({"driver": driver, "node-name": "n", "file": "f"});
            match (driver, secret) {
                (_, None) => {}
                ("luks", Some(id)) => options["key-secret"] = id.into(),
                (_, Some(id)) => options["encrypt"] = json!({"format": "luks", "key-secret": id}),
            }
            options
        };
        bench.refused("blockdev-add", open(None));
        assert!(
            bench
                .refused("blockdev-add", open(Some("wrong")))
                .contains("passphrase")
        );
        assert!(
            bench
                .refused("blockdev-add", open(Some("nobody")))
                .contains("object-add")
        );
        bench.run("blockdev-add", open(Some("s")));
        let nodes = bench.run("query-named-block-nodes", json!({}));
        let node = nodes
            .as_array()
            .unwrap()
            .iter()
            .find(|n| n["node-name"] == "n");
        assert_eq!(node.unwrap()["encrypted"], true);
        // Opened again without the secret, which may be gone.
        bench.run("object-del", json!({"id": "s"}));
        let mut again = open(Some("s"));
        again["read-only"] = true.into();
        bench.run("blockdev-reopen", json!({"options": [again]}));
        bench.run(
            "object-add",
            json!({"qom-type": "secret", "id": "s", "data": "open sesame"}),
        );
        bench.run("blockdev-del", json!({"node-name": "n"}));
        create["cipher-algo"] = "aes-256".into();
        create["encrypt"]["cipher-algo"] = "aes-256".into();
        let refused = bench.refused("blockdev-create", json!({"job-id": "c", "options": create}));
        assert!(refused.contains("cipher-algo"), "{refused}");
        bench.run("blockdev-del", json!({"node-name": "f"}));
        // QEMU opens it with the same passphrase.
        let image = format!("driver={driver},file.filename={}", path.display());
        let key = match driver {
            "luks" => ",key-secret=k",
            _ => ",encrypt.key-secret=k",
        };
        let said = tool(&[
            "qemu-io",
            "--object",
            "secret,id=k,data=open sesame",
            "-c",
            "write -P 1 0 512",
            "--image-opts",
            &format!("{image}{key}"),
        ]);
        assert!(said.contains("wrote 512/512"), "{said}");
    }
    // The one below it, which its header names, has the same passphrase.
    let (below, overlay) = (bench.text("qcow2"), bench.text("overlay"));
    tool(&[
        "qemu-img",
        "create",
        "-q",
        "--object",
        "secret,id=k,data=open sesame",
        "-f",
        "qcow2",
        "-u",
        "-F",
        "qcow2",
        "-b",
        &below,
        "-o",
        "encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=10",
        &overlay,
        &SIZE.to_string(),
    ]);
    bench.run(
        "blockdev-add",
        json!({"driver": "qcow2", "node-name": "o",
               "encrypt": {"format": "luks", "key-secret": "s"},
               "file": {"driver": "file", "filename": overlay}}),
    );
    bench.run("blockdev-del", json!({"node-name": "o"}));
    bench.blockdev.close();
}
