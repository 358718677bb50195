//! Where locks and elections are: at control, unless another backend is named.

use seawall_coord::{AnyError, AnyLocks, LocksUrl, Need};

use crate::ask::Which;

#[derive(clap::Args)]
pub(crate) struct Where {
    /// Another backend than control: `control://`, `etcd://`, `zookeeper://`, `postgres://`, `postgres+advisory://`, `redis://`,
    /// `redlock://` and the address; see docs/coordination.md. Each has locks of its own, so all have to name the same.
    #[arg(long, value_name = "URL", env = "SEAWALL_BACKEND", hide_env_values = true)]
    backend: Option<LocksUrl>,
    /// What is needed of it: `fence`, a fencing token; `lease`, one holder as long as the backend forgets nothing; `best`, one
    /// holder most of the time. A backend that cannot give it is refused before anything is asked.
    #[arg(long, default_value = "fence", env = "SEAWALL_NEED")]
    need: Need,
    #[command(flatten)]
    which: Which,
}

impl Where {
    pub(crate) async fn open(&self) -> Result<AnyLocks, Unopened> {
        let url = match &self.backend {
            Some(url) => url.clone(),
            None => format!("control://{}", self.which.addr().map_err(Unopened::Wrong)?).parse().expect("an address"),
        };
        AnyLocks::open(&url, self.need).await.map_err(|error| match error {
            AnyError::Backend(error) if error.retryable() => Unopened::Down(error.to_string()),
            AnyError::Store(error) => Unopened::Down(error.to_string()),
            AnyError::Class { .. } => {
                Unopened::Wrong(anyhow::anyhow!("{error}; or say `--need lease` or `--need best`, if that is enough"))
            }
            error => Unopened::Wrong(error.into()),
        })
    }
}

/// Why there is no backend.
pub(crate) enum Unopened {
    /// It does not answer.
    Down(String),
    /// It is not to be asked at all.
    Wrong(anyhow::Error),
}
