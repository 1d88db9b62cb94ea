//! The local APIC: registers, and nothing else (SDM vol. 3A chapter 11).
//!
//! ```text
//!   page at APIC_BASE ─┐                        ┌─▶ Effect::Ipi              to other processors
//!   x2APIC MSRs ───────┤ read, write ─▶ Lapic ──┤
//!   messages ──────────┘ accept                 ├─▶ Effect::EndOfInterrupt   to the I/O APIC
//!                        time ─▶ tick           └─▶ pending, acknowledge     to the processor
//! ```
//!
//! Time comes in with each call ([`Now`]); who owns the model arms a timer for
//! [`Lapic::deadline`].

mod message;
#[cfg(test)]
mod tests;
mod timer;

use x86::LapicState;
use x86::msr::{X2APIC_FIRST, apic_base};

pub(crate) use message::{Address, Delivery, Message, Target};
use timer::Timer;
pub(crate) use timer::{Deadline, Now};

/// Mask, and the modes of the LVT registers.
const MASKED: u32 = LapicState::LVT_MASKED;
const MODE: u32 = 7 << 8;
const MODE_FIXED: u32 = 0;
const MODE_NMI: u32 = 4 << 8;
const MODE_EXTINT: u32 = 7 << 8;

/// SVR: the APIC is enabled by software.
const SVR_ENABLED: u32 = 1 << 8;
/// Errors (SDM vol. 3A 11.5.3).
const ESR_SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
const ESR_RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;

/// Self-IPI register, which exists in x2APIC mode only.
const SELF_IPI: usize = 0x3f0;
const EOI: usize = 0xb0;
const ARBITRATION: usize = 0x90;
const REMOTE_READ: usize = 0xc0;
/// Vectors below this one cannot be sent.
const FIRST_VECTOR: u8 = 16;

/// LVT registers, and the bits of each that a guest can write.
const LVTS: [(usize, u32); 6] = [
    (LapicState::LVT_TIMER, 0x7_00ff),
    (LapicState::LVT_THERMAL, 0x1_07ff),
    (LapicState::LVT_PMC, 0x1_07ff),
    (LapicState::LVT_LINT0, 0x1_a7ff),
    (LapicState::LVT_LINT1, 0x1_a7ff),
    (LapicState::LVT_ERROR, 0x1_00ff),
];

/// What a write does outside of the APIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Effect {
    /// Nothing.
    None,
    /// An interprocessor interrupt.
    Ipi(Message),
    /// A level-triggered interrupt has ended.
    EndOfInterrupt(u8),
}

/// What an LVT register makes of its event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Local {
    /// Nothing, or an interrupt that is in IRR now.
    Done,
    /// A non-maskable interrupt.
    Nmi,
}

/// The guest gets #GP(0).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused;

/// One local APIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lapic {
    /// The register page, a word for every 16 bytes of it.
    regs: [u32; LapicState::LEN / 16],
    /// IA32_APIC_BASE.
    base: u64,
    /// The 32-bit ID, which x2APIC mode shows.
    id: u32,
    /// Errors since the last write of ESR.
    errors: u32,
    timer: Timer,
}

fn slot(offset: usize) -> usize {
    (offset / 16) & (LapicState::LEN / 16 - 1)
}

impl Lapic {
    /// After power-on.
    pub(crate) fn new(id: u32, bootstrap: bool) -> Self {
        let bsp = if bootstrap { apic_base::BSP } else { 0 };
        let mut lapic = Self {
            regs: [0; LapicState::LEN / 16],
            base: apic_base::RESET | bsp,
            id,
            errors: 0,
            timer: Timer::default(),
        };
        lapic.load(&LapicState::reset(id));
        lapic
    }

    /// An INIT: as after power-on, but for the base and the ID (SDM vol. 3A 11.4.7.3).
    pub(crate) fn init(&mut self) {
        self.load(&LapicState::reset(self.id));
        self.timer = Timer::default();
        self.errors = 0;
        if self.is_x2apic() {
            self.enter_x2apic();
        }
    }

    fn load(&mut self, state: &LapicState) {
        for (n, word) in self.regs.iter_mut().enumerate() {
            *word = state.get(n * 16);
        }
    }

    fn reg(&self, offset: usize) -> u32 {
        self.regs.get(slot(offset)).copied().unwrap_or_default()
    }

    fn set(&mut self, offset: usize, value: u32) {
        if let Some(word) = self.regs.get_mut(slot(offset)) {
            *word = value;
        }
    }

    /// IA32_APIC_BASE.
    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    /// Whether the APIC is enabled in its base register.
    pub(crate) fn is_enabled(&self) -> bool {
        self.base & apic_base::ENABLE != 0
    }

    fn is_x2apic(&self) -> bool {
        self.base & apic_base::EXTD != 0
    }

    fn is_software_enabled(&self) -> bool {
        self.is_enabled() && self.reg(LapicState::SVR) & SVR_ENABLED != 0
    }

    /// The register page, where there is one.
    pub(crate) fn page(&self) -> Option<u64> {
        (self.is_enabled() && !self.is_x2apic()).then_some(self.base & 0x000f_ffff_ffff_f000)
    }

    /// WRMSR of IA32_APIC_BASE (SDM vol. 3A 11.12.5).
    ///
    /// # Errors
    /// Reserved bits, or a change of mode that the manual forbids.
    pub(crate) fn set_base(
        &mut self,
        value: u64,
        phys_bits: u8,
        x2apic_offered: bool,
    ) -> Result<(), Refused> {
        let both = apic_base::ENABLE | apic_base::EXTD;
        let address = ((1u64 << phys_bits.min(52)) - 1) & !0xfff;
        let allowed = address | apic_base::BSP | both;
        let (from, to) = (self.base & both, value & both);
        let legal = match (from, to) {
            _ if to & apic_base::EXTD != 0 && !x2apic_offered => false,
            (_, apic_base::EXTD) => false,
            (0, to) => to != both,
            (from, apic_base::ENABLE) => from != both,
            _ => true,
        };
        if value & !allowed != 0 || !legal {
            return Err(Refused);
        }
        self.base = value;
        if to == 0 && from != 0 {
            self.load(&LapicState::reset(self.id));
            self.timer = Timer::default();
        } else if to == both && from != both {
            self.enter_x2apic();
        }
        Ok(())
    }

    /// x2APIC mode shows the whole ID, and derives the logical one from it (SDM vol. 3A 11.12.10).
    fn enter_x2apic(&mut self) {
        self.set(LapicState::ID, self.id);
        self.set(LapicState::LDR, self.x2apic_logical());
    }

    fn x2apic_logical(&self) -> u32 {
        (self.id >> 4) << 16 | 1 << (self.id & 0xf)
    }

    /// How messages find this APIC.
    pub(crate) fn address(&self) -> Address {
        Address {
            enabled: self.is_enabled(),
            x2apic: self.is_x2apic(),
            flat: self.reg(LapicState::DFR) >> 28 == 0xf,
            id: if self.is_x2apic() {
                self.id
            } else {
                self.reg(LapicState::ID) >> 24
            },
            logical: (self.reg(LapicState::LDR) >> 24) as u8,
        }
    }

    // Interrupts.

    fn bit(&self, bank: usize, vector: u8) -> bool {
        self.reg(bank + usize::from(vector / 32) * 16) >> (vector % 32) & 1 != 0
    }

    fn set_bit(&mut self, bank: usize, vector: u8, on: bool) {
        let offset = bank + usize::from(vector / 32) * 16;
        let bit = 1 << (vector % 32);
        let old = self.reg(offset);
        self.set(offset, if on { old | bit } else { old & !bit });
    }

    fn highest(&self, bank: usize) -> Option<u8> {
        (0..8u8).rev().find_map(|n| {
            let word = self.reg(bank + usize::from(n) * 16);
            let top = word.checked_ilog2()?;
            Some(n * 32 + top as u8)
        })
    }

    /// Takes a fixed interrupt in. A disabled APIC drops it.
    pub(crate) fn accept(&mut self, vector: u8, level: bool) {
        if !self.is_software_enabled() {
            return;
        }
        if vector < FIRST_VECTOR {
            self.error(ESR_RECEIVE_ILLEGAL_VECTOR);
            return;
        }
        self.set_bit(LapicState::IRR, vector, true);
        self.set_bit(LapicState::TMR, vector, level);
    }

    /// Priority of what is being handled, or of the task if that is higher (SDM vol. 3A
    /// 11.8.3.1).
    fn ppr(&self) -> u8 {
        let tpr = self.reg(LapicState::TPR) as u8;
        let isr = self.highest(LapicState::ISR).unwrap_or(0);
        if tpr >> 4 >= isr >> 4 {
            tpr
        } else {
            isr & 0xf0
        }
    }

    /// The interrupt that the processor is to take, if its flags let it.
    pub(crate) fn pending(&self) -> Option<u8> {
        if !self.is_software_enabled() {
            return None;
        }
        self.highest(LapicState::IRR)
            .filter(|vector| vector >> 4 > self.ppr() >> 4)
    }

    /// The processor takes this interrupt.
    pub(crate) fn acknowledge(&mut self, vector: u8) {
        self.set_bit(LapicState::IRR, vector, false);
        self.set_bit(LapicState::ISR, vector, true);
    }

    /// The highest interrupt in service has ended. Tells its vector if it was level-triggered.
    pub(crate) fn end_of_interrupt(&mut self) -> Option<u8> {
        let vector = self.highest(LapicState::ISR)?;
        self.set_bit(LapicState::ISR, vector, false);
        self.bit(LapicState::TMR, vector).then_some(vector)
    }

    /// Whether the end of the interrupt in service concerns nobody else, and nothing waits that
    /// it would let in: it may then be told by a flag in memory.
    pub(crate) fn end_is_quiet(&self) -> bool {
        match self.highest(LapicState::ISR) {
            Some(vector) => {
                !self.bit(LapicState::TMR, vector) && self.highest(LapicState::IRR).is_none()
            }
            None => false,
        }
    }

    /// Whether the PIC's interrupts reach the processor: a disabled APIC lets them through, an
    /// enabled one by LINT0 (SDM vol. 3A 11.5.1).
    pub(crate) fn takes_external(&self) -> bool {
        let lint0 = self.reg(LapicState::LVT_LINT0);
        !self.is_enabled() || lint0 & MASKED == 0 && lint0 & MODE == MODE_EXTINT
    }

    /// A performance counter has overflowed. On Intel's processors its LVT register is masked as
    /// it fires (SDM vol. 3A 11.5.1).
    pub(crate) fn performance_counter(&mut self, masks: bool) -> Local {
        let lvt = self.reg(LapicState::LVT_PMC);
        if lvt & MASKED != 0 {
            return Local::Done;
        }
        if masks {
            self.set(LapicState::LVT_PMC, lvt | MASKED);
        }
        match lvt & MODE {
            MODE_FIXED => {
                self.accept(lvt as u8, false);
                Local::Done
            }
            MODE_NMI => Local::Nmi,
            _ => Local::Done,
        }
    }

    fn error(&mut self, bit: u32) {
        let fresh = self.errors & bit == 0;
        self.errors |= bit;
        let lvt = self.reg(LapicState::LVT_ERROR);
        // An illegal vector in the error's own register must not raise an error again.
        if fresh && lvt & MASKED == 0 && lvt as u8 >= FIRST_VECTOR {
            self.accept(lvt as u8, false);
        }
    }

    // Registers.

    /// Task priority register.
    pub(crate) fn task_priority(&self) -> u8 {
        self.reg(LapicState::TPR) as u8
    }

    /// Sets the task priority register.
    pub(crate) fn set_task_priority(&mut self, value: u8) {
        self.set(LapicState::TPR, value.into());
    }

    /// Reads the register at this offset of the page.
    fn read_register(&mut self, offset: usize, now: Now) -> Option<u32> {
        Some(match offset {
            LapicState::PPR => self.ppr().into(),
            LapicState::TIMER_CURRENT => self.timer.current(now),
            LapicState::ID
            | LapicState::VERSION
            | LapicState::TPR
            | LapicState::LDR
            | LapicState::SVR
            | LapicState::ESR
            | LapicState::ICR_LOW
            | LapicState::TIMER_INITIAL
            | LapicState::TIMER_DIVIDE
            | 0x100..0x280 => self.reg(offset),
            LapicState::DFR | ARBITRATION | REMOTE_READ | LapicState::ICR_HIGH => {
                if self.is_x2apic() {
                    return None;
                }
                self.reg(offset)
            }
            _ if LVTS.iter().any(|(lvt, _)| *lvt == offset) => self.reg(offset),
            _ => return None,
        })
    }

    /// A load of `size` bytes at this offset of the page.
    pub(crate) fn read(&mut self, offset: u64, size: u8, now: Now) -> u64 {
        let at = (offset & 0xfff) as usize;
        let within = at % 16;
        if within + usize::from(size) > 4 {
            return 0;
        }
        match self.read_register(at & !15, now) {
            Some(value) => u64::from(value >> (8 * within)),
            None => {
                self.error(ESR_ILLEGAL_REGISTER);
                0
            }
        }
    }

    /// A store of `size` bytes at this offset of the page. Registers are written whole, others
    /// are not written at all (SDM vol. 3A 11.4.1).
    pub(crate) fn write(&mut self, offset: u64, size: u8, value: u64, now: Now) -> Effect {
        let at = (offset & 0xfff) as usize;
        if !at.is_multiple_of(16) || size < 4 {
            return Effect::None;
        }
        let value = value as u32;
        match at {
            EOI => self.write_eoi(),
            LapicState::ID => {
                self.set(LapicState::ID, value & 0xff00_0000);
                Effect::None
            }
            LapicState::LDR => {
                self.set(LapicState::LDR, value & 0xff00_0000);
                Effect::None
            }
            LapicState::DFR => {
                self.set(LapicState::DFR, value | 0x0fff_ffff);
                Effect::None
            }
            LapicState::ICR_HIGH => {
                self.set(LapicState::ICR_HIGH, value & 0xff00_0000);
                Effect::None
            }
            LapicState::ICR_LOW => {
                self.set(LapicState::ICR_LOW, value & 0x000c_cfff);
                let destination = self.reg(LapicState::ICR_HIGH) >> 24;
                self.send(Message::from_icr(value, destination))
            }
            LapicState::TPR => {
                self.set_task_priority(value as u8);
                Effect::None
            }
            _ => {
                if self.write_register(at, value, now).is_err() {
                    self.error(ESR_ILLEGAL_REGISTER);
                }
                Effect::None
            }
        }
    }

    /// Registers that both modes write alike.
    fn write_register(&mut self, offset: usize, value: u32, now: Now) -> Result<(), Refused> {
        match offset {
            LapicState::SVR => {
                self.set(LapicState::SVR, value & 0x1ff);
                if value & SVR_ENABLED == 0 {
                    for (lvt, _) in LVTS {
                        let masked = self.reg(lvt) | MASKED;
                        self.set(lvt, masked);
                    }
                }
            }
            LapicState::ESR => {
                let errors = std::mem::take(&mut self.errors);
                self.set(LapicState::ESR, errors);
            }
            LapicState::TIMER_INITIAL => {
                self.set(LapicState::TIMER_INITIAL, value);
                self.timer.start(value, now);
            }
            LapicState::TIMER_DIVIDE => {
                self.set(LapicState::TIMER_DIVIDE, value & 0xb);
                self.timer.set_divide(value, now);
            }
            _ => {
                let Some((lvt, mask)) = LVTS.iter().find(|(lvt, _)| *lvt == offset) else {
                    return Err(Refused);
                };
                let forced = if self.is_software_enabled() {
                    0
                } else {
                    MASKED
                };
                self.set(*lvt, value & mask | forced);
                if *lvt == LapicState::LVT_TIMER && self.timer.set_mode(value >> 17 & 3, now) {
                    self.set(LapicState::TIMER_INITIAL, 0);
                }
            }
        }
        Ok(())
    }

    fn write_eoi(&mut self) -> Effect {
        match self.end_of_interrupt() {
            Some(vector) => Effect::EndOfInterrupt(vector),
            None => Effect::None,
        }
    }

    fn send(&mut self, message: Message) -> Effect {
        let fixed = matches!(message.delivery, Delivery::Fixed | Delivery::LowestPriority);
        if fixed && message.vector < FIRST_VECTOR {
            self.error(ESR_SEND_ILLEGAL_VECTOR);
            return Effect::None;
        }
        Effect::Ipi(message)
    }

    /// RDMSR of an x2APIC register.
    ///
    /// # Errors
    /// There is none with this number, or the APIC is not in x2APIC mode.
    pub(crate) fn read_msr(&mut self, index: u32, now: Now) -> Result<u64, Refused> {
        let offset = self.msr_offset(index)?;
        match offset {
            LapicState::ICR_LOW => Ok(u64::from(self.reg(LapicState::ICR_HIGH)) << 32
                | u64::from(self.reg(LapicState::ICR_LOW))),
            EOI | SELF_IPI => Err(Refused),
            _ => self
                .read_register(offset, now)
                .map(u64::from)
                .ok_or(Refused),
        }
    }

    /// WRMSR of an x2APIC register (SDM vol. 3A 11.12.1).
    ///
    /// # Errors
    /// As [`Lapic::read_msr`], and where the register does not take the value.
    pub(crate) fn write_msr(
        &mut self,
        index: u32,
        value: u64,
        now: Now,
    ) -> Result<Effect, Refused> {
        let offset = self.msr_offset(index)?;
        if offset == LapicState::ICR_LOW {
            self.set(LapicState::ICR_LOW, value as u32 & 0x000c_cfff);
            self.set(LapicState::ICR_HIGH, (value >> 32) as u32);
            return Ok(self.send(Message::from_icr(value as u32, (value >> 32) as u32)));
        }
        let value = u32::try_from(value).map_err(|_| Refused)?;
        match offset {
            EOI if value == 0 => Ok(self.write_eoi()),
            LapicState::ESR if value == 0 => self
                .write_register(offset, value, now)
                .map(|()| Effect::None),
            EOI | LapicState::ESR => Err(Refused),
            LapicState::TPR if value <= 0xff => {
                self.set_task_priority(value as u8);
                Ok(Effect::None)
            }
            SELF_IPI if value <= 0xff => Ok(self.send(Message {
                vector: value as u8,
                delivery: Delivery::Fixed,
                level: false,
                target: Target::Myself,
            })),
            LapicState::TPR | SELF_IPI => Err(Refused),
            _ => {
                let allowed = LVTS
                    .iter()
                    .find(|(lvt, _)| *lvt == offset)
                    // Delivery status and remote IRR are read only, not reserved.
                    .map_or(u32::MAX, |(_, mask)| mask | 0x5000);
                if value & !allowed != 0 {
                    return Err(Refused);
                }
                self.write_register(offset, value, now)
                    .map(|()| Effect::None)
            }
        }
    }

    fn msr_offset(&self, index: u32) -> Result<usize, Refused> {
        if !self.is_enabled() || !self.is_x2apic() {
            return Err(Refused);
        }
        let n = index
            .checked_sub(X2APIC_FIRST)
            .filter(|n| *n < 0x40)
            .ok_or(Refused)?;
        Ok(n as usize * 16)
    }

    // Time.

    /// When [`Lapic::tick`] has something to do next.
    pub(crate) fn deadline(&self) -> Option<Deadline> {
        self.timer.deadline()
    }

    /// Lets the timer fire if it is time.
    pub(crate) fn tick(&mut self, now: Now) {
        if !self.timer.expire(now) {
            return;
        }
        let lvt = self.reg(LapicState::LVT_TIMER);
        if lvt & MASKED == 0 {
            self.accept(lvt as u8, false);
        }
    }

    /// IA32_TSC_DEADLINE; zero in the timer's other modes (SDM vol. 3A 11.5.4.1).
    pub(crate) fn tsc_deadline(&self) -> u64 {
        self.timer.tsc_deadline()
    }

    /// Sets IA32_TSC_DEADLINE; ignored in the timer's other modes.
    pub(crate) fn set_tsc_deadline(&mut self, value: u64) {
        self.timer.set_tsc_deadline(value);
    }

    // State.

    /// The registers.
    pub(crate) fn state(&self, now: Now) -> LapicState {
        let mut state = LapicState::from_bytes([0; LapicState::LEN]);
        for (n, word) in self.regs.iter().enumerate() {
            state.set(n * 16, *word);
        }
        state.set(LapicState::PPR, self.ppr().into());
        state.set(LapicState::TIMER_CURRENT, self.timer.current(now));
        state
    }

    /// Takes over registers. The TSC deadline comes after it, by its MSR.
    pub(crate) fn set_state(&mut self, base: u64, state: Option<&LapicState>, now: Now) {
        self.base = base;
        let Some(state) = state else {
            if self.is_x2apic() {
                self.enter_x2apic();
            }
            return;
        };
        self.load(state);
        self.errors = 0;
        if self.is_x2apic() {
            self.enter_x2apic();
        }
        self.timer = Timer::restore(
            state.get(LapicState::LVT_TIMER) >> 17 & 3,
            state.get(LapicState::TIMER_DIVIDE),
            state.get(LapicState::TIMER_INITIAL),
            state.get(LapicState::TIMER_CURRENT),
            now,
        );
    }
}
