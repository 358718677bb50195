//! What an instance needs once it is in use, and how large the futures are.

use std::mem::size_of_val;

use seawall_resilience::breaker::{self, Window};
use seawall_resilience::layer::{BreakerLayer, errors};
use tower::{Layer, Service, service_fn};

use crate::ours::{TIME, breaker, window};
use crate::{call, peers};

/// Each makes an instance, calls it, and leaves it there.
pub const INSTANCES: [(&str, fn()); 5] = [
    ("breaker, 100 calls", || used(window(Window::Calls(100)))),
    ("breaker, 10,000 calls", || used(window(Window::Calls(10_000)))),
    ("breaker, 10 s", || used(window(TIME))),
    ("breaker, consecutive", || used(window(Window::Consecutive(5)))),
    ("recloser", || {
        let recloser = Box::leak(Box::new(peers::recloser()));
        let _ = recloser.call(|| call::answer(1));
    }),
];

fn used(config: breaker::Config) {
    let breaker = breaker(config);
    for _ in 0..100 {
        let _ = breaker.call_blocking(|| call::answer(1));
    }
}

/// The futures of a bare service and of one with a breaker.
pub fn futures() -> Vec<(&'static str, usize)> {
    let bare = service_fn(call::future).call(1);
    let layer = BreakerLayer::new(breaker(window(Window::Calls(100))));
    let guarded = layer.layer(errors().layer(service_fn(call::future))).call(1);
    let by_hand = breaker(window(Window::Calls(100))).call(call::future(1));
    vec![
        ("future, bare service_fn", size_of_val(&bare)),
        ("future, breaker layer", size_of_val(&guarded)),
        ("future, Breaker::call", size_of_val(&by_hand)),
    ]
}
