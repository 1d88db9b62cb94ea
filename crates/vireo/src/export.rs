//! `vireo export`: a disk image for others, by NBD.
//!
//! ```text
//!   image ─▶ node ─▶ nbd::Server on I/O threads ─▶ sockets
//!                        ▲ until a signal, or until the last client has gone
//! ```

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::{io, thread};

use block::{DiskSpec, Image, OpenOptions};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use nbd::{Address, BitmapSource, Export, Server, ServerCredentials, ServerOptions};
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use self::bitmap::Frozen;
use crate::failure::{Failure, Result};
use crate::image::common;
use crate::output;
use crate::run::pidfile::Pidfile;

mod bitmap;

pub(crate) const NAME: &str = "export";

/// I/O threads, when nothing is said.
const MOST_THREADS: usize = 4;

pub(crate) fn command() -> Command {
    let number = |name: &'static str, help: &'static str| {
        common::text(name, "NUMBER", help).value_parser(value_parser!(u32).range(1..))
    };
    Command::new(NAME)
        .about("Serves a disk image to others by NBD, until a signal or until the last client goes")
        .long_about(
            "Serves a disk image to others by NBD, until SIGINT or SIGTERM, or until the last client \
             goes; the image is closed then. Clients: qemu-img, nbd-client, nbdcopy, nbdinfo, and \
             \"vireo image\" by URI (nbd+unix:///NAME?socket=PATH, nbd://HOST:PORT/NAME).",
        )
        .arg(
            common::text(
                "nbd",
                "ADDRESS",
                "Where to listen: unix:PATH or tcp:HOST:PORT (port 0: any that is free); may be \
                 repeated",
            )
            .action(ArgAction::Append)
            .required(true),
        )
        .arg(common::format("Format of the image"))
        .arg(common::flag("read-only", "Clients may not write").short('r'))
        .arg(
            common::text("name", "NAME", "The export's name")
                .short('x')
                .default_value(""),
        )
        .arg(common::text("description", "TEXT", "What the export is, for people").short('D'))
        .arg(
            common::text(
                "bitmap",
                "NAME",
                "Show this dirty bitmap of the image, as it is now, as the metadata context \
                 qemu:dirty-bitmap:NAME; may be repeated",
            )
            .short('B')
            .action(ArgAction::Append),
        )
        .arg(common::flag(
            "allocation-depth",
            "Show in which image of the chain data is, as the metadata context \
             qemu:allocation-depth",
        ))
        .arg(
            common::text(
                "tls-creds",
                "DIRECTORY",
                "Demand TLS, with ca-cert.pem, server-cert.pem and server-key.pem in this directory",
            )
            .value_parser(value_parser!(PathBuf)),
        )
        .arg(
            common::flag(
                "tls-no-verify-peer",
                "Clients need no certificate of the authority in ca-cert.pem",
            )
            .requires("tls-creds"),
        )
        .arg(
            number("max-connections", "Clients at a time; more wait")
                .short('e')
                .default_value("100"),
        )
        .arg(number(
            "threads",
            "I/O threads on which clients are served, in turn [default: one a processor, 4 at most]",
        ))
        .arg(common::flag("persistent", "Go on when the last client goes").short('t'))
        .arg(
            common::text("pidfile", "FILE", "Write the process's number to this file")
                .value_parser(value_parser!(PathBuf)),
        )
        .arg(
            common::text(
                "key-file",
                "FILE",
                "File with the passphrase of an encrypted image: all of its bytes",
            )
            .value_parser(value_parser!(PathBuf)),
        )
        .arg(common::backing_files())
        .arg(common::output())
        .arg(Arg::new("file").value_name("FILE").value_parser(value_parser!(PathBuf)).required(true).help("The image"))
}

/// Why the export ends.
enum Ended {
    Signal,
    LastClient,
}

pub(crate) fn execute(matches: &ArgMatches) -> Result<ExitCode> {
    let nbd = |error: nbd::NbdError| Failure::failed(&error);
    // From here on a signal is waited for, and ends nothing halfway.
    let (sender, ended) = channel();
    signals(sender.clone())?;
    let addresses = addresses(matches)?;
    let number = |name| matches.get_one::<u32>(name).map(|number| *number as usize);
    let threads = number("threads").unwrap_or_else(|| {
        thread::available_parallelism().map_or(1, |processors| processors.get().min(MOST_THREADS))
    });
    let mut options = ServerOptions::new(
        (0..threads)
            .map(|at| common::thread(&format!("nbd-{at}")))
            .collect::<Result<_>>()?,
    );
    options.max_connections = number("max-connections").unwrap_or(options.max_connections);
    if let Some(directory) = matches.get_one::<PathBuf>("tls-creds") {
        let verify = !matches.get_flag("tls-no-verify-peer");
        options.tls = Some(ServerCredentials::load(directory, verify).map_err(nbd)?);
    }
    let spec = DiskSpec {
        read_only: matches.get_flag("read-only"),
        ..common::spec(matches, "file", "format")?
    };
    let image = common::open(&spec, OpenOptions::default())?;
    let served = export(matches, &image).and_then(|export| {
        let server = Server::new(options);
        server.add_export(export).map_err(nbd)?;
        let served = serve(matches, &server, &addresses, (sender, ended));
        // Nobody uses the image any more when that comes.
        server
            .stop()
            .wait()
            .map_err(|gone| Failure::failed(&gone))?;
        served
    });
    // What is in memory goes back in any case.
    if !spec.read_only {
        common::close(&image)?;
    }
    served
}

fn addresses(matches: &ArgMatches) -> Result<Vec<Address>> {
    let words = matches.get_many::<String>("nbd").unwrap_or_default();
    let address = |word: &String| {
        word.parse::<Address>()
            .map_err(|error| Failure::Usage(format!("--nbd: {error}")))
    };
    words.map(address).collect()
}

/// The image as clients see it.
fn export(matches: &ArgMatches, image: &Image) -> Result<Export> {
    let text = |name| matches.get_one::<String>(name).cloned().unwrap_or_default();
    let names = matches.get_many::<String>("bitmap").unwrap_or_default();
    let bitmaps = names
        .map(|name| {
            Frozen::read(image, name).map(|frozen| Arc::new(frozen) as Arc<dyn BitmapSource>)
        })
        .collect::<Result<_>>()?;
    Ok(Export {
        description: text("description"),
        writable: !matches.get_flag("read-only"),
        bitmaps,
        allocation_depth: matches.get_flag("allocation-depth"),
        ..Export::new(text("name"), image.node())
    })
}

/// Tells of the end when a signal asks for it.
fn signals(sender: Sender<Ended>) -> Result<()> {
    let failed = |error: io::Error| Failure::Failed(format!("cannot receive signals: {error}"));
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(failed)?;
    let wait = move || {
        if signals.forever().next().is_some() {
            // Whoever waited may be gone.
            _ = sender.send(Ended::Signal);
        }
        // A second one does not wait for anybody.
        if signals.forever().next().is_some() {
            std::process::exit(1);
        }
    };
    thread::Builder::new()
        .name("signals".into())
        .spawn(wait)
        .map(|_| ())
        .map_err(failed)
}

fn serve(
    matches: &ArgMatches,
    server: &Server,
    addresses: &[Address],
    (sender, ended): (Sender<Ended>, Receiver<Ended>),
) -> Result<ExitCode> {
    let failed = |error: nbd::NbdError| Failure::failed(&error);
    let persistent = matches.get_flag("persistent");
    let gone = server.last_client_gone();
    let listening = addresses
        .iter()
        .map(|address| server.listen(address).map_err(failed))
        .collect::<Result<Vec<_>>>()?;
    let pidfile = matches.get_one::<PathBuf>("pidfile");
    let _pidfile = pidfile.map(|path| Pidfile::write(path)).transpose()?;
    announce(matches, &listening)?;
    if !persistent {
        thread::spawn(move || {
            if gone.wait().is_ok() {
                _ = sender.send(Ended::LastClient);
            }
        });
    }
    match ended.recv() {
        Ok(Ended::Signal | Ended::LastClient) | Err(_) => Ok(ExitCode::SUCCESS),
    }
}

/// Says that clients may come, and where to.
fn announce(matches: &ArgMatches, listening: &[Address]) -> Result<()> {
    let name = matches.get_one::<String>("name").map_or("", String::as_str);
    if common::wants_json(matches) {
        let addresses: Vec<String> = listening.iter().map(Address::to_string).collect();
        output::print_json(&json!({ "export": name, "listening": addresses }))?;
    } else {
        for address in listening {
            output::print(&format!("export {name:?} at {address}\n"))?;
        }
    }
    Ok(())
}
