//! Reads progress out of what `mmdebstrap --verbose` prints.
//!
//! mmdebstrap runs apt twice (essential packages, then the rest); each time apt announces how many
//! packages it will install, and dpkg prints one line per package unpacked and set up.

use crate::progress::{Stage, Update};

/// Follows one run of mmdebstrap line by line.
#[derive(Debug, Default)]
pub(crate) struct LogReader {
    phase: Phase,
    announced: u32,
    fetched: u32,
    unpacked: u32,
    configured: u32,
    fraction: f64,
}

/// mmdebstrap's own phases, in order.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Phase {
    #[default]
    Lists,
    DownloadEssential,
    InstallEssential,
    InstallRest,
    Customize,
    Pack,
}

impl Phase {
    /// Where in the whole build the phase begins and ends, as measured.
    fn span(self) -> (f64, f64) {
        match self {
            Self::Lists => (0.01, 0.08),
            Self::DownloadEssential => (0.08, 0.12),
            Self::InstallEssential => (0.12, 0.35),
            Self::InstallRest => (0.35, 0.80),
            Self::Customize => (0.80, 0.84),
            Self::Pack => (0.84, 0.88),
        }
    }
}

impl LogReader {
    /// Takes a line without its end; says what it means for the progress, if anything.
    pub(crate) fn line(&mut self, line: &str) -> Option<Update> {
        if let Some(message) = line.strip_prefix("I: ") {
            let phase = match message {
                m if m.starts_with("running apt-get update") => Phase::Lists,
                m if m.starts_with("downloading packages with apt") => Phase::DownloadEssential,
                m if m.starts_with("installing essential packages") => Phase::InstallEssential,
                m if m.starts_with("installing remaining packages") => Phase::InstallRest,
                m if m.starts_with("running --customize-hook") => Phase::Customize,
                m if m.starts_with("creating tarball") => Phase::Pack,
                _ => return None,
            };
            if phase != self.phase {
                self.phase = phase;
                self.fetched = 0;
                self.unpacked = 0;
                self.configured = 0;
            }
            return Some(self.update(""));
        }
        if let Some(rest) = line.strip_prefix("Get:") {
            self.fetched += 1;
            // "Get:3 http://mirror/debian bookworm/main amd64 PACKAGE amd64 VERSION [SIZE]"
            // and for a release file "Get:1 http://mirror/debian bookworm InRelease [SIZE]".
            let name = rest
                .split_whitespace()
                .nth(4)
                .filter(|word| !word.starts_with('['));
            return Some(self.update(name.unwrap_or_default()));
        }
        if let Some(rest) = line.strip_prefix("Unpacking ") {
            self.unpacked += 1;
            return Some(self.update(package(rest)));
        }
        if let Some(rest) = line.strip_prefix("Setting up ") {
            self.configured += 1;
            return Some(self.update(package(rest)));
        }
        if let Some((_, rest)) = line.split_once(" upgraded, ")
            && let Some((count, _)) = rest.split_once(" newly installed")
        {
            self.announced = count.parse().unwrap_or(0);
        }
        None
    }

    fn update(&mut self, detail: &str) -> Update {
        let total = f64::from(self.announced.max(1));
        let done = match self.phase {
            // Three release files and three lists are what a Debian machine has.
            Phase::Lists => f64::from(self.fetched) / 6.0,
            Phase::DownloadEssential => f64::from(self.fetched) / total,
            // With a package cache nothing is fetched, so fetching does not count here.
            Phase::InstallEssential | Phase::InstallRest => {
                f64::from(self.unpacked) / total * 0.5 + f64::from(self.configured) / total * 0.5
            }
            Phase::Customize | Phase::Pack => 0.0,
        };
        let (begin, end) = self.phase.span();
        let fraction = begin + (end - begin) * done.clamp(0.0, 1.0);
        self.fraction = self.fraction.max(fraction);
        let stage = match self.phase {
            Phase::Lists | Phase::DownloadEssential => Stage::Download,
            Phase::InstallEssential | Phase::InstallRest if self.unpacked == 0 => Stage::Download,
            Phase::InstallEssential | Phase::InstallRest => Stage::Install,
            Phase::Customize => Stage::Customize,
            Phase::Pack => Stage::Pack,
        };
        Update {
            stage,
            fraction: self.fraction,
            detail: detail.to_owned(),
        }
    }
}

/// The package's name at the beginning of "NAME:ARCHITECTURE (VERSION) ...".
fn package(rest: &str) -> &str {
    rest.split([' ', ':']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests;
