//! Page tokens, as fleet has them: limit and page as little-endian 16-bit numbers, in URL-safe base64.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;

use super::wire::Refused;

/// How many rows a page has.
pub(super) const LIMIT: u16 = 100;

/// The page that is asked for, counted from 1.
pub(super) fn page(tokens: &[String]) -> Result<u16, Refused> {
    let token = match tokens {
        [] => return Ok(1),
        [token] if token.is_empty() => return Ok(1),
        [token] => token,
        _ => return Err(Refused::bad("too many values for page token")),
    };
    let bytes = URL_SAFE.decode(token).map_err(|error| Refused::bad(format!("page token: {error}")))?;
    let [limit_low, limit_high, page_low, page_high] = bytes[..] else {
        return Err(Refused::bad("page token: unexpected length"));
    };
    if u16::from_le_bytes([limit_low, limit_high]) != LIMIT {
        return Err(Refused::bad(format!("token limit must be {LIMIT}")));
    }
    match u16::from_le_bytes([page_low, page_high]) {
        0 => Err(Refused::bad("token page must be greater than zero")),
        page => Ok(page),
    }
}

/// How many rows come before this page.
pub(super) fn skip(page: u16) -> usize {
    usize::from(page - 1) * usize::from(LIMIT)
}

/// The token of the page after this one.
pub(super) fn after(page: u16) -> Option<String> {
    let [limit_low, limit_high] = LIMIT.to_le_bytes();
    let [page_low, page_high] = page.checked_add(1)?.to_le_bytes();
    Some(URL_SAFE.encode([limit_low, limit_high, page_low, page_high]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_fleets() {
        assert_eq!(after(1).as_deref(), Some("ZAACAA=="));
        assert_eq!(page(&["ZAACAA==".to_owned()]), Ok(2));
        assert_eq!((page(&[]), page(&[String::new()]), skip(1), skip(3)), (Ok(1), Ok(1), 0, 200));
        for number in [1, 100, 255, 256, u16::MAX - 1] {
            assert_eq!(page(&[after(number).expect("a token")]), Ok(number + 1));
        }
        assert_eq!(after(u16::MAX), None);
    }

    #[test]
    fn other_tokens_are_refused() {
        for (token, message) in [
            ("EwBMLg==", "token limit must be 100"),
            ("ZAAAAA==", "token page must be greater than zero"),
            ("ZAACAA", "page token: Invalid padding"),
            ("ZAAC", "page token: unexpected length"),
            ("%%%", "page token: Invalid symbol 37, offset 0."),
        ] {
            assert_eq!(page(&[token.to_owned()]), Err(Refused::bad(message)), "{token}");
        }
        let two = ["ZAACAA==".to_owned(), "ZAACAA==".to_owned()];
        assert_eq!(page(&two), Err(Refused::bad("too many values for page token")));
    }
}
