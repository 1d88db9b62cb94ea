//! `cargo xtask bench net`: iperf3 and an echo between the guest and its host.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use super::exits::Sampler;
use super::inside::{self, Site};
use super::vmm::{Kind, Net, Vmm};
use super::{Common, Job};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Seconds of each job.
    #[arg(long, default_value_t = 5, value_name = "S")]
    seconds: u32,
    /// The networks to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Network::Tap, Network::User])]
    network: Vec<Network>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
enum Network {
    /// A tap of the host.
    Tap,
    /// User-mode networking.
    User,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Plan {
    seconds: u32,
    networks: Vec<Network>,
}

const TAP: &str = "bench0";
/// Of the host on the tap; the guest has the next one.
const HOST_ON_TAP: &str = "192.168.77.1";
const GUEST_ON_TAP: &str = "192.168.77.2/24";
/// As user-mode networks have them: the host is seen as the second, the guest is the fifteenth.
const HOST_FOR_USER: &str = "10.0.2.2";
const GUEST_OF_USER: &str = "10.0.2.15/24";
/// What benches/guest/net.sh calls.
const ECHO_PORT: u16 = 5202;
const LIMIT: Duration = Duration::from_secs(180);

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut vhost = Vmm::qemu();
    "qemu-vhost".clone_into(&mut vhost.name);
    vhost.vhost = true;
    let vmms = args.common.vmms(vec![Vmm::qemu(), vhost])?;
    let plan = Plan {
        seconds: args.seconds,
        networks: args.network.clone(),
    };
    args.common.measure(vmms, "net.sh", Job::Net(plan))
}

/// The part where KVM is.
pub fn inside(site: &Site, plan: &Plan) -> anyhow::Result<()> {
    ip(&format!("tuntap add {TAP} mode tap vnet_hdr"))?;
    ip(&format!("address add {HOST_ON_TAP}/24 dev {TAP}"))?;
    ip(&format!("link set {TAP} up"))?;
    echo_server()?;
    let mut iperf = Command::new("iperf3")
        .arg("--server")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("cannot run iperf3")?;
    let result = site.rounds(|round, vmm| {
        if round == 0 {
            return Ok(());
        }
        for &network in &plan.networks {
            let possible = match network {
                Network::Tap => true,
                Network::User => {
                    !vmm.vhost && !matches!(vmm.kind, Kind::Firecracker | Kind::CloudHypervisor)
                }
            };
            if possible {
                eprintln!("{} round {round}, {network:?}", vmm.name);
                measure(site, plan, vmm, network)?;
            }
        }
        Ok(())
    });
    iperf.kill()?;
    iperf.wait()?;
    result
}

fn measure(site: &Site, plan: &Plan, vmm: &Vmm, network: Network) -> anyhow::Result<()> {
    let (name, host, address) = match network {
        Network::Tap => ("tap", HOST_ON_TAP, GUEST_ON_TAP),
        Network::User => ("user", HOST_FOR_USER, GUEST_OF_USER),
    };
    let mut guest = site.guest(&format!(
        "console=ttyS0 quiet bench.seconds={} bench.address={address} bench.host={host}",
        plan.seconds
    ));
    guest.init_words.push("tools");
    guest.net = Some(match network {
        Network::Tap => Net::Tap(TAP.to_owned()),
        Network::User => Net::User,
    });
    let mut running = site.start(vmm, &guest)?;
    running.wait_for("init", LIMIT)?;
    loop {
        let (word, marker) = running.wait_for_any(&["begin", "done"], LIMIT)?;
        let job = marker.context("no job begins")?.rest;
        if word == 1 {
            return Ok(());
        }
        let mut sampler = Sampler::new(running.pid());
        let end = running.sample_until("end", LIMIT, || sampler.sample())?;
        let case = format!("{name}, {job}");
        eprintln!("  {case}: {}", end.rest);
        let mut values = BTreeMap::new();
        if job == "requests" {
            let rate: f64 = end
                .rest
                .parse()
                .ok()
                .with_context(|| format!("the echo failed: {}", end.rest))?;
            values.insert("1 round trips [1/s]".to_owned(), rate);
            for (name, growth) in sampler.rates() {
                values.insert(format!("{name} per round trip"), growth / rate.max(1.0));
            }
        } else {
            let kilobits =
                kilobits(&end.rest).with_context(|| format!("iperf3 failed: {}", end.rest))?;
            values.insert("1 bandwidth [Mbit/s]".to_owned(), kilobits / 1000.0);
            for (name, growth) in sampler.rates() {
                let per_mib = growth / (kilobits * 1000.0 / 8.0 / 1_048_576.0).max(1e-9);
                values.insert(format!("{name} per MiB"), per_mib);
            }
        }
        inside::record(&case, vmm, values)?;
    }
}

/// Of iperf3's line of what the receiver got: "... 1234 Kbits/sec ... receiver".
fn kilobits(line: &str) -> Option<f64> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let unit = words.iter().position(|word| *word == "Kbits/sec")?;
    words.get(unit.checked_sub(1)?)?.parse().ok()
}

fn ip(arguments: &str) -> anyhow::Result<()> {
    let status = Command::new("ip")
        .args(arguments.split(' '))
        .status()
        .context("cannot run ip")?;
    ensure!(status.success(), "ip {arguments} failed");
    Ok(())
}

/// Sends everything back, for as long as this process lives.
fn echo_server() -> anyhow::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", ECHO_PORT)).context("cannot listen")?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut stream = stream;
                let mut buffer = [0; 256];
                if stream.set_nodelay(true).is_err() {
                    return;
                }
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..length]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bandwidth_of_iperf3_is_found() {
        let line =
            "[  5]   0.00-5.00   sec   123 MBytes  206569 Kbits/sec                  receiver";
        assert_eq!(kilobits(line), Some(206_569.0));
        assert_eq!(kilobits("iperf3: error - unable to connect"), None);
    }
}
