//! A part of a stored answer, for who asks for one: RFC 9110, section 14.

use std::ops::Range;

/// The bytes that `bytes=0-1`, `bytes=5-` or `bytes=-3` ask for of `length`; `None` for what the service may answer better:
/// several ranges, other units, nothing at all.
pub(super) fn range(text: &str, length: usize) -> Option<Range<usize>> {
    let (first, last) = text.strip_prefix("bytes=")?.trim().split_once('-')?;
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<usize>().ok())?;
    let range = match (first, last) {
        ("", last) => length.saturating_sub(number(last)?)..length,
        (first, "") => number(first)?..length,
        (first, last) => number(first)?..number(last)?.checked_add(1)?.min(length),
    };
    (range.start < range.end).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_is_understood() {
        for (text, expect) in [
            ("bytes=0-1", Some(0..2)),
            ("bytes=3-", Some(3..10)),
            ("bytes=-3", Some(7..10)),
            ("bytes=-30", Some(0..10)),
            ("bytes=8-99", Some(8..10)),
            ("bytes=10-", None),
            ("bytes=5-4", None),
            ("bytes=-0", None),
            ("bytes=0-1,3-4", None),
            ("items=0-1", None),
            ("bytes=-", None),
            ("bytes=0-99999999999999999999", None),
            ("bytes=+1-2", None),
        ] {
            assert_eq!(range(text, 10), expect, "{text}");
        }
    }
}
