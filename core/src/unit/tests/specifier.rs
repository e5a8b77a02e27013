use crate::unit::specifier::{SpecifierError, Specifiers, expand, unescape, unescape_path};

fn of(name: &str) -> Specifiers {
    Specifiers::of(&name.parse().unwrap())
}

#[test]
fn of_the_name() {
    let web = of(r"my-web@var-a\x2db.service");
    let table = [
        ("%n", r"my-web@var-a\x2db.service"),
        ("%N", r"my-web@var-a\x2db"),
        ("%p %P", "my-web my/web"),
        ("%i %I", r"var-a\x2db var/a-b"),
        ("%j %J", "web web"),
        ("%f", "/var/a-b"),
        ("100%%", "100%"),
        ("a%", "a%"),
        ("% %- %é", "% %- %é"),
        ("%%n%n", r"%nmy-web@var-a\x2db.service"),
    ];
    for (text, expected) in table {
        assert_eq!(expand(text, &web).as_deref(), Ok(expected), "{text}");
    }
    let plain = of("data-db.mount");
    assert_eq!(expand("%i|%I|%j|%f|%p", &plain).as_deref(), Ok("||db|/data/db|data-db"));
}

#[test]
fn of_the_machine() {
    let specifiers = of("a.service").with('H', "host1").with('m', "0123");
    assert_eq!(expand("%H/%m", &specifiers).as_deref(), Ok("host1/0123"));
    assert_eq!(expand("%b", &specifiers), Err(SpecifierError::OfTheMachine('b')));
    assert_eq!(expand("%z", &specifiers), Err(SpecifierError::Unknown('z')));
    assert_eq!(expand("%5", &specifiers), Err(SpecifierError::Unknown('5')));
}

#[test]
fn what_cannot_be_unescaped() {
    assert!(matches!(
        expand("%I", &of(r"a@b\y.service")),
        Err(SpecifierError::NotEscaped { specifier: 'I', .. })
    ));
    assert!(matches!(expand("%f", &of("a@-b.service")), Err(SpecifierError::NotEscaped { .. })));
    assert_eq!(unescape(r"a\x2").as_deref(), None);
    assert_eq!(unescape(r"\xff").as_deref(), None);
    assert_eq!(unescape(r"\xc3\xa9-").as_deref(), Some("é/"));
    assert_eq!(unescape_path("-").as_deref(), Some("/"));
    assert_eq!(unescape_path(""), None);
    assert_eq!(unescape_path("a-..-b"), None);
}
