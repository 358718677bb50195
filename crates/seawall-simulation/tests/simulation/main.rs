//! Thousands of schedules of sessions, locks and elections, each from a seed; see `docs/testing-coordination.md`.

mod fleet;
mod mutants;

use fleet::{Plan, run};
use mutants::Mutation;
use seawall_histories::{Rule, Seeds, each_seed};
use seawall_simulation::{Fault, Weather};

/// How many schedules of each kind are run.
const SCHEDULES: u64 = 1_500;

#[test]
fn locks_in_a_storm() {
    each_seed(Seeds::from_env(SCHEDULES), |seed| run(seed, Plan::LOCKS).clean());
}

#[test]
fn elections_in_a_storm() {
    each_seed(Seeds::from_env(SCHEDULES), |seed| run(seed, Plan::ELECTIONS).clean());
}

#[test]
fn the_same_seed_gives_the_same_history() {
    each_seed(Seeds::from_env(50), |seed| {
        for plan in [Plan::LOCKS, Plan::ELECTIONS] {
            let (first, second) = (run(seed, plan), run(seed, plan));
            if first != second {
                let at = first.events.iter().zip(&second.events).position(|(a, b)| a != b);
                let events = at.map(|at| (&first.events[at], &second.events[at]));
                return Err(format!("it differs at {at:?}: {events:#?}"));
            }
            assert!(first.events.len() > 20, "{:?}", first.events);
        }
        Ok(())
    });
}

/// The most schedules until a mutant has to be caught.
const CAUGHT_WITHIN: u64 = 2_000;

/// The first violation of one of these rules, and that the same plan finds none in the code as it is.
fn caught(mutation: Mutation, plan: Plan, rules: &[Rule]) {
    let mut found = None;
    for seed in Seeds::new(0, CAUGHT_WITHIN).iter() {
        let report = mutants::run(seed, plan, mutation);
        if let Some(violation) = report.violations.into_iter().find(|violation| rules.contains(&violation.rule)) {
            found = Some((seed, violation));
            break;
        }
    }
    let (seed, violation) = found.unwrap_or_else(|| panic!("{mutation:?} is not caught in {CAUGHT_WITHIN} schedules"));
    println!("{mutation:?} is caught by seed {seed}: {violation}");
    for seed in Seeds::new(0, seed + 1).iter() {
        let plain = if mutation == Mutation::KnowsByName {
            mutants::run_with_same_tokens(seed, plan)
        } else {
            mutants::run(seed, plan, Mutation::None)
        };
        if let Err(why) = plain.clean() {
            panic!("and without it seed {seed} fails: {why}");
        }
    }
}

#[test]
fn mutant_that_releases_anything() {
    caught(Mutation::ReleasesAnything, Plan::LOCKS, &[Rule::Overlap]);
}

#[test]
fn mutant_that_trusts_its_claim() {
    caught(Mutation::TrustsItsClaim, Plan::ELECTIONS, &[Rule::Overlap]);
}

#[test]
fn mutant_that_knows_claims_by_name() {
    // Names come back only where nothing is lost: whoever uses a token again does not know otherwise what it has withdrawn.
    let plan = Plan { weather: Weather::FINE, faults: &[Fault::Pause], ..Plan::LOCKS };
    caught(Mutation::KnowsByName, plan, &[Rule::WakeUp]);
}

#[test]
fn mutant_that_counts_on_majorities() {
    caught(Mutation::CountsOnMajorities, Plan::LOCKS, &[Rule::FenceOrder]);
}

#[test]
fn mutant_that_stamps_the_answer() {
    // Answers that take longer than the margin, and then no keep-alive any more.
    let slow = Weather { slow_answers: 0.3, ..Weather::FINE };
    let plan =
        Plan { hold: 1_500, weather: slow, faults: &[Fault::Cut, Fault::Pause, Fault::Kill], locks: 1, ..Plan::LOCKS };
    caught(Mutation::StampsTheAnswer, plan, &[Rule::Overlap]);
}

#[test]
fn mutant_that_ignores_errors() {
    // Held longer than a session lives without a keep-alive.
    caught(Mutation::IgnoresErrors, Plan { hold: 1_500, ..Plan::LOCKS }, &[Rule::Overlap]);
}

#[test]
fn mutant_that_lets_claims_come_late() {
    caught(Mutation::LetsClaimsComeLate, Plan::LOCKS, &[Rule::WakeUp]);
}
