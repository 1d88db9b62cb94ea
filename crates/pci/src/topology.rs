use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::{Bdf, Function};

/// The functions on one bus, by device and function number.
#[derive(Default)]
pub struct PciBus {
    functions: RwLock<BTreeMap<u8, Arc<dyn Function>>>,
}

impl std::fmt::Debug for PciBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PciBus")
            .field("devfns", &self.devfns())
            .finish()
    }
}

impl PciBus {
    /// An empty bus.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The function at `devfn` (device number in the upper 5 bits).
    #[must_use]
    pub fn get(&self, devfn: u8) -> Option<Arc<dyn Function>> {
        let functions = self.functions.read();
        let functions = functions.unwrap_or_else(PoisonError::into_inner);
        functions.get(&devfn).cloned()
    }

    /// The numbers in use, in ascending order.
    #[must_use]
    pub fn devfns(&self) -> Vec<u8> {
        let functions = self.functions.read();
        let functions = functions.unwrap_or_else(PoisonError::into_inner);
        functions.keys().copied().collect()
    }

    /// All functions, in ascending order of their numbers.
    #[must_use]
    pub fn functions(&self) -> Vec<Arc<dyn Function>> {
        let functions = self.functions.read();
        let functions = functions.unwrap_or_else(PoisonError::into_inner);
        functions.values().cloned().collect()
    }

    /// Puts `function` at `devfn` unless something is there; tells whether it did.
    pub(crate) fn insert(&self, devfn: u8, function: Arc<dyn Function>) -> bool {
        let functions = self.functions.write();
        let mut functions = functions.unwrap_or_else(PoisonError::into_inner);
        if functions.contains_key(&devfn) {
            return false;
        }
        functions.insert(devfn, function);
        true
    }

    /// Takes the function at `devfn` away.
    pub(crate) fn remove(&self, devfn: u8) -> Option<Arc<dyn Function>> {
        let functions = self.functions.write();
        let mut functions = functions.unwrap_or_else(PoisonError::into_inner);
        functions.remove(&devfn)
    }

    /// The function to which a configuration cycle for `bus` and `devfn` goes, when `number` is
    /// this bus's own number.
    pub(crate) fn route(&self, number: u8, bus: u8, devfn: u8) -> Option<Arc<dyn Function>> {
        if bus == number {
            return self.get(devfn);
        }
        let functions = self.functions.read();
        let functions = functions.unwrap_or_else(PoisonError::into_inner);
        functions.values().find_map(|function| {
            let bridge = function.as_bridge()?;
            let numbers = bridge.bus_numbers();
            if !numbers.forwards(bus) {
                return None;
            }
            bridge.secondary_bus()?.route(numbers.secondary, bus, devfn)
        })
    }

    /// Adds the functions on this bus, which has this `number`, and on those behind it.
    pub(crate) fn list(&self, number: u8, found: &mut Vec<(Bdf, Arc<dyn Function>)>) {
        let functions: Vec<_> = {
            let functions = self.functions.read();
            let functions = functions.unwrap_or_else(PoisonError::into_inner);
            let entries = functions.iter();
            entries.map(|(devfn, f)| (*devfn, Arc::clone(f))).collect()
        };
        for (devfn, function) in &functions {
            found.push((Bdf::from_devfn(number, *devfn), Arc::clone(function)));
        }
        for (_, function) in &functions {
            let Some(bridge) = function.as_bridge() else {
                continue;
            };
            let secondary = bridge.bus_numbers().secondary;
            if let Some(bus) = bridge.secondary_bus()
                && secondary != 0
            {
                bus.list(secondary, found);
            }
        }
    }
}
