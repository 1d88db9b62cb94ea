//! Power cuts: every write and flush is recorded, and every legal state of the disk at any moment
//! is opened again.

use std::sync::Mutex;

use super::*;
use crate::storage::Storage;

/// What was asked of the storage.
#[derive(Clone)]
enum Record {
    Write(u64, Vec<u8>),
    Resize(u64),
    /// It completed: everything that completed before is stable.
    Flush,
    /// The guest has begun to change these bytes of its disk.
    Touched(std::ops::Range<usize>),
    /// The guest was told that this much of its disk is stable.
    Stable(Vec<u8>),
}

/// A storage in memory that records. A write that is not flushed is lost in part or in whole,
/// sector by sector.
#[derive(Clone)]
pub(super) struct Recorder(Arc<Mutex<(Vec<u8>, Vec<Record>)>>);

impl Recorder {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new((bytes, Vec::new()))))
    }

    fn record(&self, record: Record) {
        let mut state = self.0.lock().unwrap();
        apply(&mut state.0, &record);
        state.1.push(record);
    }

    fn records(&self) -> Vec<Record> {
        self.0.lock().unwrap().1.clone()
    }
}

fn apply(bytes: &mut Vec<u8>, record: &Record) {
    match record {
        Record::Write(at, data) => {
            let end = *at as usize + data.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*at as usize..end].copy_from_slice(data);
        }
        Record::Resize(size) => bytes.resize(*size as usize, 0),
        Record::Flush | Record::Touched(_) | Record::Stable(_) => (),
    }
}

impl Storage for Recorder {
    async fn read(&self, buf: IoBuf, offset: u64) -> Transfer {
        event::yield_now().await;
        let state = self.0.lock().unwrap();
        let from = (offset as usize).min(state.0.len());
        let to = (from + buf.len()).min(state.0.len());
        buffer::zero(&buf, buf.len());
        buffer::scatter(&buf, &state.0[from..to]);
        drop(state);
        (Ok(()), buf)
    }

    async fn write(&self, buf: IoBuf, offset: u64, flags: WriteFlags) -> Transfer {
        event::yield_now().await;
        let mut data = vec![0; buf.len()];
        buffer::gather(&buf, &mut data);
        self.record(Record::Write(offset, data));
        if flags.fua {
            self.record(Record::Flush);
        }
        (Ok(()), buf)
    }

    async fn flush(&self) -> io::Result<()> {
        // What completes meanwhile is not covered.
        self.record(Record::Flush);
        event::yield_now().await;
        Ok(())
    }

    /// Reads of what was discarded are not zeros, to see who relies on that.
    async fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        event::yield_now().await;
        let size = self.size();
        let end = (offset + len).min(size);
        if offset < end {
            let rubbish = vec![0xdd; (end - offset) as usize];
            self.record(Record::Write(offset, rubbish));
        }
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, len: u64, flags: ZeroFlags) -> io::Result<()> {
        let zeros = IoBuf::from_vec(vec![0; len as usize]);
        let fua = flags.fua;
        self.write(zeros, offset, WriteFlags { fua }).await.0
    }

    async fn extent(&self, _offset: u64, len: u64) -> io::Result<(bool, u64)> {
        Ok((true, len))
    }

    async fn reserve(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn grows_with_zeros(&self) -> bool {
        true
    }

    fn size(&self) -> u64 {
        self.0.lock().unwrap().0.len() as u64
    }

    async fn resize(&self, size: u64) -> Result<(), BlockError> {
        self.record(Record::Resize(size));
        Ok(())
    }

    fn limits(&self) -> Limits {
        Limits {
            request_alignment: 1,
            memory_alignment: 1,
            logical_block_size: 512,
            physical_block_size: 4096,
            discard_granularity: 4096,
            can_discard: true,
        }
    }

    fn is_read_only(&self) -> bool {
        false
    }
}

struct Sequence(u64);

impl Sequence {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

const SIZE: u64 = 384 << 10;

pub(super) async fn open_recorder(image: Recorder) -> Result<Qcow2<Recorder>, Qcow2Error> {
    let files = Opened {
        image,
        data: None,
        backing: None,
    };
    Qcow2::open("recorded".into(), files, Qcow2Options::default()).await
}

/// A guest writes, discards and flushes; what it was told is recorded with the rest.
async fn guest(options: CreateOptions, seed: u64) -> (Vec<u8>, Vec<Record>) {
    let recorder = Recorder::new(Vec::new());
    create(&recorder, &options).await.unwrap();
    let start = recorder.0.lock().unwrap().0.clone();
    let recorder = Recorder::new(start.clone());
    let disk = open_recorder(recorder.clone()).await.unwrap();
    let mut model = vec![0; SIZE as usize];
    let mut sequence = Sequence(seed | 1);
    for _ in 0..14 {
        // Requests of one round do not touch the same sectors.
        let area = SIZE / 4;
        let mut requests = Vec::new();
        for part in 0..4 {
            let at = part * area + sequence.next(area / 512) * 512;
            let len = (sequence.next(24) + 1) * 512;
            let len = len.min((part + 1) * area - at);
            let kind = sequence.next(9);
            // Compressed clusters are whole ones.
            let (at, len) = match kind {
                8 => {
                    let unit = options.cluster_size;
                    let at = at / unit * unit;
                    (at.max(part * area), unit.min((part + 1) * area - at))
                }
                _ => (at, len),
            };
            let seed = sequence.next(256) as u8;
            let range = at as usize..(at + len) as usize;
            match kind {
                0..=4 | 8 => model[range].copy_from_slice(&pattern(seed, len as usize)),
                5 | 6 => model[range].fill(0),
                _ => (),
            }
            if kind != 7 {
                recorder.record(Record::Touched(at as usize..(at + len) as usize));
            }
            let disk = &disk;
            requests.push(async move {
                match kind {
                    0..=4 => write(disk, at, pattern(seed, len as usize)).await,
                    5 | 6 => {
                        let flags = ZeroFlags {
                            may_unmap: kind == 5,
                            fua: false,
                        };
                        disk.write_zeroes(at, len, flags).await.unwrap();
                    }
                    8 => {
                        let data = pattern(seed, len as usize);
                        disk.write_compressed(data, at).await.unwrap();
                    }
                    _ => drop(read(disk, at, len as usize).await),
                }
            });
        }
        event::join_all(requests).await;
        if sequence.next(3) == 0 {
            disk.flush().await.unwrap();
            recorder.record(Record::Stable(model.clone()));
        }
    }
    disk.close().await.unwrap();
    recorder.record(Record::Stable(model));
    (start, recorder.records())
}

/// The disk after a power cut behind `cut` records: everything up to the last flush, and any part
/// of what came after it.
fn after_power_cut(
    start: &[u8],
    records: &[Record],
    cut: usize,
    sequence: &mut Sequence,
) -> (Vec<u8>, Option<Vec<u8>>, usize) {
    let flushed = records[..cut]
        .iter()
        .rposition(|record| matches!(record, Record::Flush))
        .unwrap_or(0);
    let mut bytes = start.to_vec();
    for record in &records[..flushed] {
        apply(&mut bytes, record);
    }
    let mood = sequence.next(3);
    for record in &records[flushed..cut] {
        match record {
            Record::Write(at, data) => {
                for (i, sector) in data.chunks(512).enumerate() {
                    let kept = match mood {
                        0 => sequence.next(2) == 0,
                        1 => sequence.next(8) == 0,
                        _ => sequence.next(8) != 0,
                    };
                    if kept {
                        let at = at + i as u64 * 512;
                        apply(&mut bytes, &Record::Write(at, sector.to_vec()));
                    }
                }
            }
            other => apply(&mut bytes, other),
        }
    }
    let stable = records[..cut]
        .iter()
        .enumerate()
        .rev()
        .find_map(|(at, record)| match record {
            Record::Stable(model) => Some((at, model.clone())),
            _ => None,
        });
    match stable {
        Some((at, model)) => (bytes, Some(model), at),
        None => (bytes, None, 0),
    }
}

fn power_cuts(options: CreateOptions, seed: u64) {
    let lazy = options.lazy_refcounts;
    let (start, records) = run(move || guest(options, seed));
    let mut sequence = Sequence(seed.wrapping_mul(77) | 1);
    for cut in 1..=records.len() {
        let (bytes, stable, told) = after_power_cut(&start, &records, cut, &mut sequence);
        // What the guest was told is there, unless it was written again since.
        let mut untouched = vec![true; SIZE as usize];
        for record in &records[told.min(cut)..cut] {
            if let Record::Touched(range) = record {
                untouched[range.clone()].fill(false);
            }
        }
        let (report, data) = run(move || async move {
            let disk = open_recorder(Recorder::new(bytes)).await.unwrap();
            let report = disk.check(None).await.unwrap();
            let data = read(&disk, 0, SIZE as usize).await;
            (report, data)
        });
        assert_eq!(
            (report.corruptions, report.check_errors),
            (0, 0),
            "cut {cut} of {}, lazy {lazy}: {:?}",
            records.len(),
            report.messages
        );
        if let Some(model) = stable {
            let lost = (0..SIZE as usize).find(|at| untouched[*at] && data[*at] != model[*at]);
            assert_eq!(lost, None, "cut {cut}: what was flushed is lost");
        }
    }
}

#[test]
fn no_power_cut_corrupts_or_loses_what_was_flushed() {
    power_cuts(
        CreateOptions {
            cluster_size: 4096,
            ..CreateOptions::new(SIZE)
        },
        1,
    );
}

#[test]
fn no_power_cut_corrupts_the_smallest_clusters() {
    power_cuts(
        CreateOptions {
            cluster_size: 512,
            refcount_bits: 64,
            ..CreateOptions::new(SIZE)
        },
        7,
    );
}

#[test]
fn no_power_cut_corrupts_lazy_refcounts() {
    power_cuts(
        CreateOptions {
            cluster_size: 4096,
            lazy_refcounts: true,
            ..CreateOptions::new(SIZE)
        },
        11,
    );
}

#[test]
fn no_power_cut_corrupts_subclusters() {
    power_cuts(
        CreateOptions {
            cluster_size: 16384,
            extended_l2: true,
            ..CreateOptions::new(SIZE)
        },
        13,
    );
}
