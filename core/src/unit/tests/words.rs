use crate::unit::words::{Command, Escapes, WordsError, plain, split, split_exec, split_with};

#[test]
fn words() {
    let table: [(&str, &[&str]); 16] = [
        ("", &[]),
        (" \t ", &[]),
        ("a  b\tc\r\n", &["a", "b", "c"]),
        (r#""a b" 'c d'"#, &["a b", "c d"]),
        (r#"a"b c"d'e'"#, &["ab cde"]),
        (r#""" ''"#, &["", ""]),
        (r#"'a"b' "c'd""#, &["a\"b", "c'd"]),
        (r#"VAR1=word1 "VAR2=word 5 6" 'VAR3=$word'"#, &["VAR1=word1", "VAR2=word 5 6", "VAR3=$word"]),
        (r"\a\b\f\n\r\t\v\\\s", &["\u{7}\u{8}\u{c}\n\r\t\u{b}\\ "]),
        (r#"\"a\""#, &["\"a\""]),
        (r"'it\'s'", &["it's"]),
        (r"\x41\101\u00e9\U0001F600", &["AAé😀"]),
        (r"\xc3\xa9", &["é"]),
        (r"\x411", &["A1"]),
        ("# ; é", &["#", ";", "é"]),
        ("a\u{a0}b\u{c}c", &["a\u{a0}b\u{c}c"]),
    ];
    for (text, expected) in table {
        assert_eq!(split(text).unwrap(), expected, "{text}");
    }
}

#[test]
fn bad_words() {
    let table = [
        ("\"a", WordsError::UnbalancedQuotes),
        ("a 'b\"", WordsError::UnbalancedQuotes),
        ("a\\", WordsError::TrailingBackslash),
        ("\"a\\", WordsError::UnbalancedQuotes),
        (r"\q", WordsError::UnknownEscape),
        (r"\x4", WordsError::UnknownEscape),
        (r"\x+4", WordsError::UnknownEscape),
        (r"\x00", WordsError::UnknownEscape),
        (r"\000", WordsError::UnknownEscape),
        (r"\400", WordsError::UnknownEscape),
        (r"\18", WordsError::UnknownEscape),
        (r"\ud800", WordsError::UnknownEscape),
        (r"\xff", WordsError::NotUtf8),
        (r"\é", WordsError::UnknownEscape),
        (r"\xé", WordsError::UnknownEscape),
    ];
    for (text, error) in table {
        assert_eq!(split(text), Err(error), "{text}");
    }
}

#[test]
fn flavours() {
    use Escapes::{Decode, DecodeRelaxed, Drop, Keep};
    let text = r#"a\x2db "c\sd" \q"#;
    assert_eq!(split_with(text, Decode), Err(WordsError::UnknownEscape));
    assert_eq!(split_with(text, DecodeRelaxed).unwrap(), ["a-b", "c d", r"\q"]);
    assert_eq!(split_with(text, Keep).unwrap(), [r"a\x2db", r"c\sd", r"\q"]);
    assert_eq!(split_with(text, Drop).unwrap(), ["ax2db", "csd", "q"]);
    assert_eq!(split_with("a\\", DecodeRelaxed).unwrap(), ["a\\"]);
    assert_eq!(split_with("a\\", Keep).unwrap(), ["a\\"]);
    assert_eq!(split_with("a\\", Drop), Err(WordsError::TrailingBackslash));
    assert_eq!(split_with(r"a\ b", DecodeRelaxed).unwrap(), [r"a\ b"]);
    assert_eq!(split_with(r"a\ b", Drop).unwrap(), ["a b"]);
    assert_eq!(split_with(r"a\é", DecodeRelaxed).unwrap(), [r"a\é"]);
}

#[test]
fn plain_lists() {
    let words: Vec<&str> = plain(" a.service\t\"b.service\"  c\\x2dd.service \n").collect();
    assert_eq!(words, ["a.service", "\"b.service\"", r"c\x2dd.service"]);
    assert_eq!(plain("  ").count(), 0);
}

fn command(prefixes: &str, program: &str, arguments: &[&str]) -> Command {
    Command {
        prefixes: prefixes.to_owned(),
        program: program.to_owned(),
        arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
    }
}

#[test]
fn commands() {
    let echo = |arguments: &[&str]| vec![command("", "/bin/echo", arguments)];
    let table = [
        (
            "/bin/echo one ; /bin/echo \"two two\"",
            vec![
                command("", "/bin/echo", &["/bin/echo", "one"]),
                command("", "/bin/echo", &["/bin/echo", "two two"]),
            ],
        ),
        (r"/bin/echo / >/dev/null & \; ls", echo(&["/bin/echo", "/", ">/dev/null", "&", ";", "ls"])),
        (r#"/bin/echo ";" a;b \;c"#, echo(&["/bin/echo", ";", "a;b", r"\;c"])),
        ("-@/bin/sh sh -c 'exit 1'", vec![command("-@", "/bin/sh", &["sh", "-c", "exit 1"])]),
        ("+!!/a", vec![command("+!!", "/a", &["/a"])]),
        ("; /a ; ; /b ;", vec![command("", "/a", &["/a"]), command("", "/b", &["/b"])]),
        (r#"/bin/echo "a\tb" \x41"#, echo(&["/bin/echo", "a\tb", "A"])),
        ("", vec![]),
    ];
    for (text, expected) in table {
        assert_eq!(split_exec(text).unwrap(), expected, "{text}");
    }
    assert_eq!(split_exec("-"), Err(WordsError::NoProgram));
    assert_eq!(split_exec("@/bin/sh"), Err(WordsError::NoProgram));
    assert_eq!(split_exec("/a 'b"), Err(WordsError::UnbalancedQuotes));
}
