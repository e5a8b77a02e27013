use crate::unit::{Bytes, MilliCpu, quantity::cpu_quota, time_span};

#[test]
fn cpu() {
    let table = [
        ("500m", 500),
        ("1", 1000),
        ("1.5", 1500),
        ("0.25", 250),
        ("2.", 2000),
        ("50%", 500),
        ("12.5%", 125),
        ("150%", 1500),
        ("0", 0),
        ("0.0010", 1),
    ];
    for (text, milli) in table {
        assert_eq!(text.parse(), Ok(MilliCpu(milli)), "{text}");
    }
    for bad in [
        "", "m", "%", "-1", "+1", "1 m", "1e3", "0x10", ".5", "1,5", "infinity", "1k", "1.5.5", "0.0001",
        "0.05%",
    ] {
        assert!(bad.parse::<MilliCpu>().is_err(), "{bad}");
    }
    let error = "0.5m".parse::<MilliCpu>().unwrap_err().to_string();
    assert!(error.contains("finer"), "{error}");
    let error = "99999999999999999999".parse::<MilliCpu>().unwrap_err().to_string();
    assert!(error.contains("amount"), "{error}");
    let error = "18446744073709551615".parse::<MilliCpu>().unwrap_err().to_string();
    assert!(error.contains("too much"), "{error}");
}

#[test]
fn memory() {
    let table = [
        ("0", 0),
        ("1000", 1000),
        ("1B", 1),
        ("1K", 1024),
        ("512M", 512 << 20),
        ("1.5G", 1536 << 20),
        ("10.M", 10 << 20),
        ("1G 512M", 1536 << 20),
        ("1G512M1", (1536 << 20) + 1),
        ("1 T", 1 << 40),
        ("1E", 1 << 60),
    ];
    for (text, bytes) in table {
        assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
    }
    for bad in
        ["", "M", "-1", "1KB", "1Ki", "1k", "16E", "1M 1G", "1M1M", "50%", "infinity", "99999999999999999999"]
    {
        assert!(bad.parse::<Bytes>().is_err(), "{bad}");
    }
}

#[test]
fn quota_as_systemd_reads_it() {
    let table = [
        ("50%", Some(500)),
        ("200%", Some(2000)),
        ("12.5%", Some(125)),
        ("0.01%", Some(1)),
        ("5‰", Some(5)),
        ("0.5‰", Some(1)),
        ("5‱", Some(1)),
        ("0%", None),
        ("0.001%", None),
        ("50", None),
        ("50.%", None),
        ("-5%", None),
        ("1.5‱", None),
        ("99999999999%", None),
    ];
    for (text, expected) in table {
        assert_eq!(cpu_quota(text), expected.map(MilliCpu), "{text}");
    }
}

#[test]
fn shown() {
    assert_eq!(MilliCpu(2000).to_string(), "2");
    assert_eq!(MilliCpu(1500).to_string(), "1500m");
    assert_eq!(Bytes(0).to_string(), "0");
    assert_eq!(Bytes(1000).to_string(), "1000");
    assert_eq!(Bytes(1536 << 20).to_string(), "1536M");
    assert_eq!(Bytes(1 << 60).to_string(), "1E");
}

#[test]
fn arithmetic() {
    assert_eq!(Bytes(1).checked_sub(Bytes(2)), None);
    assert_eq!(Bytes(1).saturating_sub(Bytes(2)), Bytes(0));
    assert_eq!(MilliCpu(u64::MAX).checked_add(MilliCpu(1)), None);
    assert_eq!(MilliCpu(u64::MAX).saturating_add(MilliCpu(1)), MilliCpu(u64::MAX));
    assert_eq!(serde_json::to_string(&Bytes(5)).unwrap(), "5");
}

#[test]
fn time_spans_as_systemd_reads_them() {
    let table = [
        ("0", Some(0)),
        ("5", Some(5_000_000)),
        ("1.5", Some(1_500_000)),
        ("500ms", Some(500_000)),
        ("2min 30s", Some(150_000_000)),
        ("1h30m", Some(5_400_000_000)),
        (" 1 d ", Some(86_400_000_000)),
        ("1w", Some(604_800_000_000)),
        ("", None),
        ("infinity", None),
        ("5 parsecs", None),
        ("-1", None),
        ("s", None),
        ("99999999999999999999", None),
        ("9999999999999y", None),
    ];
    for (text, micros) in table {
        assert_eq!(time_span(text), micros.map(std::time::Duration::from_micros), "{text:?}");
    }
}
