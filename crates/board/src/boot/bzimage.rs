//! The header of a Linux bzImage (Documentation/arch/x86/boot.rst of the Linux kernel).

use super::Problem;

const MAGIC: &[u8] = b"HdrS";
const MAGIC_OFFSET: usize = 0x202;
const BOOT_FLAG: &[u8] = b"\x55\xaa";
const BOOT_FLAG_OFFSET: usize = 0x1fe;
/// Where the header begins, in the file and in the zero page.
pub const HEADER_OFFSET: usize = 0x1f1;
/// Byte that says where it ends: 0x202 and what stands here.
const HEADER_JUMP_OFFSET: usize = 0x201;
/// End of the room that the zero page has for it.
const HEADER_END_MAX: usize = 0x290;
const SECTOR: u64 = 512;
const DEFAULT_LOAD: u64 = 0x10_0000;
const DEFAULT_SETUP_SECTORS: u8 = 4;

/// What the setup header of a bzImage says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetupHeader {
    /// Protocol version, e.g. 0x20f for 2.15.
    pub version: u16,
    /// Offset of the protected-mode code in the file, bytes.
    pub code_offset: u64,
    /// Length of the protected-mode code in the file, bytes.
    pub code_len: u64,
    /// Where the protected-mode code is to be loaded.
    pub load: u64,
    /// Bytes of memory that the kernel needs from `load` until it has found its way.
    pub init_size: u64,
    /// It can be entered in 64-bit mode, at `load + 0x200`.
    pub entry_64: bool,
    /// Last address that an initrd may have.
    pub initrd_addr_max: u64,
    /// Longest command line, bytes without the terminating zero.
    pub cmdline_max: usize,
    /// The compressed kernel: offset in the file and length, bytes.
    pub payload: Option<(u64, u64)>,
    /// The header's bytes for the zero page, from [`HEADER_OFFSET`].
    pub raw: Vec<u8>,
}

impl SetupHeader {
    /// Whether a file that begins so is a bzImage.
    #[must_use]
    pub fn is_bzimage(head: &[u8]) -> bool {
        let at = |offset: usize, magic| head.get(offset..).is_some_and(|b| b.starts_with(magic));
        at(BOOT_FLAG_OFFSET, BOOT_FLAG) && at(MAGIC_OFFSET, MAGIC)
    }

    /// Reads the header from the first KiB of a file of `file_len` bytes.
    ///
    /// # Errors
    /// The file is shorter than the header says, too old, or a zImage.
    pub fn parse(head: &[u8], file_len: u64) -> Result<Self, Problem> {
        const LOADED_HIGH: u64 = 1 << 0;
        const KERNEL_64: u64 = 1 << 0;
        const PARAGRAPH: u64 = 16;
        const OLD_INITRD_MAX: u64 = 0x37ff_ffff;
        const OLD_CMDLINE_MAX: usize = 255;

        let short = || Problem::from(format!("it is cut off after {file_len} bytes"));
        let header_end =
            MAGIC_OFFSET + usize::from(*head.get(HEADER_JUMP_OFFSET).ok_or_else(short)?);
        let header_end = header_end.min(HEADER_END_MAX);
        let raw = head.get(HEADER_OFFSET..header_end).ok_or_else(short)?;
        // Fields behind the end of an older header read as zero.
        let field = |offset: usize, len: usize| {
            let bytes = raw.get(offset - HEADER_OFFSET..).unwrap_or_default();
            bytes
                .iter()
                .take(len)
                .rev()
                .fold(0_u64, |value, byte| value << 8 | u64::from(*byte))
        };

        let version = field(0x206, 2) as u16;
        let since = |minimum: u16| version >= minimum;
        if !since(0x0202) {
            return Err(format!(
                "its boot protocol {}.{:02} is older than 2.02 (Linux 2.4)",
                version >> 8,
                version & 0xff
            )
            .into());
        }
        if field(0x211, 1) & LOADED_HIGH == 0 {
            return Err("it is a zImage, which loads below 1 MiB; build a bzImage".into());
        }

        let setup_sectors = match field(0x1f1, 1) as u8 {
            0 => DEFAULT_SETUP_SECTORS,
            sectors => sectors,
        };
        let code_offset = (u64::from(setup_sectors) + 1) * SECTOR;
        let rest = file_len
            .checked_sub(code_offset)
            .filter(|rest| *rest != 0)
            .ok_or_else(short)?;
        // Older headers have 16 bits only, and signatures may follow the code.
        let code_len = match field(0x1f4, 4) * PARAGRAPH {
            size if since(0x0204) && size != 0 => {
                if rest + PARAGRAPH <= size {
                    return Err(format!(
                        "it is cut off: {file_len} bytes, and its header says {}",
                        code_offset + size
                    )
                    .into());
                }
                rest.min(size)
            }
            _ => rest,
        };

        let relocatable = since(0x0205) && field(0x234, 1) != 0;
        let preferred = field(0x258, 8);
        let load = if since(0x020a) && relocatable && preferred >= DEFAULT_LOAD {
            preferred
        } else {
            DEFAULT_LOAD
        };
        let init_size = if since(0x020a) { field(0x260, 4) } else { 0 };
        let payload = (since(0x0208) && field(0x24c, 4) != 0)
            .then(|| (code_offset + field(0x248, 4), field(0x24c, 4)));

        Ok(Self {
            version,
            code_offset,
            code_len,
            load,
            init_size: init_size.max(code_len),
            entry_64: since(0x020c) && field(0x236, 2) & KERNEL_64 != 0,
            initrd_addr_max: match field(0x22c, 4) {
                max if since(0x0203) && max != 0 => max,
                _ => OLD_INITRD_MAX,
            },
            cmdline_max: match field(0x238, 4) {
                max if since(0x0206) && max != 0 => max as usize,
                _ => OLD_CMDLINE_MAX,
            },
            payload,
            raw: raw.to_vec(),
        })
    }
}
