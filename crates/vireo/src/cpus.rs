//! `vireo cpus`: the processor models, and which of them this host can run.

use std::path::Path;
use std::process::ExitCode;

use accel::Accelerator;
use accel_kvm::Kvm;
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
    /// Whether the processor's features could be read at all.
    known: bool,
    /// Why no guest runs here, whatever its model.
    unusable: Option<String>,
}

impl Host {
    fn of(device: &Path) -> Self {
        // The features tell something even where the self-test fails: what the processor has.
        let kvm = Kvm::open(device);
        let cpu = kvm.as_ref().map(|kvm| kvm.capabilities().cpu.clone());
        let verdict = kvm.as_ref().map_or(Ok(()), Accelerator::ready);
        let failure = kvm.as_ref().err().or(verdict.as_ref().err());
        let unusable = failure.map(|e| machine::chain(e));
        let known = cpu.is_ok();
        let mut models = list_models(&cpu.unwrap_or_default());
        if !known {
            models.iter_mut().for_each(|model| model.missing.clear());
        }
        Self {
            models,
            known,
            unusable,
        }
    }

    fn text(&self) -> String {
        let mut rows = vec![
            ["MODEL", "VENDOR", "RUNS HERE", "DESCRIPTION"]
                .map(str::to_owned)
                .to_vec(),
        ];
        for model in &self.models {
            let runs = match (self.known, model.is_runnable()) {
                (false, _) => "?",
                (true, true) => "yes",
                (true, false) => "no",
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
        if let Some(why) = &self.unusable {
            text.push_str(&format!("\nNo guest runs here now: {why}\n"));
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
                    "runnable": self.known.then(|| model.is_runnable()),
                    "missing": model.missing,
                })
            })
            .collect();
        json!({ "models": models, "accelerator": { "name": "kvm", "usable": self.unusable.is_none(), "why": self.unusable } })
    }
}
