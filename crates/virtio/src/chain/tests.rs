use memory::{GuestAddressSpace, KeepAlive};
use proptest::prelude::*;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::*;
use crate::queue::{Queue, QueueError};
use crate::testing::{Buffer, DriverQueue, Guest};

#[derive(FromBytes, IntoBytes, Immutable, Debug, PartialEq, Clone, Copy)]
#[repr(C)]
struct Header {
    kind: u32,
    sector: zerocopy::little_endian::U64,
}

fn chain(guest: &Guest, buffers: &[Buffer]) -> Chain {
    let mut driver = DriverQueue::new(guest, 32, 0);
    driver.offer(buffers).unwrap();
    let mut queue = Queue::new(driver.config()).unwrap();
    queue.pop(&guest.memory().memory()).unwrap().unwrap()
}

#[test]
fn objects_cross_segments() {
    let guest = Guest::new(1 << 20);
    let ram = guest.memory().memory();
    let bytes = [1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 9];
    guest.write(0x81000, &bytes[..3]);
    guest.write(0x82000, &bytes[3..]);
    let chain = chain(
        &guest,
        &[
            Buffer::readable(0x81000, 3),
            Buffer::readable(0x82000, 10),
            Buffer::writable(0x83000, 5),
            Buffer::writable(0x84000, 8),
        ],
    );
    let mut reader = chain.reader(&ram);
    let header: Header = reader.read_obj().unwrap();
    assert_eq!((header.kind, header.sector.get()), (1, 2));
    assert_eq!(reader.remaining(), 1);
    assert!(matches!(
        reader.read_obj::<u16>(),
        Err(QueueError::TooShort {
            wanted: 2,
            remaining: 1
        })
    ));
    assert_eq!(reader.read_obj::<u8>().unwrap(), 9);

    let mut writer = chain.writer(&ram);
    writer.write_obj(&header).unwrap();
    assert_eq!((writer.written(), writer.remaining()), (12, 1));
    assert!(writer.write_all(&[1, 2]).is_err());
    assert_eq!(writer.written(), 12, "a failed write writes nothing");
    assert_eq!(writer.write(&[1, 2]).unwrap(), 1);
    assert_eq!(guest.read(0x83000, 5), bytes[..5]);
}

#[test]
fn a_status_byte_is_split_off_the_data() {
    let guest = Guest::new(1 << 20);
    let ram = guest.memory().memory();
    let chain = chain(
        &guest,
        &[
            Buffer::writable(0x81000, 512),
            Buffer::writable(0x82000, 513),
        ],
    );
    let mut status = chain.writer(&ram);
    let data = status.split_at(1024).unwrap();
    let keep: KeepAlive = guest.memory().memory().into_inner();
    let mut buffer = data.io_buf(&keep).unwrap();
    assert_eq!(buffer.len(), 1024);
    buffer.advance(600);
    assert_eq!(buffer.iovecs().len(), 1);
    status.write_obj(&7u8).unwrap();
    assert_eq!(guest.read(0x82200, 1), [7]);
    let mut iovecs = Vec::new();
    data.iovecs(&mut iovecs).unwrap();
    assert_eq!(
        iovecs.iter().map(|v| v.iov_len).collect::<Vec<_>>(),
        [512, 512]
    );
    assert_eq!(status.written(), 1025);
}

#[test]
fn memory_that_is_gone_is_an_error() {
    let guest = Guest::new(1 << 20);
    let chain = chain(&guest, &[Buffer::readable(0x80000, 16)]);
    let smaller = Guest::new(0x10000);
    let ram = smaller.memory().memory();
    assert!(chain.reader(&ram).read_obj::<u8>().is_err());
    let keep = smaller.memory().memory().into_inner();
    assert!(chain.reader(&ram).io_buf(&keep).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However a chain is cut into segments and pieces, its bytes come through in order.
    #[test]
    fn cursors_agree_with_a_plain_buffer(
        lens in proptest::collection::vec(1..40u32, 1..20),
        cuts in proptest::collection::vec((0..3u8, 0..50usize), 0..30),
    ) {
        let guest = Guest::new(1 << 20);
        let ram = guest.memory().memory();
        let mut all: Vec<u8> = Vec::new();
        let mut buffers = Vec::new();
        for len in lens {
            let part: Vec<u8> = (0..len).map(|i| (all.len() as u32 + i) as u8).collect();
            buffers.push(Buffer::readable(guest.put(&part), len));
            all.extend(part);
        }
        let chain = chain(&guest, &buffers);
        let mut reader = chain.reader(&ram);
        let mut rest = all.as_slice();
        for (how, len) in cuts {
            prop_assert_eq!(reader.remaining(), rest.len());
            if len > rest.len() {
                prop_assert!(reader.skip(len).is_err());
                prop_assert!(reader.split_at(len).is_err());
                continue;
            }
            let (want, after) = rest.split_at(len);
            rest = after;
            let mut got = vec![0; len];
            match how {
                0 => reader.skip(len).unwrap(),
                1 => reader.read_exact(&mut got).unwrap(),
                _ => {
                    let mut part = reader.split_at(len).unwrap();
                    prop_assert_eq!(part.read(&mut got).unwrap(), len);
                    prop_assert_eq!(part.remaining(), 0);
                }
            }
            if how != 0 {
                prop_assert_eq!(got.as_slice(), want);
            }
        }
        let mut got = vec![0; rest.len() + 5];
        prop_assert_eq!(reader.read(&mut got).unwrap(), rest.len());
        prop_assert_eq!(&got[..rest.len()], rest);
    }
}
