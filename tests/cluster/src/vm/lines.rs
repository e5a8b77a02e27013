//! How commands and what they say travel between the host and the agent in a virtual machine: in lines of `KIND HEX`, before
//! which the hub and the agent put the number of the command.
//!
//! To the agent: `run` with the arguments, each ended by a zero byte; `in` with bytes for its standard input; `eof`; `end` to
//! kill it. From the agent: `out` and `err` with bytes; `exit` with the status as text, after which nothing more comes. A line
//! `boot`, without a number, says that the agent has just started; a line `here` answers `hello`, by which the hub finds an
//! agent that has been there before. Lines, so that both ends find the next one after a reset.

use std::fmt::Write as _;
use std::io::{Read, Write};

/// How much one line carries at most.
const CHUNK: usize = 8192;

pub(super) fn encode(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// `None` for what `encode` does not make.
pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> =
        text.chars().map(|digit| u8::try_from(digit.to_digit(16)?).ok()).collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

/// Splits a line into its first word and the rest.
pub(super) fn split(line: &str) -> (&str, &str) {
    line.split_once(' ').unwrap_or((line, ""))
}

/// Hands on all that can be read, in lines of this kind, until either end is closed.
pub(super) fn pump(mut from: impl Read, kind: &str, mut send: impl FnMut(&str) -> std::io::Result<()>) {
    let mut buffer = [0; CHUNK];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if send(&format!("{kind} {}\n", encode(&buffer[..length]))).is_err() {
            return;
        }
    }
}

/// Writes a line's bytes; false when nobody takes them any more.
pub(super) fn write_all(to: &mut impl Write, bytes: &[u8]) -> bool {
    to.write_all(bytes).and_then(|()| to.flush()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_bytes_come_through() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(&encode(&bytes)), Some(bytes));
        assert_eq!(decode(""), Some(Vec::new()));
        assert_eq!(decode("0"), None);
        assert_eq!(decode("0g"), None);
        assert_eq!(split("7 out 00"), ("7", "out 00"));
        assert_eq!(split("boot"), ("boot", ""));
    }

    #[test]
    fn what_is_read_is_handed_on() {
        let mut lines = String::new();
        pump(&b"ab"[..], "out", |line| {
            lines.push_str(line);
            Ok(())
        });
        assert_eq!(lines, "out 6162\n");
    }
}
