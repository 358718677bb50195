//! Cookies that browsers keep for the gateway, larger ones in pieces.

use http::header::{HeaderMap, HeaderValue, SET_COOKIE};

use crate::matcher::cookies;

/// Browsers take 4096 bytes with name and attributes.
const PIECE: usize = 3800;
/// The most pieces.
const MOST: usize = 8;

/// A value, in pieces `name.0` to `name.7`; the first says how many there are: `2.`.
///
/// # Errors
/// It is too large.
pub(super) fn set(headers: &mut HeaderMap, name: &str, value: &str, seconds: u64) -> Result<(), usize> {
    let count = value.len().div_ceil(PIECE).max(1);
    if count > MOST || !value.is_ascii() {
        return Err(value.len());
    }
    for (at, piece) in value.as_bytes().chunks(PIECE).enumerate() {
        let front = if at == 0 { format!("{count}.") } else { String::new() };
        let piece = String::from_utf8_lossy(piece);
        one(headers, &format!("{name}.{at}"), &format!("{front}{piece}"), seconds);
    }
    Ok(())
}

/// The value that a browser sends, put together again.
pub(super) fn get(headers: &HeaderMap, name: &str) -> Option<String> {
    let piece = |at: usize| {
        let own =
            |given: &str| given.strip_prefix(name).and_then(|rest| rest.strip_prefix('.')) == Some(&*at.to_string());
        cookies(headers).find(|(given, _)| own(given)).map(|(_, value)| value)
    };
    let (count, first) = piece(0)?.split_once('.')?;
    let count = count.parse::<usize>().ok().filter(|count| (1..=MOST).contains(count))?;
    let mut value = first.to_owned();
    for at in 1..count {
        value.push_str(piece(at)?);
    }
    Some(value)
}

/// Lets a browser forget all pieces that it sends from `first` on.
pub(super) fn forget(from: &HeaderMap, headers: &mut HeaderMap, name: &str, first: usize) {
    for (given, _) in cookies(from) {
        let piece = given.strip_prefix(name).and_then(|rest| rest.strip_prefix('.')?.parse::<usize>().ok());
        if piece.is_some_and(|at| at >= first) {
            one(headers, given, "", 0);
        }
    }
}

/// How many pieces a value has.
pub(super) fn pieces(value: &str) -> usize {
    value.len().div_ceil(PIECE).max(1)
}

/// One cookie.
pub(super) fn one(headers: &mut HeaderMap, name: &str, value: &str, seconds: u64) {
    let text = format!("{name}={value}; Path=/; Max-Age={seconds}; Secure; HttpOnly; SameSite=Lax");
    if let Ok(cookie) = HeaderValue::try_from(text) {
        headers.append(SET_COOKIE, cookie);
    }
}

#[cfg(test)]
mod tests {
    use http::header::COOKIE;
    use proptest::prelude::*;

    use super::*;

    /// What a browser sends back.
    fn browser(answer: &HeaderMap) -> HeaderMap {
        let cookies =
            answer.get_all(SET_COOKIE).iter().map(|cookie| cookie.to_str().unwrap().split(';').next().unwrap());
        let cookies = cookies.collect::<Vec<_>>().join("; ");
        HeaderMap::from_iter([(COOKIE, HeaderValue::try_from(cookies).unwrap())])
    }

    #[test]
    fn large_values_are_kept_in_pieces() {
        for length in [0, 1, PIECE, PIECE + 1, MOST * PIECE] {
            let value = "x".repeat(length);
            let mut answer = HeaderMap::new();
            set(&mut answer, "__Host-s", &value, 60).unwrap();
            assert!(answer.get_all(SET_COOKIE).iter().all(|cookie| cookie.len() < 4096));
            if length > 0 {
                assert_eq!(get(&browser(&answer), "__Host-s").as_ref(), Some(&value), "{length}");
                assert_eq!(answer.get_all(SET_COOKIE).iter().count(), pieces(&value));
            }
            let mut gone = HeaderMap::new();
            forget(&browser(&answer), &mut gone, "__Host-s", 1);
            assert_eq!(
                gone.get_all(SET_COOKIE).iter().count(),
                answer.get_all(SET_COOKIE).iter().count().saturating_sub(1)
            );
        }
        assert_eq!(set(&mut HeaderMap::new(), "s", &"x".repeat(MOST * PIECE + 1), 60), Err(MOST * PIECE + 1));
    }

    proptest! {
        #[test]
        fn nothing_that_a_client_sends_is_too_much(text in "([s.=;0-9 ]|\\PC){0,60}") {
            if let Ok(value) = HeaderValue::try_from(text) {
                let headers = HeaderMap::from_iter([(COOKIE, value)]);
                let _ = get(&headers, "s");
                forget(&headers, &mut HeaderMap::new(), "s", 0);
            }
        }
    }
}
