//! `Cache-Control`, and whatever is written like it: RFC 9111, section 5.2. Pure.

use http::header::{HeaderMap, HeaderName};

/// The field of the W3C's Edge Architecture, an item of which may be for one cache alone.
pub(super) const SURROGATE: HeaderName = HeaderName::from_static("surrogate-control");

/// What such a field says, of a request or an answer. Names in any case; unknown ones are passed over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Directives {
    pub(super) no_store: bool,
    pub(super) no_cache: bool,
    pub(super) private: bool,
    pub(super) public: bool,
    pub(super) must_revalidate: bool,
    pub(super) proxy_revalidate: bool,
    pub(super) must_understand: bool,
    pub(super) only_if_cached: bool,
    /// In seconds; what is no number is zero, and so is what is said twice and differs.
    pub(super) max_age: Option<u64>,
    pub(super) s_maxage: Option<u64>,
    pub(super) stale_while_revalidate: Option<u64>,
    pub(super) stale_if_error: Option<u64>,
    pub(super) min_fresh: Option<u64>,
    /// Without a value: whatever its age.
    pub(super) max_stale: Option<u64>,
    /// Fields that `no-cache` and `private` name: not stored.
    pub(super) unstored: Vec<HeaderName>,
}

impl Directives {
    pub(super) fn of(headers: &HeaderMap, field: &HeaderName) -> Self {
        Self::given(headers, field).unwrap_or_default()
    }

    /// The same; `None` where the field says nothing that is known, and for this cache.
    pub(super) fn given(headers: &HeaderMap, field: &HeaderName) -> Option<Self> {
        let (mut all, mut known) = (Self::default(), false);
        for line in headers.get_all(field).iter().filter_map(|line| line.to_str().ok()) {
            for (name, value) in items(line) {
                let anothers = |text: &str| *field == SURROGATE && text.contains(';');
                if !anothers(name) && !value.as_deref().is_some_and(anothers) {
                    known |= all.add(name, value.as_deref());
                }
            }
        }
        known.then_some(all)
    }

    /// Says whether it is known.
    fn add(&mut self, name: &str, value: Option<&str>) -> bool {
        let seconds = |slot: &mut Option<u64>| {
            let seconds = value.map_or(0, seconds);
            *slot = Some(if slot.is_some_and(|before| before != seconds) { 0 } else { seconds });
        };
        let mut fields = |flag: &mut bool| match value {
            Some(names) => {
                let names = names.split(',').filter_map(|name| HeaderName::try_from(name.trim()).ok());
                self.unstored.extend(names);
            }
            None => *flag = true,
        };
        match &*name.to_ascii_lowercase() {
            "no-store" => self.no_store = true,
            "no-cache" => fields(&mut self.no_cache),
            "private" => fields(&mut self.private),
            "public" => self.public = true,
            "must-revalidate" => self.must_revalidate = true,
            "proxy-revalidate" => self.proxy_revalidate = true,
            "must-understand" => self.must_understand = true,
            "only-if-cached" => self.only_if_cached = true,
            "max-age" => seconds(&mut self.max_age),
            "s-maxage" => seconds(&mut self.s_maxage),
            "stale-while-revalidate" => seconds(&mut self.stale_while_revalidate),
            "stale-if-error" => seconds(&mut self.stale_if_error),
            "min-fresh" => seconds(&mut self.min_fresh),
            "max-stale" => self.max_stale = Some(value.map_or(u64::MAX, self::seconds)),
            _ => return false,
        }
        true
    }
}

/// A number of seconds, RFC 9111, 1.2.2: too large a one is the largest; anything else is none.
pub(super) fn seconds(text: &str) -> u64 {
    const LARGEST: u64 = 1 << 31;
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return 0;
    }
    text.parse().unwrap_or(LARGEST).min(LARGEST)
}

/// The items of a list, each a name and perhaps a value, which may be quoted.
fn items(line: &str) -> impl Iterator<Item = (&str, Option<String>)> {
    let mut rest = line;
    std::iter::from_fn(move || {
        loop {
            rest = rest.trim_start_matches([',', ' ', '\t']);
            if rest.is_empty() {
                return None;
            }
            let end = rest.find([',', '=']).unwrap_or(rest.len());
            let name = rest[..end].trim_end();
            let quoted = rest[end..].strip_prefix('=').map(|value| value.trim_start());
            let value = match quoted {
                None => {
                    rest = &rest[end..];
                    None
                }
                Some(value) if value.starts_with('"') => {
                    let (text, after) = unquote(&value[1..]);
                    // Whatever stands between the quote and the comma makes no sense.
                    rest = &after[after.find(',').unwrap_or(after.len())..];
                    Some(text)
                }
                Some(value) => {
                    let end = value.find(',').unwrap_or(value.len());
                    rest = &value[end..];
                    Some(value[..end].trim_end().to_owned())
                }
            };
            if !name.is_empty() {
                return Some((name, value));
            }
        }
    })
}

/// A quoted string after its first quote, and what comes after its last.
fn unquote(text: &str) -> (String, &str) {
    let mut plain = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (plain, &text[at + 1..]),
            '\\' => plain.extend(chars.next().map(|(_, c)| c)),
            c => plain.push(c),
        }
    }
    (plain, "")
}

#[cfg(test)]
mod tests {
    use http::header::{CACHE_CONTROL, HeaderValue};
    use proptest::prelude::*;

    use super::*;

    fn read(lines: &[&str]) -> Directives {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(CACHE_CONTROL, HeaderValue::from_str(line).expect("a value"));
        }
        Directives::of(&headers, &CACHE_CONTROL)
    }

    #[test]
    fn directives_are_read_as_they_are_written() {
        let max_age = |lines: &[&str]| read(lines).max_age;
        assert_eq!(max_age(&["MaX-aGe=3600"]), Some(3600));
        assert_eq!(max_age(&["max-age=\"3600\""]), Some(3600));
        assert_eq!(max_age(&["extension=\"max-age=3600, a\\\"\", max-age=1"]), Some(1));
        assert_eq!(max_age(&["foo, max-age=003600 ,bar"]), Some(3600));
        assert_eq!(max_age(&["max-age=99999999999999999999"]), Some(1 << 31));
        for wrong in ["max-age=-1", "max-age='1'", "max-age=1.0", "max-age=", "max-age", "max-age=1, max-age=2"] {
            assert_eq!(max_age(&[wrong]), Some(0), "{wrong}");
        }
        assert_eq!(max_age(&["max-age=1", "max-age=1"]), Some(1));
        let named = read(&["no-cache=\"a, b\", private=c", "no-store"]);
        assert_eq!((named.no_cache, named.private, named.no_store, named.unstored.len()), (false, false, true, 3));
        assert_eq!((read(&["max-stale"]).max_stale, read(&["max-stale=5"]).max_stale), (Some(u64::MAX), Some(5)));
    }

    #[test]
    fn what_is_for_another_surrogate_is_passed_over() {
        let headers =
            HeaderMap::from_iter([(SURROGATE, HeaderValue::from_static("max-age=9;other, no-store;other, max-age=5"))]);
        let said = Directives::of(&headers, &SURROGATE);
        assert_eq!((said.max_age, said.no_store), (Some(5), false));
        let headers =
            HeaderMap::from_iter([(SURROGATE, HeaderValue::from_static("content=\"ESI/1.0\", max-age=9;other"))]);
        assert_eq!(Directives::given(&headers, &SURROGATE), None);
    }

    proptest! {
        #[test]
        fn nothing_that_is_written_stops_it(text in "[ -~]{0,60}", more in "[a-z\", =\\\\;]{0,40}") {
            read(&[&text, &more]);
        }
    }
}
