//! The device as the driver sees it: configuration space, features and what a request means.
//! No memory, file or thread.

use block::Operation;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, little_endian as le};

/// Feature bits (VIRTIO 1.3 section 5.2.3).
pub(super) mod feature {
    pub const SEG_MAX: u64 = 1 << 2;
    pub const RO: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const TOPOLOGY: u64 = 1 << 10;
    pub const CONFIG_WCE: u64 = 1 << 11;
    pub const MQ: u64 = 1 << 12;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Request types (VIRTIO 1.3 section 5.2.6).
mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// The only flag of a discard or write zeroes segment.
const FLAG_UNMAP: u32 = 1;

/// Bytes of a sector, the unit of the protocol whatever the block size.
pub(super) const SECTOR: u64 = 512;
/// Bytes of the answer to GET_ID.
pub(super) const ID_LEN: usize = 20;
/// Segments of one discard or write zeroes request.
const MAX_SEGMENTS: u32 = 32;
/// Sectors of one such segment: 2 GiB less 1 MiB, so that lengths stay multiples of any block.
const MAX_SEGMENT_SECTORS: u32 = (2 << 21) - (2 << 10);
/// Offset of `writeback` in the configuration space.
const WRITEBACK: u64 = 32;

/// What the driver is told about a request (VIRTIO 1.3 section 5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoErr = 1,
    Unsupp = 2,
}

/// struct virtio_blk_config (VIRTIO 1.3 section 5.2.4), as far as our features reach.
#[derive(Debug, Clone, IntoBytes, Immutable)]
#[repr(C, packed)]
struct Config {
    capacity: le::U64,
    size_max: le::U32,
    seg_max: le::U32,
    cylinders: le::U16,
    heads: u8,
    sectors: u8,
    blk_size: le::U32,
    physical_block_exp: u8,
    alignment_offset: u8,
    min_io_size: le::U16,
    opt_io_size: le::U32,
    writeback: u8,
    unused0: u8,
    num_queues: le::U16,
    max_discard_sectors: le::U32,
    max_discard_seg: le::U32,
    discard_sector_alignment: le::U32,
    max_write_zeroes_sectors: le::U32,
    max_write_zeroes_seg: le::U32,
    write_zeroes_may_unmap: u8,
    unused1: [u8; 3],
}

/// struct virtio_blk_req up to its data.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Header {
    pub kind: le::U32,
    pub reserved: le::U32,
    pub sector: le::U64,
}

impl Header {
    /// How statistics count the request; `None` for one that is not counted.
    pub fn operation(&self) -> Option<Operation> {
        match self.kind.get() {
            kind::IN => Some(Operation::Read),
            kind::OUT | kind::WRITE_ZEROES => Some(Operation::Write),
            kind::FLUSH => Some(Operation::Flush),
            kind::DISCARD => Some(Operation::Unmap),
            _ => None,
        }
    }
}

/// struct virtio_blk_discard_write_zeroes.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Segment {
    pub sector: le::U64,
    pub num_sectors: le::U32,
    pub flags: le::U32,
}

/// What does not change while the device lives.
#[derive(Debug, Clone)]
pub(super) struct Model {
    pub read_only: bool,
    pub can_discard: bool,
    /// Bytes, a power of two, at least 512.
    pub logical_block_size: u32,
    /// Bytes, a power of two, at least the logical one.
    pub physical_block_size: u32,
    /// Bytes.
    pub discard_granularity: u32,
    pub num_queues: u16,
    pub queue_size: u16,
    pub serial: [u8; ID_LEN],
}

/// What the driver wants, with offsets and lengths in bytes and within the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    Read { offset: u64 },
    Write { offset: u64 },
    Flush,
    GetId,
    Discard,
    WriteZeroes,
}

/// A checked range of a discard or write zeroes request, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub offset: u64,
    pub len: u64,
    pub unmap: bool,
}

impl Model {
    pub fn features(&self) -> u64 {
        let mut features = feature::SEG_MAX
            | feature::BLK_SIZE
            | feature::FLUSH
            | feature::TOPOLOGY
            | feature::CONFIG_WCE;
        if self.num_queues > 1 {
            features |= feature::MQ;
        }
        if self.read_only {
            return features | feature::RO;
        }
        if self.can_discard {
            features |= feature::DISCARD;
        }
        features | feature::WRITE_ZEROES
    }

    /// Reads the configuration space. `capacity` counts sectors.
    pub fn config_read(&self, capacity: u64, writeback: bool, offset: u64, data: &mut [u8]) {
        let exponent = (self.physical_block_size / self.logical_block_size)
            .checked_ilog2()
            .unwrap_or(0);
        let zeroes = |value: u32| le::U32::new(if self.read_only { 0 } else { value });
        let discard = |value: u32| zeroes(if self.can_discard { value } else { 0 });
        let config = Config {
            capacity: capacity.into(),
            size_max: 0.into(),
            // Header and status take one descriptor each.
            seg_max: u32::from(self.queue_size.saturating_sub(2).max(1)).into(),
            cylinders: 0.into(),
            heads: 0,
            sectors: 0,
            blk_size: self.logical_block_size.into(),
            physical_block_exp: exponent as u8,
            alignment_offset: 0,
            min_io_size: 0.into(),
            opt_io_size: 0.into(),
            writeback: writeback.into(),
            unused0: 0,
            num_queues: self.num_queues.into(),
            max_discard_sectors: discard(MAX_SEGMENT_SECTORS),
            max_discard_seg: discard(MAX_SEGMENTS),
            discard_sector_alignment: discard(
                self.discard_granularity.max(self.logical_block_size) / SECTOR as u32,
            ),
            max_write_zeroes_sectors: zeroes(MAX_SEGMENT_SECTORS),
            max_write_zeroes_seg: zeroes(MAX_SEGMENTS),
            write_zeroes_may_unmap: u8::from(self.can_discard && !self.read_only),
            unused1: [0; 3],
        };
        let bytes = config.as_bytes();
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| bytes.get(offset..))
            .unwrap_or_default();
        let (there, beyond) = data.split_at_mut(rest.len().min(data.len()));
        there.copy_from_slice(&rest[..there.len()]);
        beyond.fill(0);
    }

    /// What a write to the configuration space makes of `writeback`; `None` when it does not
    /// touch it.
    pub fn config_write(&self, offset: u64, data: &[u8]) -> Option<bool> {
        let at = usize::try_from(WRITEBACK.checked_sub(offset)?).ok()?;
        data.get(at).map(|byte| byte & 1 != 0)
    }

    /// What the driver wants by `header`, whose request has room for `readable` bytes of data
    /// behind the header and `writable` bytes in front of the status. `capacity` counts sectors,
    /// `features` are the negotiated ones.
    pub fn request(
        &self,
        header: &Header,
        readable: u64,
        writable: u64,
        capacity: u64,
        features: u64,
    ) -> Result<Request, Status> {
        let sector = header.sector.get();
        match header.kind.get() {
            kind::IN => {
                let offset = self.transfer(sector, writable, capacity)?;
                Ok(Request::Read { offset })
            }
            kind::OUT if self.read_only => Err(Status::IoErr),
            kind::OUT => {
                let offset = self.transfer(sector, readable, capacity)?;
                Ok(Request::Write { offset })
            }
            kind::FLUSH => Ok(Request::Flush),
            kind::GET_ID => Ok(Request::GetId),
            kind::DISCARD if features & feature::DISCARD != 0 => {
                self.segments(readable)?;
                Ok(Request::Discard)
            }
            kind::WRITE_ZEROES if features & feature::WRITE_ZEROES != 0 => {
                self.segments(readable)?;
                Ok(Request::WriteZeroes)
            }
            _ => Err(Status::Unsupp),
        }
    }

    /// The offset in bytes of a transfer that is within the disk and made of whole blocks.
    fn transfer(&self, sector: u64, len: u64, capacity: u64) -> Result<u64, Status> {
        let block = u64::from(self.logical_block_size);
        let offset = sector.checked_mul(SECTOR).ok_or(Status::IoErr)?;
        let end = offset.checked_add(len).ok_or(Status::IoErr)?;
        let fits = end <= capacity.saturating_mul(SECTOR);
        let whole = len != 0 && (offset | len).is_multiple_of(block);
        if fits && whole {
            Ok(offset)
        } else {
            Err(Status::IoErr)
        }
    }

    fn segments(&self, len: u64) -> Result<(), Status> {
        let size = size_of::<Segment>() as u64;
        let whole = len != 0 && len.is_multiple_of(size) && len / size <= u64::from(MAX_SEGMENTS);
        if whole { Ok(()) } else { Err(Status::IoErr) }
    }

    /// Checks one segment of a discard or write zeroes request.
    pub fn extent(
        &self,
        request: Request,
        segment: &Segment,
        capacity: u64,
    ) -> Result<Extent, Status> {
        let flags = segment.flags.get();
        let unmap = flags & FLAG_UNMAP != 0;
        if flags & !FLAG_UNMAP != 0 || (unmap && request == Request::Discard) {
            return Err(Status::Unsupp);
        }
        let sectors = segment.num_sectors.get();
        if sectors > MAX_SEGMENT_SECTORS {
            return Err(Status::IoErr);
        }
        let len = u64::from(sectors) * SECTOR;
        let offset = self.transfer(segment.sector.get(), len, capacity)?;
        Ok(Extent { offset, len, unmap })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn model() -> Model {
        Model {
            read_only: false,
            can_discard: true,
            logical_block_size: 512,
            physical_block_size: 4096,
            discard_granularity: 4096,
            num_queues: 4,
            queue_size: 256,
            serial: *b"0123456789abcdefghij",
        }
    }

    fn header(kind: u32, sector: u64) -> Header {
        Header {
            kind: kind.into(),
            reserved: 0.into(),
            sector: sector.into(),
        }
    }

    #[test]
    fn configuration_has_the_layout_of_the_specification() {
        let mut config = [0xaa; 64];
        model().config_read(0x1_0000_0002, true, 0, &mut config);
        let u16_at = |at: usize| u16::from_le_bytes([config[at], config[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        assert_eq!((u32_at(0), u32_at(4)), (2, 1));
        assert_eq!(u32_at(12), 254);
        assert_eq!(u32_at(20), 512);
        assert_eq!(config[24], 3);
        assert_eq!(config[32], 1);
        assert_eq!(u16_at(34), 4);
        assert_eq!(u32_at(44), 8);
        assert_eq!(config[56], 1);
        assert_eq!(config[60..], [0; 4]);
        let mut beyond = [0xaa; 8];
        model().config_read(1, true, u64::MAX - 3, &mut beyond);
        assert_eq!(beyond, [0; 8]);
    }

    #[test]
    fn writeback_is_the_only_writable_byte() {
        assert_eq!(model().config_write(32, &[1]), Some(true));
        assert_eq!(model().config_write(30, &[1, 1, 0, 1]), Some(false));
        assert_eq!(model().config_write(33, &[1]), None);
        assert_eq!(model().config_write(0, &[0xff; 32]), None);
    }

    #[test]
    fn requests_outside_of_the_disk_fail() {
        let m = model();
        let read = |sector, len| m.request(&header(kind::IN, sector), 0, len, 8, !0);
        assert_eq!(read(0, 4096), Ok(Request::Read { offset: 0 }));
        assert_eq!(read(7, 512), Ok(Request::Read { offset: 3584 }));
        for (sector, len) in [
            (8, 512),
            (7, 1024),
            (u64::MAX, 512),
            (1 << 55, 512),
            (0, 0),
            (0, 511),
        ] {
            assert_eq!(read(sector, len), Err(Status::IoErr), "{sector} {len}");
        }
    }

    #[test]
    fn blocks_of_4096_bytes_are_not_split() {
        let m = Model {
            logical_block_size: 4096,
            ..model()
        };
        let write = |sector, len| m.request(&header(kind::OUT, sector), len, 0, 64, !0);
        assert_eq!(write(8, 4096), Ok(Request::Write { offset: 4096 }));
        assert_eq!(write(1, 4096), Err(Status::IoErr));
        assert_eq!(write(8, 512), Err(Status::IoErr));
    }

    #[test]
    fn what_was_not_offered_is_unsupported() {
        let m = Model {
            read_only: true,
            ..model()
        };
        let features = m.features();
        let ask = |kind| m.request(&header(kind, 0), 16, 16, 64, features);
        assert_eq!(ask(kind::OUT), Err(Status::IoErr));
        assert_eq!(ask(kind::DISCARD), Err(Status::Unsupp));
        assert_eq!(ask(kind::WRITE_ZEROES), Err(Status::Unsupp));
        assert_eq!(ask(0x8000_0000), Err(Status::Unsupp));
        assert_eq!(ask(kind::FLUSH), Ok(Request::Flush));
    }

    #[test]
    fn extents_are_checked() {
        let m = model();
        let extent = |request, sector: u64, sectors: u32, flags: u32| {
            let segment = Segment {
                sector: sector.into(),
                num_sectors: sectors.into(),
                flags: flags.into(),
            };
            m.extent(request, &segment, 100)
        };
        let zeroed = Extent {
            offset: 512,
            len: 1024,
            unmap: true,
        };
        assert_eq!(extent(Request::WriteZeroes, 1, 2, 1), Ok(zeroed));
        assert_eq!(extent(Request::Discard, 1, 2, 1), Err(Status::Unsupp));
        assert_eq!(extent(Request::Discard, 1, 2, 2), Err(Status::Unsupp));
        assert_eq!(extent(Request::Discard, 99, 2, 0), Err(Status::IoErr));
        assert_eq!(extent(Request::Discard, 0, u32::MAX, 0), Err(Status::IoErr));
    }

    proptest! {
        #[test]
        fn nothing_that_is_accepted_reaches_beyond_the_disk(
            kind in prop_oneof![Just(kind::IN), Just(kind::OUT), any::<u32>()],
            sector in prop_oneof![0..200u64, any::<u64>()],
            len in prop_oneof![(0..300u64).prop_map(|n| n * 512), 0..1u64 << 33],
            capacity in prop_oneof![0..200u64, 0..1u64 << 54],
        ) {
            let request = model().request(&header(kind, sector), len, len, capacity, !0);
            if let Ok(Request::Read { offset } | Request::Write { offset }) = request {
                prop_assert!(offset + len <= capacity * 512);
                prop_assert_eq!(len % 512, 0);
            }
        }
    }
}
