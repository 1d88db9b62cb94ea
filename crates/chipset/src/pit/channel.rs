use super::state::{Access, ChannelState};

/// One counter of the 8254, seen at a tick `now` of its input clock. Nothing here runs: the count
/// and the output are functions of the tick at which counting started.
pub(super) struct Channel<'a>(pub &'a mut ChannelState);

impl Channel<'_> {
    /// A control word for this counter (not a latch or read-back command).
    pub fn control(&mut self, value: u8) {
        let gate = self.0.gate;
        let mode = value >> 1 & 7;
        *self.0 = ChannelState {
            // Bit 2 of the mode does not count in modes 2 and 3.
            mode: if mode > 5 { mode & 3 } else { mode },
            bcd: value & 1 != 0,
            access: match value >> 4 & 3 {
                1 => Access::Low,
                2 => Access::High,
                _ => Access::Both,
            },
            gate,
            reload: None,
            next_reload: None,
            start: None,
            held: None,
            write_low: None,
            read_high: false,
            latch: None,
            status: None,
        };
    }

    /// One byte of a count.
    pub fn write(&mut self, value: u8, now: u64) {
        let count = match self.0.access {
            Access::Low => u16::from(value),
            Access::High => u16::from(value) << 8,
            Access::Both => match self.0.write_low.take() {
                None => {
                    self.0.write_low = Some(value);
                    // In mode 0 the first byte stops the counter.
                    if self.0.mode == 0 {
                        self.0.start = None;
                        self.0.held = None;
                    }
                    return;
                }
                Some(low) => u16::from_le_bytes([low, value]),
            },
        };
        self.load(self.reload_of(count), now);
    }

    fn load(&mut self, reload: u32, now: u64) {
        self.settle(now);
        let c = &mut *self.0;
        match c.mode {
            1 | 5 => match c.start {
                Some(_) => c.next_reload = Some(reload),
                None => c.reload = Some(reload),
            },
            2 | 3 if c.start.is_some() => c.next_reload = Some(reload),
            _ => {
                c.reload = Some(reload);
                c.next_reload = None;
                if c.gate {
                    c.start = Some(now);
                    c.held = None;
                } else {
                    c.start = None;
                    c.held = Some(0);
                }
            }
        }
    }

    /// The gate input changes.
    pub fn set_gate(&mut self, gate: bool, now: u64) {
        self.settle(now);
        let counted = self.counted(now);
        let c = &mut *self.0;
        let rose = gate && !c.gate;
        let fell = !gate && c.gate;
        c.gate = gate;
        match c.mode {
            0 | 4 if fell && c.start.is_some() => {
                c.held = counted;
                c.start = None;
            }
            0 | 4 if rose => {
                if let Some(held) = c.held.take() {
                    c.start = Some(now.saturating_sub(held));
                }
            }
            2 | 3 if fell => c.start = None,
            1 | 2 | 3 | 5 if rose => {
                if let Some(next) = c.next_reload.take() {
                    c.reload = Some(next);
                }
                if c.reload.is_some() {
                    c.start = Some(now);
                    c.held = None;
                }
            }
            _ => (),
        }
    }

    /// In modes 2 and 3 a new count takes over when a period ends.
    pub fn settle(&mut self, now: u64) {
        let c = &mut *self.0;
        if !matches!(c.mode, 2 | 3) {
            return;
        }
        if let (Some(start), Some(reload), Some(next)) = (c.start, c.reload, c.next_reload) {
            let end = start.saturating_add(u64::from(reload));
            if end <= now {
                c.start = Some(end);
                c.reload = Some(next);
                c.next_reload = None;
            }
        }
    }

    /// The output at `now`.
    pub fn output(&self, now: u64) -> bool {
        let c = &*self.0;
        let (Some(counted), Some(reload)) = (self.counted(now), c.reload) else {
            return c.mode != 0;
        };
        let reload = u64::from(reload);
        match c.mode {
            0 | 1 => counted >= reload,
            2 => counted % reload != reload - 1 || reload == 1,
            3 => counted % reload < reload.div_ceil(2),
            _ => counted != reload,
        }
    }

    /// How often the output rises after tick `from` and up to tick `to`.
    pub fn rises(&self, from: u64, to: u64) -> u64 {
        let c = &*self.0;
        let (Some(start), Some(reload)) = (c.start, c.reload) else {
            return 0;
        };
        let reload = u64::from(reload);
        let upto = |tick: u64| match c.mode {
            2 | 3 => tick.saturating_sub(start) / reload,
            0 | 1 => u64::from(tick >= start.saturating_add(reload)),
            _ => u64::from(tick >= start.saturating_add(reload + 1)),
        };
        upto(to).saturating_sub(upto(from))
    }

    /// The first tick after `now` at which the output rises.
    pub fn next_rise(&self, now: u64) -> Option<u64> {
        let c = &*self.0;
        let (start, reload) = (c.start?, u64::from(c.reload?));
        let at = match c.mode {
            2 | 3 => {
                let periods = now.saturating_sub(start) / reload + 1;
                start.saturating_add(periods.saturating_mul(reload))
            }
            0 | 1 => start.saturating_add(reload),
            _ => start.saturating_add(reload + 1),
        };
        (at > now).then_some(at)
    }

    /// Latches the count, unless one is latched already.
    pub fn latch_count(&mut self, now: u64) {
        if self.0.latch.is_none() {
            let bytes = if self.0.access == Access::Both { 2 } else { 1 };
            self.0.latch = Some((self.count(now), bytes));
        }
    }

    /// Latches the status, unless one is latched already.
    pub fn latch_status(&mut self, now: u64) {
        let c = &*self.0;
        let null_count = c.reload.is_none() || c.next_reload.is_some();
        let access = match c.access {
            Access::Low => 1,
            Access::High => 2,
            Access::Both => 3,
        };
        let status = u8::from(self.output(now)) << 7
            | u8::from(null_count) << 6
            | access << 4
            | c.mode << 1
            | u8::from(c.bcd);
        self.0.status.get_or_insert(status);
    }

    /// Reads status or count.
    pub fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.0.status.take() {
            return status;
        }
        let (count, last) = match self.0.latch {
            Some((count, left)) => {
                self.0.latch = (left > 1).then_some((count, 1));
                (count, left == 1)
            }
            None => (self.count(now), self.0.read_high),
        };
        let [low, high] = count.to_le_bytes();
        match self.0.access {
            Access::Low => low,
            Access::High => high,
            Access::Both => {
                if self.0.latch.is_none() {
                    self.0.read_high = !last && !self.0.read_high;
                }
                if last { high } else { low }
            }
        }
    }

    /// Ticks counted so far.
    fn counted(&self, now: u64) -> Option<u64> {
        self.0
            .start
            .map(|start| now.saturating_sub(start))
            .or(self.0.held)
    }

    fn count(&self, now: u64) -> u16 {
        let c = &*self.0;
        let Some(reload) = c.reload.map(u64::from) else {
            return 0;
        };
        let modulus = if c.bcd { 10_000 } else { 0x1_0000 };
        let value = match (self.counted(now), c.mode) {
            (None, _) => reload,
            (Some(counted), 2) => reload - counted % reload,
            (Some(counted), 3) => {
                // The count falls by two and runs down twice in a period; an odd count is high
                // for one tick longer.
                let phase = counted % reload;
                let high = reload.div_ceil(2);
                let passed = if phase < high { phase } else { phase - high };
                (reload & !1).saturating_sub(2 * passed)
            }
            (Some(counted), _) => (reload + modulus - counted % modulus) % modulus,
        };
        let value = value % modulus;
        if c.bcd { to_bcd(value) } else { value as u16 }
    }

    fn reload_of(&self, count: u16) -> u32 {
        let value = if self.0.bcd {
            from_bcd(count)
        } else {
            u32::from(count)
        };
        match value {
            0 if self.0.bcd => 10_000,
            0 => 0x1_0000,
            value => value,
        }
    }
}

fn to_bcd(value: u64) -> u16 {
    [1000, 100, 10, 1]
        .iter()
        .fold(0, |bcd, unit| bcd << 4 | (value / unit % 10) as u16)
}

fn from_bcd(bcd: u16) -> u32 {
    [12, 8, 4, 0]
        .iter()
        .fold(0, |value, shift| value * 10 + u32::from(bcd >> shift & 0xf))
}
