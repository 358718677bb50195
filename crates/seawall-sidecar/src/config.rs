//! The services' part of the file, and what one sidecar needs to know.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use schemars::JsonSchema;
use seawall_proxy::Protocol;
use seawall_types::{Instance, InstanceId, Period, ServiceName, Status};
use serde::{Deserialize, Serialize};

/// One service of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ServiceConfig {
    /// The command that starts it, run in the file's directory. `${PORT}` is the port that it has to listen on, also
    /// in the environment as `PORT`; `SEAWALL_URL` is where it calls others. Without it the service runs elsewhere.
    pub run: Option<Command>,
    /// The port that it listens on; only with one replica. Default: `seawall up` chooses a free one.
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// How many copies. Default 1.
    #[schemars(range(min = 1, max = 100))]
    pub replicas: u8,
    /// What it speaks: `http1`, where gRPC and nothing else goes by HTTP/2, or `http2`. Default http1.
    pub protocol: Protocol,
    /// How to see that it is well.
    pub health: HealthConfig,
    /// More environment for it.
    pub env: BTreeMap<String, String>,
    /// How long requests may take to finish when it stops. Default 30s.
    pub drain: Period,
    /// The version that runs.
    pub version: Option<String>,
    /// The failure domain that it runs in.
    pub zone: Option<String>,
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self {
            run: None,
            port: None,
            replicas: 1,
            protocol: Protocol::default(),
            health: HealthConfig::default(),
            env: BTreeMap::new(),
            drain: Period::secs(30),
            version: None,
            zone: None,
        }
    }
}

/// A command line: words, or one text with spaces between the words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Command(pub Vec<String>);

impl<'de> Deserialize<'de> for Command {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Command;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a command such as `bin/order --port ${PORT}`, or a list of its words")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Command, E> {
                if text.contains(['\'', '"', '\\']) {
                    return Err(E::custom(
                        "quotes are not understood in a command: give a list of its words, [sh, -c, \"...\"]",
                    ));
                }
                self.checked(text.split_whitespace().map(str::to_owned).collect())
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut words: A) -> Result<Command, A::Error> {
                let mut command = Vec::new();
                while let Some(word) = words.next_element()? {
                    command.push(word);
                }
                self.checked(command)
            }
        }

        impl Visitor {
            fn checked<E: serde::de::Error>(self, words: Vec<String>) -> Result<Command, E> {
                match words.first() {
                    Some(program) if !program.is_empty() => Ok(Command(words)),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Other("an empty command"), &self)),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Command {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Command".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "A command line: one text split at spaces, or a list of words.",
            "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" }, "minItems": 1 }]
        })
    }
}

/// How to see that a service is well.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HealthConfig {
    /// A path that answers 2xx when it is. Default: it is well when its port can be connected to.
    pub http: Option<String>,
    /// How often to look. Default 1s.
    pub interval: Period,
    /// How long an answer may take. Default 1s.
    pub timeout: Period,
    /// After how many bad looks in a row it is down. Default 3.
    #[schemars(range(min = 1))]
    pub failures: u32,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self { http: None, interval: Period::secs(1), timeout: Period::secs(1), failures: 3 }
    }
}

/// What one sidecar needs to know.
#[derive(Clone, Debug)]
pub struct SidecarConfig {
    /// The service that it stands beside.
    pub service: ServiceName,
    /// The instance.
    pub id: InstanceId,
    /// Where the instance itself listens.
    pub app: SocketAddr,
    /// What it speaks.
    pub protocol: Protocol,
    /// Where others call the instance; port 0 lets the system choose.
    pub inbound: SocketAddr,
    /// Where the instance calls others; port 0 lets the system choose.
    pub outbound: SocketAddr,
    /// How many workers each side has.
    pub workers: u8,
    /// How to see that the instance is well.
    pub health: HealthConfig,
    /// How long requests may take to finish when it stops.
    pub drain: Period,
    /// The version that runs.
    pub version: Option<String>,
    /// The failure domain that it runs in.
    pub zone: Option<String>,
}

impl SidecarConfig {
    /// The instance as it is registered at first.
    pub(crate) fn instance(&self, inbound: SocketAddr) -> Instance {
        let mut instance = Instance::new(self.id.clone(), inbound);
        instance.status = Status::Starting;
        instance.version.clone_from(&self.version);
        instance.zone.clone_from(&self.zone);
        instance
    }
}
