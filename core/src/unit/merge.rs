//! A unit's file and its drop-ins as one file that says the same.

use std::fmt::Write as _;

/// A unit's file with its drop-ins after it, in the order in which systemd reads them: the paths, and their texts.
///
/// systemd reads them one after the other as if they were one file, but that each begins outside of any section. Where they
/// came from stands in comments.
///
/// # Errors
/// What keeps a drop-in from meaning the same in a file with others.
pub fn merge(file: &str, drop_ins: &[(String, String)]) -> Result<String, String> {
    let mut merged = file.to_owned();
    for (path, text) in drop_ins {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let first =
            text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with(['#', ';']));
        if first.is_some_and(|line| !line.starts_with('[')) {
            return Err(format!(
                "{path} begins outside of any section, where systemd ignores it: remove these lines first"
            ));
        }
        // What ends in a backslash is continued by the empty line, and by nothing else.
        let _ = write!(merged, "\n\n# {path}\n{text}");
    }
    if !merged.ends_with('\n') {
        merged.push('\n');
    }
    Ok(if drop_ins.is_empty() { file.to_owned() } else { merged })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unit::UnitFile;

    fn drop_in(text: &str) -> (String, String) {
        ("/etc/systemd/system/a.service.d/10.conf".to_owned(), text.to_owned())
    }

    #[test]
    fn drop_ins_count_after_the_file_in_their_order() {
        let file = "[Service]\nExecStart=/bin/a \\\n  b \\";
        let drop_ins = [
            drop_in("# comment\n[Service]\nExecStart=\nExecStart=/bin/c\nNice=1"),
            drop_in("\u{feff}[Unit]\nAfter=x.service\n[Service]\nNice=2\n"),
        ];
        let merged = merge(file, &drop_ins).unwrap();
        let parsed = UnitFile::parse(merged.as_bytes()).unwrap();
        assert_eq!(parsed.values("Service", "ExecStart"), ["/bin/c"], "{merged}");
        assert_eq!(parsed.value("Service", "Nice").as_deref(), Some("2"), "{merged}");
        assert_eq!(parsed.values("Unit", "After"), ["x.service"], "{merged}");
        assert!(merged.contains("# /etc/systemd/system/a.service.d/10.conf\n"), "{merged}");
    }

    #[test]
    fn a_file_without_drop_ins_stays_as_it_is() {
        assert_eq!(merge("[Service]\nExecStart=/bin/a", &[]).unwrap(), "[Service]\nExecStart=/bin/a");
    }

    #[test]
    fn what_stands_before_the_first_section_is_refused() {
        let error = merge("[Service]\nExecStart=/bin/a\n", &[drop_in("Nice=1\n[Service]\n")]).unwrap_err();
        assert!(error.contains("10.conf begins outside of any section"), "{error}");
    }
}
