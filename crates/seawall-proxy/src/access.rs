//! The access log: one line of JSON for each request, written by a thread of its own. A worker only leaves word; when that thread
//! does not keep up, lines are left out and counted, and no request waits.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime};

use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, StatusCode, Version, header};
use schemars::JsonSchema;
use seawall_telemetry::TraceContext;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::pipeline::Route;
use crate::upstream::Upstreams;

/// Lines that may wait for the thread.
const WAITING: usize = 8_192;
/// After so long without another line what was written is on its way to the disk, and the file is looked for.
const QUIET: Duration = Duration::from_millis(200);

/// Where requests are written down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AccessLogConfig {
    /// The file, to whose end is written; `-` is the standard output. When it is moved away it is made anew.
    pub file: PathBuf,
    /// Whether the query is written too, with whatever secrets clients put there. Default false.
    #[serde(default)]
    pub query: bool,
}

/// An access log; cheap to clone. The thread ends with the last of them.
#[derive(Clone, Debug)]
pub struct AccessLog {
    lines: SyncSender<Entry>,
    upstreams: Upstreams,
    query: bool,
}

impl AccessLog {
    /// Opens the file and starts the thread.
    ///
    /// # Errors
    /// When the file cannot be written, or there is no thread.
    pub fn start(config: &AccessLogConfig, upstreams: &Upstreams) -> io::Result<Self> {
        let (lines, taken) = sync_channel(WAITING);
        let mut sink = Sink::open(&config.file)?;
        std::thread::Builder::new().name("access log".to_owned()).spawn(move || write(&taken, &mut sink))?;
        Ok(Self { lines, upstreams: upstreams.clone(), query: config.query })
    }

    /// A request that has just come.
    pub(crate) fn begin(&self, parts: &Parts, client: Option<IpAddr>, trace: TraceContext, arrived: Instant) -> Line {
        let of = |name| parts.headers.get(name).cloned();
        let authority = parts.uri.authority().and_then(|host| HeaderValue::try_from(host.as_str()).ok());
        let entry = Entry {
            at: SystemTime::now(),
            client,
            method: parts.method.clone(),
            target: parts.uri.path_and_query().cloned(),
            query: self.query,
            version: parts.version,
            host: authority.or_else(|| of(header::HOST)),
            agent: of(header::USER_AGENT),
            trace: trace.trace_id(),
            route: None,
            service: None,
            status: StatusCode::OK,
            rejected: None,
            upstream: None,
            head: Duration::ZERO,
            took: Duration::ZERO,
            bytes: 0,
            whole: false,
        };
        Line(Some(Box::new(Pending { entry, arrived, log: self.clone() })))
    }
}

/// What will be a line; written when it is dropped.
#[derive(Debug)]
pub(crate) struct Line(Option<Box<Pending>>);

#[derive(Debug)]
struct Pending {
    entry: Entry,
    arrived: Instant,
    log: AccessLog,
}

impl Line {
    /// Where the request goes.
    pub(crate) fn routed(&mut self, route: &Arc<Route>, service: &str) {
        if let Some(Pending { entry, .. }) = self.0.as_deref_mut() {
            entry.route = Some(route.clone());
            entry.service = Some(service.into());
        }
    }

    /// The head of its answer.
    pub(crate) fn answered(&mut self, status: StatusCode, rejected: Option<HeaderValue>, upstream: Option<SocketAddr>) {
        if let Some(Pending { entry, arrived, .. }) = self.0.as_deref_mut() {
            (entry.status, entry.rejected, entry.upstream) = (status, rejected, upstream);
            entry.head = arrived.elapsed();
        }
    }

    /// A part of its body has passed.
    pub(crate) fn passed(&mut self, bytes: usize) {
        if let Some(Pending { entry, .. }) = self.0.as_deref_mut() {
            entry.bytes += bytes as u64;
        }
    }

    /// All of its body has.
    pub(crate) fn ended(&mut self) {
        if let Some(Pending { entry, .. }) = self.0.as_deref_mut() {
            entry.whole = true;
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let Some(pending) = self.0.take() else { return };
        let Pending { mut entry, arrived, log } = *pending;
        entry.took = arrived.elapsed();
        if log.lines.try_send(entry).is_err() {
            log.upstreams.metrics().access_log_dropped.increment();
        }
    }
}

#[derive(Debug)]
struct Entry {
    at: SystemTime,
    client: Option<IpAddr>,
    method: Method,
    target: Option<PathAndQuery>,
    query: bool,
    version: Version,
    host: Option<HeaderValue>,
    agent: Option<HeaderValue>,
    trace: u128,
    route: Option<Arc<Route>>,
    service: Option<Box<str>>,
    status: StatusCode,
    rejected: Option<HeaderValue>,
    upstream: Option<SocketAddr>,
    head: Duration,
    took: Duration,
    bytes: u64,
    whole: bool,
}

impl Entry {
    fn to_value(&self) -> Value {
        let mut line = Map::new();
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned().into();
        let millis = |took: Duration| (took.as_micros() as f64 / 1e3).into();
        let since = self.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let target = self.target.as_ref().map_or("", |target| if self.query { target.as_str() } else { target.path() });
        let mut put = |name: &str, value: Value| drop(line.insert(name.to_owned(), value));
        put("time", since.as_secs_f64().into());
        self.client.iter().for_each(|client| put("client", client.to_string().into()));
        put("method", self.method.as_str().into());
        put("path", target.into());
        put("protocol", format!("{:?}", self.version).into());
        self.host.iter().for_each(|host| put("host", text(host)));
        self.route.iter().for_each(|route| put("route", (*route.id).into()));
        self.service.iter().for_each(|service| put("service", (**service).into()));
        self.upstream.iter().for_each(|upstream| put("upstream", upstream.to_string().into()));
        put("status", self.status.as_u16().into());
        self.rejected.iter().for_each(|rejected| put("rejected", text(rejected)));
        put("bytes", self.bytes.into());
        put("head_ms", millis(self.head));
        put("took_ms", millis(self.took));
        put("whole", self.whole.into());
        self.agent.iter().for_each(|agent| put("user_agent", text(agent)));
        put("trace", format!("{:032x}", self.trace).into());
        Value::Object(line)
    }
}

/// Where the lines go.
enum Sink {
    Out(io::Stdout),
    File { path: PathBuf, file: BufWriter<File>, inode: u64 },
}

impl Sink {
    fn open(path: &Path) -> io::Result<Self> {
        if path.file_name().is_some_and(|name| name == "-") {
            return Ok(Self::Out(io::stdout()));
        }
        let file = File::options().append(true).create(true).open(path)?;
        let inode = file.metadata()?.ino();
        Ok(Self::File { path: path.to_owned(), file: BufWriter::new(file), inode })
    }

    fn line(&mut self, entry: &Entry) -> io::Result<()> {
        let mut text = entry.to_value().to_string();
        text.push('\n');
        match self {
            Self::Out(out) => out.write_all(text.as_bytes()),
            Self::File { file, .. } => file.write_all(text.as_bytes()),
        }
    }

    /// Sends off what is there, and begins a new file when the old one was moved away.
    fn quiet(&mut self) -> io::Result<()> {
        match self {
            Self::Out(out) => out.flush(),
            Self::File { path, file, inode } => {
                file.flush()?;
                if !std::fs::metadata(&*path).is_ok_and(|about| about.ino() == *inode) {
                    *self = Self::open(&path.clone())?;
                }
                Ok(())
            }
        }
    }
}

fn write(lines: &Receiver<Entry>, sink: &mut Sink) {
    let mut looked = Instant::now();
    let mut said = false;
    loop {
        let written = match lines.recv_timeout(QUIET) {
            Ok(entry) => sink.line(&entry),
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Err(RecvTimeoutError::Disconnected) => {
                // Nobody is there to hear of an error.
                let _ = sink.quiet();
                return;
            }
        };
        let quiet = if looked.elapsed() >= QUIET {
            looked = Instant::now();
            sink.quiet()
        } else {
            Ok(())
        };
        match written.and(quiet) {
            Ok(()) => said = false,
            // Once, until it works again.
            Err(error) if !said => {
                said = true;
                tracing::error!(%error, "the access log cannot be written");
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use seawall_resilience::Policies;

    use super::*;

    #[test]
    fn lines_are_json_and_follow_a_file_that_is_moved_away() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("access.log");
        let upstreams = Upstreams::new(Policies::default()).unwrap();
        let log = AccessLog::start(&AccessLogConfig { file: file.clone(), query: false }, &upstreams).unwrap();
        let one = |path: &str| {
            let request = http::Request::get(path).header("host", "shop").header("user-agent", "a\"b");
            let parts = request.body(()).unwrap().into_parts().0;
            let mut line = log.begin(&parts, "10.0.0.1".parse().ok(), TraceContext::start(), Instant::now());
            line.routed(&Arc::new(Route { id: "r".into(), ..Route::default() }), "order");
            line.answered(StatusCode::ACCEPTED, None, "10.0.0.2:80".parse().ok());
            line.passed(7);
            line.ended();
        };
        let read = || -> Vec<Value> {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        };
        let until = |count: usize| {
            let end = Instant::now() + Duration::from_secs(10);
            while read().len() < count {
                assert!(Instant::now() < end, "{:?}", read());
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        one("/a?secret=1");
        until(1);
        let line = &read()[0];
        for (name, value) in [
            ("client", "10.0.0.1"),
            ("method", "GET"),
            ("path", "/a"),
            ("host", "shop"),
            ("route", "r"),
            ("service", "order"),
            ("upstream", "10.0.0.2:80"),
            ("user_agent", "a\"b"),
        ] {
            assert_eq!(line[name], value, "{line}");
        }
        assert_eq!((&line["status"], &line["bytes"], &line["whole"]), (&202.into(), &7.into(), &true.into()));
        std::fs::rename(&file, dir.path().join("old.log")).unwrap();
        std::thread::sleep(QUIET * 2);
        one("/b");
        until(1);
        assert_eq!(read()[0]["path"], "/b");
    }
}
