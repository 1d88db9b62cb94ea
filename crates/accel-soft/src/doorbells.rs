//! Writes that only wake a worker: they are matched where the processor stores, and go no
//! further.

use std::collections::BTreeMap;
use std::io;
use std::sync::{PoisonError, RwLock};

use bus::{DoorbellAddress, DoorbellError, EventFd, Space};

/// The doorbells of one machine.
#[derive(Debug, Default)]
pub(crate) struct Doorbells {
    hung: RwLock<BTreeMap<(Space, u64), Vec<Hung>>>,
}

#[derive(Debug)]
struct Hung {
    address: DoorbellAddress,
    event: EventFd,
}

impl Hung {
    fn matches(&self, size: u8, value: u64) -> bool {
        let DoorbellAddress {
            length,
            value: wanted,
            ..
        } = self.address;
        (length == 0 || length == size) && wanted.is_none_or(|wanted| wanted == value)
    }
}

impl Doorbells {
    pub(crate) fn attach(
        &self,
        address: DoorbellAddress,
        event: &EventFd,
    ) -> Result<(), DoorbellError> {
        let event = event
            .try_clone()
            .map_err(|source| DoorbellError::Host { address, source })?;
        let mut hung = self.hung.write().unwrap_or_else(PoisonError::into_inner);
        let here = hung.entry((address.space, address.address)).or_default();
        if here.iter().any(|other| other.address == address) {
            return Err(DoorbellError::InUse(address));
        }
        here.push(Hung { address, event });
        Ok(())
    }

    pub(crate) fn detach(&self, address: DoorbellAddress) -> Result<(), DoorbellError> {
        let mut hung = self.hung.write().unwrap_or_else(PoisonError::into_inner);
        let key = (address.space, address.address);
        let missing = || DoorbellError::Host {
            address,
            source: io::Error::from(io::ErrorKind::NotFound),
        };
        let here = hung.get_mut(&key).ok_or_else(missing)?;
        let at = here
            .iter()
            .position(|other| other.address == address)
            .ok_or_else(missing)?;
        here.swap_remove(at);
        if here.is_empty() {
            hung.remove(&key);
        }
        Ok(())
    }

    /// Rings what hangs here; tells whether anything did.
    pub(crate) fn ring(&self, space: Space, address: u64, size: u8, value: u64) -> bool {
        let hung = self.hung.read().unwrap_or_else(PoisonError::into_inner);
        let Some(here) = hung.get(&(space, address)) else {
            return false;
        };
        match here.iter().find(|other| other.matches(size, value)) {
            Some(found) => {
                // The only failure is a counter at its limit, and then the worker is woken anyway.
                _ = found.event.write(1);
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doorbell_rings_for_what_it_was_hung_for() {
        let doorbells = Doorbells::default();
        let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let any = DoorbellAddress {
            space: Space::Memory,
            address: 0x1000,
            length: 0,
            value: None,
        };
        let exact = DoorbellAddress {
            space: Space::Port,
            address: 0x50,
            length: 2,
            value: Some(3),
        };
        doorbells.attach(any, &event).unwrap();
        doorbells.attach(exact, &event).unwrap();
        assert!(matches!(
            doorbells.attach(any, &event),
            Err(DoorbellError::InUse(_))
        ));
        assert!(doorbells.ring(Space::Memory, 0x1000, 4, 77));
        assert!(doorbells.ring(Space::Port, 0x50, 2, 3));
        assert_eq!(event.read().unwrap(), 2);
        assert!(!doorbells.ring(Space::Port, 0x50, 4, 3));
        assert!(!doorbells.ring(Space::Port, 0x50, 2, 4));
        assert!(!doorbells.ring(Space::Memory, 0x1004, 4, 77));
        doorbells.detach(any).unwrap();
        assert!(doorbells.detach(any).is_err());
        assert!(!doorbells.ring(Space::Memory, 0x1000, 4, 77));
    }
}
