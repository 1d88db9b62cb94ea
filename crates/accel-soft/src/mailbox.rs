//! What other threads have for a processor.
//!
//! ```text
//!   devices, other processors ──▶ bits, queues ──▶ attention |= bit ──▶ futex wake, if asleep
//!   the processor's thread    ◀── take ◀── attention = 0, at an instruction's boundary
//! ```

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use accel::Kick;

use crate::host;
use crate::lapic::Address;

/// Bits of the attention word. [`host::TIMER`] and [`processor::state::attention::OPEN`] are the
/// others.
pub(crate) mod bits {
    /// The machine wants the thread back.
    pub(crate) const KICK: u32 = 1 << 0;
    /// Interrupts are in the mailbox.
    pub(crate) const INTERRUPT: u32 = 1 << 1;
    /// INIT, start-up or a non-maskable interrupt.
    pub(crate) const STARTUP: u32 = 1 << 3;
    /// Code pages came, or were written.
    pub(crate) const CODE: u32 = 1 << 4;
    /// The memory map is another.
    pub(crate) const MEMORY: u32 = 1 << 5;
    /// The paravirtual clock is another.
    pub(crate) const CLOCK: u32 = 1 << 6;
    /// Another processor asked this one to stop waiting.
    pub(crate) const UNHALT: u32 = 1 << 7;
    /// The processor itself has something to sort out at the boundary.
    pub(crate) const SELF: u32 = 1 << 8;
}

/// The multiprocessor protocol's messages, in the order in which they came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Startup {
    Init,
    Sipi(u8),
}

/// More events than this wait for nobody: everything is forgotten instead.
const MAX_CODE_EVENTS: usize = 4096;

/// Something about code pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CodeEvent {
    /// These bytes changed.
    Written { physical: u64, len: u64 },
    /// This page became a code page: no stores past the slow path.
    Marked { page: u64 },
    /// There were too many to keep.
    Lost,
}

/// One processor's mailbox.
#[derive(Debug)]
pub(crate) struct Mailbox {
    pub(crate) attention: Arc<AtomicU32>,
    asleep: AtomicBool,
    requests: [AtomicU32; 8],
    levels: [AtomicU32; 8],
    /// NMIs, of which one can wait while another is handled.
    nmis: AtomicU8,
    address: AtomicU64,
    startup: Mutex<VecDeque<Startup>>,
    code: Mutex<Vec<CodeEvent>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mailbox {
    pub(crate) fn new(address: Address) -> Arc<Self> {
        Arc::new(Self {
            attention: Arc::default(),
            asleep: AtomicBool::new(false),
            requests: Default::default(),
            levels: Default::default(),
            nmis: AtomicU8::new(0),
            address: AtomicU64::new(address.to_bits()),
            startup: Mutex::default(),
            code: Mutex::default(),
        })
    }

    /// Sets a bit and sees to it that the processor looks.
    pub(crate) fn attend(&self, bit: u32) {
        self.attention.fetch_or(bit, Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) {
            host::wake(&self.attention);
        }
    }

    /// How messages find the processor.
    pub(crate) fn address(&self) -> Address {
        Address::from_bits(self.address.load(Ordering::Relaxed))
    }

    pub(crate) fn set_address(&self, address: Address) {
        self.address.store(address.to_bits(), Ordering::Relaxed);
    }

    /// A fixed interrupt.
    pub(crate) fn request(&self, vector: u8, level: bool) {
        let (word, bit) = (usize::from(vector / 32), 1 << (vector % 32));
        let (Some(requests), Some(levels)) = (self.requests.get(word), self.levels.get(word))
        else {
            return;
        };
        if level {
            levels.fetch_or(bit, Ordering::SeqCst);
        } else {
            levels.fetch_and(!bit, Ordering::SeqCst);
        }
        // Who finds the bit set knows that the processor has not looked yet, and will.
        if requests.fetch_or(bit, Ordering::SeqCst) & bit == 0 {
            self.attend(bits::INTERRUPT);
        }
    }

    pub(crate) fn nmi(&self) {
        let more = |n: u8| (n < 2).then_some(n + 1);
        if self
            .nmis
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, more)
            .is_ok()
        {
            self.attend(bits::STARTUP);
        }
    }

    pub(crate) fn startup(&self, message: Startup) {
        let mut queue = locked(&self.startup);
        // An INIT makes what came before it void; a second start-up IPI finds the processor
        // running.
        if message == Startup::Init {
            queue.clear();
        }
        if queue.len() < 2 {
            queue.push_back(message);
        }
        drop(queue);
        self.attend(bits::STARTUP);
    }

    pub(crate) fn code(&self, event: CodeEvent) {
        let mut events = locked(&self.code);
        if events.last() == Some(&event) || events.last() == Some(&CodeEvent::Lost) {
            return;
        }
        if events.len() == MAX_CODE_EVENTS {
            events.clear();
            events.push(CodeEvent::Lost);
        } else {
            events.push(event);
        }
        // Nobody is woken: a processor that sleeps looks before it executes anything.
        self.attention.fetch_or(bits::CODE, Ordering::SeqCst);
    }

    /// Takes the interrupts out: `accept(vector, level)` for each.
    pub(crate) fn take_requests(&self, mut accept: impl FnMut(u8, bool)) {
        for (n, (requests, levels)) in (0u8..).zip(self.requests.iter().zip(&self.levels)) {
            if requests.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut word = requests.swap(0, Ordering::SeqCst);
            let level = levels.load(Ordering::SeqCst);
            while let Some(bit) = word.checked_ilog2() {
                accept(n * 32 + bit as u8, level >> bit & 1 != 0);
                word &= !(1 << bit);
            }
        }
    }

    pub(crate) fn take_nmis(&self) -> u8 {
        self.nmis.swap(0, Ordering::SeqCst)
    }

    pub(crate) fn take_startup(&self) -> Option<Startup> {
        locked(&self.startup).pop_front()
    }

    pub(crate) fn take_code(&self) -> Vec<CodeEvent> {
        std::mem::take(&mut *locked(&self.code))
    }

    /// Everything that waits is void: the processor's state is set anew.
    pub(crate) fn clear(&self) {
        self.take_requests(|_, _| ());
        self.take_nmis();
        locked(&self.startup).clear();
    }

    /// Sleeps until the attention word is not zero, or a signal comes.
    pub(crate) fn sleep(&self) {
        self.asleep.store(true, Ordering::SeqCst);
        if self.attention.load(Ordering::SeqCst) == 0 {
            host::wait_while_zero(&self.attention);
        }
        self.asleep.store(false, Ordering::SeqCst);
    }
}

impl Kick for Mailbox {
    fn kick(&self) {
        self.attend(bits::KICK);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::lapic::Lapic;

    fn mailbox() -> Arc<Mailbox> {
        Mailbox::new(Lapic::new(0, true).address())
    }

    #[test]
    fn interrupts_are_taken_once_with_their_trigger() {
        let mailbox = mailbox();
        mailbox.request(0x21, false);
        mailbox.request(0xff, true);
        mailbox.request(0xff, true);
        let mut taken = Vec::new();
        mailbox.take_requests(|vector, level| taken.push((vector, level)));
        assert_eq!(taken, [(0x21, false), (0xff, true)]);
        mailbox.take_requests(|vector, _| panic!("{vector:#x} again"));
    }

    #[test]
    fn an_init_voids_what_came_before() {
        let mailbox = mailbox();
        mailbox.startup(Startup::Sipi(1));
        mailbox.startup(Startup::Init);
        mailbox.startup(Startup::Sipi(2));
        mailbox.startup(Startup::Sipi(3));
        assert_eq!(mailbox.take_startup(), Some(Startup::Init));
        assert_eq!(mailbox.take_startup(), Some(Startup::Sipi(2)));
        assert_eq!(mailbox.take_startup(), None);
    }

    #[test]
    fn a_sleeper_wakes_for_a_message_and_for_one_that_came_before() {
        let mailbox = mailbox();
        mailbox.kick();
        mailbox.sleep();
        mailbox.attention.store(0, Ordering::SeqCst);
        let thread = std::thread::spawn({
            let mailbox = Arc::clone(&mailbox);
            move || {
                let begin = Instant::now();
                while mailbox.attention.load(Ordering::SeqCst) == 0
                    && begin.elapsed() < Duration::from_secs(10)
                {
                    mailbox.sleep();
                }
                mailbox.attention.load(Ordering::SeqCst)
            }
        });
        std::thread::sleep(Duration::from_millis(10));
        mailbox.request(0x30, false);
        assert_eq!(thread.join().unwrap(), bits::INTERRUPT);
    }
}
