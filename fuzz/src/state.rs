use chipset::{acpi_pm, fw_cfg, i8042, ioapic, pic, pit, pvpanic, rtc, uart};
use state::Payload;
use virtio::{balloon, transport};

use crate::{Script, assert_same};

/// State that was saved by nobody.
pub fn state_payload(data: &[u8]) {
    let mut script = Script::new(data);
    let which = script.u8();
    let kind = KINDS[usize::from(which) % KINDS.len()];
    let payload = Payload {
        kind: kind.to_owned(),
        version: 1,
        data: script.rest().to_vec(),
    };
    _ = payload.to_text();
    let decoded = match which as usize % KINDS.len() {
        0 => again::<acpi_pm::State>(payload, kind),
        1 => again::<fw_cfg::State>(payload, kind),
        2 => again::<i8042::State>(payload, kind),
        3 => again::<ioapic::State>(payload, kind),
        4 => again::<pic::State>(payload, kind),
        5 => again::<pit::State>(payload, kind),
        6 => again::<pvpanic::State>(payload, kind),
        7 => again::<rtc::State>(payload, kind),
        8 => again::<uart::State>(payload, kind),
        9 => again::<transport::State>(payload, kind),
        10 => again::<balloon::State>(payload, kind),
        _ => again::<x86::CpuState>(payload, kind),
    };
    if let Some((first, second)) = decoded {
        assert_same(&first, &second);
    }
}

const KINDS: [&str; 12] = [
    acpi_pm::KIND,
    fw_cfg::KIND,
    i8042::KIND,
    ioapic::KIND,
    pic::KIND,
    pit::KIND,
    pvpanic::KIND,
    rtc::KIND,
    uart::KIND,
    transport::KIND,
    balloon::KIND,
    "cpu",
];

/// What decodes is encoded and decoded again: both encodings say the same.
fn again<T>(payload: Payload, kind: &'static str) -> Option<(Payload, Payload)>
where
    T: serde::Serialize + serde::de::DeserializeOwned,
{
    let first: T = payload.decode(kind, 1).ok()?;
    let first = Payload::encode(kind, 1, &first).expect("what was decoded");
    let second: T = first.clone().decode(kind, 1).expect("what was encoded");
    let second = Payload::encode(kind, 1, &second).expect("what was decoded");
    Some((first, second))
}
