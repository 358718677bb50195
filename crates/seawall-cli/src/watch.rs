//! `--watch`: a line for each change, from a control node that may go away and come back.

use std::io::Write as _;
use std::time::Duration;

use seawall_discovery::{Control, ControlError, Events};
use serde::de::DeserializeOwned;

use crate::ask::Which;
use crate::process;

/// The longest pause before control is asked again.
const PAUSE: Duration = Duration::from_secs(2);

/// Prints what `line` says of each thing as it is and whenever it has changed, with the time. When control goes away it is waited
/// for, and then all is said anew.
///
/// # Errors
/// Only when control does not answer in the beginning. Who reads no more ends it.
pub(crate) fn run<V: DeserializeOwned>(
    which: &Which,
    path: &str,
    kind: &str,
    line: impl Fn(&V) -> Option<String>,
) -> anyhow::Result<()> {
    let control = Control::new([which.addr()?]);
    process::runtime()?.block_on(async {
        let mut events = control.events(path).await?;
        loop {
            match print(&mut events, kind, &line).await {
                Ok(()) => return Ok(()),
                Err(error) => eprintln!("{error}; waiting for control"),
            }
            let mut pause = Duration::from_millis(100);
            events = loop {
                tokio::time::sleep(pause.mul_f64(0.5 + 0.5 * fastrand::f64())).await;
                match control.events(path).await {
                    Ok(events) => break events,
                    Err(_) => pause = (pause * 2).min(PAUSE),
                }
            };
        }
    })
}

/// `Ok` when nobody reads any more.
async fn print<V: DeserializeOwned>(
    events: &mut Events,
    kind: &str,
    line: impl Fn(&V) -> Option<String>,
) -> Result<(), ControlError> {
    while let Some(batch) = events.next().await? {
        for event in batch.iter().filter(|event| event.name == kind) {
            let view = serde_json::from_str(&event.data);
            let view: V = view.map_err(|error| ControlError::Broken(format!("an event is not understood: {error}")))?;
            let Some(text) = line(&view) else { continue };
            let mut out = std::io::stdout().lock();
            if writeln!(out, "{:.0}  {text}", jiff::Timestamp::now()).and_then(|()| out.flush()).is_err() {
                return Ok(());
            }
        }
    }
    Err(ControlError::Broken("control has ended the stream".to_owned()))
}
