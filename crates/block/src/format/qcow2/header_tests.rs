use proptest::prelude::*;

use super::*;

pub(crate) fn sample() -> Header {
    Header {
        version: 3,
        cluster_bits: 16,
        size: 1 << 30,
        crypt_method: 0,
        l1_size: 2,
        l1_offset: 0x30000,
        refcount_table_offset: 0x10000,
        refcount_table_clusters: 1,
        snapshots: 0,
        snapshots_offset: 0,
        incompatible: 0,
        compatible: 1,
        autoclear: 0,
        refcount_order: 4,
        compression: Compression::Zlib,
        unknown_fields: Vec::new(),
        backing_file: Some(b"base.img".to_vec()),
        backing_format: Some("raw".into()),
        data_file: None,
        bitmaps: None,
        encryption: None,
        other_extensions: vec![(0x1234_5678, vec![1, 2, 3])],
    }
}

fn padded(header: &Header) -> Vec<u8> {
    let mut bytes = header.encode().unwrap();
    bytes.resize(1 << header.cluster_bits, 0);
    bytes
}

#[test]
fn what_is_written_is_read() {
    let mut header = sample();
    header.add_feature_names();
    header.unknown_fields = vec![7; 16];
    header.bitmaps = Some(BitmapsExtension {
        count: 3,
        directory_size: 96,
        directory_offset: 0x50000,
    });
    assert_eq!(Header::parse(&padded(&header)).unwrap(), header);
    header.version = 2;
    header.compatible = 0;
    header.unknown_fields.clear();
    assert_eq!(Header::parse(&padded(&header)).unwrap(), header);
}

#[test]
fn impossible_headers_are_refused() {
    let refused = |change: fn(&mut Header)| {
        let mut header = sample();
        change(&mut header);
        Header::parse(&padded(&header)).unwrap_err().to_string()
    };
    assert!(refused(|h| h.crypt_method = 2).contains("LUKS"));
    assert!(refused(|h| h.incompatible = 1 << 9).contains("feature 9"));
    assert!(refused(|h| h.l1_size = 1).contains("L1"));
    assert!(refused(|h| h.l1_size = 1 << 30).contains("L1"));
    assert!(refused(|h| h.l1_offset = 5).contains("L1"));
    assert!(refused(|h| h.refcount_table_clusters = 1 << 20).contains("refcount"));
    assert!(refused(|h| h.refcount_order = 7).contains("64 bits"));
    assert!(refused(|h| h.snapshots = 70000).contains("snapshot"));
    assert!(refused(|h| h.incompatible = incompatible::COMPRESSION).contains("compression"));
    let mut bytes = padded(&sample());
    bytes[23] = 22;
    assert!(matches!(
        Header::parse(&bytes),
        Err(Qcow2Error::ClusterBits(22))
    ));
    bytes[0] = 0;
    assert!(matches!(Header::parse(&bytes), Err(Qcow2Error::NotQcow2)));
}

proptest! {
    #[test]
    fn no_header_panics(
        changes in prop::collection::vec((0..200usize, any::<u8>()), 1..20),
        length in 0..1000usize,
    ) {
        let mut bytes = padded(&sample());
        for (at, value) in changes {
            bytes[at] = value;
        }
        bytes.truncate(length.max(120));
        if let Ok(header) = Header::parse(&bytes) {
            // A header that is understood can be written, or has no room.
            let _ = header.encode();
        }
    }
}
