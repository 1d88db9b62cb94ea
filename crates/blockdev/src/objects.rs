//! Objects that QMP makes beside nodes: groups of limits, and secrets (qapi/qom.json).
//!
//! A secret's data comes as it is, by the name of a file, or encrypted under another secret, so
//! that who sees the messages does not see the data: AES-256 in CBC mode with PKCS#7 padding, the
//! master secret being the key (qapi/crypto.json, SecretCommonProperties).

use std::path::PathBuf;

use aes::Aes256;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockModeDecrypt, KeyIvInit};
use luks::Passphrase;
use qmp::{Empty, QmpError};
use serde::Deserialize;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::qapi::block::{ObjectAdd, ObjectDel};
use crate::{Blockdev, BlockdevError, lock};

/// Properties of an object.
pub(crate) type Properties = Map<String, Value>;

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum SecretFormat {
    #[default]
    Raw,
    Base64,
}

/// SecretProperties.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct SecretProperties {
    data: Option<Zeroizing<String>>,
    file: Option<PathBuf>,
    #[serde(default)]
    format: SecretFormat,
    keyid: Option<String>,
    iv: Option<String>,
}

fn wrong(text: impl Into<String>) -> BlockdevError {
    BlockdevError::Options(text.into())
}

fn decode(what: &str, text: &str) -> Result<Zeroizing<Vec<u8>>, BlockdevError> {
    // Long data comes in lines.
    let text: Zeroizing<String> = Zeroizing::new(text.split_ascii_whitespace().collect());
    let bytes = BASE64.decode(text.as_bytes());
    let bytes = bytes.map_err(|error| wrong(format!("the {what} is no base64: {error}")))?;
    Ok(Zeroizing::new(bytes))
}

impl SecretProperties {
    fn bytes(&self, blockdev: &Blockdev) -> Result<Zeroizing<Vec<u8>>, BlockdevError> {
        let given = match (&self.data, &self.file) {
            (Some(data), None) => Zeroizing::new(data.as_bytes().to_vec()),
            (None, Some(file)) => {
                let read = block::read_key_file(file)
                    .map_err(BlockdevError::io(format!("read {}", file.display())))?;
                Zeroizing::new(read.bytes().to_vec())
            }
            (Some(_), Some(_)) => return Err(wrong("'file' and 'data' are mutually exclusive")),
            (None, None) => return Err(wrong("Must provide 'file' or 'data' property")),
        };
        let text = || {
            let text = std::str::from_utf8(&given);
            text.map_err(|_| wrong("the secret's data is no text"))
        };
        let Some(master) = &self.keyid else {
            if self.iv.is_some() {
                return Err(wrong("'iv' goes with 'keyid' only"));
            }
            return match self.format {
                SecretFormat::Raw => Ok(given),
                SecretFormat::Base64 => decode("secret's data", text()?),
            };
        };
        let encrypted = match self.format {
            SecretFormat::Raw => given,
            SecretFormat::Base64 => decode("secret's data", text()?)?,
        };
        let key = blockdev.secret(master)?;
        if key.bytes().len() != 32 {
            return Err(wrong(format!(
                "secret '{master}' has {} bytes; to encrypt another it must have 32",
                key.bytes().len()
            )));
        }
        let iv = self.iv.as_deref();
        let iv = decode(
            "IV",
            iv.ok_or_else(|| wrong("IV is required to decrypt secret"))?,
        )?;
        let cipher = cbc::Decryptor::<Aes256>::new_from_slices(key.bytes(), &iv)
            .map_err(|_| wrong(format!("IV should be 16 bytes in length not {}", iv.len())))?;
        let mut buffer = encrypted;
        let length = cipher
            .decrypt_padded::<Pkcs7>(&mut buffer)
            .map_err(|_| {
                wrong(format!(
                    "the secret was not encrypted with secret '{master}'"
                ))
            })?
            .len();
        buffer.truncate(length);
        Ok(buffer)
    }
}

impl Blockdev {
    /// The secret of that name.
    pub(crate) fn secret(&self, id: &str) -> Result<Passphrase, BlockdevError> {
        let found = lock(&self.secrets).get(id).cloned();
        found.ok_or_else(|| wrong(format!("No secret with id '{id}': make it with object-add")))
    }

    fn is_object(&self, id: &str) -> bool {
        lock(&self.groups).contains_key(id) || lock(&self.secrets).contains_key(id)
    }

    pub(crate) async fn object_add(&self, command: ObjectAdd) -> Result<Empty, QmpError> {
        let ObjectAdd {
            qom_type,
            id,
            properties,
        } = command;
        if self.is_object(&id) {
            return Err(QmpError::generic(format!(
                "attempt to add duplicate property '{id}' to object"
            )));
        }
        match qom_type.as_str() {
            "throttle-group" => self.add_group(&id, &properties)?,
            "secret" => {
                let properties: SecretProperties =
                    serde_json::from_value(Value::Object(properties))
                        .map_err(|error| wrong(error.to_string()))?;
                let mut bytes = properties.bytes(self)?;
                let secret = Passphrase::new(std::mem::take(&mut *bytes));
                lock(&self.secrets).insert(id, secret);
            }
            other => {
                return Err(QmpError::generic(format!(
                    "Invalid object type '{other}': there are throttle-group and secret"
                )));
            }
        }
        Ok(Empty {})
    }

    pub(crate) async fn object_del(&self, command: ObjectDel) -> Result<Empty, QmpError> {
        let id = command.id;
        if self.is_group_used(&id) {
            return Err(QmpError::generic(format!(
                "object '{id}' is in use, can not be deleted"
            )));
        }
        // What was opened with a secret does not need it any more.
        let removed =
            lock(&self.groups).remove(&id).is_some() || lock(&self.secrets).remove(&id).is_some();
        match removed {
            true => Ok(Empty {}),
            false => Err(QmpError::generic(format!("object '{id}' not found"))),
        }
    }
}

#[cfg(test)]
#[path = "objects_tests.rs"]
mod tests;
