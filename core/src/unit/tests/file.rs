use crate::unit::{ContentHash, MAX_UNIT_FILE_BYTES, UnitFile, UnitFileError};

fn file(text: &str) -> UnitFile {
    UnitFile::parse(text.as_bytes()).unwrap()
}

/// `section.key=value@line` of every entry.
fn entries(text: &str) -> Vec<String> {
    file(text).entries().map(|e| format!("{}.{}={}@{}", e.section, e.key, e.value, e.line)).collect()
}

fn refusal(bytes: &[u8]) -> UnitFileError {
    UnitFile::parse(bytes).unwrap_err()
}

#[test]
fn examples_of_the_manual() {
    // systemd.syntax(7), examples 1 and 2.
    let text = "[Section A]\nKeyOne=value 1\nKeyTwo=value 2\n\n# a comment\n\n[Section B]\nSetting=\"something\" \"some thing\" \"…\"\n\
                KeyTwo=value 2 \\\n       value 2 continued\n\n[Section C]\nKeyThree=value 3\\\n# this line is ignored\n\
                ; this line is ignored too\n       value 3 continued\n";
    assert_eq!(
        entries(text),
        [
            "Section A.KeyOne=value 1@2",
            "Section A.KeyTwo=value 2@3",
            "Section B.Setting=\"something\" \"some thing\" \"…\"@8",
            "Section B.KeyTwo=value 2         value 2 continued@9",
            "Section C.KeyThree=value 3        value 3 continued@13",
        ]
    );
}

#[test]
fn continuations() {
    assert_eq!(entries("[A]\nk=a\\\nb"), ["A.k=a b@2"]);
    assert_eq!(entries("[A]\nk=a\\\r\nb\r\nl=c"), ["A.k=a b@2", "A.l=c@4"]);
    // A backslash before a blank continues nothing, nor do two of them.
    assert_eq!(entries("[A]\nk=a\\ \nb=c"), ["A.k=a\\@2", "A.b=c@3"]);
    assert_eq!(entries("[A]\nk=a\\\\\nb=c"), ["A.k=a\\\\@2", "A.b=c@3"]);
    assert_eq!(entries("[A]\nk=a\\\\\\\nb=c"), ["A.k=a\\\\ b=c@2"]);
    // A blank line ends it; a comment that ends in a backslash continues nothing.
    assert_eq!(entries("[A]\nk=a\\\n\nb=c"), ["A.k=a@2", "A.b=c@4"]);
    assert_eq!(entries("[A]\nk=a\n# c \\\nb=c"), ["A.k=a@2", "A.b=c@4"]);
    assert_eq!(entries("[A]\nk=a\\\n  ; c \\\n#\nb\n"), ["A.k=a b@2"]);
    // At the end of the file.
    assert_eq!(entries("[A]\nk=a\\"), ["A.k=a@2"]);
    assert_eq!(entries("[A]\nk=a\\\n# c"), ["A.k=a@2"]);
    // A continued blank line counts for nothing, also not for the line number.
    assert_eq!(entries("[A]\n\\\n \\\nk=a"), ["A.k=a@4"]);
    // Keys and headers can be continued as well.
    assert_eq!(entries("[A\\\nB]\nk\\\nl=a"), ["A B.k l=a@3"]);
}

#[test]
fn line_ends() {
    assert_eq!(entries("[A]\r\nk=a\r\n\r\nl=b\r\n"), ["A.k=a@2", "A.l=b@4"]);
    assert_eq!(entries("[A]\rk=a\rl=b"), ["A.k=a@2", "A.l=b@3"]);
    assert_eq!(entries("[A]\n\rk=a\n\r\nl=b"), ["A.k=a@2", "A.l=b@4"]);
    assert_eq!(entries("[A]\nk=a"), ["A.k=a@2"]);
}

#[test]
fn byte_order_mark() {
    assert_eq!(entries("\u{feff}[A]\nk=a"), ["A.k=a@2"]);
    assert_eq!(entries("[A]\n\u{feff}k=a"), ["A.k=a@2"]);
    assert_eq!(entries("\u{feff}[A]\n\u{feff}k=a"), ["A.\u{feff}k=a@2"]);
    // systemd looks for comments first: this one is a line outside of a section.
    let file = file("\u{feff}# c\n[A]\nk=a");
    assert_eq!(file.warnings().len(), 1);
    assert_eq!(file.warnings()[0].to_string(), "line 1: assignment outside of a section, ignored");
}

#[test]
fn blanks() {
    assert_eq!(entries(" \t[A] \n  k \t= \t a b \t\n\tl==b=c"), ["A.k=a b@2", "A.l==b=c@3"]);
    // Blanks in the brackets belong to the name; form feeds and Unicode's blanks are no blanks.
    assert_eq!(entries("[ A ]\nk=\u{c}a\u{a0}"), [" A .k=\u{c}a\u{a0}@2"]);
    assert_eq!(entries("[A]\nk=  # no comment\nl=a ; b"), ["A.k=# no comment@2", "A.l=a ; b@3"]);
}

#[test]
fn sections_repeat() {
    let file = file("[A]\nk=1\n[B]\nk=2\n[A]\nk=3\nl=\n");
    assert_eq!(file.values("A", "k"), ["1", "3"]);
    assert_eq!(file.value("A", "k").as_deref(), Some("3"));
    assert_eq!(file.value("B", "k").as_deref(), Some("2"));
    assert_eq!(file.value("A", "l"), None);
    assert_eq!(file.value("a", "k"), None);
    assert_eq!(file.value("A", "K"), None);
}

#[test]
fn empty_assignments_reset() {
    let file = file(
        "[Service]\nEnvironment=A=1\nEnvironment=\nEnvironment=B=2\nEnvironment=C=3\nExecStart=/a\nExecStartPre=\n\
         [Unit]\nAfter=a.service\nAfter=\nAfter=b.service\nConditionHost=a\nAssertHost=a\nConditionPathExists=\n\
         [Timer]\nOnCalendar=daily\nOnBootSec=\nOnActiveSec=5\nUnit=x.service\n\
         [Socket]\nListenStream=1\nListenDatagram=\nListenFIFO=/a\nService=\n\
         [Path]\nPathExists=/a\nPathChanged=\n[Install]\nWantedBy=a.target\nWantedBy=\n",
    );
    assert_eq!(file.values("Service", "Environment"), ["B=2", "C=3"]);
    assert_eq!(file.values("Service", "ExecStart"), ["/a"]);
    assert_eq!(file.values("Unit", "After"), ["a.service", "b.service"]);
    assert!(file.values("Unit", "ConditionHost").is_empty());
    assert_eq!(file.values("Unit", "AssertHost"), ["a"]);
    assert!(file.values("Timer", "OnCalendar").is_empty());
    assert_eq!(file.values("Timer", "OnActiveSec"), ["5"]);
    assert_eq!(file.values("Timer", "Unit"), ["x.service"]);
    assert!(file.values("Socket", "ListenStream").is_empty());
    assert_eq!(file.values("Socket", "ListenFIFO"), ["/a"]);
    assert!(file.values("Path", "PathExists").is_empty());
    assert!(file.values("Install", "WantedBy").is_empty());
}

#[test]
fn ignored_lines_are_warned_of() {
    let file = file("a=b\n[A]\nfoo\n=bar\nk=v\n");
    let warnings: Vec<String> = file.warnings().iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            "line 1: assignment outside of a section, ignored",
            "line 3: missing \"=\", line ignored",
            "line 4: missing key before \"=\", line ignored",
        ]
    );
    assert_eq!(file.entries().count(), 1);
}

#[test]
fn refusals() {
    assert_eq!(refusal(b""), UnitFileError::Empty);
    assert_eq!(refusal(b" \r\n\t\n"), UnitFileError::Empty);
    assert_eq!(refusal("\u{feff}\n".as_bytes()), UnitFileError::Empty);
    assert_eq!(refusal(b"# only a comment\n"), UnitFileError::NoSection);
    assert_eq!(refusal(b"a=b\n"), UnitFileError::NoSection);
    assert_eq!(refusal(b"[A]\na=b\n\nc=\0\n"), UnitFileError::Nul { line: 4 });
    assert_eq!(refusal(b"[A]\r\na=b\r\nc=\xff\n"), UnitFileError::NotUtf8 { line: 3 });
    assert_eq!(
        refusal("[A]\na=\u{fffe}\n".as_bytes()),
        UnitFileError::NonCharacter { line: 2, code: 0xfffe }
    );
    assert!(UnitFile::parse("[A]\n# \u{fffe}\n".as_bytes()).is_ok());
    let error = refusal(b"[A]\nk=v\n[B] # comment\n");
    assert_eq!(error, UnitFileError::InvalidSectionHeader { line: 3, header: "[B] # comment".into() });
    assert!(error.to_string().starts_with("line 3: invalid section header"), "{error}");
    for bad in ["[a\tb]", "[a\"b]", "[a'b]", "[a\\b]", "[a\u{7f}]", "[X-\u{c}]"] {
        assert!(matches!(refusal(bad.as_bytes()), UnitFileError::BadSectionName { line: 1, .. }), "{bad}");
    }
    assert!(matches!(refusal(b"["), UnitFileError::InvalidSectionHeader { line: 1, .. }));
}

#[test]
fn size_limit() {
    let mut bytes = b"[A]\nk=".to_vec();
    bytes.resize(MAX_UNIT_FILE_BYTES, b'x');
    assert!(UnitFile::parse(&bytes).is_ok());
    bytes.push(b'x');
    assert_eq!(refusal(&bytes), UnitFileError::TooLarge { bytes: MAX_UNIT_FILE_BYTES + 1 });
    let line = vec![b'x'; MAX_UNIT_FILE_BYTES];
    assert_eq!(refusal(&line), UnitFileError::LineTooLong { line: 1 });
}

#[test]
fn kept_byte_for_byte() {
    let text = "\u{feff}[A]\r\n\r\n# c\nk = v \\\n\n";
    assert_eq!(&**file(text).text(), text);
    assert_eq!(file(text), file(text));
    assert_ne!(file("[A]\n"), file("[A]\n\n"));
}

#[test]
fn hashes() {
    // FIPS 180-2, appendix B.1.
    let hash = ContentHash::of(b"abc");
    assert_eq!(hash.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_eq!(hash.short(), "ba7816b");
    assert_eq!(hash.to_string().parse(), Ok(hash));
    assert_eq!(ContentHash::from_bytes(*hash.as_bytes()), hash);
    assert_eq!(file("[A]\n").hash(), ContentHash::of(b"[A]\n"));
    let json = serde_json::to_string(&hash).unwrap();
    assert_eq!(serde_json::from_str::<ContentHash>(&json).unwrap(), hash);
    for bad in ["", "ba78", &"g".repeat(64), &"A".repeat(64), &"é".repeat(32)] {
        assert!(bad.parse::<ContentHash>().is_err(), "{bad}");
    }
}
