//! Compressed clusters: raw deflate with a window of 4 KiB, or zstd.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::{Arc, PoisonError};

use flate2::{Compress, Compression as Level, Decompress, FlushCompress, FlushDecompress, Status};

use super::Qcow2Error;
use super::header::Compression;
use crate::sync::{Mutex, MutexGuard};

/// QEMU's decoder takes no larger window.
const WINDOW_BITS: u8 = 12;
/// zlib's and zstd's usual effort.
const ZLIB_LEVEL: u32 = 6;
const ZSTD_LEVEL: i32 = 3;

/// A cluster of `size` bytes from its stream; what follows the stream's end is not looked at.
pub(crate) fn decompress(
    kind: Compression,
    stream: &[u8],
    size: usize,
) -> Result<Vec<u8>, Qcow2Error> {
    const BAD: Qcow2Error = Qcow2Error::Corrupt("a compressed cluster cannot be decompressed");
    let mut out = vec![0; size];
    match kind {
        Compression::Zlib => {
            let mut decoder = Decompress::new(false);
            let mut status = Status::Ok;
            while decoder.total_out() < size as u64 && status != Status::StreamEnd {
                let (consumed, made) = (decoder.total_in(), decoder.total_out());
                let input = stream.get(consumed as usize..).unwrap_or_default();
                let room = out.get_mut(made as usize..).unwrap_or_default();
                status = decoder
                    .decompress(input, room, FlushDecompress::None)
                    .map_err(|_| BAD)?;
                if decoder.total_in() == consumed && decoder.total_out() == made {
                    break;
                }
            }
            if decoder.total_out() != size as u64 {
                return Err(BAD);
            }
        }
        Compression::Zstd => {
            let decoder = zstd::stream::read::Decoder::with_buffer(stream);
            let mut decoder = decoder.map_err(|_| BAD)?.single_frame();
            decoder.read_exact(&mut out).map_err(|_| BAD)?;
        }
    }
    Ok(out)
}

/// What compressing takes beside the cluster. Hundreds of KiB, so a thread keeps it: else most of
/// the memory of a large job would be the allocator's gaps, and much of its time page faults.
#[derive(Default)]
struct Encoder {
    zlib: Option<Compress>,
    zstd: Option<zstd::bulk::Compressor<'static>>,
    out: Vec<u8>,
}

thread_local! {
    static ENCODER: RefCell<Encoder> = RefCell::default();
}

/// The stream of a cluster; `None` when it would not be shorter.
pub(crate) fn compress(kind: Compression, cluster: &[u8]) -> io::Result<Option<Vec<u8>>> {
    ENCODER.with_borrow_mut(|encoder| encoder.compress(kind, cluster))
}

impl Encoder {
    fn compress(&mut self, kind: Compression, cluster: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let len = match kind {
            Compression::Zlib => {
                let encoder = self.zlib.get_or_insert_with(|| {
                    Compress::new_with_window_bits(Level::new(ZLIB_LEVEL), false, WINDOW_BITS)
                });
                encoder.reset();
                // There is no room for what is not shorter.
                self.out.resize(cluster.len().saturating_sub(1), 0);
                let status = encoder
                    .compress(cluster, &mut self.out, FlushCompress::Finish)
                    .map_err(io::Error::other)?;
                match status {
                    Status::StreamEnd => encoder.total_out() as usize,
                    _ => return Ok(None),
                }
            }
            Compression::Zstd => {
                let encoder = match &mut self.zstd {
                    Some(encoder) => encoder,
                    none => none.insert(zstd::bulk::Compressor::new(ZSTD_LEVEL)?),
                };
                self.out
                    .resize(zstd::zstd_safe::compress_bound(cluster.len()), 0);
                encoder.compress_to_buffer(cluster, self.out.as_mut_slice())?
            }
        };
        let stream = self.out.get(..len).filter(|_| len < cluster.len());
        Ok(stream.map(<[u8]>::to_vec))
    }
}

/// The clusters that were decompressed last: guests read them in pieces.
#[derive(Default)]
pub(crate) struct Decompressed(Mutex<VecDeque<(u64, Arc<Vec<u8>>)>>);

/// How many bytes of them are kept, but always one.
const KEPT: usize = 1 << 20;

impl Decompressed {
    fn entries(&self) -> MutexGuard<'_, VecDeque<(u64, Arc<Vec<u8>>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The cluster whose stream begins at `offset`.
    pub(crate) fn find(&self, offset: u64) -> Option<Arc<Vec<u8>>> {
        let entries = self.entries();
        let found = entries.iter().find(|(at, _)| *at == offset);
        found.map(|(_, cluster)| Arc::clone(cluster))
    }

    pub(crate) fn add(&self, offset: u64, cluster: &Arc<Vec<u8>>) {
        let mut entries = self.entries();
        while entries.len() > 1 && (entries.len() + 1) * cluster.len() > KEPT {
            entries.pop_front();
        }
        entries.push_back((offset, Arc::clone(cluster)));
    }

    /// No stream is where it was.
    pub(crate) fn clear(&self) {
        self.entries().clear();
    }

    /// The stream at `offset` is no more.
    pub(crate) fn forget(&self, offset: u64) {
        self.entries().retain(|(at, _)| *at != offset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compressed_is_decompressed() {
        let cluster: Vec<u8> = (0..65536u32).map(|i| (i / 300) as u8).collect();
        for kind in [Compression::Zlib, Compression::Zstd] {
            let mut stream = compress(kind, &cluster).unwrap().unwrap();
            assert!(stream.len() < cluster.len() / 10);
            assert!(decompress(kind, &stream[..stream.len() / 2], cluster.len()).is_err());
            // Streams are read up to the end of their last sector.
            stream.resize(stream.len().next_multiple_of(512), 0x55);
            assert_eq!(decompress(kind, &stream, cluster.len()).unwrap(), cluster);
            assert!(decompress(kind, &[0xff; 512], cluster.len()).is_err());
        }
    }

    #[test]
    fn noise_is_not_compressed() {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let cluster: Vec<u8> = (0..4096).map(|_| next()).collect();
        let text = vec![7; 8192];
        for kind in [Compression::Zlib, Compression::Zstd] {
            assert!(compress(kind, &cluster).unwrap().is_none());
            // What was given up leaves nothing behind in the encoder.
            let stream = compress(kind, &text).unwrap().unwrap();
            assert_eq!(decompress(kind, &stream, text.len()).unwrap(), text);
            assert_eq!(compress(kind, &text).unwrap().unwrap(), stream);
        }
    }
}
