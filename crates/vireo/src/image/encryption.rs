//! What `-o` says about encryption, in qemu-img's words.

use std::path::PathBuf;
use std::time::Duration;

use block::{Format, NewEncryption};
use luks::{CipherSpec, Hash, NewHeader, Passphrase};

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
        let default = NewHeader::default();
        let iter_time = match self.get("iter_time") {
            None => default.iter_time,
            Some(word) => milliseconds("iter-time", word)?,
        };
        let wrong = |error: luks::LuksError| Failure::Usage(error.to_string());
        let hash = self.get("hash_alg").map(Hash::parse).transpose();
        let (algorithm, bits) = self
            .get("cipher_alg")
            .unwrap_or("aes-256")
            .rsplit_once('-')
            .and_then(|(name, bits)| Some((name, bits.parse::<usize>().ok()?)))
            .ok_or_else(|| Failure::Usage("cipher-alg: expected aes-256 or the like".to_owned()))?;
        let mode = self.get("cipher_mode").unwrap_or("xts");
        let iv = match (self.get("ivgen_alg"), self.get("ivgen_hash_alg")) {
            (Some("essiv"), hash) => format!("essiv:{}", hash.unwrap_or("sha256")),
            (_, Some(_)) => {
                return Err(Failure::Usage(
                    "ivgen-hash-alg: only ivgen-alg=essiv has one".into(),
                ));
            }
            (iv, None) => iv.unwrap_or("plain64").to_owned(),
        };
        let header = NewHeader {
            cipher: CipherSpec::parse(algorithm, &format!("{mode}-{iv}")).map_err(wrong)?,
            key_bytes: bits / 8 * if mode == "xts" { 2 } else { 1 },
            hash: hash.map_err(wrong)?.unwrap_or(default.hash),
            iter_time,
        };
        header.check().map_err(wrong)?;
        Ok(header)
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
