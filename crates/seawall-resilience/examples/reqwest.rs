//! A reqwest client behind a guard: `cargo run -p seawall-resilience --example reqwest -- http://localhost:8080/quote`.

use std::error::Error;
use std::sync::Arc;

use seawall_resilience::http::{call, failures, pass_on};
use seawall_resilience::{CallError, Guard, Policies, Registry};

/// Three attempts of a second at most, behind a breaker and a bulkhead.
const POLICIES: &str = r#"{
    "quotes": {
        "timeout": "3s",
        "attempt_timeout": "1s",
        "retry": { "attempts": 3, "backoff": "10ms" },
        "breaker": { "window": "20 calls", "minimum_calls": 10 },
        "bulkhead": { "concurrent": 8 }
    }
}"#;

/// The guard of [`POLICIES`].
pub(crate) fn guard() -> Arc<Guard> {
    let policies: Policies = serde_json::from_str(POLICIES).expect("the policies are in order");
    Registry::new(policies).expect("and without a contradiction").guard("quotes")
}

/// Fetches `url`: a GET, which may be done twice. What the call holds is given back when the body has been read, or the
/// response is dropped.
pub(crate) async fn fetch(
    client: &reqwest::Client,
    guard: &Arc<Guard>,
    url: &str,
) -> Result<reqwest::Response, CallError<reqwest::Error>> {
    let attempt = |_number| async {
        let mut request = client.get(url).build()?;
        // The time and the retries that are left travel to the next hop.
        pass_on(request.headers_mut());
        client.execute(request).await.map(http::Response::from)
    };
    let response = call(guard, attempt, failures).await?;
    Ok(response.map(reqwest::Body::wrap).into())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::args().nth(1).ok_or("which address?")?;
    let response = fetch(&reqwest::Client::new(), &guard(), &url).await?;
    println!("{}", response.status());
    println!("{}", response.text().await?);
    Ok(())
}
