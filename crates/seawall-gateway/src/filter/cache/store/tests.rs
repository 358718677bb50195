use http::Method;
use http::header::HeaderValue;

use super::*;
use crate::filter::cache::policy::Extra;

fn entry(key: &str, fields: &[(&'static str, &str)], asked: &HeaderMap, body: usize) -> Entry {
    let mut headers = HeaderMap::new();
    headers.insert("cache-control", HeaderValue::from_static("max-age=60"));
    for (name, value) in fields {
        headers.insert(*name, HeaderValue::from_str(value).expect("a value"));
    }
    let now = std::time::SystemTime::now();
    let facts = Facts::of((&Method::GET, asked), (StatusCode::OK, &headers), now, Duration::ZERO, Extra::default());
    let answer = (StatusCode::OK, headers, Bytes::from(vec![0; body]));
    Entry::new(key.into(), asked, answer, facts.expect("it may be stored"))
}

fn put(store: &Arc<Store>, key: &str, fields: &[(&'static str, &str)], asked: &HeaderMap, body: usize) {
    store.lead(&key.into()).0.put(entry(key, fields, asked, body), asked);
}

fn has(store: &Store, key: &str) -> bool {
    matches!(store.find(key, &HeaderMap::new()), Found::Entry(_))
}

fn asked(value: &str) -> HeaderMap {
    HeaderMap::from_iter([(HeaderName::from_static("x-a"), HeaderValue::from_str(value).expect("a value"))])
}

#[test]
fn it_never_takes_more_than_its_size_and_keeps_what_is_used() {
    let store = Arc::new(Store::new(20_000));
    let none = HeaderMap::new();
    put(&store, "used", &[], &none, 1000);
    for at in 0..500 {
        assert!(has(&store, "used"), "{at}");
        put(&store, &format!("k{at}"), &[], &none, 1000);
        let (count, bytes) = store.sums();
        assert!(bytes <= 20_000 && count >= 10.min(at), "{count} {bytes}");
    }
    assert!(!has(&store, "k0") && has(&store, "k499"));
    assert!(store.read().hand.len() <= 2 * store.sums().0 + 64);
    put(&store, "huge", &[], &none, 30_000);
    assert!(!has(&store, "huge"));
    let count = store.sums().0;
    assert_eq!(store.purge(&Purge::All), count);
    assert_eq!((store.sums(), store.flights().len()), ((0, 0), 0));
}

#[test]
fn variants_stand_beside_each_other() {
    let store = Arc::new(Store::new(10 << 20));
    for value in ["1", "2", "1"] {
        put(&store, "k", &[("vary", "X-A")], &asked(value), 10);
    }
    assert_eq!(store.sums().0, 2);
    assert!(matches!(store.find("k", &asked("2")), Found::Entry(_)));
    assert!(matches!(store.find("k", &asked(" 2 ")), Found::Entry(_)));
    assert!(matches!(store.find("k", &asked("3")), Found::OtherVariants));
    assert!(matches!(store.find("k", &HeaderMap::new()), Found::OtherVariants));
    for at in 0..VARIANTS * 2 {
        put(&store, "k", &[("vary", "x-a")], &asked(&at.to_string()), 10);
    }
    assert_eq!(store.sums().0, VARIANTS);
}

#[test]
fn what_is_purged_is_gone_and_what_is_on_its_way_does_not_come() {
    let store = Arc::new(Store::new(10 << 20));
    let none = HeaderMap::new();
    for key in ["h/a", "h/a\0tenant", "h/a?b", "h/ab", "h/b", "i/a"] {
        put(&store, key, &[("surrogate-key", "x y"), ("cache-tag", if key == "h/b" { "z, w" } else { "v" })], &none, 1);
    }
    assert_eq!(store.purge(&Purge::Url("h/a".into())), 2);
    assert!(has(&store, "h/a?b") && has(&store, "h/ab"));
    assert_eq!(store.purge(&Purge::Tag("w".into())), 1);
    assert_eq!(store.purge(&Purge::Url("h/a*".into())), 2);
    let (lead, _) = store.lead(&"i/b".into());
    assert_eq!(store.purge(&Purge::Tag("y".into())), 1);
    lead.put(entry("i/b", &[], &none, 1), &none);
    assert!(!has(&store, "i/b"), "it was on its way");
    let (lead, _) = store.lead(&"i/b".into());
    store.purge(&Purge::Url("i/c".into()));
    lead.put(entry("i/b", &[], &none, 1), &none);
    assert!(has(&store, "i/b"), "something else was purged");
}

#[tokio::test(flavor = "current_thread")]
async fn whoever_comes_later_waits_for_the_first() {
    let store = Arc::new(Store::new(10 << 20));
    let (first, before) = store.lead(&"k".into());
    assert!(before.is_none());
    let (second, before) = store.lead(&"k".into());
    drop(second);
    let mut before = before.expect("somebody fetches it");
    assert!(before.has_changed().is_ok());
    drop(first);
    assert!(before.changed().await.is_err());
    assert_eq!(store.flights().len(), 0);
}
