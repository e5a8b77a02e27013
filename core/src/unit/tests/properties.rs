//! What must hold for every input.

use proptest::prelude::*;

use crate::unit::words::{Escapes, split, split_exec, split_with};
use crate::unit::{Bytes, Glob, MilliCpu, Options, UnitFile, UnitName, UnitType};

/// Lines that are likely to mean something, and to break.
fn line() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("[Unit]".to_owned()),
        Just("[X-Fleet]".to_owned()),
        Just("[X-Muster]".to_owned()),
        Just("MachineOf=".to_owned()),
        Just("MachineMetadata=".to_owned()),
        Just("Conflicts=".to_owned()),
        Just("CPU=".to_owned()),
        Just("Memory=".to_owned()),
        Just("Global=".to_owned()),
        Just("\\".to_owned()),
        Just("\"".to_owned()),
        Just("\u{feff}".to_owned()),
        Just("%i".to_owned()),
        Just("[".to_owned()),
        "[ #;=a-z0-9.@*%-]{0,8}",
        "\\PC{0,6}",
    ];
    let end = prop_oneof![
        6 => Just("\n"), 2 => Just("\\\n"), 1 => Just("\r\n"), 1 => Just("\r"), 1 => Just("\n\r"), 1 => Just("")
    ];
    (prop::collection::vec(piece, 0..4), end).prop_map(|(pieces, end)| pieces.concat() + end)
}

fn text() -> impl Strategy<Value = String> {
    prop::collection::vec(line(), 0..20).prop_map(|lines| lines.concat())
}

fn unit_name() -> impl Strategy<Value = String> {
    let types = prop::sample::select(&UnitType::ALL[..]);
    (r"[a-zA-Z0-9:_.\\-]{1,12}(@[a-z0-9@.\\-]{0,8})?", types)
        .prop_filter_map("type without templates", |(stem, t)| {
            (t.may_template() || !stem.contains('@')).then(|| format!("{stem}.{t}"))
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = UnitFile::parse(&bytes);
    }

    #[test]
    fn text_is_kept(text in text()) {
        if let Ok(file) = UnitFile::parse(text.as_bytes()) {
            prop_assert_eq!(&**file.text(), text.as_str());
        }
    }

    #[test]
    fn entries_stand_on_their_lines(text in text()) {
        let Ok(file) = UnitFile::parse(text.as_bytes()) else { return Ok(()) };
        // Lines as systemd counts them, cut in another way than the parser does.
        let text = text.replace("\n\r", "\u{1}").replace("\r\n", "\u{1}").replace(['\n', '\r'], "\u{1}");
        prop_assume!(!file.text().contains("\r\n\r") && !file.text().contains("\n\r\n"));
        let lines: Vec<&str> = text.split('\u{1}').collect();
        let mut previous = 0;
        for entry in file.entries() {
            prop_assert!(entry.line > previous);
            previous = entry.line;
            let line = lines[entry.line as usize - 1];
            let start: String = entry.key.chars().take(1).collect();
            prop_assert!(
                line.trim_start_matches(['\u{feff}', ' ']).starts_with(start.trim_start_matches('\u{feff}')),
                "{entry:?} {line:?}"
            );
        }
    }

    #[test]
    fn plain_assignments_are_found_again(
        pairs in prop::collection::vec(("[A-Za-z]{1,8}", "[a-z \"'%=#;$]{0,12}"), 0..10)
    ) {
        let lines: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
        let text = format!("[S]\n{}", lines.concat());
        let file = UnitFile::parse(text.as_bytes()).unwrap();
        let read: Vec<(String, String)> =
            file.entries().map(|entry| (entry.key.into_owned(), entry.value.into_owned())).collect();
        let written: Vec<(String, String)> =
            pairs.into_iter().map(|(key, value)| (key, value.trim().to_owned())).collect();
        prop_assert_eq!(read, written);
    }

    #[test]
    fn options_never_panic(text in text(), name in unit_name()) {
        let Ok(name) = UnitName::parse(&name) else { return Ok(()) };
        if let Ok(file) = UnitFile::parse(text.as_bytes())
            && let Err(errors) = Options::parse(&name, &file)
        {
            prop_assert!(!errors.is_empty());
            prop_assert!(errors.is_sorted_by_key(|error| error.line));
        }
    }

    #[test]
    fn names_are_shown_as_they_were_read(text in unit_name()) {
        if let Ok(name) = UnitName::parse(&text) {
            prop_assert_eq!(name.to_string(), text.clone());
            prop_assert_eq!(UnitName::parse(name.as_str()), Ok(name.clone()));
            if let (Some(template), Some(instance)) = (name.template(), name.instance()) {
                prop_assert!(template.is_template());
                prop_assert_eq!(template.instance_of(instance), Ok(name.clone()));
            }
            prop_assert!(Glob::parse(&text.replace('\\', r"\\")).unwrap().matches(&text));
        } else {
            prop_assert!(text.starts_with('@'), "{}", text);
        }
    }

    #[test]
    fn any_text_is_a_name_or_not(text in "\\PC{0,20}") {
        if let Ok(name) = UnitName::parse(&text) {
            prop_assert_eq!(name.to_string(), text);
        }
    }

    #[test]
    fn quoted_words_come_back(words in prop::collection::vec("[^\\x00]{0,8}", 0..6)) {
        let quoted: Vec<String> =
            words.iter().map(|word| format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""))).collect();
        prop_assert_eq!(split(&quoted.join(" ")).unwrap(), words);
    }

    #[test]
    fn words_never_panic(text in "[ a\\\\\"'xu0-9;é]{0,20}|\\PC{0,20}") {
        for escapes in [Escapes::Decode, Escapes::DecodeRelaxed, Escapes::Keep, Escapes::Drop] {
            let _ = split_with(&text, escapes);
        }
        let _ = split_exec(&text);
    }

    #[test]
    fn globs_never_panic(pattern in "[]\\[*?^a-c\\\\-]{0,10}", name in "[a-c-]{0,10}") {
        if let Ok(glob) = Glob::parse(&pattern) {
            let _ = glob.matches(&name);
        }
    }

    #[test]
    fn globs_agree_with_a_plain_matcher(pattern in "[*?ab]{1,8}", name in "[ab]{0,8}") {
        fn plain(pattern: &[u8], name: &[u8]) -> bool {
            match (pattern, name) {
                ([], []) => true,
                ([b'*', p @ ..], _) if plain(p, name) => true,
                ([b'*', ..], [_, n @ ..]) => plain(pattern, n),
                ([p, ps @ ..], [n, ns @ ..]) if *p == b'?' || p == n => plain(ps, ns),
                _ => false,
            }
        }
        let expected = plain(pattern.as_bytes(), name.as_bytes());
        prop_assert_eq!(Glob::parse(&pattern).unwrap().matches(&name), expected);
    }

    #[test]
    fn amounts_come_back(amount in any::<u64>(), shift in 0..64_u32) {
        let amount = amount << shift;
        prop_assert_eq!(Bytes(amount).to_string().parse(), Ok(Bytes(amount)));
        prop_assert_eq!(MilliCpu(amount).to_string().parse(), Ok(MilliCpu(amount)));
    }
}
