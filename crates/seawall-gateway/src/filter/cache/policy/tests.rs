use http::header::HeaderValue;
use proptest::prelude::*;

use super::*;

const EXTRA: Extra = Extra { heuristic: true, while_revalidate: Duration::ZERO, if_error: Duration::ZERO };

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(HeaderName::try_from(*name).expect("a name"), HeaderValue::from_str(value).expect("a value"));
    }
    headers
}

fn now() -> SystemTime {
    httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").expect("a date")
}

fn at(seconds: i64) -> String {
    let by = Duration::from_secs(seconds.unsigned_abs());
    httpdate::fmt_http_date(if seconds < 0 { now() - by } else { now() + by })
}

fn facts(asked: &[(&str, &str)], status: u16, answer: &[(&str, &str)]) -> Result<Facts, &'static str> {
    let status = StatusCode::from_u16(status).expect("a status");
    Facts::of((&Method::GET, &headers(asked)), (status, &headers(answer)), now(), Duration::ZERO, EXTRA)
}

#[test]
fn what_may_be_stored() {
    let fresh = ("cache-control", "max-age=60");
    for (asked, status, answer, expect) in [
        (&[][..], 200, &[fresh][..], None),
        (&[], 599, &[fresh], None),
        (&[], 200, &[], Some("no lifetime")),
        (&[], 206, &[fresh], Some("status")),
        (&[], 304, &[fresh], Some("status")),
        (&[], 200, &[("cache-control", "no-store, max-age=60")], Some("no-store")),
        (&[("cache-control", "no-store")], 200, &[fresh], Some("no-store")),
        (&[], 200, &[("cache-control", "private, max-age=60")], Some("private")),
        (&[], 200, &[("cache-control", "private=\"x-a\", max-age=60")], None),
        (&[], 599, &[("cache-control", "max-age=60, must-understand")], Some("status is not understood")),
        (&[], 200, &[("cache-control", "max-age=60, must-understand, no-store")], None),
        (&[("authorization", "x")], 200, &[fresh], Some("authorization")),
        (&[("authorization", "x")], 200, &[("cache-control", "s-maxage=60")], None),
        (&[("authorization", "x")], 200, &[("cache-control", "max-age=60, public")], None),
        (&[("authorization", "x")], 200, &[("cache-control", "max-age=60, must-revalidate")], None),
        (&[], 200, &[fresh, ("vary", "a, *")], Some("vary")),
        (&[], 200, &[("cache-control", "max-age=0")], Some("stale already")),
        (&[], 200, &[("cache-control", "max-age=0"), ("etag", "\"a\"")], None),
        (&[], 200, &[("cache-control", "no-cache")], Some("no lifetime")),
        (&[], 200, &[("cache-control", "no-cache"), ("etag", "\"a\"")], None),
        (&[], 200, &[fresh, ("age", "60")], Some("stale already")),
        (&[], 200, &[fresh, ("age", "abc")], Some("stale already")),
        (&[], 200, &[fresh, ("age", "1"), ("age", "1")], Some("stale already")),
        (&[], 200, &[("expires", "0")], Some("stale already")),
        (&[], 200, &[("expires", &at(60)), ("date", &at(0))], None),
        (&[], 200, &[("expires", &at(60)), ("date", &at(60))], Some("stale already")),
        (&[], 200, &[("cache-control", "max-age=1"), ("date", &at(-60))], Some("stale already")),
        (&[], 200, &[("cdn-cache-control", "max-age=60"), ("cache-control", "no-store")], None),
        (&[], 200, &[("cdn-cache-control", "no-store"), fresh], Some("no-store")),
        (&[], 200, &[("surrogate-control", "max-age=60"), ("cache-control", "no-store")], None),
        (&[], 200, &[("surrogate-control", "max-age=60;other"), ("cache-control", "no-store")], Some("no-store")),
        (&[], 200, &[("surrogate-control", "content=\"ESI/1.0\""), ("cache-control", "private")], Some("private")),
        (&[], 200, &[("last-modified", &at(-600))], None),
        (&[], 200, &[("last-modified", &at(-600)), ("set-cookie", "a=b")], None),
        (&[], 201, &[("last-modified", &at(-600))], Some("no lifetime")),
    ] {
        assert_eq!(facts(asked, status, answer).err(), expect, "{status} {asked:?} {answer:?}");
    }
}

#[test]
fn how_long_it_is_fresh() {
    let ttl = |answer: &[(&str, &str)]| facts(&[], 200, answer).expect("it is stored").ttl(Duration::ZERO);
    assert_eq!(ttl(&[("cache-control", "max-age=60, s-maxage=10")]), 10);
    assert_eq!(ttl(&[("cache-control", "max-age=60"), ("expires", &at(5))]), 60);
    assert_eq!(ttl(&[("cache-control", "max-age=60"), ("age", "20")]), 40);
    assert_eq!(ttl(&[("cache-control", "max-age=60"), ("date", &at(-15))]), 45);
    assert_eq!(ttl(&[("expires", &at(5))]), 5);
    assert_eq!(ttl(&[("last-modified", &at(-600)), ("date", &at(0))]), 60);
    assert_eq!(ttl(&[("last-modified", &at(-600)), ("date", &at(0)), ("set-cookie", "a=b")]), 0, "not by guess");
    assert_eq!(ttl(&[("last-modified", &at(-100_000_000)), ("date", &at(0))]), 24 * 3600);
}

#[test]
fn what_may_be_answered_with_it() {
    let seconds = Duration::from_secs;
    let check = |answer: &str, asked: &str, resident: u64, expect: Use| {
        let answer = [("cache-control", answer), ("etag", "\"a\"")];
        let facts = facts(&[], 200, &answer).expect("it is stored");
        let asked = if asked.is_empty() { HeaderMap::new() } else { headers(&[("cache-control", asked)]) };
        assert_eq!(facts.use_for(&asked, seconds(resident)), expect, "{answer:?} {asked:?} {resident}");
    };
    check("max-age=60", "", 59, Use::Fresh);
    check("max-age=60", "", 60, Use::Validate);
    check("max-age=60, no-cache", "", 1, Use::Validate);
    check("max-age=60", "no-cache", 1, Use::Validate);
    check("max-age=60", "max-age=10", 10, Use::Fresh);
    check("max-age=60", "max-age=10", 11, Use::Validate);
    check("max-age=60", "min-fresh=10", 51, Use::Validate);
    check("max-age=60", "max-stale=10", 70, Use::Fresh);
    check("max-age=60", "max-stale", 7000, Use::Fresh);
    check("max-age=60", "max-stale=10", 71, Use::Validate);
    check("max-age=60, must-revalidate", "max-stale=10", 61, Use::Validate);
    check("max-age=60, stale-while-revalidate=10", "", 69, Use::Meanwhile);
    check("max-age=60, stale-while-revalidate=10", "", 70, Use::Validate);
    check("max-age=60, stale-while-revalidate=10, must-revalidate", "", 61, Use::Validate);
    check("s-maxage=60, stale-while-revalidate=10", "", 61, Use::Validate);
    let failing = |answer: &str, resident| {
        let facts = facts(&[], 200, &[("cache-control", answer), ("etag", "\"a\"")]).expect("it is stored");
        facts.despite_failure(seconds(resident))
    };
    assert!(failing("max-age=60, stale-if-error=10", 69));
    assert!(!failing("max-age=60, stale-if-error=10", 70));
    assert!(!failing("max-age=60, stale-if-error=10, proxy-revalidate", 61));
    assert!(!failing("max-age=60", 61));
}

#[test]
fn whoever_has_it_already_is_told() {
    let has = |asked: &[(&str, &str)], stored: &[(&str, &str)]| client_has_it(&headers(asked), &headers(stored));
    let etag = [("etag", "\"a,b\""), ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")];
    assert!(has(&[("if-none-match", "\"x\", W/\"a,b\"")], &etag));
    assert!(has(&[("if-none-match", "*")], &etag));
    assert!(!has(&[("if-none-match", "\"a\""), ("if-modified-since", "Sun, 06 Nov 1994 08:49:37 GMT")], &etag));
    assert!(has(&[("if-modified-since", "Sunday, 06-Nov-94 08:49:37 GMT")], &etag));
    assert!(!has(&[("if-modified-since", "Sun, 06 Nov 1994 08:49:36 GMT")], &etag));
    assert!(!has(&[], &etag));
    assert!(!has(&[("if-none-match", "\"a\"")], &[]));
}

#[test]
fn what_is_stored_of_headers_and_what_a_304_changes() {
    let old = stored(
        &headers(&[
            ("connection", "close"),
            ("proxy-authenticate", "x"),
            ("age", "5"),
            ("cache-control", "max-age=1, no-cache=\"secret\""),
            ("secret", "1"),
            ("content-length", "5"),
            ("x-a", "1"),
            ("x-b", "1"),
        ]),
        now(),
    );
    let mut names: Vec<_> = old.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["cache-control", "content-length", "date", "x-a", "x-b"]);
    let new = freshened(&old, &headers(&[("x-a", "2"), ("x-a", "3"), ("content-length", "0"), ("date", "now")]), now());
    assert_eq!(new.get_all("x-a").iter().collect::<Vec<_>>(), ["2", "3"]);
    assert_eq!(
        (&new["x-b"], &new["content-length"], &new["date"]),
        (&"1".parse().expect("a value"), &"5".parse().expect("a value"), &"now".parse().expect("a value"))
    );
}

proptest! {
    #[test]
    fn nothing_that_a_service_writes_stops_it(
        pairs in proptest::collection::vec(
            (
                proptest::sample::select(vec!["age", "date", "expires", "vary", "cache-control", "last-modified", "etag", "cdn-cache-control"]),
                prop_oneof!["[ -~]{0,40}", "max-age=[0-9]{1,30}", "s-maxage=9, stale-if-error=[0-9]{18,25}", "[0-9]{0,30}", Just("Fri, 31 Dec 9999 23:59:59 GMT".to_owned())],
            ),
            0..6,
        ),
        resident in 0u64..=u64::MAX / 2,
    ) {
        let pairs: Vec<_> = pairs.iter().map(|(name, value)| (*name, &**value)).collect();
        let extra = Extra { heuristic: true, while_revalidate: Duration::MAX, if_error: Duration::MAX };
        let status = StatusCode::OK;
        if let Ok(facts) = Facts::of((&Method::GET, &HeaderMap::new()), (status, &headers(&pairs)), now(), Duration::MAX, extra) {
            facts.ttl(Duration::from_secs(resident));
            facts.use_for(&headers(&pairs), Duration::from_secs(resident));
            facts.despite_failure(Duration::from_secs(resident));
        }
    }
}
