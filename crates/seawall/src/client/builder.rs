//! What a client is made of: where services are, and the policies to call them by.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use seawall_discovery::{Control, Subscriber, SubscriberConfig};
use seawall_drain::Trigger;
use seawall_proxy::Upstreams;
use seawall_resilience::{Policies, PolicyConfig};
use seawall_types::{Instance, InstanceId, ServiceName, Snapshot};
use serde::Deserializer;
use tokio::sync::watch;

use super::{Client, Inner};

/// The largest answer that is read whole, unless the builder says otherwise.
const BODY_LIMIT: usize = 4 << 20;
/// How long a start waits for control, unless the builder says otherwise.
const START: Duration = Duration::from_secs(5);
/// How long it waits when there is a kept snapshot to begin with.
const KEPT: Duration = Duration::from_secs(1);

/// Makes a [`Client`]. Mistakes are collected, and reported all at once by [`ClientBuilder::build`].
#[derive(Debug)]
#[must_use = "nothing is made before `build`"]
pub struct ClientBuilder {
    control: Vec<SocketAddr>,
    file: Option<PathBuf>,
    name: Option<String>,
    start_within: Duration,
    services: Services,
    policies: Policies,
    body_limit: usize,
    problems: Vec<String>,
}

type Services = BTreeMap<ServiceName, Arc<Vec<Instance>>>;

/// Why there is no client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// What was given to the builder is wrong.
    #[error("the client's configuration is wrong: {}", problems.join("; "))]
    Invalid {
        /// Every mistake, each with the path of what it is about.
        problems: Vec<String>,
    },
    /// No control node has told which instances there are, and no snapshot was kept from an earlier time.
    #[error(
        "no control node at {nodes} answered within {waited:?}: start one, or give a `snapshot_file` from an earlier run"
    )]
    NoControl {
        /// The nodes that were asked.
        nodes: String,
        /// How long.
        waited: Duration,
    },
}

impl ClientBuilder {
    pub(crate) const fn new() -> Self {
        Self {
            control: Vec::new(),
            file: None,
            name: None,
            start_within: START,
            services: Services::new(),
            policies: Policies(BTreeMap::new()),
            body_limit: BODY_LIMIT,
            problems: Vec::new(),
        }
    }

    /// Follows the registry of these control nodes (`127.0.0.1:7400`); when one fails the next is asked. While all are away
    /// the client goes on with what it knows.
    pub fn control(mut self, nodes: impl IntoIterator<Item = impl ToString>) -> Self {
        for node in nodes {
            let node = node.to_string();
            match node.parse() {
                Ok(addr) => self.control.push(addr),
                Err(_) => self.problems.push(format!("control: `{node}` is not an address such as `127.0.0.1:7400`")),
            }
        }
        self
    }

    /// Keeps what the registry says in this file too, so that the client can start while control is away. A file belongs
    /// to one client.
    pub fn snapshot_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.file = Some(path.into());
        self
    }

    /// The name by which control knows this client, unique in the fleet; letters, digits, `-`, `_`, `.`. It appears where
    /// control names those that it waits for. Default: `client-` and a random number.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// How long [`ClientBuilder::build`] waits for control. Default 5 s; with a kept snapshot it begins after 1 s at the
    /// latest.
    pub const fn start_within(mut self, patience: Duration) -> Self {
        self.start_within = patience;
        self
    }

    /// The addresses of a service, without any registry. They take precedence over what control says of it.
    pub fn service(mut self, name: &str, addrs: impl IntoIterator<Item = SocketAddr>) -> Self {
        let Some(service) = self.checked(name, "services") else { return self };
        let mut instances = Vec::new();
        for (n, addr) in addrs.into_iter().enumerate() {
            let id = InstanceId::try_new(&format!("{name}-{n}")).expect("a service's name, `-` and a number is an id");
            let instance = Instance::new(id, addr);
            if let Some(problem) = instance.problem() {
                self.problems.push(format!("services.{name}: {problem}"));
            }
            instances.push(instance);
        }
        if instances.is_empty() {
            self.problems.push(format!("services.{name}: has no address"));
        }
        self.services.insert(service, Arc::new(instances));
        self
    }

    /// How services are called, as in the file's `policies`; what was given for the same services before is replaced.
    pub fn policies(mut self, policies: Policies) -> Self {
        self.policies.0.extend(policies.0);
        self
    }

    /// [`ClientBuilder::policies`] as they are written: the part `policies` of the file, from any format that serde reads.
    ///
    /// ```
    /// # use seawall::Client;
    /// let builder = Client::builder().policies_from(serde_json::json!({
    ///     "default": { "timeout": "2s" },
    ///     "payment": { "bulkhead": { "concurrent": 20, "wait": "1s" } },
    /// }));
    /// ```
    pub fn policies_from<'de>(mut self, policies: impl Deserializer<'de>) -> Self {
        match serde_path_to_error::deserialize::<_, Policies>(policies) {
            Ok(policies) => self.policies(policies),
            Err(error) => {
                self.problems.push(format!("policies.{}: {}", error.path(), error.inner()));
                self
            }
        }
    }

    /// How one service is called; `default` is the base of all.
    pub fn policy(mut self, service: &str, policy: PolicyConfig) -> Self {
        if let Some(service) = self.checked(service, "policies") {
            self.policies.0.insert(service, policy);
        }
        self
    }

    /// The largest answer that [`bytes`](super::Response::bytes), [`text`](super::Response::text) and
    /// [`json`](super::Response::json) read. Default 4 MiB. [`chunk`](super::Response::chunk) and the stream have none.
    pub const fn body_limit(mut self, bytes: usize) -> Self {
        self.body_limit = bytes;
        self
    }

    fn checked(&mut self, service: &str, what: &str) -> Option<ServiceName> {
        ServiceName::try_new(service).inspect_err(|error| self.problems.push(format!("{what}: {error}"))).ok()
    }

    /// Makes the client. With control nodes it waits until one has told which instances there are; see
    /// [`ClientBuilder::start_within`]. It has to be called within a tokio runtime, which the client then belongs to.
    ///
    /// Cancel safe: dropped before its end it leaves nothing behind.
    ///
    /// # Errors
    /// [`BuildError`].
    pub async fn build(mut self) -> Result<Client, BuildError> {
        self.check();
        if !self.problems.is_empty() {
            return Err(BuildError::Invalid { problems: self.problems });
        }
        let body_limit = self.body_limit;
        let upstreams = Upstreams::new(std::mem::take(&mut self.policies))
            .map_err(|invalid| BuildError::Invalid { problems: vec![invalid.to_string()] })?;
        let following = if self.control.is_empty() {
            upstreams.publish(Arc::new(Snapshot { services: self.services, ..Snapshot::default() }));
            None
        } else {
            Some(self.follow(&upstreams).await?)
        };
        let calls = seawall_proxy::Client::new(upstreams);
        Ok(Client { inner: Arc::new(Inner { calls, body_limit, _following: following }) })
    }

    fn check(&mut self) {
        for (service, path, what) in self.policies.problems() {
            self.problems.push(format!("policies.{service}.{path}: {what}"));
        }
        if let Some(error) = self.name.as_deref().and_then(|name| InstanceId::try_new(name).err()) {
            self.problems.push(format!("name: {error}"));
        }
        if self.control.is_empty() && self.file.is_some() {
            self.problems.push("snapshot_file: there is nothing to keep without `control`".into());
        }
        // A mistake above may be the very reason.
        if self.control.is_empty() && self.services.is_empty() && self.problems.is_empty() {
            self.problems.push("there is nobody to call: give `control` or a `service`".into());
        }
    }

    /// Starts to follow the registry, and waits for its first word.
    async fn follow(self, upstreams: &Upstreams) -> Result<Trigger, BuildError> {
        let Self { control, file, name, start_within, services, .. } = self;
        let nodes = control.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let name = name.unwrap_or_else(|| format!("client-{:016x}", fastrand::u64(..)));
        let subscriber = Subscriber::new(SubscriberConfig { name, file }, Control::new(control));
        let kept = !subscriber.snapshot().services.is_empty();
        let (trigger, drain) = seawall_drain::channel();
        let (told, mut publications) = watch::channel(0_u64);
        let publisher = upstreams.clone();
        tokio::spawn(subscriber.run(drain, move |snapshot| {
            publisher.publish(with(snapshot, &services));
            told.send_modify(|count| *count += 1);
        }));
        let waited = if kept { start_within.min(KEPT) } else { start_within };
        // The first publication is what was kept; the second is the registry's own word.
        let word = publications.wait_for(|count| *count > 1);
        match tokio::time::timeout(waited, word).await {
            Ok(Ok(_)) => {}
            _ if kept => tracing::warn!(%nodes, "control is away; starting with the kept snapshot"),
            _ => return Err(BuildError::NoControl { nodes, waited }),
        }
        Ok(trigger)
    }
}

/// What the registry says, but for the services that the builder knows better.
fn with(mut snapshot: Arc<Snapshot>, services: &Services) -> Arc<Snapshot> {
    if !services.is_empty() {
        let known = services.iter().map(|(name, instances)| (name.clone(), instances.clone()));
        Arc::make_mut(&mut snapshot).services.extend(known);
    }
    snapshot
}
