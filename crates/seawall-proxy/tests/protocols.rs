//! HTTP/2 on both sides, gRPC, upgrades and TLS, over real sockets.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/sockets.rs"]
mod sockets;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use seawall_proxy::Protocol;
use seawall_proxy::tls::{CertificateConfig, ClientsConfig, Tls, TlsConfig};
use serde_json::json;
use sockets::*;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// A service that speaks HTTP/2 and nothing else: it says what it has seen, with a trailer.
async fn speaks_http2(connections: Arc<AtomicUsize>) -> SocketAddr {
    upstream(move |stream, _| {
        connections.fetch_add(1, Ordering::SeqCst);
        async move {
            let _ = http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service_fn(echo))
                .await;
        }
    })
    .await
}

async fn echo(request: Request<Incoming>) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let head = format!("{:?} {} {}", request.version(), request.method(), request.uri());
    let te = request.headers().get("te").cloned();
    let body = request.into_body().collect().await.unwrap();
    let given = body.trailers().and_then(|trailers| trailers.get("x-sent").cloned());
    let text = format!("{head} {}", String::from_utf8_lossy(&body.to_bytes()));
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    if let Some(given) = given {
        trailers.insert("x-given", given);
    }
    let frames = [Ok(Frame::data(Bytes::from(text))), Ok(Frame::trailers(trailers))];
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(futures_util::stream::iter(frames))));
    if let Some(te) = te {
        response.headers_mut().insert("x-te", te);
    }
    Ok(response)
}

type Sender = SendRequest<BoxBody<Bytes, Infallible>>;

async fn client<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) -> Sender {
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (send, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    send
}

fn get(uri: &str) -> Request<BoxBody<Bytes, Infallible>> {
    Request::builder().uri(uri).body(Empty::new().boxed()).unwrap()
}

fn serves_http2(proxy: &Proxy) {
    proxy.upstreams.speak([(service(), Protocol::Http2)].into());
}

#[tokio::test]
async fn http2_reaches_http1_and_the_other_way_round() {
    let plain = upstream(|mut stream, _| async move {
        while let Some(request) = read_request(&mut stream).await {
            let text = request.to_lowercase();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let proxy = Proxy::start(json!({}), &[plain]);
    let mut send = client(TcpStream::connect(proxy.addr).await.unwrap()).await;
    let response = within(send.send_request(get("http://shop.example/a?b"))).await.unwrap();
    assert_eq!((response.status(), response.version()), (StatusCode::OK, Version::HTTP_2));
    let seen = String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().into()).unwrap();
    assert!(seen.starts_with("get /a?b http/1.1\r\n") && seen.contains("host: api\r\n"), "{seen}");
    assert!(seen.contains("x-forwarded-host: shop.example\r\n"), "{seen}");

    let connections = Arc::new(AtomicUsize::new(0));
    let proxy = Proxy::start(json!({}), &[speaks_http2(connections.clone()).await]);
    serves_http2(&proxy);
    let answer = proxy.post("").await;
    assert!(answer.contains("HTTP/2.0 POST http://api/x abc"), "{answer}");
    let mut send = client(TcpStream::connect(proxy.addr).await.unwrap()).await;
    // Beside one another, on one connection.
    let asked = (0..50).map(|number| send.send_request(get(&format!("http://a/{number}"))));
    for response in within(futures_util::future::join_all(asked)).await {
        let body = response.unwrap().into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
        assert!(String::from_utf8_lossy(&body.to_bytes()).starts_with("HTTP/2.0 GET http://api/"));
    }
    assert!(connections.load(Ordering::SeqCst) <= 2, "one for each worker that was asked");
}

#[tokio::test]
async fn grpc_is_spoken_in_http2_and_turned_away_in_its_own_words() {
    let proxy = Proxy::start(json!({}), &[speaks_http2(Arc::default()).await]);
    let mut send = client(TcpStream::connect(proxy.addr).await.unwrap()).await;
    let call = || {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sent", "1".parse().unwrap());
        let frames = [Ok(Frame::data(Bytes::from("hello"))), Ok(Frame::trailers(trailers))];
        let request = Request::post("http://a/shop.Orders/Place").header("content-type", "application/grpc+proto");
        let body = BodyExt::boxed(StreamBody::new(futures_util::stream::iter(frames)));
        request.header("te", "trailers").body(body).unwrap()
    };
    let response = within(send.send_request(call())).await.unwrap();
    assert_eq!(response.headers()["x-te"], "trailers");
    let body = response.into_body().collect().await.unwrap();
    let trailers = body.trailers().unwrap().clone();
    assert_eq!((&trailers["grpc-status"], &trailers["x-given"]), (&"0".parse().unwrap(), &"1".parse().unwrap()));
    assert_eq!(body.to_bytes(), "HTTP/2.0 POST http://api/shop.Orders/Place hello");

    proxy.upstreams.publish(fleet(&[nobody().await]));
    let response = within(send.send_request(call())).await.unwrap();
    assert_eq!((response.status(), &response.headers()["grpc-status"]), (StatusCode::OK, &"14".parse().unwrap()));
    assert!(response.headers()["grpc-message"].to_str().unwrap().contains("connect"), "{response:?}");
}

#[tokio::test]
async fn what_a_server_has_not_looked_at_is_sent_again() {
    let served = Arc::new(AtomicUsize::new(0));
    let seen = served.clone();
    let addr = upstream(move |stream, number| {
        let seen = seen.clone();
        async move {
            let mut server = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((_, mut respond))) = server.accept().await {
                if number == 0 && seen.fetch_add(1, Ordering::SeqCst) == 0 {
                    respond.send_reset(h2::Reason::REFUSED_STREAM);
                } else {
                    let _ = respond.send_response(Response::new(()), true);
                }
            }
        }
    })
    .await;
    let proxy = Proxy::start(json!({}), &[addr]);
    serves_http2(&proxy);
    // Not one that may be repeated otherwise.
    let answer = proxy.post("").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(served.load(Ordering::SeqCst) >= 1);
}

#[tokio::test]
async fn connections_change_to_other_protocols_but_not_to_another_http() {
    let addr = upstream(|mut stream, _| async move {
        let request = read_request(&mut stream).await.unwrap().to_lowercase();
        if !request.contains("upgrade: websocket") || !request.contains("connection: upgrade") {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            return;
        }
        let head =
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\nx-a: b\r\n\r\nfirst";
        stream.write_all(head).await.unwrap();
        let mut buffer = [0; 64];
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            stream.write_all(&buffer[..read].to_ascii_uppercase()).await.unwrap();
        }
    })
    .await;
    let proxy = Proxy::start(json!({}), &[addr]);
    let mut stream = TcpStream::connect(proxy.addr).await.unwrap();
    let head = "GET /x HTTP/1.1\r\nhost: a\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"first") {
        assert_ne!(within(stream.read_buf(&mut seen)).await.unwrap(), 0, "{}", String::from_utf8_lossy(&seen));
    }
    let text = String::from_utf8_lossy(&seen).to_lowercase();
    assert!(
        text.starts_with("http/1.1 101") && text.contains("upgrade: websocket") && text.contains("x-a: b"),
        "{text}"
    );
    let mut answer = [0; 5];
    for _ in 0..3 {
        stream.write_all(b"hello").await.unwrap();
        within(stream.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"HELLO");
    }
    stream.shutdown().await.unwrap();
    assert_eq!(within(stream.read(&mut answer)).await.unwrap(), 0);

    let answer = proxy.ask("GET /x HTTP/1.1\r\nhost: a\r\nconnection: upgrade, http2-settings, close\r\nupgrade: h2c\r\nhttp2-settings: AAA\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn one_host_and_no_more() {
    let proxy = Proxy::start(json!({}), &[speaks_http2(Arc::default()).await]);
    let mut send = client(TcpStream::connect(proxy.addr).await.unwrap()).await;
    for (uri, host) in [("http://a/x", "b"), ("http://user@a/x", "user@a")] {
        let mut request = get(uri);
        request.headers_mut().insert("host", host.parse().unwrap());
        assert_eq!(within(send.send_request(request)).await.unwrap().status(), StatusCode::BAD_REQUEST, "{uri} {host}");
    }
}

#[tokio::test]
async fn a_client_that_only_gives_up_is_let_go() {
    let addr = upstream(|mut stream, _| async move {
        let _ = stream.read(&mut [0]).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
    })
    .await;
    let proxy = Proxy::start(json!({ "breaker": { "enabled": false } }), &[addr]);
    let stream = TcpStream::connect(proxy.addr).await.unwrap();
    let (mut send, connection) = h2::client::handshake(stream).await.unwrap();
    let mut connection = tokio::spawn(connection);
    let mut begun = 0;
    let ended = tokio::time::timeout(Duration::from_secs(20), async {
        while let Ok(mut ready) = send.clone().ready().await {
            match ready.send_request(get("http://a/x").map(drop), true) {
                Ok((_, mut stream)) => stream.send_reset(h2::Reason::CANCEL),
                Err(_) => break,
            }
            begun += 1;
            send = ready;
            if begun % 20 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    })
    .await;
    assert!(ended.is_ok(), "the connection goes on after {begun} requests that were given up");
    let _ = within(&mut connection).await;
    // Others are served.
    proxy.upstreams.publish(fleet(&[speaks_http2(Arc::default()).await]));
    serves_http2(&proxy);
    assert!(proxy.get().await.starts_with("HTTP/1.1 200"));
}

struct Issued {
    certificate: rcgen::Certificate,
    key: rcgen::KeyPair,
}

fn issue(dir: &Path, file: &str, names: &[&str], by: Option<&rcgen::Issuer<'_, &rcgen::KeyPair>>) -> Issued {
    let key = rcgen::KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = rcgen::CertificateParams::new(names).unwrap();
    let certificate = match by {
        Some(issuer) => params.signed_by(&key, issuer).unwrap(),
        None => {
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params.self_signed(&key).unwrap()
        }
    };
    std::fs::write(dir.join(format!("{file}.pem")), certificate.pem()).unwrap();
    std::fs::write(dir.join(format!("{file}.key")), key.serialize_pem()).unwrap();
    Issued { certificate, key }
}

fn pair(dir: &Path, file: &str) -> CertificateConfig {
    CertificateConfig { chain: dir.join(format!("{file}.pem")), key: dir.join(format!("{file}.key")) }
}

struct Trust {
    authority: rustls::pki_types::CertificateDer<'static>,
    own: Option<(rustls::pki_types::CertificateDer<'static>, rustls::pki_types::PrivateKeyDer<'static>)>,
}

impl Trust {
    async fn connect(
        &self,
        addr: SocketAddr,
        name: &str,
        alpn: &str,
    ) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.authority.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match &self.own {
            Some((chain, key)) => builder.with_client_auth_cert(vec![chain.clone()], key.clone_key()).unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        let stream = TcpStream::connect(addr).await?;
        let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
        within(tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream)).await
    }
}

#[tokio::test]
async fn tls_knows_its_names_and_sees_new_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let root = issue(dir, "root", &["root"], None);
    let root_params = rcgen::CertificateParams::new(vec!["root".to_owned()]).unwrap();
    let issuer = rcgen::Issuer::new(root_params, &root.key);
    issue(dir, "shop", &["shop.example", "*.shop.example"], Some(&issuer));
    issue(dir, "other", &["other.example"], Some(&issuer));
    let config = TlsConfig {
        certificates: vec![pair(dir, "shop"), pair(dir, "other")],
        min_version: "1.2".into(),
        clients: None,
    };
    let tls = Tls::start(config).unwrap();
    let proxy = Proxy::secure(tls.clone(), &[speaks_http2(Arc::default()).await]);
    serves_http2(&proxy);
    let trust = Trust { authority: root.certificate.der().clone(), own: None };
    for name in ["shop.example", "eu.shop.example", "other.example"] {
        let stream = trust.connect(proxy.addr, name, "h2").await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let mut send = client(stream).await;
        let response = within(send.send_request(get(&format!("https://{name}/x")))).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{name}");
        // Another host of the same certificate may come by the same connection, one of another may not.
        let sibling = if name.ends_with("shop.example") { StatusCode::OK } else { StatusCode::MISDIRECTED_REQUEST };
        let response = within(send.send_request(get("https://us.shop.example:443/x"))).await.unwrap();
        assert_eq!(response.status(), sibling, "{name}");
    }
    assert!(trust.connect(proxy.addr, "a.b.shop.example", "h2").await.is_err(), "a star is one label");
    let mut stream = trust.connect(proxy.addr, "shop.example", "http/1.1").await.unwrap();
    stream.write_all(b"GET /x HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    within(stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    let serial = |stream: &tokio_rustls::client::TlsStream<TcpStream>| {
        stream.get_ref().1.peer_certificates().unwrap()[0].clone()
    };
    let before = serial(&trust.connect(proxy.addr, "other.example", "h2").await.unwrap());
    // Half of it is no reason to serve nothing.
    std::fs::write(dir.join("other.key"), "garbage").unwrap();
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(serial(&trust.connect(proxy.addr, "other.example", "h2").await.unwrap()), before);
    issue(dir, "other", &["other.example"], Some(&issuer));
    let end = std::time::Instant::now() + Duration::from_secs(10);
    while serial(&trust.connect(proxy.addr, "other.example", "h2").await.unwrap()) == before {
        assert!(std::time::Instant::now() < end, "the new certificate is not seen");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Whoever says nothing of TLS harms nobody.
    let mut garbage = TcpStream::connect(proxy.addr).await.unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    let _ = within(garbage.read_to_end(&mut rest)).await;
    assert!(trust.connect(proxy.addr, "shop.example", "h2").await.is_ok());
}

#[tokio::test]
async fn clients_show_who_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let root = issue(dir, "root", &["root"], None);
    let root_params = rcgen::CertificateParams::new(vec!["root".to_owned()]).unwrap();
    let issuer = rcgen::Issuer::new(root_params, &root.key);
    issue(dir, "shop", &["shop.example"], Some(&issuer));
    let mine = issue(dir, "mine", &["client.example"], Some(&issuer));
    let config = |required| TlsConfig {
        certificates: vec![pair(dir, "shop")],
        min_version: "1.3".into(),
        clients: Some(ClientsConfig { authorities: dir.join("root.pem"), required }),
    };
    let proxy = Proxy::secure(Tls::start(config(true)).unwrap(), &[speaks_http2(Arc::default()).await]);
    serves_http2(&proxy);
    let authority = || root.certificate.der().clone();
    let key = || rustls::pki_types::PrivateKeyDer::try_from(mine.key.serialize_der()).unwrap();
    let known = Trust { authority: authority(), own: Some((mine.certificate.der().clone(), key())) };
    let unknown = Trust { authority: authority(), own: None };
    let ask = async |trust: &Trust, addr| -> Option<String> {
        let mut stream = trust.connect(addr, "shop.example", "http/1.1").await.ok()?;
        stream.write_all(b"GET /x HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\n\r\n").await.ok()?;
        let mut answer = String::new();
        within(stream.read_to_string(&mut answer)).await.ok().filter(|_| !answer.is_empty())?;
        Some(answer)
    };
    assert!(ask(&known, proxy.addr).await.is_some_and(|answer| answer.starts_with("HTTP/1.1 200")));
    assert_eq!(ask(&unknown, proxy.addr).await, None);
    let proxy = Proxy::secure(Tls::start(config(false)).unwrap(), &[speaks_http2(Arc::default()).await]);
    serves_http2(&proxy);
    assert!(ask(&unknown, proxy.addr).await.is_some_and(|answer| answer.starts_with("HTTP/1.1 200")));
}

#[tokio::test]
async fn mistakes_in_certificates_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    issue(dir, "a", &["a.example"], None);
    issue(dir, "b", &["b.example"], None);
    std::fs::write(dir.join("empty.pem"), "").unwrap();
    let with = |chain: &str, key: &str, version: &str| TlsConfig {
        certificates: vec![CertificateConfig { chain: chain.into(), key: key.into() }],
        min_version: version.into(),
        clients: None,
    };
    for (config, says) in [
        (with("a.pem", "b.key", "1.2"), "b.key: does not go with"),
        (with("none.pem", "a.key", "1.2"), "none.pem"),
        (with("empty.pem", "a.key", "1.2"), "empty.pem: holds no certificate"),
        (with("a.pem", "a.pem", "1.2"), "a.pem"),
        (with("a.pem", "a.key", "1.1"), "min_version `1.1`: there is 1.2 and 1.3"),
        (TlsConfig { certificates: vec![], ..with("", "", "1.2") }, "at least one is needed"),
    ] {
        let error = Tls::try_new(config.within(dir)).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}
