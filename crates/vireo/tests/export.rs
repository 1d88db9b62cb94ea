//! `vireo export`, with libnbd's and QEMU's clients.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        folder.run("qemu-img create -q -f qcow2 a.qcow2 8M");
        folder.run("qemu-img bitmap --add -g 64k a.qcow2 since");
        folder.run("qemu-io -c write~-P~5~1M~128k a.qcow2");
        folder
    }

    /// A tilde stands for a space inside a word, SOCKET for the socket's path.
    fn command(&self, line: &str) -> Command {
        let socket = self.0.path().join("socket").display().to_string();
        let mut words = line
            .split(' ')
            .map(|word| word.replace('~', " ").replace("SOCKET", &socket));
        let program = words.next().unwrap();
        let program = match program.as_str() {
            "vireo" => env!("CARGO_BIN_EXE_vireo").to_owned(),
            _ => program,
        };
        let mut command = Command::new(program);
        command.args(words).current_dir(self.0.path());
        command
    }

    fn run(&self, line: &str) -> String {
        let output = self.command(line).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {text}{errors}");
        text
    }

    fn fails(&self, line: &str) -> String {
        let output = self.command(line).output().unwrap();
        assert!(!output.status.success(), "{line}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Starts an export; what it says when it is ready.
    fn export(&self, line: &str) -> (Running, String) {
        let mut command = self.command(line);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut said).unwrap();
        (Running(child), said)
    }

    fn has(&self, name: &str) -> bool {
        Path::new(self.0.path()).join(name).exists()
    }
}

struct Running(Child);

impl Running {
    fn ends(mut self) {
        assert!(self.0.wait().unwrap().success());
    }

    fn terminate(self) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").arg(pid).status().unwrap().success());
        self.ends();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

#[test]
fn an_image_is_served_until_a_signal_and_closed() {
    let folder = Folder::new();
    let line = "vireo export a.qcow2 --nbd unix:SOCKET --nbd tcp:127.0.0.1:0 -x disk --persistent \
                --description the~disk --bitmap since --allocation-depth --pidfile pid";
    let (running, said) = folder.export(&line.split_whitespace().collect::<Vec<_>>().join(" "));
    assert!(said.starts_with("export \"disk\" at unix:"), "{said}");
    assert!(folder.has("pid"));
    let uri = "nbd+unix:///disk?socket=SOCKET";
    let list = folder.run("nbdinfo --list nbd+unix:///?socket=SOCKET");
    assert!(list.contains("the disk"), "{list}");
    let map = folder.run(&format!("nbdinfo --map=qemu:dirty-bitmap:since {uri}"));
    let lines: Vec<String> = map
        .lines()
        .map(|line| {
            line.split_whitespace()
                .take(3)
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect();
    assert_eq!(
        lines,
        ["0 1048576 0", "1048576 131072 1", "1179648 7208960 0"]
    );
    folder.run(&format!("qemu-io -f raw -c write~-P~6~3M~64k {uri}"));
    // And our own client.
    let info = folder.run(&format!("vireo image info {uri}"));
    assert!(info.contains("8 MiB"), "{info}");
    folder.run(&format!("vireo image compare {uri} {uri}"));
    folder.run(&format!("vireo image convert -q -O raw {uri} copy.raw"));
    running.terminate();
    assert!(!folder.has("pid") && !folder.has("socket"));
    folder.run("qemu-img check -q a.qcow2");
    folder.run("qemu-io -c read~-P~6~3M~64k a.qcow2");
    folder.run("qemu-img compare -f qcow2 -F raw a.qcow2 copy.raw");
    // What was written through the export is in the bitmap.
    let (running, _) = folder.export("vireo export a.qcow2 --nbd unix:SOCKET --bitmap since -r");
    let map = folder.run("nbdinfo --map=qemu:dirty-bitmap:since nbd+unix:///?socket=SOCKET");
    assert!(map.contains("3145728"), "{map}");
    running.ends();
}

#[test]
fn the_last_client_ends_it() {
    let folder = Folder::new();
    let (running, said) =
        folder.export("vireo export a.qcow2 --nbd unix:SOCKET --read-only --output json");
    assert!(said.starts_with('{'), "{said}");
    folder.run("qemu-io -r -f raw -c read~-P~5~1M~128k nbd+unix:///?socket=SOCKET");
    running.ends();
    // It was read-only: the image is as it was.
    folder.run("qemu-img check -q a.qcow2");
}

#[test]
fn an_image_that_a_server_has_is_checked_and_repaired() {
    let folder = Folder::new();
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(folder.0.path().join("a.qcow2"))
        .unwrap();
    use std::os::unix::fs::FileExt;
    let u64_at = |at: u64| {
        let mut word = [0; 8];
        file.read_exact_at(&mut word, at).unwrap();
        u64::from_be_bytes(word)
    };
    // A cluster is counted that nobody uses.
    let block = u64_at(u64_at(48));
    file.write_all_at(&[1], block + 2 * 3000 + 1).unwrap();
    let (running, _) = folder.export("vireo export -f raw a.qcow2 --nbd unix:SOCKET --persistent");
    let check = "vireo image check -f qcow2";
    let uri = "nbd+unix:///?socket=SOCKET";
    let found = folder.command(&format!("{check} {uri}")).output().unwrap();
    assert_eq!(found.status.code(), Some(3));
    let said = String::from_utf8_lossy(&found.stdout).into_owned();
    assert!(said.contains("Leaked cluster 3000"), "{said}");
    folder.run(&format!("{check} --repair leaks {uri}"));
    let said = folder.run(&format!("{check} {uri}"));
    assert!(said.contains("No errors"), "{said}");
    let error = folder.fails(&format!("vireo image check -f raw {uri}"));
    assert!(error.contains("no qcow2 image"), "{error}");
    running.terminate();
    assert_eq!(said, folder.run(&format!("{check} a.qcow2")));
}

#[test]
fn what_cannot_be_served_is_said() {
    let folder = Folder::new();
    let error = folder.fails("vireo export a.qcow2");
    assert!(error.contains("--nbd"), "{error}");
    let error = folder.fails("vireo export a.qcow2 --nbd socket");
    assert!(error.contains("unix:PATH"), "{error}");
    let error = folder.fails("vireo export a.qcow2 --nbd unix:SOCKET --bitmap other");
    assert!(error.contains("other"), "{error}");
    let error = folder.fails("vireo export a.qcow2 --nbd unix:SOCKET --tls-creds nowhere");
    assert!(error.contains("nowhere"), "{error}");
    let error = folder.fails("vireo export a.qcow2 --nbd unix:/nowhere/socket");
    assert!(error.contains("/nowhere/socket"), "{error}");
    let error = folder.fails("vireo image info nbd+unix:///x?socket=SOCKET");
    assert!(error.contains("cannot connect"), "{error}");
}
