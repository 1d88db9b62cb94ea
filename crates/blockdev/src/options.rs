//! The options of a node (qapi/block-core.json, BlockdevOptions), as QMP gives them.

use std::path::PathBuf;

use block::graph::DetectZeroes;
use block::{Aio, BackingFiles, Cache, Discard, DiskSpec, Format, Locking};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::BlockdevError;

/// A node by name, or the options of one that is to be opened.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub(crate) enum NodeRef {
    Name(String),
    Options(Box<NodeOptions>),
}

/// BlockdevCacheOptions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct CacheOptions {
    direct: bool,
    no_flush: bool,
}

/// OnOffAuto and the like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OnOffAuto {
    On,
    Off,
    Auto,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DiscardOption {
    Ignore,
    Unmap,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", remote = "DetectZeroes")]
enum DetectZeroesName {
    Off,
    On,
    Unmap,
}

fn detect_zeroes<'de, D: Deserializer<'de>>(from: D) -> Result<DetectZeroes, D::Error> {
    DetectZeroesName::deserialize(from)
}

/// Which driver (BlockdevDriver).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DriverName {
    Raw,
    Qcow2,
    Luks,
    File,
    #[serde(rename = "host_device")]
    HostDevice,
    NullCo,
    NullAio,
    Nbd,
    Throttle,
    CopyOnRead,
}

impl DriverName {
    /// Its name in the interface.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Luks => "luks",
            Self::File => "file",
            Self::HostDevice => "host_device",
            Self::NullCo => "null-co",
            Self::NullAio => "null-aio",
            Self::Nbd => "nbd",
            Self::Throttle => "throttle",
            Self::CopyOnRead => "copy-on-read",
        }
    }

    /// Whether it lies on another node.
    fn has_file(self) -> bool {
        matches!(
            self,
            Self::Raw | Self::Qcow2 | Self::Luks | Self::Throttle | Self::CopyOnRead
        )
    }
}

/// What is given as null is not what is not given.
fn nullable<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Option<NodeRef>>, D::Error> {
    Option::<NodeRef>::deserialize(from).map(Some)
}

/// BlockdevQcow2Encryption.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct EncryptOptions {
    /// What the image has is what counts.
    pub format: EncryptFormat,
    pub key_secret: Option<String>,
}

/// BlockdevQcow2EncryptionFormat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum EncryptFormat {
    Aes,
    Luks,
}

/// BlockdevOptions.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct NodeOptions {
    pub driver: DriverName,
    pub node_name: Option<String>,
    pub read_only: Option<bool>,
    pub auto_read_only: Option<bool>,
    #[serde(default)]
    pub cache: CacheOptions,
    pub discard: Option<DiscardOption>,
    #[serde(default, deserialize_with = "detect_zeroes")]
    pub detect_zeroes: DetectZeroes,
    #[serde(default)]
    pub force_share: bool,
    pub file: Option<NodeRef>,
    #[serde(default, deserialize_with = "nullable")]
    pub backing: Option<Option<NodeRef>>,
    pub data_file: Option<NodeRef>,
    // file, host_device
    pub filename: Option<PathBuf>,
    pub aio: Option<String>,
    pub locking: Option<OnOffAuto>,
    // raw
    pub offset: Option<u64>,
    pub size: Option<u64>,
    // null-co
    pub read_zeroes: Option<bool>,
    // qcow2
    pub l2_cache_size: Option<u64>,
    pub refcount_cache_size: Option<u64>,
    pub cache_size: Option<u64>,
    pub lazy_refcounts: Option<bool>,
    pub pass_discard_request: Option<bool>,
    pub discard_no_unref: Option<bool>,
    pub encrypt: Option<EncryptOptions>,
    // luks
    pub key_secret: Option<String>,
    // throttle
    pub throttle_group: Option<String>,
    // nbd
    pub server: Option<Map<String, Value>>,
    pub export: Option<String>,
    pub reconnect_delay: Option<u32>,
    pub open_timeout: Option<u32>,
    // copy-on-read
    pub bottom: Option<String>,
}

impl NodeOptions {
    /// Reads them.
    ///
    /// # Errors
    /// A driver or an option is not known, or does not go with the driver.
    pub(crate) fn read(options: Map<String, Value>) -> Result<Self, BlockdevError> {
        let read: Self = serde_json::from_value(Value::Object(options))
            .map_err(|error| BlockdevError::Options(error.to_string()))?;
        read.check()?;
        Ok(read)
    }

    /// Whether the options go with the driver.
    pub(crate) fn check(&self) -> Result<(), BlockdevError> {
        use DriverName as D;
        let driver = self.driver;
        let allowed: [(&str, bool, &[D]); 20] = [
            ("backing", self.backing.is_some(), &[D::Qcow2]),
            ("data-file", self.data_file.is_some(), &[D::Qcow2]),
            (
                "filename",
                self.filename.is_some(),
                &[D::File, D::HostDevice],
            ),
            ("aio", self.aio.is_some(), &[D::File, D::HostDevice]),
            ("locking", self.locking.is_some(), &[D::File, D::HostDevice]),
            ("offset", self.offset.is_some(), &[D::Raw]),
            (
                "size",
                self.size.is_some(),
                &[D::Raw, D::NullCo, D::NullAio],
            ),
            (
                "read-zeroes",
                self.read_zeroes.is_some(),
                &[D::NullCo, D::NullAio],
            ),
            ("l2-cache-size", self.l2_cache_size.is_some(), &[D::Qcow2]),
            (
                "refcount-cache-size",
                self.refcount_cache_size.is_some(),
                &[D::Qcow2],
            ),
            ("cache-size", self.cache_size.is_some(), &[D::Qcow2]),
            ("lazy-refcounts", self.lazy_refcounts.is_some(), &[D::Qcow2]),
            (
                "pass-discard-request",
                self.pass_discard_request.is_some(),
                &[D::Qcow2],
            ),
            (
                "discard-no-unref",
                self.discard_no_unref.is_some(),
                &[D::Qcow2],
            ),
            (
                "throttle-group",
                self.throttle_group.is_some(),
                &[D::Throttle],
            ),
            ("encrypt", self.encrypt.is_some(), &[D::Qcow2]),
            ("key-secret", self.key_secret.is_some(), &[D::Luks]),
            ("server", self.server.is_some(), &[D::Nbd]),
            ("export", self.export.is_some(), &[D::Nbd]),
            ("bottom", self.bottom.is_some(), &[D::CopyOnRead]),
        ];
        for (name, given, drivers) in allowed {
            if given && !drivers.contains(&driver) {
                return Err(BlockdevError::Options(format!(
                    "Parameter '{name}' is unexpected with driver '{}'",
                    driver.name()
                )));
            }
        }
        let missing = |name: &str| {
            Err(BlockdevError::Options(format!(
                "Parameter '{name}' is missing"
            )))
        };
        match driver {
            D::File | D::HostDevice if self.filename.is_none() => missing("filename"),
            D::Throttle if self.throttle_group.is_none() => missing("throttle-group"),
            D::Nbd if self.server.is_none() => missing("server"),
            _ if driver.has_file() && self.file.is_none() => missing("file"),
            _ if !driver.has_file() && self.file.is_some() => Err(BlockdevError::Options(format!(
                "Parameter 'file' is unexpected with driver '{}'",
                driver.name()
            ))),
            _ => Ok(()),
        }
    }

    /// The object with the image's passphrase.
    pub(crate) fn key_secret(&self) -> Option<&str> {
        let encrypt = self.encrypt.as_ref();
        let of_qcow2 = encrypt.and_then(|encrypt| encrypt.key_secret.as_deref());
        self.key_secret.as_deref().or(of_qcow2)
    }

    /// The same as a disk's description, with `file` as its path.
    pub(crate) fn spec(&self, file: PathBuf) -> DiskSpec {
        let default = DiskSpec::new(file);
        DiskSpec {
            format: match self.driver {
                DriverName::Qcow2 => Some(Format::Qcow2),
                DriverName::Luks => Some(Format::Luks),
                _ => Some(Format::Raw),
            },
            cache: match (self.cache.direct, self.cache.no_flush) {
                (_, true) => Cache::Unsafe,
                (true, false) => Cache::None,
                (false, false) => Cache::Writeback,
            },
            aio: match self.aio.as_deref() {
                Some("threads") => Aio::Threads,
                _ => Aio::IoUring,
            },
            read_only: self.read_only.unwrap_or(false),
            discard: match self.discard {
                Some(DiscardOption::Unmap) => Discard::Unmap,
                _ => Discard::Ignore,
            },
            locking: match (self.force_share, self.locking) {
                (true, _) | (_, Some(OnOffAuto::Off)) => Locking::Off,
                (_, Some(OnOffAuto::On)) => Locking::On,
                _ => Locking::Auto,
            },
            // Who may use this interface may name any file.
            backing_files: BackingFiles::Any,
            l2_cache_size: self
                .l2_cache_size
                .or(self.cache_size)
                .map_or(default.l2_cache_size, spec::Size),
            refcount_cache_size: self
                .refcount_cache_size
                .map_or(default.refcount_cache_size, spec::Size),
            discard_no_unref: self.discard_no_unref.unwrap_or(false),
            node_name: self.node_name.clone(),
            ..default
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<NodeOptions, BlockdevError> {
        match value {
            Value::Object(map) => NodeOptions::read(map),
            _ => panic!("not an object"),
        }
    }

    #[test]
    fn what_is_null_is_not_what_is_missing() {
        let with = |backing: Value| {
            let mut options = json!({"driver": "qcow2", "file": "f"});
            options["backing"] = backing;
            read(options).unwrap().backing
        };
        assert_eq!(with(Value::Null), Some(None));
        assert_eq!(with(json!("b")), Some(Some(NodeRef::Name("b".into()))));
        let without = read(json!({"driver": "qcow2", "file": "f"})).unwrap();
        assert_eq!(without.backing, None);
    }

    #[test]
    fn options_of_other_drivers_are_refused() {
        let refused = [
            json!({"driver": "raw", "file": "f", "backing": "b"}),
            json!({"driver": "file"}),
            json!({"driver": "file", "filename": "a", "file": "b"}),
            json!({"driver": "qcow2"}),
            json!({"driver": "vmdk", "file": "f"}),
            json!({"driver": "file", "filename": "a", "filenam": "b"}),
            json!({"driver": "throttle", "file": "f"}),
        ];
        for options in refused {
            let text = options.to_string();
            assert!(read(options).is_err(), "{text}");
        }
    }
}
