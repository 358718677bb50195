//! `seawall import`: what comes out is accepted, serves as the original did, and what does not come out is named.

use std::path::Path;

use super::support::*;

/// What an import writes, and what it says.
fn import(args: &[&str]) -> (String, String, bool) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/import");
    let output = std::process::Command::new(SEAWALL).arg("import").args(args).current_dir(dir).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr), output.status.success())
}

fn accepted(yaml: &str) -> Site {
    let site = Site::new(yaml);
    let output = site.run(&["config", "check"]);
    assert!(output.status.success(), "{yaml}\n{}", String::from_utf8_lossy(&output.stderr));
    site
}

/// Which route takes a request, and what it says of it.
fn explained(site: &Site, words: &[&str]) -> String {
    let output = site.run(&[&["route", "explain"], words].concat());
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn contains_all(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

#[test]
fn a_spring_gateway_is_converted_and_what_is_not_is_named() {
    let (yaml, said, whole) = import(&["spring-gateway", "application.yml"]);
    assert!(!whole, "not all could be converted");
    contains_all(
        &said,
        &[
            "not converted: application.yml:79: the route own-filter answers 501, for its filter MyAuditFilter: it is none of Spring Cloud Gateway's own",
            "not converted: application.yml:84: the route by-body, for its predicate ReadBody: it is code",
            "not converted: application.yml:90: the route anywhere answers 501, for its filter SetRequestUri: what a client sends must not say",
            "note: the service `images` has to be registered: it was called at https://images.internal:8443",
            "seawall: 3 parts were not converted",
        ],
    );
    let site = accepted(&yaml);
    for (words, says) in [
        (
            &["GET", "/api/orders/7", "-H", "x-request-id: 12"][..],
            &[
                "YES  orders-route-1",
                "to the service `order-service`",
                "the service sees /v1/orders/7",
                "`X-From: gateway`",
            ][..],
        ),
        (&["GET", "/api/orders/7/lines", "-H", "x-request-id: 12"], &["YES  orders-route-2"]),
        (&["GET", "/api/orders/7", "-H", "x-request-id: a"], &["YES  catch-all", "to the service `web`"]),
        (
            &["GET", "/x?size=m", "-H", "host: a.img.example"],
            &["YES  images", "a body above 2 MiB", "the host that the client asked for"],
        ),
        (&["GET", "/old/x"], &["YES  moved", "https://shop.example/new{query} with 302"]),
        (&["GET", "/own/x"], &["YES  own-filter", "answered here", "501 is answered"]),
    ] {
        let text = explained(&site, words);
        contains_all(&text, says);
    }
    contains_all(
        &yaml,
        &[
            "timeout: 700ms",
            "timeout: 5s",
            "attempts: 3",
            "multiplier: 2",
            "share: 8",
            "path_regex: \"/shop(/.*)?|/store/[^/]+\"",
            "remove_everywhere",
            "max_age: 3600s",
        ],
    );
    let (partial, _, _) = import(&["spring-gateway", "application.yml", "--partial"]);
    contains_all(&explained(&accepted(&partial), &["GET", "/own/x"]), &["YES  own-filter", "to the service `web`"]);
    assert!(!partial.contains("by-body"), "without a condition it would take more");
}

#[test]
fn the_newer_prefix_and_profiles_are_known() {
    let (yaml, said, whole) = import(&["spring-gateway", "application-5.yml", "--listen", "127.0.0.1:9"]);
    assert!(!whole);
    contains_all(
        &said,
        &["application-5.yml:15: what holds for the profile prod only", "called at http://users.internal:9000"],
    );
    assert!(yaml.contains("127.0.0.1:9"), "{yaml}");
    let site = accepted(&yaml);
    let text = explained(&site, &["GET", "/users/12", "-H", "cookie: session=x"]);
    contains_all(&text, &["YES  users", "status becomes 202", "password=[^&]+"]);
    let text = explained(&site, &["GET", "/users/ab", "-H", "cookie: session=x"]);
    contains_all(&text, &["no route takes it"]);
    let (_, said, whole) = import(&["spring-gateway", "nowhere.yml"]);
    assert!(!whole && said.contains("cannot read nowhere.yml"), "{said}");
}

#[test]
fn http_routes_are_converted() {
    let (yaml, said, whole) = import(&["gateway-api", "routes.yaml"]);
    assert!(!whole);
    contains_all(
        &said,
        &[
            "note: routes.yaml:1: the Gateway is not looked at",
            "routes.yaml:44: the rule shop-5 answers 501, for its filter ExtensionRef",
        ],
    );
    let site = accepted(&yaml);
    let shop = "host: shop.example";
    for (words, says) in [
        (
            &["GET", "/api/x", "-H", shop][..],
            &["YES  shop-api-1-", "50% are copied to the service `shadow`", "`x-from: gateway`"][..],
        ),
        (&["GET", "/status?page=1", "-H", shop, "-H", "x-version: 2"], &["YES  shop-api-2-"]),
        (
            &["GET", "/old/x?a=b", "-H", shop],
            &["YES  shop-2", "the service sees /new/x?a=b", "by the host legacy.internal"],
        ),
        (&["GET", "/older", "-H", shop], &["no route takes it"]),
        (&["GET", "/secure/x", "-H", shop], &["YES  shop-3", "https://shop.example{path}{query} with 301"]),
        (&["GET", "/nowhere", "-H", shop], &["500 is answered"]),
        (&["GET", "/api/x"], &["no route takes it"]),
    ] {
        contains_all(&explained(&site, words), says);
    }
    contains_all(&yaml, &["precedence: specific", "share: 9", "timeout: 3s", "attempt_timeout: 1s"]);
    assert!(!yaml.contains("api-v3:\n      match"), "{yaml}");
}

#[test]
fn an_openapi_document_lets_pass_what_it_allows() {
    let pets = Participant::start(|_| (200, "ok".to_owned()));
    let (yaml, said, whole) = import(&["openapi", "pets.yaml", "--service", "pets", "--listen", "127.0.0.1:65001"]);
    assert!(!whole);
    contains_all(&said, &["pets.yaml:24: DELETE /pets/{petId}: https://elsewhere.example/reason.json is no schema"]);
    accepted(&yaml);
    let yaml = yaml.replace("\"127.0.0.1:65001\"", "GATEWAY");
    let site = Site::new(&format!("control: {{ listen: CONTROL }}\n{yaml}"));
    let _control = site.control();
    site.register("pets", "one", pets.addr);
    let _gateway = site.start(&["gateway"]);
    until("the gateway serves", || get(site.gateway, "/v1/pets").status == 200);
    for (method, path, header, body, status, says) in [
        ("GET", "/v1/pets?limit=5", "x-trace: abc", "", 200, "ok"),
        ("GET", "/v1/pets?limit=0", "x-trace: abc", "", 400, "query limit"),
        ("GET", "/v1/pets?limit=ten", "x-trace: abc", "", 400, "query limit"),
        ("GET", "/v1/pets", "x-trace: 123", "", 400, "header X-Trace"),
        ("GET", "/v1/pets/7", "a: b", "", 200, "ok"),
        ("GET", "/v1/pets/0", "a: b", "", 400, "path petId"),
        (
            "POST",
            "/v1/pets",
            "a: b",
            "{\"name\":\"Rex\",\"tag\":null,\"parent\":{\"name\":\"Max\",\"kind\":\"dog\"}}",
            200,
            "ok",
        ),
        (
            "POST",
            "/v1/pets",
            "a: b",
            "{\"name\":\"Rex\",\"parent\":{\"name\":\"Max\",\"kind\":\"cow\"}}",
            400,
            "/parent/kind",
        ),
        ("POST", "/v1/pets", "a: b", "{\"name\":\"\",\"age\":1}", 400, "errors"),
        ("POST", "/v1/pets", "a: b", "{", 400, "is not JSON"),
        ("POST", "/v1/pets", "a: b", "", 400, "is missing"),
        ("DELETE", "/v1/pets/7", "a: b", "", 404, "no route takes"),
    ] {
        let answer = send(site.gateway, method, path, &[header], body);
        assert!(answer.status == status && answer.body.contains(says), "{method} {path} {body}: {answer:?}");
    }
    let refused = get(site.gateway, "/v1/pets/0");
    assert_eq!(refused.header("content-type"), "application/problem+json");
    assert_eq!(refused.json()["errors"][0]["name"], "petId");
    let seen = pets.seen();
    assert_eq!(
        seen.last().unwrap().body,
        "{\"name\":\"Rex\",\"tag\":null,\"parent\":{\"name\":\"Max\",\"kind\":\"dog\"}}"
    );
}
