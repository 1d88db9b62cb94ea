//! What people run, in Debian on the software processor: each program's results equal the host's.
//!
//! The sources are in programs/. The host makes a tar archive of them, of files and of what its own
//! programs make of these; the guest has it as a disk.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use guest_tests::scenario::{Outcome, Scenario, Suite};
use guest_tests::{Host, Vm, http};
use serde_json::json;

use crate::common::{LOGIN, SOON, check_dmesg, complaints, number, quoted};

/// The sources, by their names.
const SOURCES: [(&str, &str); 6] = [
    ("arithmetic.c", include_str!("programs/arithmetic.c")),
    ("ring3.c", include_str!("programs/ring3.c")),
    ("small32.s", include_str!("programs/small32.s")),
    ("sum.lua", include_str!("programs/sum.lua")),
    ("sum.pl", include_str!("programs/sum.pl")),
    ("sum.py", include_str!("programs/sum.py")),
];

/// A key as the tests of cryptography use them.
const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

/// How long a program may keep the guest busy.
const PATIENCE: Duration = Duration::from_secs(240);
/// How long stress-ng and the random code run, in seconds.
const STRESS: u64 = 20;
const HOSTILE: u64 = 15;

/// Algorithms whose fastest variants use what a processor may have beside the base: AES, PCLMUL,
/// SSSE3, AVX, AVX2, SHA, BMI2, ADX.
const CRYPTO_MODULES: &str = "aesni_intel ghash_clmulni_intel sha1_ssse3 sha256_ssse3 sha512_ssse3 \
    crc32_pclmul crc32c_intel crct10dif_pclmul chacha_x86_64 poly1305_x86_64 curve25519_x86_64 \
    nhpoly1305_sse2 nhpoly1305_avx2 camellia_aesni_avx2 serpent_avx2 serpent_sse2_x86_64 \
    cast6_avx_x86_64 twofish_x86_64_3way twofish_avx_x86_64 blowfish_x86_64 des3_ede_x86_64 \
    aegis128_aesni gcm ccm ctr cts xts lrw adiantum chacha20poly1305 authenc";

struct Guest {
    vm: Vm,
    /// The host's side, where its programs run.
    folder: tempfile::TempDir,
}

impl Guest {
    /// `script` in the shell of both, in the folder with the same files; the text is equal.
    fn both(&mut self, script: &str) -> anyhow::Result<String> {
        let here = host(self.folder.path(), script)?;
        let there = self.run(script)?;
        ensure!(
            here == there,
            "{script}\nhere:\n{here}\nin the guest:\n{there}"
        );
        Ok(here)
    }

    fn run(&mut self, script: &str) -> anyhow::Result<String> {
        let output = self.vm.try_run(
            &format!("set -e\nexport LC_ALL=C\ncd /var/tmp/p\n{script}"),
            PATIENCE,
        )?;
        ensure!(
            output.status == 0,
            "status {} of {script}\n{}",
            output.status,
            output.text
        );
        Ok(output.text)
    }
}

/// What `script` prints here.
fn host(folder: &Path, script: &str) -> anyhow::Result<String> {
    let output = Command::new("sh")
        .args(["-ec", script])
        .current_dir(folder)
        .env("LC_ALL", "C")
        .output()
        .context("cannot run sh")?;
    let text = String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned();
    ensure!(
        output.status.success(),
        "here, {} of {script}\n{text}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(text)
}

/// What the guest is given.
fn prepare(folder: &Path) -> anyhow::Result<()> {
    for (name, text) in SOURCES {
        fs::write(folder.join(name), text)?;
    }
    fs::write(folder.join("noise"), http::noise(3 << 20))?;
    host(
        folder,
        &format!(
            r"
as --32 -o small32.o small32.s && ld -m elf_i386 -z noexecstack -o small32 small32.o
openssl genpkey -algorithm ed25519 -out ed25519.pem 2>&1
openssl genpkey -algorithm rsa -pkeyopt rsa_keygen_bits:2048 -out rsa.pem 2>&1
openssl pkey -in rsa.pem -pubout -out rsa.pub
openssl cms -encrypt -binary -aes-256-gcm -secretkey {KEY} -secretkeyid 01 -in noise -outform DER -out noise.gcm
mkdir repository
for name in base user; do
    mkdir -p $name/DEBIAN $name/usr/bin
    printf 'Package: vireo-test-%s\nVersion: 1.2-3\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\nDescription: a test\n' $name > $name/DEBIAN/control
    printf '#!/bin/sh\necho %s ran\n' $name > $name/usr/bin/vireo-test-$name
    printf '#!/bin/sh\necho %s configured $1 >> /var/lib/vireo-test\n' $name > $name/DEBIAN/postinst
    chmod 755 $name/DEBIAN/postinst $name/usr/bin/vireo-test-$name
done
mkdir -p base/usr/share && cp noise base/usr/share/vireo-test-noise
echo 'Depends: vireo-test-base (>= 1.2)' >> user/DEBIAN/control
for name in base user; do dpkg-deb --root-owner-group -Zxz -b $name repository/$name.deb > /dev/null; done
cd repository
for name in base user; do
    cat ../$name/DEBIAN/control
    echo Filename: ./$name.deb
    echo Size: $(stat -c %s $name.deb)
    echo SHA256: $(sha256sum < $name.deb | cut -d' ' -f1)
    echo
done > Packages
cd .. && rm -r base user
tar -c -f files.tar --exclude files.tar ."
        ),
    )?;
    Ok(())
}

pub fn add(suite: &mut Suite) {
    Scenario::new("programs", boot)
        .check("apt", apt)
        .check("gcc", gcc)
        .check("a_32_bit_program", |guest| guest.both("./small32"))
        .check("python", |guest| guest.both("python3 sum.py"))
        .check("perl", |guest| guest.both("perl sum.pl"))
        .check("luajit", luajit)
        .check("openssl", openssl)
        .check("openssl_speed", openssl_speed)
        .check("perf", perf)
        .check("tests_of_the_kernel", tests_of_the_kernel)
        .check("stress", stress)
        .check("dmesg", |guest| {
            let text = complaints(&mut guest.vm)?;
            Ok(format!("{} lines, all known", check_dmesg(&text)?))
        })
        .check("hostile_ring_3", hostile_ring_3)
        .check("poweroff", |guest| {
            let vm = &mut guest.vm;
            vm.console.send("systemctl poweroff\n")?;
            let status = vm.wait_exit(PATIENCE)?;
            ensure!(status == 0, "status {status}: {}", vm.errors());
            Ok("status 0".into())
        })
        .add_to(suite);
    suite.single("programs::hostile_ring_0_protected", || hostile_ring_0("0"));
    suite.single("programs::hostile_ring_0_long", || hostile_ring_0("1"));
}

fn boot() -> anyhow::Result<(Guest, String)> {
    let this = Host::get()?;
    let debian = this
        .programs
        .as_ref()
        .context("VIREO_PROGRAMS_DISK is not set; run the tests by cargo xtask guest-tests")?;
    let folder = tempfile::tempdir_in(&this.scratch)?;
    prepare(folder.path())?;
    let disk = folder.path().join("disk.qcow2");
    let made = Command::new(&this.vireo)
        .args(["image", "create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
        .args([&debian.disk, &disk])
        .output()?;
    ensure!(made.status.success(), "vireo image create: {made:?}");
    let mut vm = Vm::start(&format!(
        r#"
[kernel]
image = {}
initrd = {}
cmdline = "console=ttyS0 root=/dev/vda rw quiet rcupdate.rcu_cpu_stall_suppress=1"
[cpus]
count = 2
[memory]
size = "1G"
[[serial]]
to = "stdio"
[[rng]]
[[disk]]
file = {}
backing-files = "any"
[[disk]]
file = {}
read-only = true
"#,
        quoted(&debian.vmlinux),
        quoted(&debian.initrd),
        quoted(&disk),
        quoted(folder.path().join("files.tar")),
    ))?;
    let login = vm.wait_login(LOGIN)?;
    vm.run("mkdir -p /var/tmp/p && tar -x -C /var/tmp/p -f /dev/vdb")?;
    let guest = Guest { vm, folder };
    Ok((
        guest,
        format!("login prompt after {:.1} s", login.as_secs_f64()),
    ))
}

/// apt resolves a dependency and dpkg installs both packages.
fn apt(guest: &mut Guest) -> Outcome {
    guest.run(
        "mkdir lists && mkdir -p lists/partial\n\
         echo \"deb [trusted=yes] file:$PWD/repository ./\" > sources.list\n\
         options=\"-q -o Dir::Etc::SourceList=$PWD/sources.list -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists=$PWD/lists\"\n\
         { apt-get $options update && DEBIAN_FRONTEND=noninteractive apt-get $options install --yes vireo-test-user; } > apt.log 2>&1 || { tail -n 20 apt.log; exit 1; }",
    )?;
    let text = guest.run(
        "vireo-test-base; vireo-test-user; cat /var/lib/vireo-test; cmp noise /usr/share/vireo-test-noise\n\
         dpkg --verify vireo-test-base vireo-test-user\n\
         dpkg-query -W -f '${Package} ${Version} ${db:Status-Status}\\n' 'vireo-test-*'",
    )?;
    let expected = "base ran\nuser ran\nbase configured configure\nuser configured configure\n\
                    vireo-test-base 1.2-3 installed\nvireo-test-user 1.2-3 installed";
    ensure!(text == expected, "{text}");
    Ok("two packages".into())
}

/// The guest's compiler makes what the host's makes, by what it prints.
fn gcc(guest: &mut Guest) -> Outcome {
    let mut lines = 0;
    let mut levels = vec!["-O0", "-O2"];
    if host(guest.folder.path(), "grep -q -w avx2 /proc/cpuinfo").is_ok() {
        levels.push("-O3 -mavx2 -mbmi2 -ffp-contract=off");
    }
    for level in levels {
        let text = guest.both(&format!(
            "gcc {level} -o arithmetic arithmetic.c -lm && ./arithmetic"
        ))?;
        lines = text.lines().count();
        ensure!(lines == 4, "{text}");
    }
    guest.run("gcc -O2 -static -o ring3 ring3.c")?;
    Ok(format!("{lines} results at each level"))
}

fn luajit(guest: &mut Guest) -> Outcome {
    let compiled = guest.both("luajit sum.lua 1; luajit sum.lua 20")?;
    let interpreted = guest.run("luajit -joff sum.lua 20")?;
    ensure!(
        compiled.ends_with(&interpreted),
        "{compiled}\n{interpreted}"
    );
    Ok(compiled)
}

fn openssl(guest: &mut Guest) -> Outcome {
    guest.both("openssl dgst -md5 -hex noise; for d in sha1 sha256 sha512 sha3-256 blake2b512; do openssl dgst -$d noise; done")?;
    guest.both(&format!(
        "for c in aes-128-cbc aes-256-ctr chacha20 camellia-256-cbc; do \
         openssl enc -$c -K $(echo {KEY} | cut -c1-$(case $c in *128*) echo 32;; *) echo 64;; esac)) -iv 000102030405060708090a0b0c0d0e0f -in noise | sha256sum; done"
    ))?;
    // Made by the host with AES-GCM; the guest checks the tag. A changed byte is found.
    guest.run(&format!(
        "openssl cms -decrypt -binary -secretkey {KEY} -secretkeyid 01 -inform DER -in noise.gcm | cmp - noise\n\
         openssl cms -encrypt -binary -aes-128-gcm -secretkey {KEY} -secretkeyid 01 -in noise -outform DER -out back.gcm\n\
         openssl cms -decrypt -binary -secretkey {KEY} -secretkeyid 01 -inform DER -in back.gcm | cmp - noise\n\
         cp noise.gcm bad.gcm; printf x | dd of=bad.gcm bs=1 seek=1000000 conv=notrunc 2> /dev/null\n\
         cmp -s noise.gcm bad.gcm && printf y | dd of=bad.gcm bs=1 seek=1000000 conv=notrunc 2> /dev/null\n\
         ! openssl cms -decrypt -binary -secretkey {KEY} -secretkeyid 01 -inform DER -in bad.gcm > /dev/null 2>&1"
    ))?;
    // Signatures that are the same each time.
    guest.both(
        "openssl pkeyutl -sign -inkey ed25519.pem -rawin -in small32.o | sha256sum\n\
         openssl dgst -sha256 -sign rsa.pem noise > noise.sig; sha256sum noise.sig\n\
         openssl dgst -sha256 -verify rsa.pub -signature noise.sig noise",
    )?;
    Ok("hashes, ciphers, AES-GCM, signatures".into())
}

fn openssl_speed(guest: &mut Guest) -> Outcome {
    let text = guest.run(
        "for a in sha256 aes-128-gcm; do openssl speed -mr -seconds 1 -bytes 8192 -evp $a 2> /dev/null | grep ^+F; done",
    )?;
    let mut seen = Vec::new();
    for line in text.lines() {
        // +F:number:name:bytes a second
        let fields: Vec<&str> = line.split(':').collect();
        let speed: f64 = fields.last().context("no figure")?.parse()?;
        ensure!(speed > 1e6, "{line}");
        let name = fields.get(2).copied().unwrap_or_default();
        seen.push(format!("{name} {:.0} MB/s", speed / 1e6));
    }
    ensure!(seen.len() == 2, "{text}");
    Ok(seen.join(", "))
}

/// The counters of the virtual PMU through Linux's driver.
fn perf(guest: &mut Guest) -> Outcome {
    // Few at once, so that each has a counter all the time.
    let mut counts = |command: &str| -> anyhow::Result<Vec<u64>> {
        let mut counts = Vec::new();
        for events in ["instructions:u,cycles:u", "instructions,cycles"] {
            let text = guest.run(&format!(
                "perf stat -x, -o perf.txt -e {events} {command} && grep -v -e '^#' -e '^$' perf.txt | cut -d, -f1"
            ))?;
            for line in text.lines() {
                counts.push(number(line)?);
            }
        }
        ensure!(counts.len() == 4 && !counts.contains(&0), "{counts:?}");
        Ok(counts)
    };
    let small = counts("true")?;
    // The start of a dynamic program, in the program and in the kernel.
    ensure!(
        (20_000..20_000_000).contains(&small[0]) && small[2] > small[0] / 2,
        "{small:?}"
    );
    // A loop in the shell that is ten times as long takes ten times the instructions more or less.
    let shell =
        |rounds: u32| format!("sh -c 'n=0; while [ $n -lt {rounds} ]; do n=$((n + 1)); done'");
    let (short, long) = (counts(&shell(3000))?, counts(&shell(30_000))?);
    for event in 0..2 {
        let (start, short, long) = (small[event], short[event], long[event]);
        ensure!(
            long > short && short > start / 2,
            "{small:?} {short} {long}"
        );
        let ratio = (long - short) / 27_000;
        // Cycles go on while the host has its processor do something else.
        let most = if event == 0 { 20_000 } else { 1_000_000 };
        ensure!(
            (100..most).contains(&ratio),
            "event {event}: {ratio} for a round"
        );
    }
    Ok(format!(
        "true: {} instructions, {} cycles; a loop: {} instructions, {} cycles",
        small[0], small[1], long[0], long[1]
    ))
}

/// What the kernel tries out when it starts and when modules are loaded.
fn tests_of_the_kernel(guest: &mut Guest) -> Outcome {
    // Not every module is for every processor: those that do not load are counted and named.
    let text = guest.run(&format!(
        "for m in {CRYPTO_MODULES}; do modprobe $m 2> /dev/null || echo $m; done; modprobe raid6_pq; modprobe xor"
    ))?;
    let missing: Vec<&str> = text.lines().collect();
    // Every algorithm is asked for by tcrypt, which then says that it does not stay.
    guest.run("modprobe tcrypt mode=0 2> /dev/null || true")?;
    let tests = guest.run(
        "awk '/^name/ { name = $3 } /^driver/ { driver = $3 } /^selftest/ { n[$3]++; if ($3 != \"passed\") print name, driver, $3 }
END { print n[\"passed\"], \"passed\" }' /proc/crypto",
    )?;
    let last = tests.lines().last().unwrap_or_default();
    let passed = number(last.trim_end_matches(" passed"))?;
    ensure!(tests.lines().count() == 1 && passed > 60, "{tests}");
    // tcrypt asks for some that Debian's kernel does not have (-2, ENOENT).
    let text = complaints(&mut guest.vm)?;
    let absent = |line: &str| {
        line.contains("alg: ") && (line.ends_with(": -2") || line.ends_with("(rc=-2)"))
            || line.ends_with("tcrypt: one or more tests failed!")
    };
    let text: Vec<&str> = text.lines().filter(|line| !absent(line)).collect();
    check_dmesg(&text.join("\n"))?;
    let chosen =
        guest.run("dmesg | grep -E 'raid6: using|xor: (using|automatically using)|measuring'")?;
    ensure!(
        chosen.contains("raid6: using algorithm") && chosen.contains("xor: "),
        "{chosen}"
    );
    guest.run("dmesg -C")?;
    Ok(format!(
        "{passed} algorithms passed; not for this processor: {missing:?}"
    ))
}

fn stress(guest: &mut Guest) -> Outcome {
    let text = guest.run(&format!(
        "s=0; stress-ng --cpu 2 --vm 2 --vm-bytes 96M --matrix 2 --verify --timeout {STRESS}s > stress.log 2>&1 || s=$?; \
         grep -E 'fail|error|unsuccessful|completed' stress.log; exit $s"
    ))?;
    ensure!(
        text.contains("successful run completed") && !text.contains("fail"),
        "{text}"
    );
    Ok(format!("{STRESS} s"))
}

/// Random bytes as programs.
fn hostile_ring_3(guest: &mut Guest) -> Outcome {
    let text = guest
        .run(&format!("timeout {} ./ring3 {HOSTILE} 6 22", HOSTILE * 4))
        .with_context(|| format!("the monitor says {:?}", guest.vm.errors()))?;
    let value = |name: &str| -> anyhow::Result<u64> {
        let mut words = text.split_whitespace().skip_while(|word| *word != name);
        number(words.nth(1).with_context(|| text.clone())?)
    };
    ensure!(value("cases")? > 2000, "{text}");
    for name in ["ill", "trap", "fpe", "segv"] {
        ensure!(value(name)? != 0, "{text}");
    }
    let status = guest.vm.qmp()?.execute("query-status", json!({}))?;
    ensure!(status["status"] == "running", "{status}");
    Ok(text)
}

/// Random bytes as a kernel, in one mode or the other; see programs/ring0.s.
fn hostile_ring_0(long: &str) -> Outcome {
    let folder = tempfile::tempdir()?;
    fs::write(
        folder.path().join("ring0.s"),
        include_str!("programs/ring0.s"),
    )?;
    host(
        folder.path(),
        &format!(
            "as --32 --defsym LONG={long} -o ring0.o ring0.s && ld -m elf_i386 -N --no-warn-rwx-segments -Ttext=0x100000 -o ring0 ring0.o"
        ),
    )?;
    let config = format!(
        "[kernel]\nimage = {}\n[memory]\nsize = \"64M\"\n[machine]\non-crash = \"reset\"\n[[serial]]\nto = \"stdio\"\n",
        quoted(folder.path().join("ring0"))
    );
    let end = Instant::now() + Duration::from_secs(HOSTILE);
    let (mut lives, mut cases, mut resets, mut ends) = (0, 0, 0, 0);
    while Instant::now() < end {
        let mut vm = Vm::start(&config)?;
        let mut qmp = vm.qmp()?;
        let mut seen = 0;
        let alive = loop {
            std::thread::sleep(Duration::from_millis(100));
            if Instant::now() >= end {
                break true;
            }
            let length = vm.console.transcript().len();
            if length != seen {
                seen = length;
            } else if qmp.execute("system_reset", json!({})).is_ok() {
                resets += 1;
            } else {
                break false;
            }
        };
        if alive {
            let answer = qmp.execute("query-status", json!({}));
            answer.with_context(|| format!("the monitor says {:?}", vm.errors()))?;
            qmp.execute("quit", json!({}))?;
        }
        // The code may have found the port that powers the machine off.
        let status = vm.wait_exit(SOON)?;
        let transcript = vm.console.transcript();
        ensure!(
            status == 0,
            "status {status} with the last of these seeds:\n{}\n{}",
            vm.console.tail(),
            vm.errors().lines().last().unwrap_or_default()
        );
        ends += u32::from(!alive);
        lives += transcript.matches('S').count();
        cases += 1024 * transcript.matches('.').count();
    }
    ensure!(lives > 10, "only {lives} lives");
    Ok(format!(
        "{lives} lives, at least {cases} cases, {resets} resets by us, {ends} machines ended themselves"
    ))
}
