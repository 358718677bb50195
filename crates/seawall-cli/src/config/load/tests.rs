use proptest::prelude::*;

use super::*;

fn read_alone(text: &str, variables: impl Iterator<Item = (String, String)>) -> Result<Config, Vec<Mistake>> {
    read(text, variables, Path::new("/"), &mut Sources::default())
}

fn mistakes(text: &str) -> Vec<(String, String, String)> {
    let Err(found) = read_alone(text, std::iter::empty()) else { return Vec::new() };
    let mut sources = Sources::default();
    sources.add("seawall.yaml".into(), text.into());
    let error = ConfigError { sources, mistakes: found };
    let rendered = error.render(false);
    let shown = |mistake: &Mistake| {
        let Place::File(range) = &mistake.place else { panic!("not in the file") };
        let bytes = bytes(text, range);
        assert!(rendered.contains("seawall.yaml:"), "{rendered}");
        text[bytes].to_owned()
    };
    error
        .mistakes
        .iter()
        .map(|m| (m.path.clone(), shown(m), format!("{} / {}", m.what, m.hint.as_deref().unwrap_or(""))))
        .collect()
}

#[test]
fn an_empty_file_is_valid() {
    assert_eq!(mistakes(""), []);
    assert_eq!(mistakes("# only a comment\n"), []);
}

#[test]
fn all_mistakes_are_found_at_once_and_in_order() {
    let text = r#"
control: { listen: 127.0.0.1:8080, ttl: 5 }
polices: {}
policies:
  payment: { timeout: 5 parsecs, breaker: { failure_rat: 50%, window: 100 } }
  default: { retry: { attempts: 99, budget: 120% } }
gateways:
  public:
    listen: 0.0.0.0:8080
    routes:
      - { id: all, match: { path: /api/** }, to: order }
      - { id: one, match: { path: /api/orders }, to: ordr, filters: [{ strip_prefx: 1 }, { strip_prefix: many }] }
      - { match: { path: /x }, to: order }
services:
  order: { replicas: 2, port: 9000 }
sagas:
  buy: { steps: [{ name: a, call: FETCH order/x }, { name: b, call: POST nobody/y }] }
"#;
    let found = mistakes(text);
    let expected = [
        ("control.ttl", "5", "duration with its unit"),
        ("polices", "polices", "did you mean `policies`?"),
        ("policies.payment.timeout", "5 parsecs", "not a duration"),
        ("policies.payment.breaker.failure_rat", "failure_rat", "did you mean `failure_rate`?"),
        ("policies.payment.breaker.window", "100", "`100 calls`"),
        ("policies.payment", "payment", "unknown service `payment`"),
        ("policies.default.retry.attempts", "99", "allowed is 1 to 20"),
        ("policies.default.retry.budget", "120%", "0%"),
        ("gateways.public.listen", "0.0.0.0:8080", "used twice"),
        ("gateways.public.routes.1.match", "match", "is never reached: route `all`"),
        ("gateways.public.routes.1.to", "ordr", "did you mean `order`?"),
        ("gateways.public.routes.1.filters.0", "", "did you mean `strip_prefix`?"),
        ("gateways.public.routes.1.filters.1.strip_prefix", "many", "from 0 to 255"),
        ("gateways.public.routes.2", "", "missing key `id`"),
        ("services.order.port", "9000", "cannot share the port"),
        ("sagas.buy.steps.0.call", "FETCH order/x", "not one of GET"),
        ("sagas.buy.steps.1.call", "POST nobody/y", "unknown service `nobody`"),
    ];
    for (path, shown, says) in expected {
        let hit = found.iter().find(|(p, s, w)| p == path && s.starts_with(shown) && w.contains(says));
        assert!(hit.is_some(), "{path}: {shown}: {says}\n{found:#?}");
    }
    let lines: Vec<_> = found.iter().map(|(path, ..)| path.clone()).collect();
    assert_eq!(lines.len(), expected.len(), "{found:#?}");
}

#[test]
fn mistakes_in_the_environment_are_named() {
    let variable = |value: &str| std::iter::once(("SEAWALL__CONTROL__TTL".to_owned(), value.to_owned()));
    assert_eq!(read_alone("", variable("9s")).unwrap().control.ttl.as_secs(), 9);
    let mistakes = read_alone("", variable("9")).unwrap_err();
    let text = ConfigError { sources: Sources::default(), mistakes }.to_string();
    assert!(text.contains("SEAWALL__CONTROL__TTL"), "{text}");
}

#[test]
fn not_yaml_is_said_so() {
    let found = mistakes("control: [\n");
    assert!(found[0].2.contains("not YAML"), "{found:?}");
}

/// The policies of the document's chapter about them.
fn documented_policies() -> Vec<seawall_resilience::Policies> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
    let text = std::fs::read_to_string(path).unwrap();
    let chapter = text.split("\n## ").find(|chapter| chapter.starts_with("policies\n")).unwrap();
    let blocks = chapter.split("```yaml\n").skip(1).map(|rest| rest.split("\n```").next().unwrap());
    blocks.map(|yaml| read_alone(yaml, std::iter::empty()).unwrap().policies).collect()
}

fn absent(value: &serde_json::Value, path: &str, found: &mut std::collections::BTreeSet<String>) {
    match value {
        serde_json::Value::Object(fields) => fields.iter().for_each(|(key, below)| {
            absent(below, format!("{path}.{key}").trim_start_matches('.'), found);
        }),
        serde_json::Value::Null => drop(found.insert(path.to_owned())),
        _ => {}
    }
}

#[test]
fn the_document_has_every_key_of_a_policy() {
    let policies = documented_policies();
    let all = policies.iter().flat_map(|policies| policies.0.values());
    let missing = all
        .map(|policy| {
            let mut found = std::collections::BTreeSet::new();
            absent(&serde_json::to_value(policy).unwrap(), "", &mut found);
            found
        })
        .reduce(|one, other| one.intersection(&other).cloned().collect())
        .unwrap();
    assert!(missing.is_empty(), "docs/configuration.md says nothing of {missing:?}");
}

#[test]
fn the_document_has_the_defaults_of_a_policy() {
    let switched_on = |policy: &seawall_resilience::PolicyConfig| {
        let mut policy = policy.clone();
        policy.rate_limit.rate = "100/s".parse().ok();
        policy.hedge.enabled = Some(true);
        policy.throttle.enabled = Some(true);
        policy.chaos.seed = Some(1);
        policy.chaos.latency.share = "1%".parse().ok();
        policy
    };
    let written = documented_policies()[0].0["default"].clone();
    let nothing = seawall_resilience::PolicyConfig::default();
    assert_eq!(written.complete(), nothing.complete());
    assert_eq!(switched_on(&written).complete(), switched_on(&nothing).complete());
    // An adaptive bulkhead takes its first size and its queue from the others, so these must not be there.
    let adaptive = |policy: &seawall_resilience::PolicyConfig| {
        let mut policy = policy.clone();
        policy.bulkhead.adaptive.enabled = Some(true);
        (policy.bulkhead.concurrent, policy.bulkhead.queue) = (None, None);
        policy.complete().bulkhead
    };
    assert_eq!(adaptive(&written), adaptive(&nothing));
}

/// Lines of YAML, of Seawall's own words and others.
fn any_file() -> impl Strategy<Value = String> {
    let words = [
        "control",
        "listen",
        "gateways",
        "public",
        "routes",
        "match",
        "path",
        "/api/**",
        "filters",
        "strip_prefix",
        "policies",
        "default",
        "timeout",
        "5s",
        "50%",
        "services",
        "order",
        "run",
        "replicas",
        "1",
        "-1",
        "99999999999999999999",
        "null",
        "true",
        "~",
        "127.0.0.1:80",
        "\u{e4}",
        "\"",
        "'",
        "&a",
        "*a",
        "<<",
        "!!int",
        "|",
        ">",
        "#",
        "{",
        "}",
        "[",
        "]",
        ",",
        "?",
        "%YAML",
        "---",
        "...",
        "\t",
        "\0",
    ];
    let word = prop_oneof![8 => prop::sample::select(words.to_vec()).prop_map(str::to_owned), 1 => "\\PC{0,6}"];
    let line = (0_usize..4, any::<bool>(), word.clone(), prop::sample::select(vec![": ", ":", " ", ""]), word);
    let line = line.prop_map(|(depth, item, key, between, value)| {
        format!("{}{}{key}{between}{value}\n", "  ".repeat(depth), if item { "- " } else { "" })
    });
    proptest::collection::vec(line, 0..12).prop_map(|lines| lines.concat())
}

proptest! {
    #[test]
    fn whatever_a_file_holds_is_read_and_its_mistakes_can_be_shown(text in prop_oneof![any_file(), "\\PC{0,60}"]) {
        mistakes(&text);
    }
}
