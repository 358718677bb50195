//! `seawall traffic`: how the requests of a split are divided, and shifting them, at once or step by step.

mod plan;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use http::Method;
use seawall_control::{Order, SplitView};
use seawall_discovery::{Control, ControlError};
use seawall_gateway::SplitConfig;
use seawall_types::{Ratio, ServiceName, Shares, Traffic};

use self::plan::{Calls, Pace, Wanted, calls, judge, shown, since, steps};
use crate::config::Loaded;
use crate::{ask, process, up};

/// How long control or a gateway may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Show how splits are divided; of one split also who has changed it when.
    Status {
        /// The split. Default: all.
        split: Option<ServiceName>,
        #[command(flatten)]
        which: ask::Which,
    },
    /// Divide a split otherwise, in all gateways, at once or step by step.
    Shift(ShiftArgs),
    /// Divide a split as before the last shift, all steps of it.
    Rollback {
        #[command(flatten)]
        what: What,
    },
    /// Divide a split as the file says.
    Reset {
        #[command(flatten)]
        what: What,
    },
}

#[derive(clap::Args)]
pub(crate) struct What {
    /// The split.
    split: ServiceName,
    /// Who you are, for the history.
    #[arg(long, env = "USER", default_value = "operator")]
    who: String,
    /// Why, for the history.
    #[arg(long)]
    because: Option<String>,
    #[command(flatten)]
    which: ask::Which,
}

#[derive(clap::Args)]
pub(crate) struct ShiftArgs {
    #[command(flatten)]
    what: What,
    /// What services are to get: `order-canary=20%`. Those that are not named divide what is left as they do now.
    #[arg(required = true)]
    wanted: Vec<Wanted>,
    /// Step by step: how much at a time, and how long each step is watched: `10%,30s`. Rolled back and ended with 1 when the
    /// services that are named fail more often than the others.
    #[arg(long)]
    by: Option<Pace>,
    /// How much more often they may fail, as a share of the calls.
    #[arg(long, default_value = "1%", requires = "by")]
    worse: Ratio,
    /// Of how many calls in a step that is judged at least.
    #[arg(long, default_value_t = 20, requires = "by")]
    least: u64,
    /// The admin addresses of the gateways, where it is seen who fails. Default: those of the running `seawall up`.
    #[arg(long, value_delimiter = ',', requires = "by")]
    admin: Vec<SocketAddr>,
}

pub(crate) fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Status { split, which } => status(split.as_ref(), &which),
        Command::Shift(args) => Shifting::try_new(&args)?.run(),
        Command::Rollback { what } => {
            let written = what.written()?;
            let view: SplitView = what.send(Method::POST, "/rollback", &what.order(None, None))?;
            said(&view, &written);
            Ok(())
        }
        Command::Reset { what } => {
            let written = what.written()?;
            let view: SplitView = what.send(Method::PUT, "", &what.order(None, None))?;
            said(&view, &written);
            Ok(())
        }
    }
}

/// The splits of the file, with the gateways that have them.
fn splits(loaded: &Loaded) -> BTreeMap<&ServiceName, Vec<(&ServiceName, &SplitConfig)>> {
    let mut splits: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (gateway, config) in &loaded.config.gateways {
        for (split, config) in &config.splits {
            splits.entry(split).or_default().push((gateway, config));
        }
    }
    splits
}

fn said(view: &SplitView, written: &Shares) {
    let (shares, file) = match &view.shares {
        Some(shares) => (shares, ""),
        None => (written, ", as the file says"),
    };
    println!("{}: {}{file}", view.split, shown(shares));
}

impl What {
    /// How the file divides it.
    fn written(&self) -> anyhow::Result<Shares> {
        let loaded = self.which.loaded()?;
        let splits = splits(&loaded);
        let Some(found) = splits.get(&self.split) else {
            let names = splits.keys().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            let all = if names.is_empty() { "none".to_owned() } else { names };
            bail!("no gateway of the file has a split `{}`; there is {all}", self.split);
        };
        let ((first, one), others) = found.split_first().context("a split is some gateway's")?;
        let same = |other: &SplitConfig| other.among.keys().eq(one.among.keys());
        if let Some((other, _)) = others.iter().find(|(_, other)| !same(other)) {
            bail!(
                "the gateways `{first}` and `{other}` divide `{}` among other services: they cannot be shifted together",
                self.split
            );
        }
        Ok(one.among.clone())
    }

    fn order(&self, shares: Option<Shares>, shift: Option<String>) -> Order {
        Order { shares, by: Some(self.who.clone()), why: self.because.clone(), shift }
    }

    fn send<T: for<'de> serde::Deserialize<'de>>(
        &self,
        method: Method,
        rest: &str,
        order: &Order,
    ) -> anyhow::Result<T> {
        self.which.send(method, &format!("/v1/traffic/{}{rest}", self.split), serde_json::to_vec(order)?)
    }
}

fn status(split: Option<&ServiceName>, which: &ask::Which) -> anyhow::Result<()> {
    let loaded = which.loaded()?;
    let splits = splits(&loaded);
    let traffic: Traffic = which.get("/v1/traffic")?;
    let mut found = false;
    for (name, gateways) in splits.iter().filter(|(name, _)| split.is_none_or(|split| split == **name)) {
        found = true;
        for (gateway, config) in gateways {
            let file = shown(&config.among);
            match traffic.splits.get(*name) {
                Some(shares) => println!("{name} at {gateway}: {} (the file says {file})", shown(shares)),
                None => println!("{name} at {gateway}: {file}"),
            }
        }
    }
    let Some(split) = split else {
        for (name, shares) in traffic.splits.iter().filter(|(name, _)| !splits.contains_key(name)) {
            println!("{name}: {} (the file has no such split)", shown(shares));
        }
        return Ok(());
    };
    let control = Control::new([which.addr()?]);
    let asked =
        process::runtime()?.block_on(control.send(Method::GET, &format!("/v1/traffic/{split}"), Vec::new(), PATIENCE));
    match asked {
        Ok(view) => {
            let view: SplitView = serde_json::from_slice(&view)?;
            for shift in view.history.iter().rev() {
                let shares = shift.shares.as_ref().map_or_else(|| "as the file says".to_owned(), shown);
                let (by, why) = (shift.by.as_deref().unwrap_or("-"), shift.why.as_deref().unwrap_or_default());
                let what = if shift.rollback { "rollback" } else { "shift" };
                println!("  {:.0}  {what:<8}  {shares:<40}  {by}  {why}", shift.at);
            }
        }
        Err(ControlError::NotFound(_)) => ensure!(found, "there is no split `{split}`"),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// A shift under way.
struct Shifting<'a> {
    args: &'a ShiftArgs,
    steps: Vec<Shares>,
    /// Names its steps in the history.
    name: String,
}

impl<'a> Shifting<'a> {
    fn try_new(args: &'a ShiftArgs) -> anyhow::Result<Self> {
        let written = args.what.written()?;
        let traffic: Traffic = args.what.which.get("/v1/traffic")?;
        let shifted = traffic.splits.get(&args.what.split);
        // What is shifted but not to services of the file counts for nothing in the gateways either.
        let now = shifted.filter(|shares| shares.keys().all(|service| written.contains_key(service)));
        let mut now = now.cloned().unwrap_or_else(|| written.clone());
        for service in written.keys() {
            now.entry(service.clone()).or_default();
        }
        let steps = steps(&now, &args.wanted, args.by).map_err(|why| anyhow::anyhow!(why))?;
        Ok(Self { args, steps, name: process::unique() })
    }

    fn run(&self) -> anyhow::Result<()> {
        let Some(pace) = self.args.by else {
            for step in &self.steps {
                self.shift(step)?;
            }
            return Ok(());
        };
        let gateways = self.gateways()?;
        let mut before = look(&gateways)?;
        for (number, step) in self.steps.iter().enumerate() {
            self.shift(step)?;
            std::thread::sleep(pace.every);
            let seen = look(&gateways).and_then(|now| {
                let judged = self.judge(&since(&before, &now)).map_err(|seen| anyhow::anyhow!(seen));
                before = now;
                judged
            });
            match seen {
                Ok(seen) => println!("  step {} of {}: {seen}", number + 1, self.steps.len()),
                Err(why) => {
                    let order =
                        Order { why: Some(format!("{why:#}")), ..self.args.what.order(None, Some(self.name.clone())) };
                    let view: SplitView = self.args.what.send(Method::POST, "/rollback", &order)?;
                    said(&view, &self.args.what.written()?);
                    bail!("rolled back in step {} of {}: {why:#}", number + 1, self.steps.len());
                }
            }
        }
        Ok(())
    }

    fn shift(&self, shares: &Shares) -> anyhow::Result<()> {
        let what = &self.args.what;
        let view: SplitView = what.send(Method::PUT, "", &what.order(Some(shares.clone()), Some(self.name.clone())))?;
        said(&view, shares);
        Ok(())
    }

    fn judge(&self, calls: &BTreeMap<String, Calls>) -> Result<String, String> {
        let new: Vec<ServiceName> = self.args.wanted.iter().map(|wanted| wanted.service.clone()).collect();
        let services =
            self.steps.iter().flat_map(|step| step.keys()).cloned().collect::<std::collections::BTreeSet<_>>();
        judge(calls, services.into_iter(), &new, self.args.worse, self.args.least)
    }

    fn gateways(&self) -> anyhow::Result<Vec<SocketAddr>> {
        if !self.args.admin.is_empty() {
            return Ok(self.args.admin.clone());
        }
        let parts = up::client::admins(&self.args.what.which.loaded()?.file)?;
        let gateways = parts.into_iter().filter(|(name, _)| name.starts_with("gateway "));
        Ok(gateways.map(|(_, addr)| addr).collect())
    }
}

/// The calls that all gateways together have made. One that does not answer makes none; somebody has to.
fn look(gateways: &[SocketAddr]) -> anyhow::Result<BTreeMap<String, Calls>> {
    let runtime = process::runtime()?;
    let mut all: BTreeMap<String, Calls> = BTreeMap::new();
    let mut answered = false;
    for addr in gateways {
        let page = runtime.block_on(Control::new([*addr]).send(Method::GET, "/metrics", Vec::new(), PATIENCE));
        let Ok(page) = page else { continue };
        answered = true;
        for (service, calls) in calls(&String::from_utf8_lossy(&page)) {
            let sum = all.entry(service).or_default();
            sum.all += calls.all;
            sum.failed += calls.failed;
        }
    }
    ensure!(answered, "no gateway says how its calls go: name their `admin` addresses with --admin");
    Ok(all)
}
