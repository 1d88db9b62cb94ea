use std::fmt::Debug;

use block::DiskSpec;
use net::BackendSpec;
use serde_json::Value;
use spec::{Properties, Spec};
use virtio::TransportSpec;
use virtio::balloon::BalloonSpec;
use virtio::blk::BlkSpec;
use virtio::rng::RngSpec;
use x86::model::CpuSpec;

use crate::Script;

/// What a user may write about devices: on the command line, in a file, by QMP.
pub fn specs(data: &[u8]) {
    let mut script = Script::new(data);
    let (which, form) = (script.u8(), script.u8());
    let Ok(text) = std::str::from_utf8(script.rest()) else {
        return;
    };
    match which % 7 {
        0 => one::<DiskSpec>(form, text),
        1 => one::<BlkSpec>(form, text),
        2 => one::<BackendSpec>(form, text),
        3 => one::<TransportSpec>(form, text),
        4 => one::<BalloonSpec>(form, text),
        5 => one::<RngSpec>(form, text),
        _ => match CpuSpec::parse(text) {
            Ok(cpu) => assert!(!cpu.base().name().is_empty()),
            Err(error) => assert!(!error.to_string().is_empty()),
        },
    }
}

fn one<S: Spec + PartialEq + Debug>(form: u8, text: &str) {
    let spec = match form % 3 {
        0 => S::parse(text),
        1 => match serde_json::from_str(text) {
            Ok(Value::Object(object)) => {
                Properties::from_json(S::NAME, object).and_then(S::from_properties)
            }
            _ => return,
        },
        _ => match text.parse() {
            Ok(table) => Properties::from_toml(S::NAME, table).and_then(S::from_properties),
            Err(_) => return,
        },
    };
    match spec {
        Ok(spec) => {
            let again = S::from_properties(spec.to_properties());
            assert_eq!(again.as_ref(), Ok(&spec), "not what it says of itself");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
