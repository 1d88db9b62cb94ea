//! Surroundings for tests.

use crate::platform::Platform;
use crate::stop::Exception;

/// A machine without anything around its processor: no device, no MSR, a clock that stands still.
pub struct Nothing;

impl Platform for Nothing {
    fn device_read(&mut self, _address: u64, _size: u8) -> Option<u64> {
        None
    }
    fn device_write(&mut self, _address: u64, _size: u8, _value: u64) -> bool {
        false
    }
    fn port_write(&mut self, _port: u16, _size: u8, _value: u32) -> bool {
        false
    }
    fn read_msr(&mut self, _index: u32) -> Result<u64, Exception> {
        Err(Exception::gp(0))
    }
    fn write_msr(&mut self, _index: u32, _value: u64) -> Result<(), Exception> {
        Err(Exception::gp(0))
    }
    fn tsc(&mut self) -> u64 {
        0
    }
    fn task_priority(&mut self) -> u8 {
        0
    }
    fn set_task_priority(&mut self, _class: u8) {}
    fn read_pmc(&mut self, _counter: u32) -> Result<u64, Exception> {
        Err(Exception::gp(0))
    }
    fn hypercall(&mut self, _number: u64, _arguments: [u64; 4]) -> u64 {
        0
    }
    fn serialize(&mut self) {}
}
