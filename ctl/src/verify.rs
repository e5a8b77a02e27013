//! Checks unit files here, as the scheduler would, and shows the lines.

use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;

use muster_core::unit::{Options, UnitFile, UnitName};

use crate::failure::{Exit, Failure};
use crate::style::{Role, harmless};

/// Something to say about a unit file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    /// Whether the scheduler would refuse the file for it.
    is_error: bool,
    /// Counted from 1; `None` when it is about the file as a whole.
    line: Option<u32>,
    message: String,
}

/// Checks the files and prints what is wrong with them.
///
/// # Errors
/// [`Exit::Failed`] when the scheduler would refuse one.
pub fn run(paths: &[String], out: &mut impl Write) -> Result<(), Failure> {
    let (mut errors, mut warnings) = (0, 0);
    for path in paths {
        let (findings, text) = match std::fs::read(path) {
            Ok(bytes) => (check(path, &bytes), String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) => {
                let message = format!("cannot be read: {error}");
                (vec![Finding { is_error: true, line: None, message }], String::new())
            }
        };
        for finding in &findings {
            *if finding.is_error { &mut errors } else { &mut warnings } += 1;
            write!(out, "{}", show(path, &text, finding))?;
        }
    }
    out.flush()?;
    let files = count(paths.len(), "file");
    if errors == 0 && warnings == 0 {
        anstream::eprintln!("{files}: {}", Role::Good.paint("no errors, no warnings"));
        return Ok(());
    }
    anstream::eprintln!("{files}: {}, {}", count(errors, "error"), count(warnings, "warning"));
    if errors > 0 { Err(Failure::silent(Exit::Failed)) } else { Ok(()) }
}

/// `1 file`, `2 files`.
pub fn count(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

fn check(path: &str, bytes: &[u8]) -> Vec<Finding> {
    let error = |line, message: String| Finding { is_error: true, line, message };
    let mut findings = Vec::new();
    let base =
        Path::new(path).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let name = UnitName::parse(&base)
        .map_err(|why| findings.push(error(None, format!("{base:?} is no unit's name: {why}"))));
    let file = UnitFile::parse(bytes).map_err(|why| findings.push(located(&why.to_string())));
    if let (Ok(name), Ok(file)) = (name, file) {
        match Options::parse(&name, &file) {
            Ok(parsed) => findings.extend(parsed.warnings.into_iter().map(|warning| Finding {
                is_error: false,
                line: warning.line,
                message: warning.message,
            })),
            Err(errors) => findings.extend(errors.into_iter().map(|why| error(why.line, why.message))),
        }
    }
    findings
}

/// An error whose text begins with `line N: `, where it has a line.
fn located(text: &str) -> Finding {
    let split = text.strip_prefix("line ").and_then(|rest| rest.split_once(": "));
    let found = split.and_then(|(line, message)| Some((line.parse().ok()?, message)));
    let (line, message) = found.map_or((None, text), |(line, message)| (Some(line), message));
    Finding { is_error: true, line, message: message.to_owned() }
}

/// `PATH:LINE: error: …`, the line itself, and a mark below what it is about.
fn show(path: &str, text: &str, finding: &Finding) -> String {
    let (role, kind) = if finding.is_error { (Role::Bad, "error:") } else { (Role::Warn, "warning:") };
    let place = finding.line.map_or_else(|| path.to_owned(), |line| format!("{path}:{line}"));
    let mut shown = format!(
        "{}: {} {}\n",
        Role::Strong.paint(&harmless(&place)),
        role.paint(kind),
        harmless(&finding.message)
    );
    let at = finding.line.and_then(|line| Some((line, physical_line(text, line)?)));
    if let Some((number, line)) = at
        && !line.trim().is_empty()
    {
        let blanks = line.len() - line.trim_start().len();
        let marked = match line.find('=') {
            Some(equals) => line[..equals].trim(),
            None => line.trim(),
        };
        let mark = "^".repeat(marked.chars().count().clamp(1, 100));
        let line: String = line.chars().take(200).collect();
        let _ = writeln!(shown, "{number:>5} | {}", harmless(&line));
        let _ = writeln!(shown, "{:>5} | {}{}", "", &line[..blanks.min(line.len())], role.paint(&mark));
    }
    shown
}

/// A line as the unit file's reader counts them: LF, CR, or one of each, ends one.
fn physical_line(text: &str, number: u32) -> Option<&str> {
    let mut rest = text;
    for _ in 1..number {
        let end = rest.find(['\n', '\r'])?;
        rest = &rest[end..];
        let both = rest.starts_with("\r\n") || rest.starts_with("\n\r");
        rest = &rest[if both { 2 } else { 1 }..];
    }
    rest.split(['\n', '\r']).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verified(path: &str, bytes: &[u8]) -> String {
        let text = String::from_utf8_lossy(bytes);
        let shown: String = check(path, bytes).iter().map(|finding| show(path, &text, finding)).collect();
        anstream::adapter::strip_str(&shown).to_string()
    }

    #[test]
    fn findings_show_their_lines() {
        let all = [
            verified("ok.service", b"[Service]\nExecStart=/bin/true\n"),
            verified(
                "units/web.service",
                b"[Service]\nExecStart=/bin/true\n\n[X-Fleet]\n  MachinOf = db.service\nGlobal=yes\nMachineID=12345678\n",
            ),
            verified("warn.service", b"[Service]\nExecStart=/bin/true\nRestrat=always\n"),
            verified("crlf.service", b"[Service]\r\nExecStart=/bin/true\r\n[X-Muster]\r\nPriority=many\r\n"),
            verified("nul.service", b"[Service]\nExecStart=/bin/\0true\n"),
            verified("latin.service", b"[Unit]\nDescription=caf\xe9\n"),
            verified("empty.service", b""),
            verified("readme.md", b"[Service]\nExecStart=/bin/true\n"),
            verified("header.service", b"[Service\nExecStart=/bin/true\n"),
        ];
        insta::assert_snapshot!(all.join("----\n"));
    }

    #[test]
    fn lines_are_counted_as_the_reader_counts_them() {
        let text = "a\r\nb\rc\n\nd";
        let lines: Vec<_> = (1..=6).map(|number| physical_line(text, number)).collect();
        assert_eq!(lines, [Some("a"), Some("b"), Some("c"), Some(""), Some("d"), None]);
    }

    #[test]
    fn errors_fail_and_warnings_do_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).expect("written");
            path.display().to_string()
        };
        let warns = file("warns.service", "[Service]\nExecStart=/bin/true\nRestrat=always\n");
        let fails = file("fails.service", "[Service]\nExecStart=/bin/true\n[X-Fleet]\nReplicas=2\n");
        let mut out = Vec::new();
        assert!(run(std::slice::from_ref(&warns), &mut out).is_ok());
        assert!(!out.is_empty());
        let failure = run(&[warns, fails], &mut out).expect_err("refused");
        assert_eq!(failure.exit, Exit::Failed);
        assert!(run(&["/nonexistent.service".to_owned()], &mut out).is_err());
    }
}
