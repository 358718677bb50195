use proptest::prelude::*;

use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

#[test]
fn texts_are_read_and_written() {
    for (text, zone, first) in [
        ("0 3 * * *", None, "1970-01-01T03:00:00Z"),
        (" 0 3 * * * ", Some("Europe/Berlin"), "1970-01-01T02:00:00Z"),
        ("*/10 * * * * *", None, "1970-01-01T00:00:10Z"),
        ("@daily", Some("UTC"), "1970-01-02T00:00:00Z"),
        ("0 9 * jan mon-fri", None, "1970-01-01T09:00:00Z"),
        ("every 15m", None, "1970-01-01T00:15:00Z"),
        ("every 100ms", None, "1970-01-01T00:00:00.1Z"),
        ("every 1h 30m from 2026-01-01T00:10:00+01:00", None, "1970-01-01T00:40:00Z"),
        ("at 2026-12-24T18:00:00.5Z", None, "2026-12-24T18:00:00.5Z"),
    ] {
        let when = When::parse(text, zone).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(when.next(Timestamp::UNIX_EPOCH), Some(at(first)), "{text}");
        assert_eq!(When::parse(&when.to_string(), zone).unwrap(), when, "{when}");
    }
}

#[test]
fn texts_that_say_no_time_are_refused_with_a_reason() {
    for (text, zone, says) in [
        ("", None, "0 bytes"),
        (&*"0 ".repeat(500), None, "1000 bytes"),
        ("0 3 * *", None, "5 or 6 fields, this has 4"),
        ("0 3 * * * * *", None, "this has 7"),
        ("61 * * * *", None, "out of bounds"),
        ("0 25 * * *", None, "out of bounds"),
        ("a b c d e", None, "illegal character"),
        ("@reboot", None, "no time"),
        ("0 0 30 2 *", None, "never comes"),
        ("0 0 31 4,6,9,11 *", None, "never comes"),
        ("0 3 * * *", Some("Europe/Atlantis"), "`Europe/Atlantis` is no time zone"),
        ("0 3 * * *", Some(""), "no time zone"),
        ("every 15m", Some("Europe/Berlin"), "has no effect"),
        ("every 15", None, "has no unit"),
        ("every 50ms", None, "100ms at least"),
        ("every 1500us", None, "whole number of milliseconds"),
        ("every 10000h", None, "longer than a year"),
        ("every 1h from noon", None, "`noon` is not like"),
        ("at tomorrow", None, "`tomorrow` is not like"),
        ("at 1969-12-31T23:59:59Z", None, "before 1970"),
        ("at 2026-02-30T00:00:00Z", None, "is not like"),
    ] {
        let error = When::parse(text, zone).unwrap_err().to_string();
        assert!(error.contains(says) && error.len() < 500, "{text}: {error}");
    }
}

/// All times from the first instant on, before the second.
fn between(text: &str, zone: &str, from: &str, until: &str) -> Vec<String> {
    let when = When::parse(text, Some(zone)).unwrap();
    let (from, until) = (at(from), at(until));
    let mut times = Vec::new();
    let mut last = Timestamp::from_second(from.as_second() - 1).unwrap();
    while let Some(next) = when.next(last).filter(|next| *next < until) {
        times.push(next);
        last = next;
    }
    let backwards = when.latest(
        Timestamp::from_second(from.as_second() - 1).unwrap(),
        Timestamp::from_millisecond(until.as_millisecond() - 1).unwrap(),
        usize::MAX,
    );
    assert_eq!(backwards, times, "{text} backwards");
    times.iter().map(ToString::to_string).collect()
}

#[test]
fn clocks_go_forward() {
    // Berlin: 02:00 becomes 03:00 on 29 March 2026 at 01:00Z. New York: 02:00 becomes 03:00 on 8 March 2026 at 07:00Z.
    let (berlin, york) = ("Europe/Berlin", "America/New_York");
    for (text, zone, from, until, times) in [
        // A fixed time that does not exist is run right after the gap, once.
        ("30 2 * * *", berlin, "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z", &["2026-03-29T01:00:00Z"][..]),
        ("30 2 * * *", york, "2026-03-08T05:00:00Z", "2026-03-09T04:00:00Z", &["2026-03-08T07:00:00Z"]),
        ("0 3 * * *", berlin, "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z", &["2026-03-29T01:00:00Z"]),
        // Every hour leaves it out: an hour of the day is missing, none of the time is.
        (
            "0 * * * *",
            berlin,
            "2026-03-29T00:00:00Z",
            "2026-03-29T03:00:00Z",
            &["2026-03-29T00:00:00Z", "2026-03-29T01:00:00Z", "2026-03-29T02:00:00Z"],
        ),
        (
            "*/30 * * * *",
            york,
            "2026-03-08T06:30:00Z",
            "2026-03-08T08:00:00Z",
            &["2026-03-08T06:30:00Z", "2026-03-08T07:00:00Z", "2026-03-08T07:30:00Z"],
        ),
    ] {
        assert_eq!(between(text, zone, from, until), times, "{text} {zone}");
    }
}

#[test]
fn clocks_go_back() {
    // Berlin: 03:00 becomes 02:00 on 25 October 2026 at 01:00Z. New York: 02:00 becomes 01:00 on 1 November 2026 at 06:00Z.
    let (berlin, york) = ("Europe/Berlin", "America/New_York");
    for (text, zone, from, until, times) in [
        // A fixed time that comes twice is run once, at its first coming.
        ("30 2 * * *", berlin, "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z", &["2026-10-25T00:30:00Z"][..]),
        ("30 1 * * *", york, "2026-11-01T04:00:00Z", "2026-11-02T05:00:00Z", &["2026-11-01T05:30:00Z"]),
        // Every hour runs in both.
        (
            "0 * * * *",
            berlin,
            "2026-10-24T23:00:00Z",
            "2026-10-25T03:00:00Z",
            &["2026-10-24T23:00:00Z", "2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z", "2026-10-25T02:00:00Z"],
        ),
        (
            "*/30 * * * *",
            york,
            "2026-11-01T05:00:00Z",
            "2026-11-01T07:00:00Z",
            &["2026-11-01T05:00:00Z", "2026-11-01T05:30:00Z", "2026-11-01T06:00:00Z", "2026-11-01T06:30:00Z"],
        ),
    ] {
        assert_eq!(between(text, zone, from, until), times, "{text} {zone}");
    }
}

#[test]
fn days_that_are_not_in_every_month_or_year() {
    for (text, from, until, times) in [
        (
            "0 0 29 2 *",
            "2023-01-01T00:00:00Z",
            "2033-01-01T00:00:00Z",
            &["2024-02-29T00:00:00Z", "2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"][..],
        ),
        ("0 0 29 2 *", "1999-01-01T00:00:00Z", "2001-01-01T00:00:00Z", &["2000-02-29T00:00:00Z"]),
        (
            "0 0 31 * *",
            "2026-01-01T00:00:00Z",
            "2026-07-01T00:00:00Z",
            &["2026-01-31T00:00:00Z", "2026-03-31T00:00:00Z", "2026-05-31T00:00:00Z"],
        ),
        (
            "0 0 L * *",
            "2028-01-01T00:00:00Z",
            "2028-04-01T00:00:00Z",
            &["2028-01-31T00:00:00Z", "2028-02-29T00:00:00Z", "2028-03-31T00:00:00Z"],
        ),
        // As in Vixie cron a day of the month and a day of the week are either.
        (
            "0 0 13 * fri",
            "2026-03-01T00:00:00Z",
            "2026-03-21T00:00:00Z",
            &["2026-03-06T00:00:00Z", "2026-03-13T00:00:00Z", "2026-03-20T00:00:00Z"],
        ),
    ] {
        assert_eq!(between(text, "UTC", from, until), times, "{text}");
    }
}

fn any_when() -> impl Strategy<Value = When> {
    const CRONS: &[&str] = &[
        "* * * * *",
        "*/7 * * * * *",
        "0 * * * *",
        "30 2 * * *",
        "30 1,2 * * *",
        "15,45 1-3 * * sun",
        "0 0 31 * *",
        "@weekly",
    ];
    const ZONES: &[&str] = &["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"];
    let cron = (prop::sample::select(CRONS), prop::sample::select(ZONES))
        .prop_map(|(cron, zone)| When::parse(cron, Some(zone)).unwrap());
    let every = (100_u64..100_000_000, 0_i64..10_000_000).prop_map(|(period, anchor)| When::Every {
        period: Period::millis(period),
        anchor: Timestamp::from_millisecond(anchor).unwrap(),
    });
    prop_oneof![cron, every]
}

proptest! {
    /// Around the days on which clocks change, too: what is found forwards is found backwards, in order, within bounds.
    #[test]
    fn both_directions_agree(
        when in any_when(),
        near in prop::sample::select(&["2026-03-08T07:00:00Z", "2026-03-29T01:00:00Z", "2026-10-25T01:00:00Z", "2026-11-01T06:00:00Z"][..]),
        before in 0_i64..200_000_000,
        most in 1_usize..50,
    ) {
        let from = Timestamp::from_millisecond(at(near).as_millisecond() - before).unwrap();
        let mut forwards = Vec::new();
        let mut last = from;
        while forwards.len() < 60 && let Some(next) = when.next(last) {
            prop_assert!(next > last);
            forwards.push(next);
            last = next;
        }
        let all = when.latest(from, last, usize::MAX / 2);
        prop_assert_eq!(&all, &forwards);
        let some = when.latest(from, last, most);
        prop_assert_eq!(&some[..], &forwards[forwards.len().saturating_sub(most)..]);
    }
}
