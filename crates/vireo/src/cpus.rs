//! `vireo cpus`: the processor models, and which of them this host can run.

use std::path::Path;
use std::process::ExitCode;

use accel::Accelerator;
use accel_kvm::Kvm;
use accel_soft::Soft;
use clap::{ArgMatches, Command};
use serde_json::json;
use x86::model::{ModelListing, list_models};

use crate::failure::Result;
use crate::{accel_check, output};

pub(crate) const NAME: &str = "cpus";

pub(crate) fn command() -> Command {
    Command::new(NAME)
        .about("Lists the processor models, and whether this host can run them")
        .arg(output::format_option())
        .arg(accel_check::device_option())
}

pub(crate) fn execute(matches: &ArgMatches) -> Result<ExitCode> {
    let host = Host::of(accel_check::device(matches));
    match output::wants_json(matches) {
        true => output::print_json(&host.json()),
        false => output::print(&host.text()),
    }
}

/// The models as `--cpu help` shows them.
pub(crate) fn text(device: &Path) -> String {
    Host::of(device).text()
}

/// What this host can do.
struct Host {
    models: Vec<ModelListing>,
    /// What would execute a guest.
    accelerator: &'static str,
    /// Why KVM would not.
    kvm_unusable: Option<String>,
}

impl Host {
    fn of(device: &Path) -> Self {
        let kvm = Kvm::open(device).and_then(|kvm| kvm.ready().map(|()| kvm));
        let soft = Soft::new(accel_soft::Options::default());
        let accelerator: &dyn Accelerator = match &kvm {
            Ok(kvm) => kvm,
            Err(_) => &soft,
        };
        Self {
            models: list_models(&accelerator.capabilities().cpu),
            accelerator: accelerator.name(),
            kvm_unusable: kvm.as_ref().err().map(|e| machine::chain(e)),
        }
    }

    fn text(&self) -> String {
        let mut rows = vec![
            ["MODEL", "VENDOR", "RUNS HERE", "DESCRIPTION"]
                .map(str::to_owned)
                .to_vec(),
        ];
        for model in &self.models {
            let runs = match model.is_runnable() {
                true => "yes",
                false => "no",
            };
            let what = match &model.alias_of {
                Some(name) => format!("as {name}"),
                None if model.is_runnable() => model.description.clone(),
                None => format!(
                    "{}; the host lacks {}",
                    model.description,
                    model.missing.join(", ")
                ),
            };
            let vendor = model.vendor.as_deref().unwrap_or("any");
            rows.push(vec![
                model.name.clone(),
                vendor.to_owned(),
                runs.to_owned(),
                what,
            ]);
        }
        let mut text = output::table(&rows);
        if let Some(why) = &self.kvm_unusable {
            text.push_str(&format!(
                "\nThis is what the software processor runs, as KVM cannot be used: {why}\n"
            ));
        }
        text
    }

    fn json(&self) -> serde_json::Value {
        let models: Vec<_> = self
            .models
            .iter()
            .map(|model| {
                json!({
                    "name": model.name,
                    "alias-of": model.alias_of,
                    "vendor": model.vendor,
                    "description": model.description,
                    "runnable": model.is_runnable(),
                    "missing": model.missing,
                })
            })
            .collect();
        json!({ "models": models, "accelerator": { "name": self.accelerator, "kvm-unusable": self.kvm_unusable } })
    }
}
