//! Device state as data: what a device hands over on save and takes back on restore.
//!
//! Every stateful part of the machine describes itself in a [`Payload`]: a kind (which model it
//! is), a version, and the bytes of a plain struct in CBOR (RFC 8949), a self-describing
//! encoding in which every field is named. A payload can be printed by [`Payload::to_text`]
//! without knowing its type.
//!
//! ```text
//!   device ──save──▶ Payload{kind, version, bytes} ──▶ stream, file, text
//!   device ◀─restore─ Payload::decode(kind, version)      (consumed exactly once)
//! ```

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Why a payload could not be made or understood.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The payload belongs to another model.
    #[error("expected state of kind {expected:?}, got {found:?}")]
    Kind {
        /// What the device takes.
        expected: &'static str,
        /// What the payload says.
        found: String,
    },
    /// The payload was written by a newer version than this one reads.
    #[error("state of {kind:?} has version {found}, this build reads up to version {supported}")]
    Version {
        /// Model.
        kind: &'static str,
        /// What the payload says.
        found: u32,
        /// Newest version known here.
        supported: u32,
    },
    /// The bytes do not decode to the model's state.
    #[error("state of {kind:?} does not decode: {why}")]
    Malformed {
        /// Model.
        kind: String,
        /// The decoder's words.
        why: String,
    },
    /// The values decode, but no device could have been in such a state.
    #[error("state of {kind:?} is impossible: {why}")]
    Invalid {
        /// Model.
        kind: &'static str,
        /// Which value, and why not.
        why: String,
    },
    /// The part cannot be saved, and says why.
    #[error("{kind:?} cannot be saved: {why}")]
    NotMigratable {
        /// Model.
        kind: &'static str,
        /// The reason.
        why: String,
    },
}

/// The state of one part of the machine: which model, which version, and its fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload {
    /// Name of the model, for example `"mc146818"`.
    pub kind: String,
    /// Version of the state's layout; starts at 1.
    pub version: u32,
    /// The state's struct in CBOR.
    pub data: Vec<u8>,
}

impl Payload {
    /// Encodes `state` under a kind and a version.
    ///
    /// # Errors
    /// [`StateError::Malformed`] when the struct holds something CBOR cannot say.
    pub fn encode<T: Serialize>(kind: &str, version: u32, state: &T) -> Result<Self, StateError> {
        let mut data = Vec::new();
        ciborium::into_writer(state, &mut data).map_err(|e| StateError::Malformed {
            kind: kind.to_owned(),
            why: e.to_string(),
        })?;
        Ok(Self {
            kind: kind.to_owned(),
            version,
            data,
        })
    }

    /// Decodes the state, provided that it is of this `kind` and not newer than `supported`.
    ///
    /// # Errors
    /// Another kind, a newer version, or bytes that do not decode (also left-over bytes).
    pub fn decode<T: DeserializeOwned>(
        self,
        kind: &'static str,
        supported: u32,
    ) -> Result<T, StateError> {
        if self.kind != kind {
            return Err(StateError::Kind {
                expected: kind,
                found: self.kind,
            });
        }
        if self.version == 0 || self.version > supported {
            return Err(StateError::Version {
                kind,
                found: self.version,
                supported,
            });
        }
        let mut rest = self.data.as_slice();
        let state = ciborium::from_reader(&mut rest).map_err(|e| StateError::Malformed {
            kind: kind.to_owned(),
            why: e.to_string(),
        })?;
        if !rest.is_empty() {
            return Err(StateError::Malformed {
                kind: kind.to_owned(),
                why: format!("{} bytes are left over", rest.len()),
            });
        }
        Ok(state)
    }

    /// The payload as text for people: kind, version and every field by name.
    #[must_use]
    pub fn to_text(&self) -> String {
        match ciborium::from_reader::<ciborium::Value, _>(self.data.as_slice()) {
            Ok(value) => format!("{} v{}: {value:#?}", self.kind, self.version),
            Err(e) => format!("{} v{}: does not decode: {e}", self.kind, self.version),
        }
    }
}

/// What every part of the machine that a guest can change implements.
///
/// There are no default bodies on purpose: a part without state says so with [`no_state`].
/// The machine calls these with the part at rest: no virtual processor runs and no worker owns
/// one of its queues.
pub trait Stateful: Send {
    /// The part's complete state.
    ///
    /// # Errors
    /// [`StateError::NotMigratable`] when the state cannot leave the process.
    fn save(&self) -> Result<Payload, StateError>;

    /// Takes over a saved state. On an error the part is as after [`Stateful::reset`].
    ///
    /// # Errors
    /// The payload is of another kind, newer, or impossible.
    fn restore(&self, payload: Payload) -> Result<(), StateError>;

    /// Back to the state after power-on.
    fn reset(&self);
}

/// The payload of a part that has nothing to save.
#[must_use]
pub fn no_state(kind: &str) -> Payload {
    Payload {
        kind: kind.to_owned(),
        version: 1,
        data: vec![0xf6],
    }
}

/// Checks the payload of a part that has nothing to restore.
///
/// # Errors
/// The payload is not [`no_state`] of the same kind.
pub fn restore_no_state(kind: &'static str, payload: Payload) -> Result<(), StateError> {
    payload.decode::<()>(kind, 1)
}

#[cfg(test)]
mod tests;
