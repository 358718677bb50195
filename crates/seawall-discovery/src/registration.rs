//! Keeping one instance registered.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use seawall_drain::Drain;
use seawall_types::{Instance, ServiceName, Status};
use tokio::sync::Notify;

use crate::control::{Applied, Control, ControlError};

/// One instance and the will to keep it registered; cheap to clone.
#[derive(Clone, Debug)]
pub struct Registration {
    control: Control,
    service: ServiceName,
    wanted: Arc<Mutex<Instance>>,
    changed: Arc<Notify>,
}

/// How soon a failed registration is tried again, at first.
const SOON: Duration = Duration::from_millis(100);
/// How often, when control stays away.
const LATE: Duration = Duration::from_secs(2);

impl Registration {
    /// Nothing is sent before [`Registration::run`].
    pub fn new(control: Control, service: ServiceName, instance: Instance) -> Self {
        Self { control, service, wanted: Arc::new(Mutex::new(instance)), changed: Arc::default() }
    }

    /// Registers the instance, then beats three times per time-to-live, and registers again whenever the registry has
    /// forgotten it. While control is away it keeps trying. Ends when `drain` signals; it does not deregister.
    pub async fn run(self, drain: Drain) {
        tokio::select! {
            () = self.keep() => {}
            () = drain.signaled() => {}
        }
    }

    async fn keep(&self) {
        let mut beat = None;
        let mut pause = SOON;
        let mut away = false;
        loop {
            let result = match beat {
                None => self.register().await.map(|every| beat = Some(every)),
                Some(_) => self.control.heartbeat(&self.service, &self.instance().id).await,
            };
            match result {
                Ok(()) => {
                    if std::mem::take(&mut away) {
                        tracing::info!(service = %self.service, "control is back");
                    }
                    pause = beat.unwrap_or(SOON);
                }
                Err(ControlError::NotFound(_)) => {
                    tracing::warn!(service = %self.service, "the registry has forgotten this instance; registering again");
                    beat = None;
                    pause = Duration::ZERO;
                }
                Err(error) => {
                    if !std::mem::replace(&mut away, true) {
                        tracing::warn!(service = %self.service, %error, "cannot reach the registry; trying again");
                    }
                    pause = (pause * 2).clamp(SOON, LATE);
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause.mul_f64(0.8 + 0.4 * fastrand::f64())) => {}
                () = self.changed.notified() => beat = None,
            }
        }
    }

    /// Changes the status. Sent by [`Registration::run`] as soon as control answers; this returns at once.
    pub fn set(&self, status: Status) {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        if wanted.status != status {
            wanted.status = status;
            self.changed.notify_one();
        }
    }

    /// Declares the instance draining and waits, at most for `wait`, until every live subscriber has applied it.
    ///
    /// # Errors
    /// [`ControlError`] when control cannot be told.
    pub async fn drain(&self, wait: Duration) -> Result<Applied, ControlError> {
        let id = {
            let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
            wanted.status = Status::Draining;
            wanted.id.clone()
        };
        self.control.set_status(&self.service, &id, Status::Draining, wait).await
    }

    /// Removes the instance from the registry.
    ///
    /// # Errors
    /// [`ControlError`] when control cannot be told; the registration ends by its time-to-live then.
    pub async fn deregister(&self) -> Result<Applied, ControlError> {
        self.control.deregister(&self.service, &self.instance().id, Duration::ZERO).await
    }

    /// The instance as it should be.
    pub fn instance(&self) -> Instance {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn register(&self) -> Result<Duration, ControlError> {
        let applied = self.control.register(&self.service, &self.instance()).await?;
        Ok(Duration::from_millis((applied.ttl_ms / 3).clamp(100, 60_000)))
    }
}
