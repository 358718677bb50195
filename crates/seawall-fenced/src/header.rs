//! A token on its way: `seawall-fence: payment-7=1882789882363912`.
//!
//! A name is written with percent signs where it is more than visible ASCII, or holds `%`, `=`, `,`, `;` or `"`. A request by
//! the holder of several locks has several, separated by commas or in headers of their own.

use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use seawall_coord::{Backend, Fences, Guard, LockName};

use crate::{Fence, MAX_FENCE};

/// The header's name.
pub const NAME: HeaderName = HeaderName::from_static(seawall_types::header::FENCE);

/// The most tokens that are read from one request.
const MAX_TOKENS: usize = 64;
/// What a name is not written with.
const ESCAPED: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b'=').add(b',').add(b';').add(b'"');

/// The value that says by which token of which lock a request is made. The term of an election is a token of
/// [`LockName::of_election`].
pub fn value(lock: &LockName, fence: Fence) -> HeaderValue {
    let text = format!("{}={fence}", utf8_percent_encode(lock.as_str(), ESCAPED));
    HeaderValue::from_str(&text).expect("everything else is escaped")
}

/// What a guard puts on a request.
pub trait FencedBy {
    /// Says with this request by whose token it is made. The token is sent whether or not the lock is still held: it is for
    /// the receiver to judge.
    #[must_use]
    fn fenced_by<B: Backend<Class: Fences>>(self, guard: &Guard<B>) -> Self;
}

impl FencedBy for http::request::Builder {
    fn fenced_by<B: Backend<Class: Fences>>(self, guard: &Guard<B>) -> Self {
        self.header(NAME, value(guard.name(), guard.fence()))
    }
}

impl<T> FencedBy for http::Request<T> {
    fn fenced_by<B: Backend<Class: Fences>>(mut self, guard: &Guard<B>) -> Self {
        self.headers_mut().append(NAME, value(guard.name(), guard.fence()));
        self
    }
}

/// A header that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the header {NAME} {0}; it looks like `payment-7=1882789882363912`")]
pub struct Malformed(String);

/// The token of this lock that a request carries, if it carries one.
///
/// # Errors
/// [`Malformed`] when any of its tokens is not understood, or when there are two of this lock.
pub fn read(headers: &HeaderMap, lock: &str) -> Result<Option<Fence>, Malformed> {
    let mut found = None;
    let mut count = 0;
    for value in headers.get_all(NAME) {
        let text = value.to_str().map_err(|_| Malformed("is not visible ASCII".to_owned()))?;
        for part in text.split(',').map(str::trim) {
            count += 1;
            if count > MAX_TOKENS {
                return Err(Malformed(format!("has more than {MAX_TOKENS} tokens")));
            }
            let (name, fence) = parse(part).ok_or_else(|| Malformed(format!("holds {:?}", shortened(part))))?;
            if name == lock && found.replace(fence).is_some_and(|other| other != fence) {
                return Err(Malformed("has two tokens of the same lock".to_owned()));
            }
        }
    }
    Ok(found)
}

fn parse(part: &str) -> Option<(String, Fence)> {
    let (name, number) = part.rsplit_once('=')?;
    let name = percent_decode_str(name).decode_utf8().ok().filter(|name| !name.is_empty())?;
    // `parse` would take a sign.
    let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let fence = digits.then(|| number.parse().ok()).flatten().map(Fence::new).filter(|fence| *fence <= MAX_FENCE)?;
    Some((name.into_owned(), fence))
}

fn shortened(text: &str) -> String {
    text.chars().take(60).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_from(values: &[&str], lock: &str) -> Result<Option<u64>, Malformed> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(NAME, HeaderValue::from_str(value).unwrap());
        }
        read(&headers, lock).map(|found| found.map(Fence::get))
    }

    #[test]
    fn every_name_reads_back() {
        for name in ["a", "payment 7", "zahlung-ü", "a=b,c;d\"e%2F", "100%", &"ü".repeat(127)] {
            let lock = LockName::try_new(name).unwrap();
            let value = value(&lock, Fence::new(12));
            assert_eq!(read_from(&[value.to_str().unwrap()], name), Ok(Some(12)), "{value:?}");
        }
        let election = LockName::of_election(&"mailer".parse().unwrap());
        assert_eq!(value(&election, MAX_FENCE), "elect/mailer=9007199254740991");
    }

    #[test]
    fn the_right_one_of_several_is_found() {
        assert_eq!(read_from(&["a=1, b=2", "c=3"], "b"), Ok(Some(2)));
        assert_eq!(read_from(&["a=1, b=2", "c=3"], "c"), Ok(Some(3)));
        assert_eq!(read_from(&["a=1, b=2"], "c"), Ok(None));
        assert_eq!(read_from(&["a=1, a=1"], "a"), Ok(Some(1)));
        assert_eq!(read_from(&[], "c"), Ok(None));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let many = vec!["b=1"; 65].join(",");
        for bad in
            ["", "a", "a=", "=1", "a=x", "a=-1", "a=+1", "a=1.5", "a= 1", "a=9007199254740992", "a=1,", "%ff=1", &many]
        {
            let error = read_from(&[bad], "a").unwrap_err().to_string();
            assert!(error.len() < 200, "{error}");
        }
        assert!(read_from(&["a=1", "a=2"], "a").is_err());
    }
}
