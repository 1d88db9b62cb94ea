//! What the user said, in a file and on the command line.

use std::path::PathBuf;

use clap::ArgMatches;
use machine::Description;
use spec::{Properties, Property, Spec, spec};

use super::{config, options};
use crate::failure::Result;
use crate::logger::LogSpec;

spec! {
    /// The process.
    pub struct ProcessSpec("process") {
        /// File that holds the process's number from when the machine is built until it ends.
        pidfile: Option<PathBuf>,
    }
}

/// A section that concerns the process rather than the machine.
pub(super) struct OwnSection {
    pub(super) name: &'static str,
    pub(super) properties: Vec<Property>,
}

/// All of them.
pub(super) fn own_sections() -> [OwnSection; 2] {
    [
        OwnSection {
            name: LogSpec::NAME,
            properties: LogSpec::properties(),
        },
        OwnSection {
            name: ProcessSpec::NAME,
            properties: ProcessSpec::properties(),
        },
    ]
}

/// All that was said.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// About the machine.
    pub(super) description: Description,
    own: Vec<(&'static str, Properties)>,
}

impl Said {
    /// What the command line says, after the file that it names; checked, so that every
    /// property is known and of the right type.
    pub(super) fn new(matches: &ArgMatches) -> Result<Self> {
        let mut said = Self::default();
        if let Some(path) = matches.get_one::<PathBuf>(options::CONFIG) {
            config::read(path, &mut said)?;
        }
        options::add(matches, &mut said)?;
        if !said.has_console() {
            said.description.add("serial", "stdio")?;
        }
        said.check()?;
        Ok(said)
    }

    /// Whether there is any way to talk to the guest. One that nobody asked for gets the
    /// terminal.
    fn has_console(&self) -> bool {
        self.description.said().any(|(name, _)| name == "serial")
            || self
                .description
                .devices
                .iter()
                .any(|d| d.device.shorthand == Some("console"))
    }

    /// Checks the names and types of all properties.
    ///
    /// # Errors
    /// The first that is unknown, missing or ill-typed.
    pub(super) fn check(&self) -> Result<()> {
        self.log()?;
        self.process()?;
        Ok(self.description.check()?)
    }

    /// Adds what was said about the process; what is said later wins.
    pub(super) fn add_own(&mut self, section: &'static str, given: &Properties) {
        match self.own.iter_mut().find(|(name, _)| *name == section) {
            Some((_, before)) => given
                .iter()
                .for_each(|(name, value)| before.set(name, value.clone())),
            None => self.own.push((section, given.clone())),
        }
    }

    /// What was said about the process.
    pub(super) fn own(&self) -> impl Iterator<Item = (&'static str, &Properties)> {
        self.own.iter().map(|(name, given)| (*name, given))
    }

    /// What is logged.
    pub(super) fn log(&self) -> Result<LogSpec> {
        self.own_section()
    }

    /// About the process.
    pub(super) fn process(&self) -> Result<ProcessSpec> {
        self.own_section()
    }

    fn own_section<S: Spec>(&self) -> Result<S> {
        let given = self.own.iter().find(|(name, _)| *name == S::NAME);
        Ok(S::from_properties(
            given.map(|(_, given)| given.clone()).unwrap_or_default(),
        )?)
    }
}
