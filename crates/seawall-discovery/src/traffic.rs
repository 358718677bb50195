//! Following how traffic is shifted.

use std::path::PathBuf;
use std::time::Duration;

use http::Method;
use seawall_drain::Drain;
use seawall_types::Traffic;

use crate::control::{Control, ControlError};
use crate::subscriber::replace;

/// How long control waits for a change before it answers all the same.
const WAIT: Duration = Duration::from_secs(20);
/// How much longer than that its answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest pause before control is asked again, on average.
const PAUSE: Duration = Duration::from_millis(500);

/// Follows how control says that traffic is divided. While control is away the last that it said is kept, over restarts too.
#[derive(Debug)]
pub struct Follower {
    control: Control,
    file: Option<PathBuf>,
    last: Traffic,
}

impl Follower {
    /// Reads what was said last from the file, if there is one. A file that cannot be read is as good as none.
    pub fn new(control: Control, file: Option<PathBuf>) -> Self {
        let kept = file.as_deref().and_then(|file| std::fs::read(file).ok());
        let last = kept.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Self { control, file, last }
    }

    /// What was said last.
    pub const fn last(&self) -> &Traffic {
        &self.last
    }

    /// Calls `apply` with each change, as soon as control knows it. Asks for ever, with jittered backoff, until `drain` signals.
    pub async fn run(mut self, drain: Drain, apply: impl Fn(&Traffic)) {
        let follow = async {
            let mut pause = Duration::from_millis(50);
            let mut away = false;
            // What is kept may be of another control: the first question is answered at once.
            let mut known = String::new();
            loop {
                match self.ask(&known).await {
                    Ok(traffic) => {
                        pause = Duration::from_millis(50);
                        away = false;
                        // A control that is about to end does not wait.
                        if std::mem::replace(&mut known, traffic.version.clone()) == traffic.version {
                            tokio::time::sleep(PAUSE.mul_f64(0.5 + fastrand::f64())).await;
                        }
                        if traffic != self.last {
                            apply(&traffic);
                            self.last = traffic;
                            self.keep();
                        }
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut away, true) {
                            tracing::warn!(%error, "cannot ask how traffic is shifted; it stays as it is");
                        }
                        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
                        pause = (pause * 2).min(PAUSE);
                    }
                }
            }
        };
        tokio::select! {
            () = follow => {}
            () = drain.signaled() => {}
        }
    }

    async fn ask(&self, known: &str) -> Result<Traffic, ControlError> {
        let path = format!("/v1/traffic?after={known}&wait={}s", WAIT.as_secs());
        let answer = self.control.send(Method::GET, &path, Vec::new(), WAIT + PATIENCE).await?;
        serde_json::from_slice(&answer)
            .map_err(|error| ControlError::Broken(format!("how traffic is shifted is not understood: {error}")))
    }

    fn keep(&self) {
        let Some(file) = &self.file else { return };
        let bytes = serde_json::to_vec(&self.last).expect("plain data");
        if let Err(error) = replace(file, &bytes) {
            tracing::warn!(file = %file.display(), %error, "cannot keep on disk how traffic is shifted");
        }
    }
}
