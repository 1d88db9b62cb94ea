use bus::{Action, ShutdownCause};

use super::state::State;
use crate::clock::{ns_of, ticks_of};

/// Size of the block in ports.
pub const SIZE: u64 = 128;
/// PM1a event block: status, then enable; 4 ports.
pub const PM1_EVT: u64 = 0x00;
/// PM1a control block; 2 ports.
pub const PM1_CNT: u64 = 0x04;
/// Power management timer; 4 ports.
pub const PM_TMR: u64 = 0x08;
/// General purpose event block 0: status, then enable.
pub const GPE0: u64 = 0x20;
/// Ports of [`GPE0`].
pub const GPE0_LENGTH: u64 = 16;
/// SMI control and enable.
pub const SMI_EN: u64 = 0x30;

/// Advanced power management control: the FADT's SMI_CMD.
pub const APMC: u16 = 0xb2;
/// Advanced power management status.
pub const APMS: u16 = 0xb3;

/// Written to [`APMC`] to switch to ACPI mode: the FADT's ACPI_ENABLE.
pub const ACPI_ENABLE: u8 = 0x02;
/// Written to [`APMC`] to leave ACPI mode: the FADT's ACPI_DISABLE.
pub const ACPI_DISABLE: u8 = 0x03;

/// SLP_TYP of the DSDT's `_S5` package.
pub const SLP_TYP_S5: u16 = 0;

/// Frequency of the power management timer in Hz (ACPI 6.5 section 4.8.3.3).
pub const PM_TIMER_HZ: u64 = 3_579_545;

/// PM1 status and enable bits (ACPI 6.5 section 4.8.3.1).
pub mod pm1 {
    /// The timer's highest bit has changed.
    pub const TMR: u16 = 1 << 0;
    /// The firmware has released the global lock.
    pub const GBL: u16 = 1 << 5;
    /// The power button was pressed.
    pub const PWRBTN: u16 = 1 << 8;
    /// The sleep button was pressed.
    pub const SLPBTN: u16 = 1 << 9;
    /// The real-time clock's alarm.
    pub const RTC: u16 = 1 << 10;
    /// The machine has woken up. Status only.
    pub const WAK: u16 = 1 << 15;

    pub(super) const ENABLES: u16 = TMR | GBL | PWRBTN | SLPBTN | RTC;
}

const SCI_EN: u16 = 1 << 0;
const SLP_EN: u16 = 1 << 13;
/// SCI_EN is set through [`APMC`]; GBL_RLS and SLP_EN read as zero.
const CNT_STORED: u16 = 0x1c02;

/// Width of the power management timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TimerWidth {
    /// 24 bits, as the ICH9 has.
    #[default]
    Bits24,
    /// 32 bits: the FADT sets TMR_VAL_EXT.
    Bits32,
}

/// The ICH9's ACPI power management block (ICH9 datasheet 13.8.3) with the ports that belong
/// to it. `now` is guest time in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    state: State,
    width: TimerWidth,
}

impl Model {
    /// After power-on, in legacy mode.
    #[must_use]
    pub fn new(width: TimerWidth, now: u64) -> Self {
        let mut model = Self {
            state: State::default(),
            width,
        };
        model.state.tick = ticks_of(now, PM_TIMER_HZ);
        model
    }

    /// A block in `state`.
    #[must_use]
    pub fn from_state(width: TimerWidth, state: State) -> Self {
        Self { state, width }
    }

    /// The state.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Width of the timer.
    #[must_use]
    pub fn width(&self) -> TimerWidth {
        self.width
    }

    /// The level of the system control interrupt. Legacy mode has none.
    #[must_use]
    pub fn sci(&self) -> bool {
        let s = &self.state;
        self.acpi_mode()
            && (s.pm1_sts & s.pm1_en & pm1::ENABLES != 0 || s.gpe0_sts & s.gpe0_en != 0)
    }

    /// Sets PM1 status bits; tells whether the guest has enabled one of them.
    pub fn raise(&mut self, bits: u16) -> bool {
        self.state.pm1_sts |= bits;
        self.acpi_mode() && self.state.pm1_en & bits != 0
    }

    /// Sets the status of general purpose event `bit`, 0 to 63; tells whether the guest has
    /// enabled it.
    pub fn raise_gpe(&mut self, bit: u32) -> bool {
        let bits = 1u64.checked_shl(bit).unwrap_or(0);
        self.state.gpe0_sts |= bits;
        self.acpi_mode() && self.state.gpe0_en & bits != 0
    }

    /// Reads the byte at `offset` of the block.
    pub fn read(&mut self, offset: u64, now: u64) -> u8 {
        self.advance(now);
        let s = &self.state;
        let ticks = ticks_of(now, PM_TIMER_HZ);
        let timer = match self.width {
            TimerWidth::Bits24 => ticks & 0x00ff_ffff,
            TimerWidth::Bits32 => ticks & 0xffff_ffff,
        };
        match offset {
            0x00..0x04 => byte(u64::from(s.pm1_sts) | u64::from(s.pm1_en) << 16, offset),
            0x04..0x08 => byte(u64::from(s.pm1_cnt), offset - PM1_CNT),
            0x08..0x0c => byte(timer, offset - PM_TMR),
            0x20..0x28 => byte(s.gpe0_sts, offset - GPE0),
            0x28..0x30 => byte(s.gpe0_en, offset - GPE0 - GPE0_LENGTH / 2),
            0x30..0x34 => byte(u64::from(s.smi_en), offset - SMI_EN),
            // What is not there reads as zero in this block.
            _ => 0,
        }
    }

    /// Writes the byte at `offset` of the block.
    pub fn write(&mut self, offset: u64, value: u8, now: u64) -> Action {
        self.advance(now);
        let s = &mut self.state;
        match offset {
            0x00..0x02 => s.pm1_sts &= !(with_byte(0, offset, value) as u16),
            0x02..0x04 => {
                let en = with_byte(u64::from(s.pm1_en), offset - 2, value) as u16;
                s.pm1_en = en & pm1::ENABLES;
            }
            0x04..0x06 => {
                let cnt = with_byte(u64::from(s.pm1_cnt), offset - PM1_CNT, value) as u16;
                s.pm1_cnt = cnt & CNT_STORED | s.pm1_cnt & SCI_EN;
                if cnt & SLP_EN != 0 && cnt >> 10 & 7 == SLP_TYP_S5 {
                    return Action::Shutdown(ShutdownCause::GuestPowerOff);
                }
            }
            0x20..0x28 => s.gpe0_sts &= !with_byte(0, offset - GPE0, value),
            0x28..0x30 => {
                s.gpe0_en = with_byte(s.gpe0_en, offset - GPE0 - GPE0_LENGTH / 2, value);
            }
            0x30..0x34 => {
                s.smi_en = with_byte(u64::from(s.smi_en), offset - SMI_EN, value) as u32;
            }
            _ => (),
        }
        Action::None
    }

    /// Reads one of the single ports.
    #[must_use]
    pub fn read_port(&self, port: u16) -> u8 {
        match port {
            APMC => self.state.apmc,
            APMS => self.state.apms,
            _ => 0xff,
        }
    }

    /// Writes one of the single ports.
    pub fn write_port(&mut self, port: u16, value: u8) {
        let s = &mut self.state;
        match port {
            APMC => {
                s.apmc = value;
                match value {
                    ACPI_ENABLE => s.pm1_cnt |= SCI_EN,
                    ACPI_DISABLE => s.pm1_cnt &= !SCI_EN,
                    _ => (),
                }
            }
            APMS => s.apms = value,
            _ => (),
        }
    }

    /// Notes the timer's overflows up to `now`.
    pub fn advance(&mut self, now: u64) {
        let half = self.half_period();
        let tick = ticks_of(now, PM_TIMER_HZ);
        if tick / half != self.state.tick / half {
            self.state.pm1_sts |= pm1::TMR;
        }
        self.state.tick = tick;
    }

    /// When [`Model::advance`] would raise the interrupt of an overflow.
    #[must_use]
    pub fn deadline(&self, now: u64) -> Option<u64> {
        let s = &self.state;
        let waits = self.acpi_mode() && s.pm1_en & !s.pm1_sts & pm1::TMR != 0;
        waits.then(|| {
            let half = self.half_period();
            let next = (ticks_of(now, PM_TIMER_HZ) / half + 1).saturating_mul(half);
            ns_of(next, PM_TIMER_HZ)
        })
    }

    fn half_period(&self) -> u64 {
        match self.width {
            TimerWidth::Bits24 => 1 << 23,
            TimerWidth::Bits32 => 1 << 31,
        }
    }

    fn acpi_mode(&self) -> bool {
        self.state.pm1_cnt & SCI_EN != 0
    }
}

/// Byte `n`, 0 to 7, of `value`.
fn byte(value: u64, n: u64) -> u8 {
    (value >> (8 * (n & 7))) as u8
}

/// `value` with `byte` in place of its byte `n`, 0 to 7.
fn with_byte(value: u64, n: u64, byte: u8) -> u64 {
    let shift = 8 * (n & 7);
    value & !(0xff << shift) | u64::from(byte) << shift
}
