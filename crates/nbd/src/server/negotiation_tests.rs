use std::io;
use std::sync::Arc;

use block::Raw;
use block::storage::memory::Memory;

use super::super::export::{BitmapSource, Export};
use super::*;

struct Bitmap(&'static str);

impl BitmapSource for Bitmap {
    fn name(&self) -> &str {
        self.0
    }

    fn extents(&self, _offset: u64, len: u64, _most: usize) -> io::Result<Vec<(u64, bool)>> {
        Ok(vec![(len, false)])
    }
}

fn exports() -> Exports {
    let exports = Exports::default();
    let node = |size| Arc::new(Raw::new("memory".into(), Memory::new(size, false)));
    exports.add(Export::new("plain", node(512))).unwrap();
    let rich = Export {
        bitmaps: vec![Arc::new(Bitmap("one")), Arc::new(Bitmap("two"))],
        allocation_depth: true,
        writable: true,
        description: "much".into(),
        ..Export::new("rich", node(1 << 20))
    };
    exports.add(rich).unwrap();
    exports
}

/// Replies to an option: kinds, and data.
fn replies(mut bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let mut from = Reader(bytes);
        assert_eq!(from.u64(), Some(REPLY_MAGIC));
        let _option = from.u32().unwrap();
        let kind = from.u32().unwrap();
        let len = from.u32().unwrap() as usize;
        all.push((kind, from.bytes(len).unwrap().to_vec()));
        bytes = from.0;
    }
    all
}

fn kinds(bytes: &[u8]) -> Vec<u32> {
    replies(bytes).into_iter().map(|(kind, _)| kind).collect()
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat()
}

fn queries(export: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = string(export);
    data.extend_from_slice(&(queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|query| data.extend(string(query)));
    data
}

fn go(export: &str) -> Vec<u8> {
    [string(export), vec![0, 0]].concat()
}

fn names(bytes: &[u8]) -> Vec<String> {
    let contexts = replies(bytes).into_iter();
    let contexts = contexts.filter(|(kind, _)| *kind == reply::META_CONTEXT);
    contexts
        .map(|(_, data)| String::from_utf8(data[4..].to_vec()).unwrap())
        .collect()
}

fn chosen(next: Next) -> Chosen {
    match next {
        Next::Serve(chosen) => chosen,
        _ => panic!("the client has chosen"),
    }
}

#[test]
fn contexts_are_those_that_were_asked_for_and_of_that_export() {
    let exports = exports();
    let mut model = Negotiation::new(&exports, Tls::None);
    let early = model.option(
        option::SET_META_CONTEXT,
        &queries("rich", &["base:allocation"]),
    );
    assert_eq!(kinds(&early.0), [reply::ERR_INVALID]);
    model.option(option::STRUCTURED_REPLY, &[]);
    let mut list = |asked: &[&str]| {
        let (out, _) = model.option(option::LIST_META_CONTEXT, &queries("rich", asked));
        names(&out)
    };
    assert_eq!(
        list(&[]),
        [
            "base:allocation",
            "qemu:allocation-depth",
            "qemu:dirty-bitmap:one",
            "qemu:dirty-bitmap:two"
        ]
    );
    assert_eq!(list(&["qemu:dirty-bitmap:"]).len(), 2);
    assert_eq!(list(&["qemu:", "nothing"]).len(), 3);
    assert_eq!(list(&["base:"]), ["base:allocation"]);
    let wanted = [
        "qemu:dirty-bitmap:two",
        "qemu:",
        "base:allocation",
        "base:allocation",
    ];
    let (out, _) = model.option(option::SET_META_CONTEXT, &queries("rich", &wanted));
    assert_eq!(names(&out), ["base:allocation", "qemu:dirty-bitmap:two"]);
    let (out, next) = model.option(option::GO, &go("rich"));
    assert_eq!(kinds(&out), [reply::INFO, reply::INFO, reply::ACK]);
    let served = chosen(next);
    assert_eq!(served.contexts, [Context::Allocation, Context::Bitmap(1)]);
    assert_eq!(served.dialect, Dialect::Structured);
    // What was set for one export does not count for another.
    let mut model = Negotiation::new(&exports, Tls::None);
    model.option(option::STRUCTURED_REPLY, &[]);
    model.option(option::SET_META_CONTEXT, &queries("rich", &wanted));
    let (_, next) = model.option(option::GO, &go("plain"));
    assert!(chosen(next).contexts.is_empty());
}

#[test]
fn extended_headers_include_structured_replies_and_stay() {
    let exports = exports();
    let mut model = Negotiation::new(&exports, Tls::None);
    assert_eq!(
        kinds(&model.option(option::EXTENDED_HEADERS, &[]).0),
        [reply::ACK]
    );
    let back = model.option(option::STRUCTURED_REPLY, &[]);
    assert_eq!(kinds(&back.0), [reply::ERR_INVALID]);
    let (_, next) = model.option(option::GO, &go("rich"));
    assert_eq!(chosen(next).dialect, Dialect::Extended);
}

#[test]
fn nothing_is_told_before_tls_and_nothing_before_it_counts() {
    let exports = exports();
    let mut model = Negotiation::new(&exports, Tls::Required);
    for number in [
        option::LIST,
        option::GO,
        option::INFO,
        option::STRUCTURED_REPLY,
        99,
    ] {
        let (out, next) = model.option(number, &go("rich"));
        assert_eq!(kinds(&out), [reply::ERR_TLS_REQD]);
        assert!(matches!(next, Next::Option));
    }
    let (out, next) = model.option(option::EXPORT_NAME, b"rich");
    assert!(out.is_empty() && matches!(next, Next::End));
    assert!(matches!(
        model.option(option::STARTTLS, &[]).1,
        Next::StartTls
    ));
    model.tls_started();
    let again = model.option(option::STARTTLS, &[]);
    assert_eq!(kinds(&again.0), [reply::ERR_INVALID]);
    let early = model.option(option::LIST_META_CONTEXT, &queries("rich", &[]));
    assert_eq!(kinds(&early.0), [reply::ERR_INVALID]);
    assert_eq!(kinds(&model.option(option::LIST, &[]).0).len(), 3);
    let mut without = Negotiation::new(&exports, Tls::None);
    let refused = without.option(option::STARTTLS, &[]);
    assert_eq!(kinds(&refused.0), [reply::ERR_POLICY]);
}

#[test]
fn an_export_is_told_as_it_is() {
    let exports = exports();
    let mut model = Negotiation::new(&exports, Tls::None);
    let asked = [string("rich"), vec![0, 3, 0, 1, 0, 2, 0, 3]].concat();
    let (out, next) = model.option(option::INFO, &asked);
    assert!(matches!(next, Next::Option));
    let told: Vec<Vec<u8>> = replies(&out).into_iter().map(|(_, data)| data).collect();
    assert_eq!(told[0], b"\0\x01rich");
    assert_eq!(told[1], b"\0\x02much");
    let sizes = [1u32, 4096, LARGEST_PAYLOAD].map(u32::to_be_bytes).concat();
    assert_eq!(told[2], [&[0, 3][..], &sizes].concat());
    assert_eq!(told[3][..10], *b"\0\0\0\0\0\0\0\x10\0\0");
    // Simple replies only: reads cannot be asked for in one piece.
    let flags = u16::from_be_bytes([told[3][10], told[3][11]]);
    assert_eq!(flags & (transmission::SEND_DF | transmission::READ_ONLY), 0);
    let (out, _) = model.option(option::EXPORT_NAME, b"plain");
    assert_eq!(out.len(), 8 + 2 + ZEROES);
    assert_eq!(
        u16::from_be_bytes([out[8], out[9]]) & transmission::SEND_TRIM,
        0
    );
    assert!(!model.client_flags(4) && model.client_flags(3));
    assert_eq!(model.option(option::EXPORT_NAME, b"plain").0.len(), 8 + 2);
    let unknown = model.option(option::GO, &go("third"));
    assert_eq!(kinds(&unknown.0), [reply::ERR_UNKNOWN]);
    for bad in [
        &go("rich")[..5],
        &[go("rich"), vec![0]].concat(),
        &[0xff; 9],
    ] {
        assert_eq!(
            kinds(&model.option(option::GO, bad).0),
            [reply::ERR_INVALID]
        );
    }
}
