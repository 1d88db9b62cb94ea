//! How new images are encrypted, as QMP says it (qapi/crypto.json).

use std::time::Duration;

use block::NewEncryption;
use luks::{HeaderNames, NewHeader};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{Blockdev, BlockdevError};

/// QCryptoBlockCreateOptions.
#[derive(Deserialize)]
#[serde(tag = "format", rename_all = "kebab-case")]
pub(crate) enum CreateEncrypt {
    Luks(LuksOptions),
    Qcow {},
}

/// QCryptoBlockCreateOptionsLUKS.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct LuksOptions {
    key_secret: Option<String>,
    cipher_alg: Option<String>,
    cipher_mode: Option<String>,
    ivgen_alg: Option<String>,
    ivgen_hash_alg: Option<String>,
    hash_alg: Option<String>,
    /// Milliseconds.
    iter_time: Option<u64>,
}

impl CreateEncrypt {
    /// The encryption, with the secret that the options name.
    ///
    /// # Errors
    /// There is no such secret, or a cipher or hash is not known.
    pub(crate) fn encryption(self, blockdev: &Blockdev) -> Result<NewEncryption, BlockdevError> {
        match self {
            Self::Luks(options) => options.encryption(blockdev),
            Self::Qcow {} => Err(BlockdevError::Options(
                "new images are not encrypted by qcow2's old AES, which is weak: use luks".into(),
            )),
        }
    }
}

impl LuksOptions {
    /// Reads them.
    ///
    /// # Errors
    /// One of them is not known.
    pub(crate) fn read(options: Map<String, Value>) -> Result<Self, BlockdevError> {
        serde_json::from_value(Value::Object(options))
            .map_err(|error| BlockdevError::Options(error.to_string()))
    }

    /// The encryption, with the secret that the options name.
    ///
    /// # Errors
    /// There is no such secret, or a cipher or hash is not known.
    pub(crate) fn encryption(self, blockdev: &Blockdev) -> Result<NewEncryption, BlockdevError> {
        let Some(id) = &self.key_secret else {
            return Err(BlockdevError::Options(
                "Parameter 'key-secret' is required for cipher".into(),
            ));
        };
        let names = HeaderNames {
            cipher_alg: self.cipher_alg.as_deref(),
            cipher_mode: self.cipher_mode.as_deref(),
            ivgen_alg: self.ivgen_alg.as_deref(),
            ivgen_hash_alg: self.ivgen_hash_alg.as_deref(),
            hash_alg: self.hash_alg.as_deref(),
        };
        let time = self.iter_time;
        let time = time.map_or(NewHeader::ITER_TIME, Duration::from_millis);
        let header = NewHeader::named(&names, time)
            .map_err(|error| BlockdevError::Options(error.to_string()))?;
        Ok(NewEncryption {
            header,
            passphrase: blockdev.secret(id)?,
        })
    }
}
