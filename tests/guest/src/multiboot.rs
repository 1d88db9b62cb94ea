//! Kernels of a few bytes: 32-bit ELF files with a Multiboot 1 header, put together by hand.
//!
//! They run in the state of the Multiboot specification (version 0.6.96, section 3.2): protected
//! mode, flat segments, interrupts off.

/// Where the one segment goes.
const BASE: u32 = 0x10_0000;
/// ELF header and one program header.
const HEADERS: u32 = 52 + 32;
/// magic, flags, checksum.
const MULTIBOOT: [u32; 3] = [0x1bad_b002, 0, 0xe452_4ffe];
/// First port of COM1.
const COM1: u16 = 0x3f8;

/// Machine code under construction.
#[derive(Clone, Debug, Default)]
pub struct Program {
    code: Vec<u8>,
}

impl Program {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Address of the next instruction.
    fn here(&self) -> u32 {
        BASE + HEADERS + 12 + u32::try_from(self.code.len()).unwrap_or(u32::MAX)
    }

    fn add(mut self, code: &[u8]) -> Self {
        self.code.extend_from_slice(code);
        self
    }

    /// Writes `text` to the first serial port, without waiting for it to have room.
    #[must_use]
    pub fn print(self, text: &str) -> Self {
        // jmp over the text.
        let length = u32::try_from(text.len() + 1).unwrap_or(0);
        let program = self.add(&[0xe9]).add(&length.to_le_bytes());
        let address = program.here();
        program
            .add(text.as_bytes())
            .add(&[0])
            // mov esi, address
            .add(&[0xbe])
            .add(&address.to_le_bytes())
            .port(COM1)
            // next: lodsb; test al, al; jz done; out dx, al; jmp next; done:
            .add(&[0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf8])
    }

    /// `mov dx, port`.
    fn port(self, port: u16) -> Self {
        self.add(&[0x66, 0xba]).add(&port.to_le_bytes())
    }

    /// Writes a byte to a port.
    #[must_use]
    pub fn out(self, port: u16, value: u8) -> Self {
        // mov al, value; out dx, al
        self.port(port).add(&[0xb0, value, 0xee])
    }

    /// Sends back what comes in at the first serial port, for ever.
    #[must_use]
    pub fn echo(self) -> Self {
        // start: mov dx, COM1 + 5; wait: in al, dx; test al, 1; jz wait
        self.port(COM1 + 5)
            .add(&[0xec, 0xa8, 0x01, 0x74, 0xfb])
            .port(COM1)
            // in al, dx; out dx, al; jmp start
            .add(&[0xec, 0xee, 0xeb, 0xef])
    }

    /// Shuts the processor down: an exception with an empty interrupt descriptor table.
    #[must_use]
    pub fn triple_fault(self) -> Self {
        // The table's limit and address, all zero, after a jmp over them.
        let program = self.add(&[0xeb, 0x06]);
        let table = program.here();
        program
            .add(&[0; 6])
            // lidt [table]; int3
            .add(&[0x0f, 0x01, 0x1d])
            .add(&table.to_le_bytes())
            .add(&[0xcc])
    }

    /// Stops for ever, with interrupts off.
    #[must_use]
    pub fn halt(self) -> Self {
        // cli; again: hlt; jmp again
        self.add(&[0xfa, 0xf4, 0xeb, 0xfd])
    }

    /// The file.
    #[must_use]
    pub fn elf(&self) -> Vec<u8> {
        let entry = BASE + HEADERS + 12;
        let size = HEADERS + 12 + u32::try_from(self.code.len()).unwrap_or(0);
        let mut file = Vec::new();
        // ELFCLASS32, ELFDATA2LSB, EV_CURRENT; ET_EXEC, EM_386 (System V ABI, i386).
        file.extend_from_slice(b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0");
        file.extend([2_u16, 3].iter().flat_map(|half| half.to_le_bytes()));
        file.extend(
            [1_u32, entry, 52, 0, 0]
                .iter()
                .flat_map(|word| word.to_le_bytes()),
        );
        file.extend(
            [52_u16, 32, 1, 0, 0, 0]
                .iter()
                .flat_map(|half| half.to_le_bytes()),
        );
        // PT_LOAD of the whole file, readable, writable and executable.
        let segment = [1, 0, BASE, BASE, size, size, 7, 4096_u32];
        file.extend(segment.iter().flat_map(|word| word.to_le_bytes()));
        file.extend(MULTIBOOT.iter().flat_map(|word| word.to_le_bytes()));
        file.extend_from_slice(&self.code);
        file
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_stands_where_the_loader_looks_for_it() {
        let file = Program::new().print("hello").halt().elf();
        let word = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
        let headers = HEADERS as usize;
        assert!(headers.is_multiple_of(4) && headers < 8192);
        assert_eq!(word(headers), 0x1bad_b002);
        let sum = (0..3).fold(0_u32, |sum, i| sum.wrapping_add(word(headers + 4 * i)));
        assert_eq!(sum, 0);
        // The entry point is the first instruction: the jmp over the text.
        assert_eq!(word(24), BASE + HEADERS + 12);
        assert_eq!(file[headers + 12], 0xe9);
        assert_eq!(word(52 + 16) as usize, file.len());
    }
}
