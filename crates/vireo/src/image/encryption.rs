//! What `-o` says about encryption, in qemu-img's words.

use std::path::PathBuf;
use std::time::Duration;

use block::{Format, NewEncryption};
use luks::{HeaderNames, NewHeader, Passphrase};

use super::common;
use crate::failure::{Failure, Result};

/// The names behind `encrypt.`; a LUKS image has them without that too.
pub(super) const NAMES: [&str; 8] = [
    "format",
    "key_file",
    "iter_time",
    "cipher_alg",
    "cipher_mode",
    "ivgen_alg",
    "ivgen_hash_alg",
    "hash_alg",
];

/// What was said.
#[derive(Default)]
pub(super) struct Words(Vec<(String, String)>);

impl Words {
    /// Takes an option; `false`: it is about something else.
    pub(super) fn take(&mut self, name: &str, value: &str) -> Result<bool> {
        let own = name.strip_prefix("encrypt.");
        let plain = own.unwrap_or(name);
        if plain == "key_secret" {
            return Err(Failure::Usage(format!(
                "-o {name}: there are no secret objects here; write the passphrase into a file \
                 and say {}key-file=FILE",
                if own.is_some() { "encrypt." } else { "" }
            )));
        }
        if !NAMES.contains(&plain) {
            return Ok(false);
        }
        self.0.push((plain.to_owned(), value.to_owned()));
        Ok(true)
    }

    fn get(&self, name: &str) -> Option<&str> {
        let said = self.0.iter().rev().find(|(said, _)| said == name);
        said.map(|(_, value)| value.as_str())
    }

    /// The file with the passphrase.
    pub(super) fn key_file(&self) -> Option<PathBuf> {
        self.get("key_file").map(PathBuf::from)
    }

    /// How the new image is to be encrypted, if it is.
    pub(super) fn resolve(&self, format: Option<Format>) -> Result<Option<NewEncryption>> {
        let usage = |text: String| Failure::Usage(text);
        let prefix = match format {
            Some(Format::Luks) => "",
            _ if self.0.is_empty() => return Ok(None),
            Some(Format::Qcow2) => "encrypt.",
            _ => {
                return Err(usage(
                    "only qcow2 images (-f qcow2) and LUKS ones (-f luks) are encrypted".into(),
                ));
            }
        };
        match self.get("format") {
            Some("luks") => (),
            None if format == Some(Format::Luks) => (),
            None => return Err(usage("say encrypt.format=luks as well".into())),
            Some("aes") => {
                return Err(usage(
                    "encrypt.format=aes is not secure, and new images do not get it: say \
                     encrypt.format=luks"
                        .into(),
                ));
            }
            Some(other) => return Err(usage(format!("encrypt.format={other}: expected luks"))),
        }
        let Some(path) = self.key_file() else {
            return Err(usage(format!(
                "say {prefix}key-file=FILE, with the passphrase in that file (`printf %s` writes \
                 it without a line's end)"
            )));
        };
        Ok(Some(NewEncryption {
            header: self.header()?,
            passphrase: read_key_file(&path)?,
        }))
    }

    fn header(&self) -> Result<NewHeader> {
        let iter_time = match self.get("iter_time") {
            None => NewHeader::ITER_TIME,
            Some(word) => milliseconds("iter-time", word)?,
        };
        let names = HeaderNames {
            cipher_alg: self.get("cipher_alg"),
            cipher_mode: self.get("cipher_mode"),
            ivgen_alg: self.get("ivgen_alg"),
            ivgen_hash_alg: self.get("ivgen_hash_alg"),
            hash_alg: self.get("hash_alg"),
        };
        NewHeader::named(&names, iter_time).map_err(|error| Failure::Usage(error.to_string()))
    }
}

/// A time in milliseconds, at most an hour.
pub(super) fn milliseconds(option: &str, word: &str) -> Result<Duration> {
    match word.parse() {
        Ok(time @ 1..=3_600_000) => Ok(Duration::from_millis(time)),
        _ => Err(Failure::Usage(format!(
            "{option}={word}: expected milliseconds"
        ))),
    }
}

/// The passphrase in a file.
pub(super) fn read_key_file(path: &std::path::Path) -> Result<Passphrase> {
    let failed = |error| {
        Failure::Failed(format!(
            "cannot read the key file {}: {error}",
            path.display()
        ))
    };
    block::read_key_file(path).map_err(failed)
}

/// `--key-file`.
pub(super) fn key_file() -> clap::Arg {
    path(
        "key-file",
        "File with the passphrase of an encrypted image: all of its bytes",
    )
}

/// `--second-key-file`.
pub(super) fn second_key_file() -> clap::Arg {
    path(
        "second-key-file",
        "File with the passphrase of the second image",
    )
}

fn path(name: &'static str, help: &'static str) -> clap::Arg {
    common::text(name, "FILE", help).value_parser(clap::value_parser!(PathBuf))
}
