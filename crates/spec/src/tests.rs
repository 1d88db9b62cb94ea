use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

choice! {
    /// How writes reach the disk.
    pub enum Cache {
        /// Through the page cache.
        Writeback = "writeback",
        /// Past the page cache.
        None = "none",
    }
}

spec! {
    /// A disk
    /// for tests.
    pub struct DiskSpec("disk") {
        /// Path of the image.
        file: PathBuf,
        /// Host caching.
        cache: Cache = Cache::Writeback,
        /// Number of queues.
        num_queues: u16 = 1,
        /// Serial number.
        serial: Option<String>,
        /// Size of the cache.
        cache_size: Size = Size(1 << 20),
        /// Forwards.
        hostfwd: Vec<String>,
    }
}

#[test]
fn the_three_sources_say_the_same() {
    let line =
        DiskSpec::parse("a,,b.img,cache=none,num-queues=4,hostfwd=x,hostfwd=y,cache-size=2M")
            .unwrap();
    let toml = r#"file = "a,b.img"
        cache = "none"
        num-queues = 4
        hostfwd = ["x", "y"]
        cache-size = "2M""#;
    let toml =
        DiskSpec::from_properties(Properties::from_toml("disk", toml.parse().unwrap()).unwrap())
            .unwrap();
    assert_eq!(line, toml);
    assert_eq!(
        DiskSpec::from_properties(line.to_properties()).unwrap(),
        line
    );
    assert_eq!(line.cache_size, Size(2 << 20));
}

#[test]
fn errors_name_the_value_and_the_way_out() {
    for (text, expected) in [
        (
            "cache=none",
            r#"disk: property "file" is missing (Path of the image.)"#,
        ),
        (
            "file=a,chache=none",
            r#"disk: unknown property "chache"; did you mean "cache"?"#,
        ),
        (
            "file=a,cache=nome",
            r#"disk: cache=nome: did you mean "none"?"#,
        ),
        (
            "file=a,num-queues=70000",
            "disk: num-queues=70000: expected an integer from 0 to 65535",
        ),
        (
            "file=a,oops",
            r#"disk: "file=a,oops": "oops" is not of the form name=value"#,
        ),
        ("file=a,file=b", "disk: file=a:b: expected a path"),
    ] {
        assert_eq!(DiskSpec::parse(text).unwrap_err().to_string(), expected);
    }
}

#[test]
fn help_shows_names_types_and_defaults() {
    let properties = DiskSpec::properties();
    assert_eq!(DiskSpec::HELP.lines().count(), 2);
    let queues = properties.iter().find(|p| p.name == "num-queues").unwrap();
    assert_eq!(queues.default.as_deref(), Some("1"));
    assert!(properties[0].required && !properties[3].required && !properties[5].required);
    assert_eq!(properties[1].kind, "writeback|none");
}

#[test]
fn sizes_have_units() {
    for (text, bytes) in [
        ("512", 512),
        ("1K", 1024),
        ("1.5G", 3 << 29),
        ("2GiB", 2 << 30),
        ("1t", 1 << 40),
    ] {
        assert_eq!(text.parse::<Size>().unwrap(), Size(bytes), "{text}");
    }
    for text in [
        "",
        "K",
        "x",
        "-1",
        "1.5",
        "99999999999T",
        "1Q",
        "nan",
        "infG",
    ] {
        assert!(text.parse::<Size>().is_err(), "{text}");
    }
}

proptest! {
    #[test]
    fn shown_sizes_parse_to_themselves(bytes: u64) {
        prop_assert_eq!(Size(bytes).to_string().parse::<Size>().unwrap(), Size(bytes));
    }

    #[test]
    fn any_text_parses_or_fails_without_panic(text: String) {
        let _ = DiskSpec::parse(&text);
        let _ = text.parse::<Size>();
    }
}
