//! Handlers behind a router.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{FromRef, State};
use axum::http::{Request, StatusCode};
use axum::routing::post;
use seawall_coord::{LockName, Owner, Session, SessionConfig, StoreBackend};
use seawall_fenced::header::FencedBy;
use seawall_fenced::{FenceToken, Fences, Resource};
use serde_json::Value;
use tokio::sync::Notify;
use tower::ServiceExt;

struct Payment;

impl Resource for Payment {
    const LOCK: &'static str = "payment-{id}";
}

struct Mail;

impl Resource for Mail {
    const LOCK: &'static str = "elect/mailer";
}

struct Wrong;

impl Resource for Wrong {
    const LOCK: &'static str = "payment-{nobody}";
}

#[derive(Clone)]
struct App {
    fences: Fences,
    go_on: Arc<Notify>,
    last: Arc<AtomicU64>,
}

impl FromRef<App> for Fences {
    fn from_ref(app: &App) -> Self {
        app.fences.clone()
    }
}

async fn pay(State(app): State<App>, token: FenceToken<Payment>) -> String {
    app.last.store(token.fence().get(), Ordering::SeqCst);
    format!("{} {}", token.lock(), token.fence())
}

async fn pay_slowly(State(app): State<App>, token: FenceToken<Payment>) -> String {
    app.go_on.notified().await;
    app.last.store(token.fence().get(), Ordering::SeqCst);
    "done".to_owned()
}

fn app(fences: Fences) -> (Router, App) {
    let app = App { fences, go_on: Arc::default(), last: Arc::default() };
    let router = Router::new()
        .route("/payments/{id}", post(pay))
        .route("/slow/{id}", post(pay_slowly))
        .route("/mail", post(|_: FenceToken<Mail>| async {}))
        .route("/wrong/{id}", post(|_: FenceToken<Wrong>| async {}))
        .with_state(app.clone());
    (router, app)
}

async fn ask(router: &Router, path: &str, header: Option<&str>) -> (StatusCode, Value) {
    let mut request = Request::post(path);
    if let Some(header) = header {
        request = request.header("seawall-fence", header);
    }
    send(router, request.body(Body::empty()).unwrap()).await
}

async fn send(router: &Router, request: Request<Body>) -> (StatusCode, Value) {
    let response = router.clone().oneshot(request).await.unwrap();
    let status = response.status();
    let body = to_bytes(response.into_body(), 10_000).await.unwrap();
    let text = String::from_utf8(body.to_vec()).unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

fn both(dir: &std::path::Path) -> [Fences; 2] {
    [Fences::files(dir.join("fences")).unwrap(), Fences::sqlite(dir.join("fences.db")).unwrap()]
}

#[tokio::test]
async fn requests_of_former_holders_are_refused_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    for fences in both(dir.path()) {
        let (router, _) = app(fences);
        for header in ["payment-7=12", "other=1, payment-7=12", "payment-8=3"] {
            let path = if header.contains("-8") { "/payments/8" } else { "/payments/7" };
            let (status, body) = ask(&router, path, Some(header)).await;
            assert_eq!(status, 200, "{header}: {body}");
        }
        assert_eq!(ask(&router, "/mail", Some("elect/mailer=5")).await.0, 200);
    }
    for fences in both(dir.path()) {
        let (router, app) = app(fences);
        let (status, body) = ask(&router, "/payments/7", Some("payment-7=11")).await;
        assert_eq!((status, &body["code"]), (StatusCode::CONFLICT, &"stale".into()), "{body}");
        assert_eq!((&body["lock"], &body["seen"], &body["given"]), (&"payment-7".into(), &12.into(), &11.into()));
        assert!(body["remedy"].as_str().unwrap().contains("acquire the lock anew"), "{body}");
        assert_eq!(app.last.load(Ordering::SeqCst), 0, "the handler has seen nothing of it");
        assert_eq!(ask(&router, "/mail", Some("elect/mailer=4")).await.0, 409);
        assert_eq!(ask(&router, "/payments/7", Some("payment-7=12")).await, (StatusCode::OK, "payment-7 12".into()));
    }
}

#[tokio::test]
async fn requests_without_a_token_of_this_lock_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for fences in both(dir.path()) {
        let (router, app) = app(fences);
        let long = format!("/payments/{}", "%C3%BC".repeat(130));
        for (path, header, status, code) in [
            ("/payments/7", None, 428, "fence-missing"),
            ("/payments/7", Some("payment-8=12"), 428, "fence-missing"),
            ("/mail", Some("mailer=12"), 428, "fence-missing"),
            ("/payments/7", Some("payment-7"), 400, "fence-malformed"),
            ("/payments/7", Some("payment-7=x"), 400, "fence-malformed"),
            ("/payments/7", Some("payment-7=1, payment-7=2"), 400, "fence-malformed"),
            ("/payments/7", Some("payment-7=18446744073709551615"), 400, "fence-malformed"),
            ("/payments/a%2Fb", Some("payment-a/b=1"), 400, "fence-malformed"),
            (&long, Some("payment-7=1"), 400, "fence-malformed"),
            ("/wrong/7", Some("payment-7=1"), 500, "fence-undefined"),
        ] {
            let (answered, body) = ask(&router, path, header).await;
            assert_eq!((answered.as_u16(), &body["code"]), (status, &code.into()), "{path} {header:?}: {body}");
            assert!(body["remedy"].is_string() && body["error"].is_string(), "{body}");
        }
        assert_eq!(app.last.load(Ordering::SeqCst), 0);
    }
}

/// Else a request that was checked before a later holder's could be carried out after it.
#[tokio::test]
async fn a_later_holders_request_waits_for_one_that_was_let_in() {
    let dir = tempfile::tempdir().unwrap();
    let [files, _] = both(dir.path());
    let (router, app) = app(files.patience(Duration::from_secs(60)));
    let slow = tokio::spawn({
        let router = router.clone();
        async move { ask(&router, "/slow/7", Some("payment-7=1")).await }
    });
    // Once it is in, its token has been kept.
    while !dir.path().join("fences/payment%2D7.fence").exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let later = tokio::spawn({
        let router = router.clone();
        async move { ask(&router, "/payments/7", Some("payment-7=2")).await }
    });
    // Others do not wait.
    assert_eq!(ask(&router, "/payments/8", Some("payment-8=1")).await.0, 200);
    assert!(!later.is_finished());
    app.go_on.notify_one();
    assert_eq!(slow.await.unwrap().0, 200);
    assert_eq!(later.await.unwrap().0, 200);
    assert_eq!(app.last.load(Ordering::SeqCst), 2, "the later holder's is the last");
}

#[tokio::test]
async fn a_wait_for_the_turn_ends() {
    let dir = tempfile::tempdir().unwrap();
    let [files, _] = both(dir.path());
    let (router, _) = app(files.patience(Duration::from_secs(2)));
    let slow = tokio::spawn({
        let router = router.clone();
        async move { ask(&router, "/slow/7", Some("payment-7=1")).await }
    });
    let kept = dir.path().join("fences/payment%2D7.fence");
    while !kept.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (status, body) = ask(&router, "/payments/7", Some("payment-7=2")).await;
    assert_eq!((status.as_u16(), &body["code"]), (503, &"fence-busy".into()), "{body}");
    assert_eq!(std::fs::read_to_string(&kept).unwrap(), "1\n", "what was not let in is not kept");
    slow.abort();
    let _ = slow.await;
    assert_eq!(ask(&router, "/payments/7", Some("payment-7=2")).await.0, 200, "its turn ended with it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guard_puts_its_token_on_a_request() {
    let dir = tempfile::tempdir().unwrap();
    let [files, _] = both(dir.path());
    let (router, _) = app(files);
    let backend = StoreBackend::open(Arc::new(seawall_store::Embedded::memory().unwrap())).await.unwrap();
    let session = Session::open(backend, SessionConfig::new(Owner::try_new("a").unwrap())).await.unwrap();
    let lock = session.lock(LockName::try_new("payment-7 ü").unwrap());
    let first = lock.acquire_within(Duration::from_secs(60)).await.unwrap();
    let pay = |guard: &_| Request::post("/payments/7%20%C3%BC").fenced_by(guard).body(Body::empty()).unwrap();
    let early = pay(&first);
    assert_eq!(send(&router, pay(&first)).await.0, 200);
    first.release().await.unwrap();
    let second = lock.acquire_within(Duration::from_secs(60)).await.unwrap();
    assert_eq!(
        send(&router, Request::post("/payments/7%20%C3%BC").body(Body::empty()).unwrap().fenced_by(&second)).await.0,
        200
    );
    assert_eq!(send(&router, early).await.0, 409);
}
