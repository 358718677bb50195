//! When a bully or a ring elects two leaders, in a simulated fleet of five.
//!
//! ```console
//! $ cargo run -p seawall-peers --example two_leaders            # the run that docs/elections.md prints
//! $ cargo run -p seawall-peers --example two_leaders -- 7       # another seed
//! ```

use std::time::Duration;

use seawall_peers::sim::Sim;
use seawall_peers::{Algorithm, Bully, Ring, Timing};

const SECOND: Duration = Duration::from_secs(1);

fn main() -> Result<(), std::num::ParseIntError> {
    let seed = std::env::args().nth(1).map_or(Ok(1), |seed| seed.parse())?;
    for run in [shown::<Bully>(seed), shown::<Ring>(seed)].concat() {
        println!("{run}");
    }
    Ok(())
}

/// What happens to a fleet that is in order.
type Scenario<A> = fn(&mut Sim<A>);

/// Each scenario as text: who believes to lead from when on.
pub(crate) fn shown<A: Algorithm>(seed: u64) -> Vec<String> {
    let mut runs = Vec::new();
    let scenarios: [(&str, Scenario<A>); 4] = [
        ("the leader dies", |sim| {
            sim.kill(5);
            sim.run(20 * SECOND);
        }),
        ("p1 and p2 are cut off for 20 s", |sim| {
            sim.partition(&[1, 2]);
            sim.run(20 * SECOND);
            sim.heal();
        }),
        ("the leader is paused for 15 s", |sim| {
            sim.pause(5);
            sim.run(15 * SECOND);
            sim.resume(5);
        }),
        ("messages take 1 to 20 s for 20 s", |sim| {
            sim.latency(SECOND, 20 * SECOND);
            sim.run(20 * SECOND);
            sim.latency(Duration::from_millis(1), Duration::from_millis(10));
        }),
    ];
    for (what, scenario) in scenarios {
        let mut sim = Sim::<A>::new(5, Timing::default(), seed);
        sim.run(10 * SECOND);
        let before = sim.history().len() - 1;
        let trouble = sim.now();
        scenario(&mut sim);
        sim.run(60 * SECOND);
        let mut run = format!("{}, {what}:\n", A::NAME);
        for moment in &sim.history()[before..] {
            let at = moment.at.max(trouble).saturating_sub(trouble);
            let leaders: Vec<_> = moment.leaders.iter().map(|leader| leader.as_str()).collect();
            let names = if leaders.is_empty() { "nobody".to_owned() } else { leaders.join(" and ") };
            run += &format!("  {:>8.3} s  {names}\n", at.as_secs_f64());
        }
        run += &format!("  two at once for {:.3} s\n", sim.with_two().as_secs_f64());
        runs.push(run);
    }
    runs
}
