//! Unit files as fleet's API speaks of them: a list of assignments.
//!
//! Values are kept as they stand in the file, continuation lines and all, so that they are what fleetctl reads from the same
//! file. Where a value ends, and what is a comment, is as systemd has it.

use std::fmt::Write as _;

use muster_core::unit::normal_form;
use sha1::{Digest, Sha1};

use super::wire::{Refused, UnitOption};

const WHITESPACE: [char; 4] = [' ', '\t', '\n', '\r'];

/// The assignments in a unit file, grouped by section.
pub(super) fn read(text: &str) -> Vec<UnitOption> {
    let mut options = Vec::new();
    let mut section = None;
    let mut lines: Vec<&str> = Vec::new();
    for line in text.trim_start_matches('\u{feff}').lines() {
        if is_comment(line) {
            continue;
        }
        lines.push(line);
        if !is_continued(line) {
            take(&lines.join("\n"), &mut section, &mut options);
            lines.clear();
        }
    }
    // What the end of the file continues is nothing.
    let rest = lines.join("\n");
    take(rest.strip_suffix('\\').unwrap_or(&rest), &mut section, &mut options);
    grouped(options)
}

/// Takes in a line with those that continue it.
fn take(line: &str, section: &mut Option<String>, options: &mut Vec<UnitOption>) {
    let trimmed = line.trim_matches(WHITESPACE);
    if let Some(name) = trimmed.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        *section = Some(name.to_owned());
    } else if let (Some(section), Some((name, value))) = (section, line.split_once('=')) {
        let mut value = value.trim_matches(WHITESPACE).to_owned();
        if is_continued(&value) {
            // By a blank line, which is a part of it.
            value.push('\n');
        }
        let name = name.trim_matches(WHITESPACE).to_owned();
        if !name.is_empty() {
            options.push(UnitOption { section: section.clone(), name, value });
        }
    }
}

fn is_comment(line: &str) -> bool {
    line.trim_start_matches(WHITESPACE).starts_with(['#', ';'])
}

/// Whether the next line belongs to this one.
fn is_continued(line: &str) -> bool {
    line.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1
}

/// Section by section, in the order in which these are first named.
fn grouped(options: Vec<UnitOption>) -> Vec<UnitOption> {
    let mut sections: Vec<(String, Vec<UnitOption>)> = Vec::new();
    for option in options {
        match sections.iter_mut().find(|(name, _)| *name == option.section) {
            Some((_, options)) => options.push(option),
            None => sections.push((option.section.clone(), vec![option])),
        }
    }
    sections.into_iter().flat_map(|(_, options)| options).collect()
}

/// The unit file that has these assignments: fleet's normal form.
pub(super) fn text(options: &[UnitOption]) -> String {
    normal_form(options.iter().map(|option| (&*option.section, &*option.name, &*option.value)))
}

/// fleet's hash of a unit file: the SHA-1 of its normal form, in hexadecimal digits.
pub(super) fn hash(file: &str) -> String {
    let digest = Sha1::digest(text(&read(file)).as_bytes());
    digest.iter().fold(String::with_capacity(40), |mut hash, byte| {
        let _ = write!(hash, "{byte:02x}");
        hash
    })
}

/// Checks that each can be written in a unit file, and is nothing but an assignment there.
pub(super) fn check(options: &[UnitOption]) -> Result<(), Refused> {
    let of_several_lines = |text: &str| text.contains(['\n', '\r', '\0']);
    for UnitOption { section, name, value } in options {
        let why = if section.is_empty() || of_several_lines(section) {
            "has no section, or one of several lines"
        } else if name.trim_matches(WHITESPACE).is_empty()
            || of_several_lines(name)
            || name.contains('=')
            || name.trim_start_matches(WHITESPACE).starts_with(['[', '#', ';'])
        {
            "has a name that stands for no assignment in a unit file"
        } else if value.contains(['\r', '\0']) || !is_one_value(value) {
            "has a value with a line end that no backslash is before, or that ends in one"
        } else {
            continue;
        };
        return Err(Refused::bad(format!("option {name:?} in section {section:?} {why}")));
    }
    Ok(())
}

/// Whether all its lines are continued but the last. Comments in between are none of them.
fn is_one_value(value: &str) -> bool {
    let (first, rest) = value.split_once('\n').map_or((value, None), |(first, rest)| (first, Some(rest)));
    let rest = rest.into_iter().flat_map(|rest| rest.split('\n')).filter(|line| !is_comment(line));
    let lines: Vec<&str> = std::iter::once(first).chain(rest).collect();
    lines
        .split_last()
        .is_some_and(|(last, before)| !is_continued(last) && before.iter().all(|line| is_continued(line)))
}

#[cfg(test)]
mod tests {
    use muster_core::unit::UnitFile;
    use proptest::prelude::*;

    use super::*;

    fn option(section: &str, name: &str, value: &str) -> UnitOption {
        UnitOption { section: section.to_owned(), name: name.to_owned(), value: value.to_owned() }
    }

    #[test]
    fn a_file_is_read_and_written_in_its_normal_form() {
        let file = "# comment\nlost=1\n[Unit]\n  Description = A  test \n\n; another\n[Service]\r\nExecStart=/bin/a \\\n  -b \\\n  \
                    -c\nnothing\n=x\nEnvironment=\n[Unit]\nAfter=a=b\n[Install]\n[X-Fleet]\nGlobal=true";
        let options = [
            option("Unit", "Description", "A  test"),
            option("Unit", "After", "a=b"),
            option("Service", "ExecStart", "/bin/a \\\n  -b \\\n  -c"),
            option("Service", "Environment", ""),
            option("X-Fleet", "Global", "true"),
        ];
        assert_eq!(read(file), options);
        let normal = "[Unit]\nDescription=A  test\nAfter=a=b\n\n[Service]\nExecStart=/bin/a \\\n  -b \\\n  -c\nEnvironment=\n\n\
                      [X-Fleet]\nGlobal=true\n";
        assert_eq!(text(&options), normal);
        assert_eq!(read(normal), options);
        // printf '[Service]\nExecStart=/bin/true\n' | sha1sum
        assert_eq!(
            hash("# a\n[Service]\n ExecStart = /bin/true"),
            "86943ac9f3754cb90f8dd38bf6da7b0cad074592"
        );
    }

    #[test]
    fn odd_ends_of_lines() {
        let read =
            |file: &str| read(&format!("[A]\n{file}")).into_iter().map(|o| o.value).collect::<Vec<_>>();
        assert_eq!(read("a=b \\\n\nc=d\n"), ["b \\\n", "d"], "continued by a blank line");
        assert_eq!(read("a=b \\\n# comment\n c\nd=e"), ["b \\\n c", "e"], "a comment in between");
        assert_eq!(read("a=b\\\\\nc=d"), ["b\\\\", "d"], "a backslash for itself");
        assert_eq!(read("a=b \\"), ["b"], "at the end of the file");
        assert_eq!(read("a=b \\\n"), ["b"]);
        assert_eq!(read(""), [""; 0]);
    }

    #[test]
    fn what_is_no_assignment_is_refused() {
        for (section, name, value) in [
            ("", "a", "b"),
            ("a\nb", "a", "b"),
            ("S", "", "b"),
            ("S", " ", "b"),
            ("S", "a=b", "c"),
            ("S", "a\nb", "c"),
            ("S", "#a", "c"),
            ("S", "[a]", "c"),
            ("S", "a", "b\nExecStart=c"),
            ("S", "a", "b\\\\\nc"),
            ("S", "a", "b\r"),
            ("S", "a", "b\0"),
            ("S", "a", "b\\"),
            ("S", "a", "b\\\n# c"),
        ] {
            assert!(check(&[option(section, name, value)]).is_err(), "{section:?} {name:?} {value:?}");
        }
        assert_eq!(
            check(&[option("S", "a", "b \\\nc"), option("S", "a", ""), option("S", "a", "b \\\n")]),
            Ok(())
        );
    }

    proptest! {
        /// All that passes the check is in the file, and nothing else; the core reads the same assignments there.
        #[test]
        fn what_is_written_is_read(
            options in prop::collection::vec(("[AB]", "[a-c]{1,2}", "[a-c=\\\\# \n]{0,8}"), 0..6)
        ) {
            let options: Vec<_> = options.iter().map(|(s, n, v)| option(s, n, v)).collect();
            prop_assume!(check(&options).is_ok());
            let text = text(&options);
            let again = read(&text);
            let names = |options: &[UnitOption]| {
                options.iter().map(|o| (o.section.clone(), o.name.clone())).collect::<Vec<_>>()
            };
            prop_assert_eq!(names(&again), names(&grouped(options)), "{}", text);
            prop_assert_eq!(&read(&super::text(&again)), &again);
            if let Ok(file) = UnitFile::parse(text.as_bytes()) {
                let core: Vec<_> = file.entries().map(|e| (e.section.to_string(), e.key.to_string())).collect();
                prop_assert_eq!(core, names(&again));
            }
        }
    }
}
