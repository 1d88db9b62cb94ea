//! `vireo image info`.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;

use block::qcow2::{BitmapInfo, ImageInfo, Snapshot};
use block::{BlockError, DiskSpec, Encryption, Format, Image, OpenOptions};
use clap::{ArgMatches, Command};
use serde_json::{Map, Value, json};

use super::common::{self, human};
use crate::failure::Result;
use crate::output;

pub(super) const NAME: &str = "info";

pub(super) fn command() -> Command {
    Command::new(NAME)
        .about("Tells what an image says about itself")
        .arg(common::format("Format of the image"))
        .arg(common::output())
        .arg(common::flag("backing-chain", "Also the images below"))
        .arg(common::backing_files())
        .arg(common::file("file", "FILE", "The image"))
}

/// What is told about one image.
struct About {
    encryption: Option<Encryption>,
    spec: DiskSpec,
    format: Format,
    size: u64,
    qcow2: Option<(ImageInfo, Vec<Snapshot>, Vec<BitmapInfo>)>,
}

pub(super) fn execute(matches: &ArgMatches) -> Result<ExitCode> {
    let mut next = Some(common::spec_to_read(matches, "file", "format")?);
    let mut all = Vec::new();
    while let Some(spec) = next.take() {
        let options = OpenOptions {
            backing: false,
            metadata_only: true,
            ..OpenOptions::default()
        };
        let image = common::open(&spec, options)?;
        let about = common::run(move || about(spec, image))?;
        if matches.get_flag("backing-chain") {
            next = below(&about);
        }
        all.push(about);
        // A chain that leads back to itself.
        if all.len() > 200 {
            break;
        }
    }
    if common::wants_json(matches) {
        let list: Vec<Value> = all.iter().map(as_json).collect();
        return match matches.get_flag("backing-chain") {
            true => output::print_json(&Value::Array(list)),
            false => output::print_json(&list.into_iter().next().unwrap_or_default()),
        };
    }
    let texts: Vec<String> = all.iter().map(as_text).collect();
    output::print(&texts.join("\n"))
}

async fn about(spec: DiskSpec, image: Image) -> Result<About, BlockError> {
    let failed = |source| BlockError::Qcow2 {
        what: "read",
        path: spec.file.clone(),
        source,
    };
    let qcow2 = match &image {
        Image::Raw(_) | Image::Luks(_) => None,
        Image::Qcow2(image) => Some((
            image.info(),
            image.snapshots().await.map_err(failed)?,
            image.bitmaps().await.map_err(failed)?,
        )),
    };
    let encryption = match &image {
        Image::Raw(_) => None,
        Image::Qcow2(image) => image.info().encryption,
        Image::Luks(image) => Some(image.storage().encryption().clone()),
    };
    Ok(About {
        encryption,
        format: image.format(),
        size: image.node().size(),
        qcow2,
        spec,
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn beside(image: &Path, name: &[u8]) -> std::path::PathBuf {
    let directory = image.parent().unwrap_or(Path::new(""));
    directory.join(text(name))
}

fn below(about: &About) -> Option<DiskSpec> {
    let (info, ..) = about.qcow2.as_ref()?;
    let name = info.references.backing_file.as_deref()?;
    let format = info.references.backing_format.as_deref();
    Some(DiskSpec {
        file: beside(&about.spec.file, name),
        format: match format {
            Some("qcow2") => Some(Format::Qcow2),
            Some("luks") => Some(Format::Luks),
            Some(_) => Some(Format::Raw),
            None => None,
        },
        ..about.spec.clone()
    })
}

/// Bytes that the file occupies on the host.
fn disk_size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.blocks() * 512)
}

fn compat(info: &ImageInfo) -> &'static str {
    match info.version {
        2 => "0.10",
        _ => "1.1",
    }
}

fn as_json(about: &About) -> Value {
    let mut map = Map::new();
    let mut put = |name: &str, value: Value| drop(map.insert(name.to_owned(), value));
    put("filename", json!(about.spec.file.display().to_string()));
    put("format", json!(about.format.word()));
    put("virtual-size", json!(about.size));
    put("actual-size", json!(disk_size(&about.spec.file)));
    put("dirty-flag", json!(false));
    if about.encryption.is_some() {
        put("encrypted", json!(true));
    }
    let Some((info, snapshots, bitmaps)) = &about.qcow2 else {
        if let Some(encryption) = &about.encryption {
            let data = Value::Object(encryption_json(encryption));
            put("format-specific", json!({ "type": "luks", "data": data }));
        }
        return Value::Object(map);
    };
    put("dirty-flag", json!(info.dirty));
    put("cluster-size", json!(info.cluster_size));
    if let Some(name) = &info.references.backing_file {
        put("backing-filename", json!(text(name)));
        let full = beside(&about.spec.file, name);
        put("full-backing-filename", json!(full.display().to_string()));
    }
    if let Some(format) = &info.references.backing_format {
        put("backing-filename-format", json!(format));
    }
    if !snapshots.is_empty() {
        let list: Vec<Value> = snapshots.iter().map(super::snapshot::as_json).collect();
        put("snapshots", Value::Array(list));
    }
    let mut data = Map::new();
    let mut put_data = |name: &str, value: Value| drop(data.insert(name.to_owned(), value));
    put_data("compat", json!(compat(info)));
    put_data("compression-type", json!(info.compression.word()));
    put_data("refcount-bits", json!(info.refcount_bits));
    if info.version >= 3 {
        put_data("lazy-refcounts", json!(info.lazy_refcounts));
        put_data("corrupt", json!(info.corrupt));
        put_data("extended-l2", json!(info.extended_l2));
    }
    if let Some(encryption) = &about.encryption {
        let mut encrypt = encryption_json(encryption);
        let format = match encryption {
            Encryption::Aes => "aes",
            Encryption::Luks(_) => "luks",
        };
        encrypt.insert("format".into(), json!(format));
        put_data("encrypt", Value::Object(encrypt));
    }
    if let Some(name) = &info.references.data_file {
        put_data("data-file", json!(text(name)));
        put_data("data-file-raw", json!(info.data_file_raw));
    }
    if !bitmaps.is_empty() {
        let list: Vec<Value> = bitmaps.iter().map(bitmap_json).collect();
        put_data("bitmaps", Value::Array(list));
    }
    put("format-specific", json!({ "type": "qcow2", "data": data }));
    Value::Object(map)
}

/// How an image is encrypted, in QEMU's words; `key-offset` and `payload-offset` are bytes.
fn encryption_json(encryption: &Encryption) -> Map<String, Value> {
    let mut map = Map::new();
    let Encryption::Luks(header) = encryption else {
        return map;
    };
    let mut put = |name: &str, value: Value| drop(map.insert(name.to_owned(), value));
    put(
        "cipher-alg",
        json!(header.cipher.algorithm_name(header.key_bytes)),
    );
    put("cipher-mode", json!(header.cipher.mode.name()));
    put("ivgen-alg", json!(header.cipher.iv_name()));
    if let Some(hash) = header.cipher.iv_hash_name() {
        put("ivgen-hash-alg", json!(hash));
    }
    put("hash-alg", json!(header.hash.name()));
    put("uuid", json!(header.uuid));
    put("payload-offset", json!(header.payload()));
    put("master-key-iters", json!(header.digest_iterations));
    let slots = header.slots.iter().zip(0..).map(|(slot, index)| {
        let offset = header.material(index).map_or(0, |place| place.start);
        match slot.active {
            false => json!({ "active": false, "key-offset": offset }),
            true => json!({
                "active": true,
                "iters": slot.iterations,
                "key-offset": offset,
                "stripes": slot.stripes,
            }),
        }
    });
    put("slots", Value::Array(slots.collect()));
    map
}

/// The same for people.
fn encryption_lines(encryption: &Encryption) -> Vec<String> {
    let Encryption::Luks(header) = encryption else {
        return vec!["encryption: AES-CBC, which is not secure: convert it to LUKS".into()];
    };
    let active: Vec<String> = header.active().map(|slot| slot.to_string()).collect();
    vec![
        "encryption: LUKS version 1".into(),
        format!(
            "    cipher: {} ({} bits of key)",
            header.cipher,
            header.key_bytes * 8
        ),
        format!("    hash: {}", header.hash.name()),
        format!("    uuid: {}", header.uuid),
        format!(
            "    key slots in use: {} of 8 ({})",
            active.len(),
            active.join(", ")
        ),
    ]
}

fn flags(bitmap: &BitmapInfo) -> Vec<&'static str> {
    let flags = [(bitmap.in_use, "in-use"), (bitmap.auto, "auto")];
    let set = flags.into_iter().filter(|(set, _)| *set);
    set.map(|(_, name)| name).collect()
}

fn bitmap_json(bitmap: &BitmapInfo) -> Value {
    json!({
        "name": bitmap.name,
        "granularity": bitmap.granularity,
        "flags": flags(bitmap),
    })
}

fn as_text(about: &About) -> String {
    let mut lines = vec![
        format!("image: {}", about.spec.file.display()),
        format!("file format: {}", about.format.word()),
        format!("virtual size: {} ({} bytes)", human(about.size), about.size),
        format!("disk size: {}", human(disk_size(&about.spec.file))),
    ];
    if let Some(encryption) = &about.encryption {
        lines.extend(encryption_lines(encryption));
    }
    if let Some((info, snapshots, bitmaps)) = &about.qcow2 {
        lines.push(format!("cluster_size: {}", info.cluster_size));
        if let Some(name) = &info.references.backing_file {
            lines.push(format!("backing file: {}", text(name)));
        }
        if let Some(format) = &info.references.backing_format {
            lines.push(format!("backing file format: {format}"));
        }
        if info.dirty {
            lines.push("not closed: its refcounts will be counted anew".into());
        }
        if !snapshots.is_empty() {
            lines.push("snapshots:".into());
            for snapshot in snapshots {
                let state = human(snapshot.vm_state_size);
                lines.push(format!(
                    "    {}: {} (VM state: {state})",
                    snapshot.id, snapshot.name
                ));
            }
        }
        lines.push("format specific information:".into());
        let mut specific = |name: &str, value: String| lines.push(format!("    {name}: {value}"));
        specific("compat", compat(info).into());
        specific("compression type", info.compression.word().into());
        specific("refcount bits", info.refcount_bits.to_string());
        if info.version >= 3 {
            specific("lazy refcounts", info.lazy_refcounts.to_string());
            specific("corrupt", info.corrupt.to_string());
            specific("extended l2", info.extended_l2.to_string());
        }
        if let Some(name) = &info.references.data_file {
            specific("data file", text(name));
            specific("data file raw", info.data_file_raw.to_string());
        }
        for bitmap in bitmaps {
            let flags = flags(bitmap).join(", ");
            let granularity = human(bitmap.granularity);
            specific(
                "bitmap",
                format!("{} (granularity {granularity}; {flags})", bitmap.name),
            );
        }
    }
    lines.push(String::new());
    lines.join("\n")
}
