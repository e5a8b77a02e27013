//! Globs over unit names, as in `Conflicts=web@*.service`.
//!
//! The dialect is that of Go's `path.Match`, as in fleet: `*` any characters, `?` one character, `[abc]`, `[a-z]`,
//! `[^abc]`, and `\` before a character that is meant as it is. `{` and `!` mean nothing special. Case counts, and the
//! whole name must match.
//!
//! Not globset: a compiled glob of its takes 7 KB and 20 µs to make, so that the conflicts of 10,000 units alone would
//! take 70 MB; and its dialect differs in just these points. This reads the pattern as it goes and keeps nothing but
//! its text.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// Four times the longest unit name: room for escapes and classes. A limit keeps matching quick.
const MAX_BYTES: usize = 4 * super::MAX_UNIT_NAME_BYTES;

/// Why a text is no glob.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GlobError {
    /// There is nothing.
    #[error("glob cannot be empty")]
    Empty,
    /// Longer than what could match any unit name.
    #[error("glob exceeds maximum length ({MAX_BYTES})")]
    TooLong,
    /// A `[` without its `]`.
    #[error("\"[\" without \"]\" in glob {0:?}")]
    UnclosedClass(String),
    /// Nothing between `[` and `]`, or a `-` that is neither between two characters nor escaped.
    #[error(
        "bad character class in glob {0:?}: write a literal \"-\", \"]\" or \"[\" with a backslash before it"
    )]
    BadClass(String),
    /// A backslash at the end.
    #[error("glob {0:?} ends in a backslash that escapes nothing")]
    TrailingBackslash(String),
}

/// A glob over unit names. Compared by its text; cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Glob(Arc<str>);

impl Glob {
    /// Reads a glob.
    ///
    /// # Errors
    /// When it could never match anything: fleet took such a pattern and ignored it.
    pub fn parse(text: &str) -> Result<Glob, GlobError> {
        if text.is_empty() {
            return Err(GlobError::Empty);
        }
        if text.len() > MAX_BYTES {
            return Err(GlobError::TooLong);
        }
        let mut rest = text;
        while !rest.is_empty() {
            rest = Element::take(rest).map_err(|invalid| invalid.error(text))?.1;
        }
        Ok(Glob(text.into()))
    }

    /// Whether the whole of `name` matches.
    pub fn matches(&self, name: &str) -> bool {
        let mut pattern: &str = &self.0;
        let mut rest = name;
        // Where to go on when what follows the last star does not match: one character further.
        let mut retry: Option<(&str, &str)> = None;
        loop {
            if let Ok((element, after)) = Element::take(pattern) {
                if matches!(element, Element::Star) {
                    retry = Some((after, rest));
                    pattern = after;
                    continue;
                }
                if let Some(c) = rest.chars().next()
                    && element.matches(c)
                {
                    pattern = after;
                    rest = &rest[c.len_utf8()..];
                    continue;
                }
            } else if rest.is_empty() {
                // The pattern is at its end: it was valid when it was made.
                return true;
            }
            match retry {
                Some((after, from)) if !from.is_empty() && !from.starts_with('/') => {
                    let mut skipped = from.chars();
                    skipped.next();
                    retry = Some((after, skipped.as_str()));
                    pattern = after;
                    rest = skipped.as_str();
                }
                _ => return false,
            }
        }
    }

    /// Whether it can match one name only, the one that [`Glob::as_str`] gives.
    pub fn is_literal(&self) -> bool {
        !self.0.contains(['*', '?', '[', '\\'])
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Ord for Glob {
    fn cmp(&self, other: &Glob) -> Ordering {
        self.0.cmp(&other.0)
    }
}

impl PartialOrd for Glob {
    fn partial_cmp(&self, other: &Glob) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

/// One element of a pattern.
enum Element<'a> {
    Star,
    Any,
    Char(char),
    /// The text between `[` or `[^` and `]`.
    Class {
        negated: bool,
        ranges: &'a str,
    },
}

enum Invalid {
    UnclosedClass,
    Class,
    TrailingBackslash,
    AtEnd,
}

impl Invalid {
    fn error(&self, pattern: &str) -> GlobError {
        let pattern = pattern.to_owned();
        match self {
            Invalid::UnclosedClass => GlobError::UnclosedClass(pattern),
            Invalid::Class => GlobError::BadClass(pattern),
            Invalid::TrailingBackslash => GlobError::TrailingBackslash(pattern),
            Invalid::AtEnd => GlobError::Empty,
        }
    }
}

impl<'a> Element<'a> {
    /// The first element of a pattern, and the pattern after it.
    fn take(pattern: &'a str) -> Result<(Element<'a>, &'a str), Invalid> {
        let c = pattern.chars().next().ok_or(Invalid::AtEnd)?;
        let rest = &pattern[c.len_utf8()..];
        match c {
            '*' => Ok((Element::Star, rest)),
            '?' => Ok((Element::Any, rest)),
            '\\' => {
                let c = rest.chars().next().ok_or(Invalid::TrailingBackslash)?;
                Ok((Element::Char(c), &rest[c.len_utf8()..]))
            }
            '[' => {
                let (negated, ranges) = rest.strip_prefix('^').map_or((false, rest), |ranges| (true, ranges));
                let mut after = ranges;
                let mut first = true;
                while first || !after.starts_with(']') {
                    after = take_range(after)?.1;
                    first = false;
                }
                let ranges = &ranges[..ranges.len() - after.len()];
                Ok((Element::Class { negated, ranges }, &after[1..]))
            }
            c => Ok((Element::Char(c), rest)),
        }
    }

    fn matches(&self, c: char) -> bool {
        match self {
            Element::Star => true,
            Element::Any => c != '/',
            Element::Char(wanted) => *wanted == c,
            Element::Class { negated, ranges } => {
                let mut rest = *ranges;
                let mut found = false;
                while let Ok(((low, high), after)) = take_range(rest) {
                    found |= (low..=high).contains(&c);
                    rest = after;
                }
                found != *negated
            }
        }
    }
}

/// The first range of a class (`a` or `a-z`), and the class after it.
fn take_range(class: &str) -> Result<((char, char), &str), Invalid> {
    let (low, rest) = take_class_char(class)?;
    match rest.strip_prefix('-') {
        None => Ok(((low, low), rest)),
        Some(rest) => {
            let (high, rest) = take_class_char(rest)?;
            Ok(((low, high), rest))
        }
    }
}

fn take_class_char(class: &str) -> Result<(char, &str), Invalid> {
    let mut chars = class.chars();
    let c = match chars.next() {
        None => return Err(Invalid::UnclosedClass),
        Some('-' | ']') => return Err(Invalid::Class),
        Some('\\') => chars.next().ok_or(Invalid::UnclosedClass)?,
        Some(c) => c,
    };
    Ok((c, chars.as_str()))
}
