//! `vireo image amend`: the passphrases of an encrypted image.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use block::{BlockError, CryptError, DiskSpec, EraseKey, Image, OpenOptions};
use clap::{ArgMatches, Command};
use luks::{NewHeader, Passphrase};

use super::{common, encryption};
use crate::failure::{Failure, Result};
use crate::output;

pub(super) const NAME: &str = "amend";

const OPTIONS: [&str; 5] = [
    "state",
    "new-key-file",
    "old-key-file",
    "keyslot",
    "iter-time",
];

pub(super) fn command() -> Command {
    Command::new(NAME)
        .about("Adds passphrases to an encrypted image, and erases them")
        .arg(common::format("Format of the image"))
        .arg(
            common::text(
                "options",
                "NAME=VALUE,...",
                "state=active with new-key-file=FILE adds a passphrase; state=inactive with \
                 old-key-file=FILE or keyslot=N erases one; keyslot, iter-time",
            )
            .short('o')
            .required(true)
            .action(clap::ArgAction::Append),
        )
        .arg(encryption::key_file())
        .arg(common::flag(
            "force",
            "Erase even the last passphrase: the data is lost then",
        ))
        .arg(common::flag("quiet", "Say nothing").short('q'))
        .arg(common::file(
            "file",
            "FILE",
            "The image; no running machine uses it",
        ))
}

#[derive(Default)]
struct Words {
    active: Option<bool>,
    new: Option<PathBuf>,
    old: Option<PathBuf>,
    slot: Option<usize>,
    iter_time: Option<Duration>,
}

impl Words {
    fn parse(matches: &ArgMatches) -> Result<Self> {
        let mut words = Self::default();
        let lists = matches.get_many::<String>("options").unwrap_or_default();
        let pairs = lists.flat_map(|list| list.split(','));
        for pair in pairs.filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = name.strip_prefix("encrypt.").unwrap_or(name);
            words.one(&name.replace('_', "-"), value)?;
        }
        Ok(words)
    }

    fn one(&mut self, name: &str, value: &str) -> Result<()> {
        let wrong = |what: &str| Failure::Usage(format!("-o {name}={value}: {what}"));
        match name {
            "state" => {
                self.active = Some(match value {
                    "active" => true,
                    "inactive" => false,
                    _ => return Err(wrong("expected active or inactive")),
                });
            }
            "new-key-file" => self.new = Some(value.into()),
            "old-key-file" => self.old = Some(value.into()),
            "keyslot" => match value.parse() {
                Ok(slot @ 0..=7) => self.slot = Some(slot),
                _ => return Err(wrong("there are key slots 0 to 7")),
            },
            "iter-time" => self.iter_time = Some(encryption::milliseconds(name, value)?),
            _ => {
                let advice = spec::nearest(name, OPTIONS).map_or_else(
                    || format!("expected one of {}", OPTIONS.join(", ")),
                    |near| format!("did you mean {near:?}?"),
                );
                return Err(wrong(&advice));
            }
        }
        Ok(())
    }
}

/// What is to be done.
enum Change {
    Add {
        known: Passphrase,
        new: Passphrase,
        slot: Option<usize>,
        iter_time: Duration,
    },
    EraseSlot(usize),
    Erase(Passphrase),
}

fn change(matches: &ArgMatches, words: Words) -> Result<Change> {
    let usage = |text: &str| Err(Failure::Usage(text.to_owned()));
    let key = matches.get_one::<PathBuf>("key-file");
    match (words, key) {
        (Words { active: None, .. }, _) => usage("say -o state=active or -o state=inactive"),
        (
            Words {
                active: Some(true),
                new: Some(new),
                old: None,
                slot,
                iter_time,
            },
            Some(known),
        ) => Ok(Change::Add {
            known: encryption::read_key_file(known)?,
            new: encryption::read_key_file(&new)?,
            slot,
            iter_time: iter_time.unwrap_or(NewHeader::ITER_TIME),
        }),
        (
            Words {
                active: Some(true), ..
            },
            _,
        ) => usage(
            "to add a passphrase, say --key-file FILE with one that opens the image, and \
             -o new-key-file=FILE with the new one",
        ),
        (
            Words {
                new: None,
                old: None,
                slot: Some(slot),
                ..
            },
            _,
        ) => Ok(Change::EraseSlot(slot)),
        (
            Words {
                new: None,
                old: Some(old),
                slot: None,
                ..
            },
            _,
        ) => Ok(Change::Erase(encryption::read_key_file(&old)?)),
        _ => usage("to erase, say either -o keyslot=N or -o old-key-file=FILE"),
    }
}

pub(super) fn execute(matches: &ArgMatches) -> Result<ExitCode> {
    let change = change(matches, Words::parse(matches)?)?;
    let spec = DiskSpec {
        // The passphrase is asked for when it is needed.
        key_file: None,
        ..common::spec(matches, "file", "format")?
    };
    let options = OpenOptions {
        backing: false,
        metadata_only: true,
        ..OpenOptions::default()
    };
    let image = common::open(&spec, options)?;
    let force = matches.get_flag("force");
    let amended = image.clone();
    let path = spec.file.clone();
    let done = common::run(move || async move {
        let done = amend(&amended, change, force).await;
        done.map_err(|source| BlockError::Luks {
            what: "change the passphrases of",
            path,
            source,
        })
    });
    let closed = common::close(&image);
    let text = done?;
    closed?;
    match matches.get_flag("quiet") {
        true => Ok(ExitCode::SUCCESS),
        false => output::print(&text),
    }
}

async fn amend(image: &Image, change: Change, force: bool) -> Result<String, CryptError> {
    let erased = match change {
        Change::Add {
            known,
            new,
            slot,
            iter_time,
        } => {
            let slot = image.add_key(&known, &new, slot, iter_time).await?;
            return Ok(format!("The passphrase is in key slot {slot}.\n"));
        }
        Change::EraseSlot(slot) => image.erase_key(EraseKey::Slot(slot), force).await?,
        Change::Erase(old) => image.erase_key(EraseKey::Passphrase(&old), force).await?,
    };
    let slots: Vec<String> = erased.iter().map(ToString::to_string).collect();
    Ok(format!("Erased: key slot {}.\n", slots.join(", ")))
}
