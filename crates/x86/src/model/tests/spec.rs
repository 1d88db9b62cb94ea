use proptest::prelude::*;

use super::*;

fn error(text: &str) -> String {
    CpuSpec::parse(text).unwrap_err().to_string()
}

#[test]
fn unknown_names_come_with_the_nearest_known_one() {
    assert_eq!(
        error("Hasvell"),
        r#"there is no CPU model "Hasvell"; did you mean "Haswell"?; --cpu help lists all"#
    );
    assert_eq!(
        error("epyc-rome"),
        r#"there is no CPU model "epyc-rome"; did you mean "EPYC-Rome"?; --cpu help lists all"#
    );
    assert_eq!(
        error("Pentium"),
        r#"there is no CPU model "Pentium"; --cpu help lists all"#
    );
    assert_eq!(
        error("Haswell,+pdp1gb"),
        r#"CPU model Haswell: there is no feature or property "pdp1gb"; did you mean "pdpe1gb"?"#
    );
    assert_eq!(
        error("host,physbits=40"),
        r#"CPU model host: there is no feature or property "physbits"; did you mean "phys-bits"?"#
    );
}

#[test]
fn a_model_comes_first() {
    for text in ["", "+avx2", "-tsx", "phys-bits=40", ",avx2"] {
        assert!(
            matches!(CpuSpec::parse(text), Err(CpuError::NoModel)),
            "{text}"
        );
    }
}

#[test]
fn values_are_checked() {
    for (text, expected) in [
        (
            "host,phys-bits=31",
            "CPU property phys-bits=31: expected a number from 32 to 52",
        ),
        (
            "host,phys-bits=many",
            "CPU property phys-bits=many: expected a number from 32 to 52",
        ),
        (
            "host,avx2=maybe",
            "CPU property avx2=maybe: expected on or off",
        ),
        ("host,kvm=2", "CPU property kvm=2: expected on or off"),
        (
            "host,stepping=16",
            "CPU property stepping=16: expected a number from 0 to 15",
        ),
        (
            "host,phys_bits=60",
            "CPU property phys-bits=60: expected a number from 32 to 52",
        ),
    ] {
        assert_eq!(error(text), expected);
    }
    assert!(error("host,tsc-frequency=5").contains("0xf4240"));
    assert!(error(&format!("host,model-id={}", "x".repeat(49))).contains("48 ASCII"));
    assert!(error("host,vendor=Intel").contains("GenuineIntel"));
}

#[test]
fn later_words_win() {
    let spec = CpuSpec::parse("Haswell, -avx2, avx2, +tsx, hle=off").unwrap();
    assert_eq!(spec.to_string(), "Haswell,-hle,+avx2,+rtm");
}

#[test]
fn spellings_of_qemu_and_libvirt_are_understood() {
    let spec = CpuSpec::parse(
        "EPYC-Milan-v1,sse4_1=on,lahf_lm=off,host-phys-bits=on,host-phys-bits-limit=43,enforce",
    )
    .unwrap();
    assert_eq!(
        spec.to_string(),
        "EPYC-Milan,+sse4.1,-lahf-lm,host-phys-bits-limit=43"
    );
    assert_eq!(CpuSpec::parse("max").unwrap(), CpuSpec::host());
}

#[test]
fn one_half_of_a_pair_is_kept_apart() {
    let text = CpuSpec::parse("host,+kvmclock,-kvmclock-legacy")
        .unwrap()
        .to_string();
    assert_eq!(text, "host,+kvmclock,-kvmclock-legacy");
}

#[test]
fn a_configuration_file_says_it_as_the_command_line_does() {
    let spec: CpuSpec = serde_json::from_str(r#""Haswell,-tsx""#).unwrap();
    assert_eq!(spec, "Haswell,-tsx".parse().unwrap());
    assert_eq!(
        serde_json::to_string(&spec).unwrap(),
        r#""Haswell,-hle,-rtm""#
    );
    let error = serde_json::from_str::<CpuSpec>(r#""Haswel""#).unwrap_err();
    assert!(error.to_string().contains("Haswell"), "{error}");
}

#[test]
fn every_option_in_the_help_is_understood() {
    for (name, help) in CpuSpec::options_help() {
        assert!(!help.is_empty());
        // No feature has the name of an option, and no option is a mere switch for all values.
        assert!(Feature::lookup(name).is_empty(), "{name}");
        let good = ["on", "AuthenticAMD", "7", "40", "0x80000008", "2000000000"];
        let accepted = good
            .iter()
            .filter(|value| CpuSpec::parse(&format!("host,{name}={value}")).is_ok())
            .count();
        assert!(accepted >= 1, "{name}");
        let error = CpuSpec::parse(&format!("host,{name}=\u{fffd}")).unwrap_err();
        assert!(
            matches!(error, CpuError::BadValue { .. }),
            "{name}: {error}"
        );
    }
}

/// One word of a wish, right or nearly so.
fn word() -> impl Strategy<Value = String> {
    let names: Vec<&'static str> = Feature::all_names().collect();
    let models: Vec<String> = ModelVersion::all().flat_map(|v| v.names()).collect();
    prop_oneof![
        4 => (proptest::sample::select(names), 0..5usize).prop_map(|(name, form)| match form {
            0 => format!("+{name}"),
            1 => format!("-{name}"),
            2 => format!("{name}=on"),
            3 => format!("{name}=off"),
            _ => name.to_owned(),
        }),
        1 => proptest::sample::select(models),
        2 => (0..60u32).prop_map(|n| format!("phys-bits={n}")),
        1 => Just("vendor=AuthenticAMD".to_owned()),
        1 => (0..300u32).prop_map(|n| format!("family={n}")),
        1 => Just("kvm=off".to_owned()),
        1 => Just("pmu=on".to_owned()),
        1 => Just("level=0x7".to_owned()),
        1 => Just("xlevel=0x80000008".to_owned()),
        1 => Just("tsc-frequency=2000000000".to_owned()),
        1 => Just("l3-cache=off".to_owned()),
        1 => Just("enforce=off".to_owned()),
    ]
}

fn wish() -> impl Strategy<Value = String> {
    let mut models: Vec<String> = ModelVersion::all().flat_map(|v| v.names()).collect();
    models.push("host".to_owned());
    (
        proptest::sample::select(models),
        proptest::collection::vec(word(), 0..8),
    )
        .prop_map(|(model, words)| {
            std::iter::once(model)
                .chain(words)
                .collect::<Vec<_>>()
                .join(",")
        })
}

proptest! {
    #[test]
    fn a_wish_survives_being_printed(text in wish()) {
        if let Ok(spec) = CpuSpec::parse(&text) {
            prop_assert_eq!(&CpuSpec::parse(&spec.to_string()).unwrap(), &spec);
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in ".{0,40}") {
        if let Err(error) = CpuSpec::parse(&text) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn a_wish_is_granted_in_full_or_refused(
        text in wish(), amd: bool, n in 1..300u32, threads in 1..3u32,
    ) {
        let Ok(spec) = CpuSpec::parse(&text) else { return Ok(()) };
        let host = perfect(if amd { Vendor::AMD } else { Vendor::INTEL });
        let topology = Topology::new(1, 1, n, threads).unwrap();
        let Ok(t) = build(&spec, &host, topology) else { return Ok(()) };
        let cut = spec.options().level.is_some() || spec.options().xlevel.is_some();
        if spec.options().enforce && !cut {
            for (f, on) in spec.features() {
                prop_assert_eq!(t.feature(f), on, "{} of {}", f, text);
            }
        }
        let last = t.cpuid_for(topology.count() - 1);
        prop_assert!(last.get(0, 0).is_some() && last.get(0x8000_0000, 0).is_some());
        for e in &last {
            let limit = match e.leaf {
                0x8000_0000.. => last.max_extended_leaf(),
                0x4000_0000.. => 0x4000_0001,
                _ => last.max_leaf(),
            };
            prop_assert!(e.leaf <= limit, "{:#x}", e.leaf);
        }
    }
}
