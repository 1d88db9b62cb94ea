use serde::{Deserialize, Serialize};

use super::ThrottleLimits;

macro_rules! legacy {
    ($($field:ident = $limit:ident,)*) => {
        /// The arguments of QMP's block_set_io_throttle (qapi/block-core.json, BlockIOThrottle).
        /// Numbers are those of [`ThrottleLimits`] under older names, where `rd` is read and `wr`
        /// is write; 0 is no limit.
        #[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct BlockIoThrottle {
            /// Name of the drive.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub device: Option<String>,
            /// Name or path of the device.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub id: Option<String>,
            /// bps-total.
            pub bps: u64,
            /// bps-read.
            pub bps_rd: u64,
            /// bps-write.
            pub bps_wr: u64,
            /// iops-total.
            pub iops: u64,
            /// iops-read.
            pub iops_rd: u64,
            /// iops-write.
            pub iops_wr: u64,
            $(
                #[doc = concat!(stringify!($limit), " of [`ThrottleLimits`].")]
                #[serde(default, skip_serializing_if = "Option::is_none")]
                pub $field: Option<u64>,
            )*
            /// Name of the group in which the disk shall be from now on.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub group: Option<String>,
        }

        impl From<&BlockIoThrottle> for ThrottleLimits {
            fn from(given: &BlockIoThrottle) -> Self {
                let some = |value: u64| (value != 0).then_some(value);
                Self {
                    bps_total: some(given.bps),
                    bps_read: some(given.bps_rd),
                    bps_write: some(given.bps_wr),
                    iops_total: some(given.iops),
                    iops_read: some(given.iops_rd),
                    iops_write: some(given.iops_wr),
                    $($limit: given.$field,)*
                }
            }
        }

        impl From<&ThrottleLimits> for BlockIoThrottle {
            fn from(limits: &ThrottleLimits) -> Self {
                Self {
                    bps: limits.bps_total.unwrap_or(0),
                    bps_rd: limits.bps_read.unwrap_or(0),
                    bps_wr: limits.bps_write.unwrap_or(0),
                    iops: limits.iops_total.unwrap_or(0),
                    iops_rd: limits.iops_read.unwrap_or(0),
                    iops_wr: limits.iops_write.unwrap_or(0),
                    $($field: limits.$limit,)*
                    ..Self::default()
                }
            }
        }
    };
}

legacy! {
    bps_max = bps_total_max,
    bps_rd_max = bps_read_max,
    bps_wr_max = bps_write_max,
    iops_max = iops_total_max,
    iops_rd_max = iops_read_max,
    iops_wr_max = iops_write_max,
    bps_max_length = bps_total_max_length,
    bps_rd_max_length = bps_read_max_length,
    bps_wr_max_length = bps_write_max_length,
    iops_max_length = iops_total_max_length,
    iops_rd_max_length = iops_read_max_length,
    iops_wr_max_length = iops_write_max_length,
    iops_size = iops_size,
}
