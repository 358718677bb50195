use proptest::prelude::*;

use super::*;

fn job(catch_up: CatchUp, when: &str) -> Job {
    Job::try_new(JobConfig { catch_up, ..JobConfig::new(when) }).unwrap()
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn hours(times: &[Timestamp]) -> Vec<i64> {
    times.iter().map(|time| time.as_second().rem_euclid(86_400) / 3600).collect()
}

#[test]
fn what_was_missed_is_caught_up_as_it_is_wanted() {
    let (last, now) = (at("2026-05-01T03:00:00Z"), at("2026-05-01T08:30:00Z"));
    let check = |job: &Job, slots: &[i64], skipped: usize| {
        let due = due(job, last, now);
        assert_eq!((hours(&due.slots), due.skipped), (slots.to_vec(), skipped), "{job:?}");
    };
    let hourly = "0 * * * *";
    check(&job(CatchUp::Skip, hourly), &[], 5);
    check(&job(CatchUp::Latest, hourly), &[8], 4);
    check(&job(CatchUp::All, hourly), &[4, 5, 6, 7, 8], 0);
    let mut all = job(CatchUp::All, hourly);
    all.config.catch_up_max = 2;
    check(&all, &[7, 8], 3);
    all.config.catch_up_max = 100;
    all.config.catch_up_age = Some(Period::secs(3 * 3600));
    check(&all, &[6, 7, 8], 2);
    let mut latest = job(CatchUp::Latest, hourly);
    latest.config.catch_up_age = Some(Period::secs(60));
    check(&latest, &[], 5);
    // In time, and just in time.
    let skip = job(CatchUp::Skip, hourly);
    for (now, count) in [("2026-05-01T04:00:00Z", 1), ("2026-05-01T04:01:00Z", 1), ("2026-05-01T04:01:00.001Z", 0)] {
        assert_eq!(due(&skip, last, at(now)).slots.len(), count, "{now}");
    }
    // Nothing twice when the clock is set back.
    assert_eq!(due(&all, now, last), Due::default());
    assert_eq!(due(&all, now, now), Due::default());
    let once = job(CatchUp::Latest, "at 2026-05-01T05:00:00Z");
    assert_eq!(due(&once, last, now).slots.len(), 1);
    assert_eq!(due(&once, at("2026-05-01T05:00:00Z"), now), Due::default());
    // A year of tenths of a second is bounded, in work too.
    let year = due(&job(CatchUp::All, "every 100ms"), at("2025-05-01T00:00:00Z"), now);
    assert_eq!((year.slots.len(), year.skipped), (100, 901));
}

#[test]
fn mistakes_are_all_named() {
    let config: JobConfig = serde_json::from_value(serde_json::json!({
        "when": "0 3 * *", "catch_up": "skip", "catch_up_max": 0, "catch_up_age": "1h", "deadline": "0s",
        "alarm_after": "1ms", "body": {},
    }))
    .unwrap();
    let fields: Vec<_> = Job::try_new(config).unwrap_err().into_iter().map(|error| error.field).collect();
    assert_eq!(fields, ["when", "catch_up_max", "deadline", "alarm_after", "catch_up_age", "body"]);
    let zone = JobConfig { zone: Some("Mars".into()), ..JobConfig::new("0 3 * * *") };
    assert_eq!(Job::try_new(zone).unwrap_err()[0].field, "zone");
    let text = r#"{ "when": "every 1m", "cals": "POST a/b" }"#;
    assert!(serde_json::from_str::<JobConfig>(text).unwrap_err().to_string().contains("cals"));
}

proptest! {
    /// Whatever the moments at which somebody looks: no slot twice, none under `all` that is lost, and never too many.
    #[test]
    fn looks_at_any_moments_miss_nothing_and_double_nothing(
        when in prop::sample::select(&["* * * * *", "0 * * * *", "30 2 * * *", "every 7m", "*/20 * * * * *"][..]),
        zone in prop::sample::select(&["Europe/Berlin", "America/New_York"][..]),
        catch_up in prop::sample::select(&[CatchUp::Skip, CatchUp::Latest, CatchUp::All][..]),
        from in prop::sample::select(&["2026-03-29T00:50:00Z", "2026-10-24T23:30:00Z", "2026-11-01T05:10:00Z"][..]),
        looks in prop::collection::vec(-60_000_i64..600_000, 1..40),
    ) {
        let zone = (!when.starts_with("every")).then(|| zone.to_owned());
        let job = Job::try_new(JobConfig { catch_up, zone, ..JobConfig::new(when) }).unwrap();
        let from = at(from);
        let (mut now, mut last, mut run, mut skipped) = (from, from, Vec::new(), 0);
        for look in looks {
            // The clock may be set back, too.
            now = Timestamp::from_millisecond(now.as_millisecond() + look).unwrap();
            let due = due(&job, last, now);
            let most = if catch_up == CatchUp::All { 100 } else { 1 };
            prop_assert!(due.slots.len() <= most);
            prop_assert!(due.slots.iter().all(|slot| *slot > last && *slot <= now));
            run.extend(due.slots);
            skipped += due.skipped;
            last = last.max(now);
        }
        prop_assert!(run.windows(2).all(|pair| pair[0] < pair[1]), "{run:?}");
        let all = job.when.latest(from, last, 10_000);
        prop_assert!(run.iter().all(|slot| all.contains(slot)));
        prop_assert_eq!(run.len() + skipped, all.len());
        if catch_up == CatchUp::All {
            prop_assert_eq!(run, all);
        }
    }
}
