use crate::unit::{UnitName, UnitNameError, UnitType};

fn name(text: &str) -> UnitName {
    text.parse().unwrap()
}

fn refusal(text: &str) -> String {
    UnitName::parse(text).unwrap_err().to_string()
}

#[test]
fn parts() {
    // prefix, instance, stem, template
    let table = [
        ("web.service", "web", None, "web", None),
        ("web@.service", "web", None, "web@", None),
        ("web@1.service", "web", Some("1"), "web@1", Some("web@.service")),
        ("web@a@b.c.service", "web", Some("a@b.c"), "web@a@b.c", Some("web@.service")),
        ("a.b@c.d.timer", "a.b", Some("c.d"), "a.b@c.d", Some("a.b@.timer")),
        (r"dev-disk-by\x2dlabel.swap", r"dev-disk-by\x2dlabel", None, r"dev-disk-by\x2dlabel", None),
        ("-.mount", "-", None, "-", None),
        ("a.service.socket", "a.service", None, "a.service", None),
    ];
    for (text, prefix, instance, stem, template) in table {
        let name = name(text);
        assert_eq!(name.to_string(), text);
        assert_eq!(name.prefix(), prefix, "{text}");
        assert_eq!(name.instance(), instance, "{text}");
        assert_eq!(name.stem(), stem, "{text}");
        assert_eq!(name.template().map(|t| t.to_string()).as_deref(), template, "{text}");
        assert_eq!(name.is_instance(), instance.is_some(), "{text}");
        assert_eq!(name.is_template(), text.contains("@."), "{text}");
    }
}

#[test]
fn every_type_is_known() {
    for unit_type in UnitType::ALL {
        assert_eq!(name(&format!("a.{unit_type}")).unit_type(), unit_type);
        let template = UnitName::parse(&format!("a@.{unit_type}"));
        assert_eq!(template.is_ok(), unit_type.may_template());
    }
    assert!(UnitType::Device.schedulable().is_err());
    assert!(UnitType::Scope.schedulable().is_err());
    assert_eq!(UnitType::ALL.iter().filter(|t| t.schedulable().is_ok()).count(), 9);
}

#[test]
fn refusals_say_why() {
    assert_eq!(refusal(""), "unit name cannot be empty");
    assert_eq!(refusal("web"), r#"unit name must contain ".""#);
    assert_eq!(refusal("web."), r#"unit name cannot end in ".""#);
    assert_eq!(refusal("web.srv"), r#"invalid unit type: "srv""#);
    assert_eq!(refusal("web.SERVICE"), r#"invalid unit type: "SERVICE""#);
    assert_eq!(
        refusal("web.snapshot"),
        r#"invalid unit type: "snapshot" (systemd no longer has snapshot units)"#
    );
    assert_eq!(refusal("a@b.mount"), r#"invalid unit type for template: "mount""#);
    assert_eq!(refusal("a b.service"), "invalid character ' ' in unit name");
    assert_eq!(refusal("a!.service"), "invalid character '!' in unit name");
    assert_eq!(refusal("a/b.service"), "invalid character '/' in unit name");
    assert_eq!(refusal("ä.service"), "invalid character 'ä' in unit name");
    assert_eq!(refusal("@1.service"), r#"unit name cannot start in "@""#);
    assert_eq!(UnitName::parse(".service"), Err(UnitNameError::NoStem(".service".into())));
}

#[test]
fn length_is_systemds() {
    let longest = format!("{}.service", "a".repeat(247));
    assert_eq!(longest.len(), 255);
    assert!(UnitName::parse(&longest).is_ok());
    assert_eq!(refusal(&format!("a{longest}")), "unit name exceeds maximum length (255)");
}

#[test]
fn instances_of_templates() {
    assert_eq!(name("web@.service").instance_of("1"), Ok(name("web@1.service")));
    assert_eq!(name("web@1.service").instance_of("2"), Ok(name("web@2.service")));
    assert_eq!(name("web@.service").instance_of("a b"), Err(UnitNameError::InvalidCharacter(' ')));
    assert!(name("web@.service").instance_of("").is_err());
    assert!(name("web.service").instance_of("1").is_err());
}

#[test]
fn arguments() {
    let table = [
        ("web", "web.service"),
        ("web.service", "web.service"),
        ("./units/web.timer", "web.timer"),
        ("units/web@1", "web@1.service"),
        ("/units/web/", "web.service"),
        ("web.target", "web.target"),
        ("my.app", "my.app.service"),
    ];
    for (argument, expected) in table {
        assert_eq!(UnitName::from_argument(argument), Ok(name(expected)), "{argument}");
    }
    assert_eq!(UnitName::from_argument(""), Err(UnitNameError::Empty));
    assert_eq!(UnitName::from_argument("/"), Err(UnitNameError::Empty));
    assert_eq!(UnitName::from_argument("x.busname"), Err(UnitNameError::RetiredType("busname".into())));
}

#[test]
fn serde_checks() {
    let json = serde_json::to_string(&name("web@1.service")).unwrap();
    assert_eq!(json, r#""web@1.service""#);
    assert_eq!(serde_json::from_str::<UnitName>(&json).unwrap(), name("web@1.service"));
    // An escape sequence, which cannot be borrowed from the input.
    assert_eq!(serde_json::from_str::<UnitName>(r#""a\\x2db.service""#).unwrap(), name(r"a\x2db.service"));
    let error = serde_json::from_str::<UnitName>(r#""web""#).unwrap_err().to_string();
    assert!(error.contains("must contain"), "{error}");
}
