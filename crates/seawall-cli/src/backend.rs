//! Where locks and elections are: at control, unless another backend is named, here or in the file.

use seawall_coord::{AnyError, AnyLocks, LocksUrl, Need};

use crate::ask::Which;

#[derive(clap::Args)]
pub(crate) struct Where {
    /// Another backend than control: `control://`, `etcd://`, `zookeeper://`, `postgres://`, `postgres+advisory://`, `redis://`,
    /// `redlock://` and the address; see docs/coordination.md. Each has locks of its own, so all have to name the same.
    /// Default: the file's `coordination.backend`, or control.
    // A text, for a parser of clap's would repeat it in its error, with the password.
    #[arg(long, value_name = "URL", env = "SEAWALL_BACKEND", hide_env_values = true)]
    backend: Option<String>,
    /// What is needed of it: `fence`, a fencing token; `lease`, one holder as long as the backend forgets nothing; `best`, one
    /// holder most of the time. A backend that cannot give it is refused before anything is asked. Default: the file's
    /// `coordination.need`, or `fence`.
    #[arg(long, env = "SEAWALL_NEED")]
    need: Option<Need>,
    #[command(flatten)]
    which: Which,
}

impl Where {
    /// The backend, where it is not control, and what is needed of it.
    ///
    /// # Errors
    /// The address names none.
    pub(crate) fn other(&self) -> anyhow::Result<Option<(LocksUrl, Need)>> {
        // A control node that is named on the line is meant.
        let named = self.backend.is_some() || self.which.is_named();
        let file = if named { None } else { Some(self.which.loaded()?.config.coordination) };
        let need = self.need.or(file.as_ref().map(|file| file.need)).unwrap_or_default();
        let url = match &self.backend {
            Some(url) => Some(url.parse::<LocksUrl>()?),
            None => file.and_then(|file| file.backend),
        };
        Ok(url.map(|url| (url, need)))
    }

    /// The control node that is asked where no other backend is.
    pub(crate) fn control(&self) -> &Which {
        &self.which
    }

    /// Opens it; one that is to be shared among readers, or by permits, or has delays, is refused unless it can.
    pub(crate) async fn open(&self, shared: bool) -> Result<AnyLocks, Unopened> {
        let (url, need) = match self.other().map_err(Unopened::Wrong)? {
            Some(other) => other,
            None => {
                let addr = self.which.addr().map_err(Unopened::Wrong)?;
                (format!("control://{addr}").parse().expect("an address"), Need::Fence)
            }
        };
        url.check(need).map_err(|error| Unopened::Wrong(wrong(error)))?;
        if shared && !url.shares() {
            let why = "has neither readers and writers nor permits nor delays: control:// and etcd:// have";
            return Err(Unopened::Wrong(anyhow::anyhow!("{url} {why}")));
        }
        AnyLocks::open(&url, need).await.map_err(|error| match error {
            error if error.retryable() => Unopened::Down(error.to_string()),
            error => Unopened::Wrong(wrong(error)),
        })
    }
}

fn wrong(error: AnyError) -> anyhow::Error {
    match error {
        AnyError::Class { .. } => {
            anyhow::anyhow!("{error}; or say `--need lease` or `--need best`, if that is enough")
        }
        error => error.into(),
    }
}

/// Why there is no backend.
pub(crate) enum Unopened {
    /// It does not answer.
    Down(String),
    /// It is not to be asked at all.
    Wrong(anyhow::Error),
}
