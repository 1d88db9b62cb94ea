//! A persistent bitmap as it is when the export begins.

use std::io;
use std::ops::Range;

use block::{BlockError, Image};
use nbd::BitmapSource;

use crate::failure::{Failure, Result};
use crate::image::common;

/// The ranges that are dirty, in ascending order, with something clean in between.
pub(super) struct Frozen {
    name: String,
    dirty: Vec<Range<u64>>,
}

impl Frozen {
    /// Reads a bitmap of an image.
    pub(super) fn read(image: &Image, name: &str) -> Result<Self> {
        let Image::Qcow2(qcow2) = image.clone() else {
            return Err(Failure::Failed(format!(
                "{} is no qcow2 image, and has no bitmaps",
                image.node().name()
            )));
        };
        let named = name.to_owned();
        let dirty = common::run(move || async move {
            let read = qcow2.dirty_ranges(&named).await;
            read.map_err(|source| BlockError::Qcow2 {
                what: "read a bitmap of",
                path: block::Node::name(&*qcow2).into(),
                source,
            })
        });
        Ok(Self {
            name: name.to_owned(),
            dirty: dirty?,
        })
    }
}

impl BitmapSource for Frozen {
    fn name(&self) -> &str {
        &self.name
    }

    fn extents(&self, offset: u64, len: u64, most: usize) -> io::Result<Vec<(u64, bool)>> {
        let end = offset.saturating_add(len);
        let mut at = offset;
        let mut extents = Vec::new();
        // The first one that ends behind the offset.
        let mut next = self.dirty.partition_point(|range| range.end <= offset);
        while at < end && extents.len() < most {
            let (until, dirty) = match self.dirty.get(next) {
                Some(range) if range.start <= at => {
                    next += 1;
                    (range.end, true)
                }
                Some(range) => (range.start, false),
                None => (end, false),
            };
            let until = until.min(end);
            extents.push((until - at, dirty));
            at = until;
        }
        Ok(extents)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_alternate_and_stay_in_the_range() {
        let frozen = Frozen {
            name: "a".into(),
            dirty: vec![10..20, 30..40],
        };
        let extents = |offset, len, most| frozen.extents(offset, len, most).unwrap();
        assert_eq!(
            extents(0, 100, 9),
            [
                (10, false),
                (10, true),
                (10, false),
                (10, true),
                (60, false)
            ]
        );
        assert_eq!(extents(15, 10, 9), [(5, true), (5, false)]);
        assert_eq!(extents(15, 2, 9), [(2, true)]);
        assert_eq!(extents(20, 10, 9), [(10, false)]);
        assert_eq!(extents(0, 100, 2), [(10, false), (10, true)]);
        assert_eq!(extents(50, 5, 9), [(5, false)]);
    }
}
