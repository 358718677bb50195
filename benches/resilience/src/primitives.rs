//! What everything is made of: what these cost here says what can be had here.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use seawall_resilience::Clock;
use tower::service_fn;

use crate::call;
use crate::subject::Subject;

/// A line of its own.
#[repr(align(128))]
struct Apart<T>(T);

pub(crate) fn subjects() -> Vec<Subject> {
    static COUNTER: Apart<AtomicU64> = Apart(AtomicU64::new(0));
    static LOCK: Apart<Mutex<u64>> = Apart(Mutex::new(0));
    let shared = Arc::new(0_u64);
    vec![
        Subject::service("bare service_fn", service_fn(call::future)),
        Subject::value("fetch_add", |_| COUNTER.0.fetch_add(1, Ordering::Relaxed)),
        Subject::call("Mutex", |number| *LOCK.0.lock().unwrap_or_else(PoisonError::into_inner) += number),
        Subject::value("Instant::now", |_| Instant::now()),
        Subject::value("coarse clock", |_| Clock::Coarse.now()),
        Subject::new("Arc clone and drop", move || {
            let shared = shared.clone();
            move |_| drop(black_box(shared.clone()))
        }),
        Subject::value("Box", Box::new),
    ]
}
