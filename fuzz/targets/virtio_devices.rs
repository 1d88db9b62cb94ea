#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::virtio_devices(data));
