//! Filters that look into bodies.

use super::*;

/// The head in small letters, and the body, out of its chunks.
fn answer(bytes: &[u8]) -> (String, Vec<u8>) {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
    let mut rest = &bytes[end + 4..];
    if !head.contains("transfer-encoding: chunked") {
        return (head, rest.to_vec());
    }
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|window| window == b"\r\n") {
        let Ok(size) = usize::from_str_radix(&String::from_utf8_lossy(&rest[..end]), 16) else { break };
        let Some(chunk) = rest.get(end + 2..end + 2 + size) else { break };
        body.extend(chunk);
        rest = rest.get(end + 4 + size..).unwrap_or_default();
    }
    (head, body)
}

fn gunzip(bytes: &[u8]) -> String {
    let mut text = Vec::new();
    // As far as it goes.
    let _ = flate2::read::GzDecoder::new(bytes).read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn request(method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

#[test]
fn answers_are_compressed_for_those_who_take_it_and_events_pass_at_once() {
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let service = Service::start(move |heard, stream| {
        if heard.path() == "/events" {
            let head = "HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
            let _ = stream.write_all(format!("{head}9\r\ndata: 1\n\n\r\n").as_bytes());
            let _ = gone.lock().unwrap().recv_timeout(Duration::from_secs(20));
            let _ = stream.write_all(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n");
            return;
        }
        let body = format!("[{}]", vec!["\"the same\""; 1000].join(","));
        reply(
            stream,
            200,
            "content-type: application/json\r\netag: \"1\"\r\naccept-ranges: bytes\r\n",
            body.as_bytes(),
        );
    });
    let (site, _running) = site(
        "
gateways:
  public:
    listen: GATEWAY
    filters: [ { compress: {} } ]
    routes: [ { id: all, match: {}, to: s } ]
",
        &[("s", service.addr)],
    );
    let (plain_head, plain) = answer(&raw(site.gateway, &request("GET", "/x", "", b"")));
    assert!(plain_head.contains("vary: accept-encoding") && plain_head.contains("etag: \"1\""), "{plain_head}");
    let zipped = raw(site.gateway, &request("GET", "/x", "accept-encoding: gzip;q=1, br;q=0.1\r\n", b""));
    let (head, body) = answer(&zipped);
    for field in ["content-encoding: gzip", "vary: accept-encoding", "etag: w/\"1\""] {
        assert!(head.contains(field), "{field}: {head}");
    }
    assert!(!head.contains("content-length") && !head.contains("accept-ranges"), "{head}");
    assert!(gunzip(&body).as_bytes() == plain && body.len() < plain.len() / 20, "{} of {}", body.len(), plain.len());
    for coding in ["br", "zstd"] {
        let (head, body) =
            answer(&raw(site.gateway, &request("GET", "/x", &format!("accept-encoding: {coding}\r\n"), b"")));
        assert!(head.contains(&format!("content-encoding: {coding}")) && body.len() < plain.len() / 20, "{head}");
    }

    let mut stream = TcpStream::connect(site.gateway).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(&request("GET", "/events", "accept-encoding: gzip\r\n", b"")).unwrap();
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    let mut read_until = |text: &str| {
        loop {
            let read = stream.read(&mut buffer).unwrap();
            assert!(read > 0, "the stream has ended before `{text}`");
            seen.extend(&buffer[..read]);
            let whole = seen.windows(4).any(|window| window == b"\r\n\r\n");
            if whole && gunzip(&answer(&seen).1) == text {
                return;
            }
        }
    };
    read_until("data: 1\n\n");
    go.send(()).unwrap();
    read_until("data: 1\n\ndata: 2\n\n");
}

#[test]
fn requests_are_decompressed_and_bombs_do_not_go_off() {
    let service = Service::saying("", "ok");
    let (site, _running) = site(
        "
gateways:
  public:
    listen: GATEWAY
    filters: [ { decompress: { limit: 1 MiB } } ]
    routes: [ { id: all, match: {}, to: s } ]
",
        &[("s", service.addr)],
    );
    let post = |coding: &str, body: &[u8]| {
        let bytes = raw(site.gateway, &request("POST", "/x", &format!("content-encoding: {coding}\r\n"), body));
        let (head, body) = answer(&bytes);
        (head.get(9..12).unwrap_or_default().to_owned(), head, String::from_utf8_lossy(&body).into_owned())
    };
    assert_eq!(post("gzip", &gzip(b"hello")).0, "200");
    let heard = service.last();
    assert_eq!((&*heard.body, heard.header("content-encoding")), (&b"hello"[..], ""));
    let bomb = post("gzip", &gzip(&vec![0; 4 << 20]));
    assert_eq!(bomb.0, "413", "{bomb:?}");
    assert_eq!(post("gzip", b"no gzip").0, "400");
    let unknown = post("compress", b"x");
    assert!(unknown.0 == "415" && unknown.1.contains("accept-encoding: gzip, br, zstd"), "{unknown:?}");
    assert_eq!(post("identity", b"x").0, "200");
}

#[test]
fn bodies_of_json_are_changed_and_what_was_to_be_taken_out_never_passes() {
    let service = Service::start(|heard, stream| {
        let json = "content-type: application/json; charset=utf-8\r\n";
        match heard.path() {
            "/large" => reply(stream, 200, json, format!("[{}1]", "1,".repeat(4096)).as_bytes()),
            "/broken" => reply(stream, 200, json, b"{"),
            "/packed" => reply(stream, 200, &format!("{json}content-encoding: gzip\r\n"), &gzip(b"{\"password\":1}")),
            "/text" => reply(stream, 200, "content-type: text/plain\r\n", b"password"),
            _ => reply(stream, 200, json, b"{\"id\":7,\"user\":{\"password\":\"x\",\"name\":\"a\"}}"),
        }
    });
    let (site, _running) = site(
        "
gateways:
  public:
    listen: GATEWAY
    routes:
      - id: all
        match: {}
        filters:
          - json:
              limit: 4 KiB
              request: { remove: [debug], rename: { /order/id: number }, add: { /meta/from: 'gateway for ${/order/number}' } }
              response: { remove_everywhere: [password], template: { data: '${}' } }
        to: s
",
        &[("s", service.addr)],
    );
    let changed =
        send(site.gateway, "POST", "/x", &["accept-encoding: gzip"], "{\"debug\":1,\"order\":{\"id\":5,\"n\":1}}");
    assert_eq!(changed.body, "{\"data\":{\"id\":7,\"user\":{\"name\":\"a\"}}}", "{changed:?}");
    let heard = service.last();
    let body = String::from_utf8_lossy(&heard.body).into_owned();
    assert_eq!(body, "{\"order\":{\"number\":5,\"n\":1},\"meta\":{\"from\":\"gateway for 5\"}}");
    assert_eq!(heard.header("content-length"), body.len().to_string());
    assert_eq!(heard.header("accept-encoding"), "", "it has to be read");
    for (path, status, says) in [
        ("/large", 502, "larger than 4 KiB"),
        ("/broken", 502, "is not JSON"),
        ("/packed", 502, "is compressed"),
        ("/text", 200, "password"),
    ] {
        let answer = get(site.gateway, path);
        assert!(answer.status == status && answer.body.contains(says), "{path}: {answer:?}");
    }
    let before = service.count();
    let refused = send(site.gateway, "POST", "/x", &[], "{");
    assert!(refused.status == 400 && refused.body.contains("the body is not JSON"), "{refused:?}");
    assert_eq!(send(site.gateway, "POST", "/x", &[], &format!("[{}1]", "1,".repeat(4096))).status, 413);
    assert_eq!(service.count(), before);
    for (filters, says) in [
        ("{ json: {} }", "say what is changed"),
        ("{ json: { request: { add: { a: '${b}' } } } }", "is a JSON pointer"),
        ("{ compress: { types: [json] } }", "no kind of content"),
        ("{ decompress: { limit: 0 B } }", "nothing would ever pass"),
    ] {
        let text = mistakes(filters);
        assert!(text.contains(says), "{filters}: {text}");
    }
}
