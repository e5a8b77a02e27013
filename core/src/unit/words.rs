//! How systemd cuts a value into words: quotes and backslashes.
//!
//! Follows systemd's `extract_first_word()`: words are separated by blanks; `'…'` and `"…"` hold blanks and may
//! start and end anywhere in a word; what a backslash means depends on the setting ([`Escapes`]).

use super::WHITESPACE;

/// What a backslash means in a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escapes {
    /// It starts an escape sequence as in C (`\n`, `\x41`, `\u00e9`, `\s` for a blank …), and an unknown one is an
    /// error: `Environment=`.
    Decode,
    /// The same, but an unknown sequence stays as it is: `ExecStart=` and its kin.
    DecodeRelaxed,
    /// It is a character as any other: most lists of strings, such as `Alias=`.
    Keep,
    /// It goes away, and the character after it is taken as it is: lists of paths such as `ReadWritePaths=`.
    Drop,
}

/// Why a value cannot be cut into words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WordsError {
    /// A quotation mark without its partner.
    #[error("unbalanced quotes")]
    UnbalancedQuotes,
    /// A backslash at the end.
    #[error("nothing follows the last backslash")]
    TrailingBackslash,
    /// An escape sequence that does not exist, or stands for NUL.
    #[error("unknown escape sequence")]
    UnknownEscape,
    /// Escape sequences that make up bytes which are no text.
    #[error("escape sequences do not make valid UTF-8")]
    NotUtf8,
    /// An `Exec…=` line with nothing to execute.
    #[error("no program to execute")]
    NoProgram,
}

/// The words of a value, with C-style escapes: [`split_with`] and [`Escapes::Decode`].
///
/// # Errors
/// When systemd would refuse the value.
pub fn split(text: &str) -> Result<Vec<String>, WordsError> {
    split_with(text, Escapes::Decode)
}

/// The words of a value.
///
/// # Errors
/// When systemd would refuse the value.
pub fn split_with(text: &str, escapes: Escapes) -> Result<Vec<String>, WordsError> {
    let mut rest = text;
    let mut words = Vec::new();
    while let Some(word) = next_word(&mut rest, escapes)? {
        words.push(word);
    }
    Ok(words)
}

/// The words of a list of units such as `After=`: there quotes and backslashes are characters as any other.
pub fn plain(text: &str) -> impl Iterator<Item = &str> {
    text.split(WHITESPACE).filter(|word| !word.is_empty())
}

/// One command of an `Exec…=` line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The characters before the program that change how it is run (`-`, `@`, `:`, `+`, `!`), as they stand there.
    pub prefixes: String,
    /// The program: a path, or a name to be looked up.
    pub program: String,
    /// The arguments, the first being what the program sees as its own name.
    pub arguments: Vec<String>,
}

/// The commands of an `Exec…=` line: several where a lone `;` separates them. Specifiers and variables are untouched;
/// systemd expands the former in each word after this.
///
/// # Errors
/// When systemd would refuse the line, or what follows one of its `;`.
pub fn split_exec(text: &str) -> Result<Vec<Command>, WordsError> {
    let mut rest = text;
    let mut commands = Vec::new();
    loop {
        rest = rest.trim_start_matches(WHITESPACE);
        if rest.is_empty() {
            return Ok(commands);
        }
        let first = next_word(&mut rest, Escapes::DecodeRelaxed)?.ok_or(WordsError::NoProgram)?;
        if first == ";" {
            continue;
        }
        let program = first.trim_start_matches(['-', '@', ':', '+', '!']);
        let prefixes = first[..first.len() - program.len()].to_owned();
        if program.is_empty() {
            return Err(WordsError::NoProgram);
        }
        let mut arguments = Vec::new();
        if !prefixes.contains('@') {
            arguments.push(program.to_owned());
        }
        loop {
            rest = rest.trim_start_matches(WHITESPACE);
            if let Some(after) = strip_separator(rest) {
                rest = after;
                break;
            }
            // `\;` is an argument that is a semicolon.
            if let Some(after) = rest.strip_prefix('\\').and_then(strip_separator) {
                rest = after;
                arguments.push(";".to_owned());
                continue;
            }
            match next_word(&mut rest, Escapes::DecodeRelaxed)? {
                Some(word) => arguments.push(word),
                None => break,
            }
        }
        if arguments.is_empty() {
            // `@` without a name for the program.
            return Err(WordsError::NoProgram);
        }
        commands.push(Command { prefixes, program: program.to_owned(), arguments });
    }
}

/// What follows a semicolon that is a word of its own.
fn strip_separator(text: &str) -> Option<&str> {
    let after = text.strip_prefix(';')?;
    (after.is_empty() || after.starts_with(WHITESPACE)).then_some(after)
}

/// Takes the first word and the blanks after it off `rest`; none when only blanks are left.
fn next_word(rest: &mut &str, escapes: Escapes) -> Result<Option<String>, WordsError> {
    let mut tail = rest.trim_start_matches(WHITESPACE);
    let mut word = Vec::new();
    let mut quote = None;
    let found = !tail.is_empty();
    while let Some(c) = tail.chars().next() {
        let after = &tail[c.len_utf8()..];
        tail = match (c, quote) {
            (c, Some(open)) if c == open => {
                quote = None;
                after
            }
            ('\\', _) if escapes != Escapes::Keep => unescape(after, escapes, quote.is_some(), &mut word)?,
            ('"' | '\'', None) => {
                quote = Some(c);
                after
            }
            (c, None) if WHITESPACE.contains(&c) => break,
            _ => {
                push(&mut word, c);
                after
            }
        };
    }
    if quote.is_some() {
        return Err(WordsError::UnbalancedQuotes);
    }
    *rest = tail.trim_start_matches(WHITESPACE);
    let word = String::from_utf8(word).map_err(|_| WordsError::NotUtf8)?;
    Ok(found.then_some(word))
}

/// Adds what the text after a backslash stands for to `word`; answers with what follows it.
fn unescape<'a>(
    text: &'a str,
    escapes: Escapes,
    quoted: bool,
    word: &mut Vec<u8>,
) -> Result<&'a str, WordsError> {
    let Some(c) = text.chars().next() else {
        return match escapes {
            _ if quoted => Err(WordsError::UnbalancedQuotes),
            Escapes::DecodeRelaxed => {
                word.push(b'\\');
                Ok(text)
            }
            _ => Err(WordsError::TrailingBackslash),
        };
    };
    if escapes != Escapes::Drop {
        match decode(text) {
            Ok((Decoded::Byte(byte), length)) => {
                word.push(byte);
                return Ok(&text[length..]);
            }
            Ok((Decoded::Char(c), length)) => {
                push(word, c);
                return Ok(&text[length..]);
            }
            Err(error) if escapes == Escapes::Decode => return Err(error),
            Err(_) => word.push(b'\\'),
        }
    }
    push(word, c);
    Ok(&text[c.len_utf8()..])
}

fn push(word: &mut Vec<u8>, c: char) {
    word.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

enum Decoded {
    /// `\x..` and `\...` are bytes, not characters.
    Byte(u8),
    Char(char),
}

/// The escape sequence that starts `text` (without its backslash), and its length in bytes.
fn decode(text: &str) -> Result<(Decoded, usize), WordsError> {
    let number = |range: std::ops::Range<usize>, radix: u32| {
        let digits = text.get(range).filter(|digits| digits.chars().all(|c| c.is_digit(radix)))?;
        u32::from_str_radix(digits, radix).ok().filter(|number| *number != 0)
    };
    let byte = |number: Option<u32>| number.and_then(|number| u8::try_from(number).ok()).map(Decoded::Byte);
    let character = |number: Option<u32>| number.and_then(char::from_u32).map(Decoded::Char);
    let one = |c| (Some(Decoded::Char(c)), 1);
    let (decoded, length) = match text.as_bytes().first() {
        Some(b'a') => one('\x07'),
        Some(b'b') => one('\x08'),
        Some(b'f') => one('\x0c'),
        Some(b'n') => one('\n'),
        Some(b'r') => one('\r'),
        Some(b't') => one('\t'),
        Some(b'v') => one('\x0b'),
        Some(b's') => one(' '),
        Some(b'\\') => one('\\'),
        Some(b'"') => one('"'),
        Some(b'\'') => one('\''),
        Some(b'x') => (byte(number(1..3, 16)), 3),
        Some(b'u') => (character(number(1..5, 16)), 5),
        Some(b'U') => (character(number(1..9, 16)), 9),
        Some(b'0'..=b'7') => (byte(number(0..3, 8)), 3),
        _ => (None, 0),
    };
    decoded.map(|decoded| (decoded, length)).ok_or(WordsError::UnknownEscape)
}
