//! Which of the machine's apt sources are Debian's own.
//!
//! A machine's apt also knows other vendors' repositories; a guest must not depend on them. Both
//! formats of sources.list(5) are read: one-line (`*.list`) and deb822 (`*.sources`).

use std::fs;
use std::path::Path;

use crate::Error;

/// The keyring that signs Debian's archive, as package debian-archive-keyring installs it.
const DEBIAN_KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The suite built when the machine's sources name none of Debian's.
const DEFAULT_SUITE: &str = "stable";

/// One repository: a stanza of deb822 or a one-line entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Source {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    /// A path, a fingerprint or an embedded key, as written (embedded keys have many lines).
    signed_by: Option<String>,
}

/// The sources that an image is built from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    /// The suite that packages' priorities are looked up in: `bookworm`, `stable`, ...
    pub suite: String,
    /// A deb822 text for apt.
    pub text: String,
}

impl Sources {
    /// Debian's own sources of this machine, or deb.debian.org if it has none.
    ///
    /// # Errors
    /// [`Error::Io`] when apt's configuration cannot be read (absent is fine).
    pub fn of_this_machine() -> Result<Self, Error> {
        Self::in_directory(
            Path::new("/etc/apt"),
            &codename(Path::new("/etc/os-release")),
        )
    }

    fn in_directory(apt: &Path, codename: &str) -> Result<Self, Error> {
        let mut sources = Vec::new();
        let mut read = |path: &Path| -> Result<(), Error> {
            let text = match fs::read(path) {
                Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(Error::io("read", path)(error)),
            };
            match path.extension().and_then(|e| e.to_str()) {
                Some("list") => sources.extend(parse_one_line(&text)),
                Some("sources") => sources.extend(parse_deb822(&text)),
                _ => {}
            }
            Ok(())
        };
        read(&apt.join("sources.list"))?;
        let parts = apt.join("sources.list.d");
        let mut paths = Vec::new();
        match fs::read_dir(&parts) {
            Ok(entries) => {
                for entry in entries {
                    paths.push(entry.map_err(Error::io("list", &parts))?.path());
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("list", &parts)(error)),
        }
        paths.sort();
        for path in &paths {
            read(path)?;
        }
        sources.retain(|source| is_debian(source, codename));
        Ok(Self::from_list(sources, codename))
    }

    fn from_list(mut sources: Vec<Source>, codename: &str) -> Self {
        // The main archive decides the suite: bookworm, not bookworm-updates or a backports suite.
        let suite = sources
            .iter()
            .filter(|source| source.components.iter().any(|c| c == "main"))
            .flat_map(|source| &source.suites)
            .find(|suite| is_main_suite(suite))
            .cloned();
        let suite = suite.unwrap_or_else(|| {
            let suite = if codename.is_empty() {
                DEFAULT_SUITE
            } else {
                codename
            };
            let source = |path: &str, suites: &[String]| Source {
                uris: vec![format!("http://deb.debian.org/{path}")],
                suites: suites.to_vec(),
                components: vec!["main".to_owned()],
                signed_by: Some(DEBIAN_KEYRING.to_owned()),
            };
            sources = vec![
                source("debian", &[suite.to_owned(), format!("{suite}-updates")]),
                source("debian-security", &[format!("{suite}-security")]),
            ];
            suite.to_owned()
        });
        let text: Vec<String> = sources.iter().map(to_deb822).collect();
        Self {
            suite,
            text: text.join("\n"),
        }
    }
}

/// A suite with packages of all priorities, as opposed to updates and backports.
fn is_main_suite(suite: &str) -> bool {
    !suite.contains(['-', '/'])
}

/// Debian's codename on this machine; empty on other distributions and on unstable.
fn codename(os_release: &Path) -> String {
    let text = fs::read_to_string(os_release).unwrap_or_default();
    let value = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .map(|v| v.trim_matches('"').to_owned())
    };
    if value("ID").as_deref() == Some("debian") {
        value("VERSION_CODENAME").unwrap_or_default()
    } else {
        String::new()
    }
}

/// Whether a source is Debian's archive or a mirror of it.
fn is_debian(source: &Source, codename: &str) -> bool {
    if source.uris.is_empty() || !source.components.iter().any(|c| c == "main") {
        return false;
    }
    if source
        .uris
        .iter()
        .all(|uri| host(uri).is_some_and(|h| h == "debian.org" || h.ends_with(".debian.org")))
    {
        return true;
    }
    match &source.signed_by {
        Some(key) => key.contains("debian-archive"),
        // A mirror under any name: its path and suites are those of Debian.
        None => {
            !codename.is_empty()
                && source.suites.iter().all(|suite| {
                    suite.strip_prefix(codename).is_some_and(|rest| {
                        matches!(
                            rest,
                            "" | "-updates"
                                | "-security"
                                | "-backports"
                                | "-proposed-updates"
                                | "/updates"
                        )
                    })
                })
                && source.uris.iter().all(|uri| {
                    let last = uri.trim_end_matches('/').rsplit('/').next();
                    matches!(last, Some("debian" | "debian-security"))
                })
        }
    }
}

/// The host in `scheme://[user@]host[:port]/path`.
fn host(uri: &str) -> Option<&str> {
    let (_, rest) = uri.split_once("://")?;
    let authority = rest.split('/').next()?;
    let host = authority.rsplit('@').next()?;
    Some(host.split(':').next().unwrap_or(host))
}

/// Reads deb822 stanzas; only enabled binary sources count.
fn parse_deb822(text: &str) -> Vec<Source> {
    let mut stanzas: Vec<Vec<(String, String)>> = vec![Vec::new()];
    for line in text.lines() {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            stanzas.push(Vec::new());
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = stanzas.last_mut().and_then(|fields| fields.last_mut()) {
                value.push('\n');
                value.push_str(line.trim_end());
            }
        } else if let (Some((key, value)), Some(fields)) =
            (line.split_once(':'), stanzas.last_mut())
        {
            fields.push((key.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    let mut sources = Vec::new();
    for fields in stanzas {
        let field = |key: &str| {
            fields
                .iter()
                .find(|(k, _)| k == key)
                .map(|(_, value)| value.as_str())
        };
        let words = |key: &str| -> Vec<String> {
            field(key)
                .unwrap_or_default()
                .split_whitespace()
                .map(str::to_owned)
                .collect()
        };
        let disabled = field("enabled").is_some_and(|v| {
            matches!(
                v.to_ascii_lowercase().as_str(),
                "no" | "false" | "off" | "0"
            )
        });
        if disabled || !words("types").iter().any(|t| t == "deb") {
            continue;
        }
        sources.push(Source {
            uris: words("uris"),
            suites: words("suites"),
            components: words("components"),
            signed_by: field("signed-by").map(str::to_owned),
        });
    }
    sources
}

/// Reads one-line entries: `deb [option=value ...] uri suite component...`.
fn parse_one_line(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some(mut rest) = line
            .strip_prefix("deb")
            .filter(|rest| rest.starts_with([' ', '\t']))
            .map(str::trim_start)
        else {
            continue;
        };
        let mut signed_by = None;
        if let Some(inner) = rest.strip_prefix('[') {
            let Some((options, after)) = inner.split_once(']') else {
                continue;
            };
            signed_by = options
                .split_whitespace()
                .find_map(|o| o.strip_prefix("signed-by="))
                .map(str::to_owned);
            rest = after;
        }
        let mut words = rest.split_whitespace().map(str::to_owned);
        let (Some(uri), Some(suite)) = (words.next(), words.next()) else {
            continue;
        };
        sources.push(Source {
            uris: vec![uri],
            suites: vec![suite],
            components: words.collect(),
            signed_by,
        });
    }
    sources
}

fn to_deb822(source: &Source) -> String {
    let mut text = format!(
        "Types: deb\nURIs: {}\nSuites: {}\nComponents: {}\n",
        source.uris.join(" "),
        source.suites.join(" "),
        source.components.join(" ")
    );
    if let Some(key) = &source.signed_by {
        // Without a space after the colon an embedded key's first line stays empty, as it must.
        text.push_str(if key.starts_with('\n') {
            "Signed-By:"
        } else {
            "Signed-By: "
        });
        text.push_str(key);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests;
