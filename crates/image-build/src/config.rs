//! The configuration file that boots a built image.

use toml::Value;

/// The kernel's command line for a system whose root file system is the whole first disk.
pub(crate) const CMDLINE: &str = "console=ttyS0 root=/dev/vda rw";

/// The text of a Vireo configuration; the names are relative to the file it stands in.
pub(crate) fn text(image: &str, kernel: &str, initrd: &str) -> String {
    let quote = |name: &str| Value::String(name.to_owned()).to_string();
    format!(
        "[kernel]\nimage = {}\ninitrd = {}\ncmdline = {}\n\n[[disk]]\nfile = {}\n",
        quote(kernel),
        quote(initrd),
        quote(CMDLINE),
        quote(image)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_file_names_survive() {
        let text = text("a \"b\".img", "k\\k", "é");
        let table: toml::Table = toml::from_str(&text).unwrap();
        assert_eq!(table["disk"][0]["file"].as_str(), Some("a \"b\".img"));
        assert_eq!(table["kernel"]["image"].as_str(), Some("k\\k"));
        assert_eq!(table["kernel"]["initrd"].as_str(), Some("é"));
        assert_eq!(table["kernel"]["cmdline"].as_str(), Some(CMDLINE));
    }
}
