//! Looking whether the service is well, and telling the registry when that changes.

use std::net::SocketAddr;

use http::Request;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use seawall_discovery::Registration;
use seawall_types::{Period, Status};
use tokio::net::TcpStream;

use crate::config::{HealthConfig, SidecarConfig};

/// How often to look before the first success: a service that has just started should not wait for its turn.
const EAGER: Period = Period::millis(50);

/// What a series of looks adds up to. Pure.
#[derive(Debug)]
pub(crate) struct Health {
    status: Status,
    failures: u32,
    limit: u32,
}

impl Health {
    pub(crate) fn new(limit: u32) -> Self {
        Self { status: Status::Starting, failures: 0, limit: limit.max(1) }
    }

    /// Takes in one look and says what the service is now: one good look is enough, bad ones count.
    pub(crate) fn observe(&mut self, well: bool) -> Status {
        if well {
            self.failures = 0;
            self.status = Status::Up;
        } else {
            self.failures += 1;
            if self.failures >= self.limit && self.status == Status::Up {
                self.status = Status::Down;
            }
        }
        self.status
    }
}

/// Looks for ever, and sets the registration's status. Cancel safe.
pub(crate) async fn watch(config: &SidecarConfig, registration: &Registration) {
    let mut health = Health::new(config.health.failures);
    let mut before = Status::Starting;
    loop {
        let look = probe(config.app, &config.health);
        let result = match tokio::time::timeout(config.health.timeout.get(), look).await {
            Ok(result) => result,
            Err(_) => Err(format!("no answer within {}", config.health.timeout)),
        };
        let status = health.observe(result.is_ok());
        if status != before {
            match &result {
                Ok(()) => tracing::info!(service = %config.service, instance = %config.id, "healthy"),
                Err(why) => tracing::warn!(service = %config.service, instance = %config.id, "unhealthy: {why}"),
            }
            registration.set(status);
            before = status;
        }
        let pause = if status == Status::Starting { EAGER } else { config.health.interval };
        tokio::time::sleep(pause.get()).await;
    }
}

async fn probe(app: SocketAddr, config: &HealthConfig) -> Result<(), String> {
    let stream = TcpStream::connect(app).await.map_err(|error| format!("cannot connect to {app}: {error}"))?;
    let Some(path) = &config.http else { return Ok(()) };
    let failed = |error: &dyn std::fmt::Display| format!("{app}{path} does not answer: {error}");
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| failed(&error))?;
    let driver = tokio::spawn(connection);
    let request = Request::builder().uri(path.as_str()).header(http::header::HOST, app.to_string());
    let request = request.body(Empty::<bytes::Bytes>::new()).map_err(|error| failed(&error))?;
    let response = sender.send_request(request).await;
    driver.abort();
    match response.map_err(|error| failed(&error))?.status() {
        status if status.is_success() => Ok(()),
        status => Err(format!("{app}{path} answers {status}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_good_look_is_enough_and_bad_ones_count() {
        let mut health = Health::new(2);
        let looks = [false, false, false, true, false, true, false, false, false, true];
        let seen: Vec<_> = looks.into_iter().map(|well| health.observe(well)).collect();
        use Status::{Down, Starting, Up};
        assert_eq!(seen, [Starting, Starting, Starting, Up, Up, Up, Up, Down, Down, Up]);
    }
}
