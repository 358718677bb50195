//! Path patterns: `/orders/{id}`, `/files/*/raw`, `/api/**`.
//!
//! `*` stands for one segment, `{name}` too and captures it, `**` for any number of segments, none included, and may
//! only stand at the end. A pattern compares what is on the wire, byte by byte, without decoding, so that
//! `%2F` never becomes a separator and router and service cannot disagree.

use std::fmt;

/// A compiled pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern {
    segments: Vec<Segment>,
    /// Ends in `**`.
    open: bool,
    text: Box<str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Literal(Box<str>),
    /// `*`, or `{name}`.
    Any(Option<Box<str>>),
}

/// Why a pattern was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a path pattern: {why}")]
pub(crate) struct PatternError {
    text: String,
    why: &'static str,
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// [`PatternError`] says what is wrong with it.
    pub(crate) fn try_new(text: &str) -> Result<Self, PatternError> {
        let error = |why| Err(PatternError { text: text.to_owned(), why });
        let Some(rest) = text.strip_prefix('/') else { return error("it must begin with `/`") };
        if !text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'?' | b'#')) {
            return error("it holds a space, a control character, `?`, `#` or a letter beyond ASCII (use %XX)");
        }
        let (rest, open) = match rest.strip_suffix("**") {
            Some("") => ("", true),
            Some(front) if front.ends_with('/') => (&front[..front.len() - 1], true),
            Some(_) => return error("`**` must be a segment of its own"),
            None => (rest, false),
        };
        let mut segments = Vec::new();
        let mut names: Vec<&str> = Vec::new();
        for segment in rest.split('/').filter(|_| !(open && rest.is_empty())) {
            segments.push(match segment {
                "*" => Segment::Any(None),
                _ if segment.contains("**") => return error("`**` may only stand at the end"),
                _ if segment.contains('*') => return error("`*` must be a segment of its own"),
                _ => match segment.strip_prefix('{').and_then(|s| s.strip_suffix('}')) {
                    Some(name) if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') => {
                        return error("a capture is named with letters, digits and `_`");
                    }
                    Some(name) if names.contains(&name) => return error("two captures have the same name"),
                    Some(name) => {
                        names.push(name);
                        Segment::Any(Some(name.into()))
                    }
                    None if segment.contains(['{', '}']) => return error("a capture `{name}` must be a whole segment"),
                    None => Segment::Literal(segment.into()),
                },
            });
        }
        Ok(Self { segments, open, text: text.into() })
    }

    /// Whether `path` fits.
    pub(crate) fn matches(&self, path: &str) -> bool {
        let Some(path) = path.strip_prefix('/') else { return false };
        let mut given = path.split('/');
        for segment in &self.segments {
            let Some(given) = given.next() else { return false };
            match segment {
                Segment::Literal(literal) if **literal != *given => return false,
                Segment::Any(_) if given.is_empty() => return false,
                Segment::Literal(_) | Segment::Any(_) => {}
            }
        }
        // `/api/**` takes `/api`, `/api/` and all below.
        self.open || given.next().is_none()
    }

    /// The names of what it captures.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Any(Some(name)) => Some(&**name),
            Segment::Any(None) | Segment::Literal(_) => None,
        })
    }

    /// The segments before the first that is none of its own, for an index: every path that fits begins with them.
    pub(crate) fn literals(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().map_while(|segment| match segment {
            Segment::Literal(literal) => Some(&**literal),
            Segment::Any(_) => None,
        })
    }

    /// Whether it is one path alone.
    pub(crate) fn is_exact(&self) -> bool {
        !self.open && self.segments.iter().all(|segment| matches!(segment, Segment::Literal(_)))
    }

    /// The captured segments of a path that fits, by name.
    pub(crate) fn captures<'p>(&'p self, path: &'p str) -> impl Iterator<Item = (&'p str, &'p str)> {
        let given = path.strip_prefix('/').unwrap_or(path).split('/');
        self.segments.iter().zip(given).filter_map(|(segment, given)| match segment {
            Segment::Any(Some(name)) => Some((&**name, given)),
            _ => None,
        })
    }

    /// Whether every path that fits `other` fits this one too.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        let long_enough = if self.open {
            other.segments.len() >= self.segments.len()
        } else {
            other.segments.len() == self.segments.len() && !other.open
        };
        long_enough
            && self.segments.iter().zip(&other.segments).all(|(mine, theirs)| match (mine, theirs) {
                (Segment::Any(_), Segment::Any(_)) => true,
                (Segment::Any(_), Segment::Literal(text)) => !text.is_empty(),
                (Segment::Literal(a), Segment::Literal(b)) => a == b,
                (Segment::Literal(_), Segment::Any(_)) => false,
            })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The path without its first `segments` segments; `/` when nothing is left.
pub(crate) fn strip_prefix(path: &str, segments: u8) -> &str {
    let mut rest = path;
    for _ in 0..segments {
        let Some(at) = rest.get(1..).and_then(|rest| rest.find('/')) else { return "/" };
        rest = &rest[at + 1..];
    }
    rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_match_whole_segments() {
        for (pattern, path, fits) in [
            ("/", "/", true),
            ("/", "/a", false),
            ("/**", "/", true),
            ("/**", "/a/b", true),
            ("/api/**", "/api", true),
            ("/api/**", "/api/", true),
            ("/api/**", "/api/a/b", true),
            ("/api/**", "/apis", false),
            ("/a/*", "/a/b", true),
            ("/a/*", "/a/", false),
            ("/a/*", "/a", false),
            ("/a/*", "/a/b/c", false),
            ("/a/{id}/c", "/a/7/c", true),
            ("/a/{id}/**", "/a/7", true),
            ("/a/{id}/**", "/a//c", false),
            ("/a", "/a/", false),
            ("/a/", "/a/", true),
            ("/a", "/a%2F", false),
        ] {
            assert_eq!(Pattern::try_new(pattern).unwrap().matches(path), fits, "{pattern} {path}");
        }
        let pattern = Pattern::try_new("/a/{x}/*/{y}/**").unwrap();
        assert_eq!(pattern.captures("/a/1/2/3/4").collect::<Vec<_>>(), [("x", "1"), ("y", "3")]);
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for bad in ["", "a", "/a**", "/**/a", "/a*", "/{}", "/{a-b}", "/{a}/{a}", "/x{a}", "/a b", "/a?b", "/ä", "/***"]
        {
            assert!(Pattern::try_new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn prefixes_are_stripped_by_segments() {
        for (path, segments, rest) in [
            ("/api/orders/7", 1, "/orders/7"),
            ("/api", 1, "/"),
            ("/api/", 1, "/"),
            ("/a/b/c", 2, "/c"),
            ("/a", 0, "/a"),
        ] {
            assert_eq!(strip_prefix(path, segments), rest, "{path}");
        }
    }

    fn any_pattern() -> impl Strategy<Value = Pattern> {
        let segment = prop_oneof![Just("a"), Just("b"), Just("*")];
        (proptest::collection::vec(segment, 1..4), any::<bool>()).prop_map(|(segments, open)| {
            let tail = if open { "/**" } else { "" };
            Pattern::try_new(&format!("/{}{tail}", segments.join("/"))).unwrap()
        })
    }

    proptest! {
        #[test]
        fn whatever_is_written_as_a_pattern_or_asked_for_is_read(
            text in prop_oneof![".*", "(/|\\*|\\{|\\}|a|id|%|\u{e4}|~|\\.){0,12}"],
            path in prop_oneof![".*", "(/|a|b|%2F|\\.){0,12}"],
        ) {
            if let Ok(pattern) = Pattern::try_new(&text) {
                let fits = pattern.matches(&path);
                let captured = pattern.captures(&path).count();
                prop_assert!(!fits || captured == pattern.names().count());
                prop_assert!(pattern.covers(&pattern));
            }
            strip_prefix(&path, 3);
        }

        #[test]
        fn what_is_covered_fits(
            wide in any_pattern(),
            narrow in any_pattern(),
            path in proptest::collection::vec(prop_oneof![Just("a"), Just("b"), Just("c"), Just("")], 1..5),
        ) {
            let path = format!("/{}", path.join("/"));
            if wide.covers(&narrow) && narrow.matches(&path) {
                prop_assert!(wide.matches(&path), "{} covers {} but not {}", wide, narrow, path);
            }
        }

        #[test]
        fn no_path_makes_it_panic(path in "\\PC{0,20}", segments in 0u8..5) {
            let stripped = strip_prefix(&path, segments);
            let _ = Pattern::try_new("/a/{x}/**").unwrap().matches(stripped);
            let _ = Pattern::try_new(&path);
        }
    }
}
