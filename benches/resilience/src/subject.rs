//! What is measured: a name, and how each thread gets its own way to the one instance.

use std::hint::black_box;
use std::sync::{Mutex, PoisonError};

use tower::Service;

use crate::call;

/// Makes so many calls, in a loop that was compiled for this one subject.
pub type Runner = Box<dyn FnMut(u64)>;

/// Something that is measured.
pub struct Subject {
    /// As it stands in the table.
    pub name: &'static str,
    /// Whether several threads can share it.
    pub shared: bool,
    runner: Box<dyn Fn() -> Runner + Send + Sync>,
}

impl Subject {
    /// A subject of a function that gives each thread its call.
    pub fn new<C: FnMut(u64) + 'static>(name: &'static str, make: impl Fn() -> C + Send + Sync + 'static) -> Self {
        let runner = move || -> Runner {
            let mut call = make();
            Box::new(move |calls| {
                for number in 0..calls {
                    call(number);
                }
            })
        };
        Self { name, shared: true, runner: Box::new(runner) }
    }

    /// A call that needs nothing of its own.
    pub fn call(name: &'static str, call: impl FnMut(u64) + Copy + Send + Sync + 'static) -> Self {
        Self::new(name, move || call)
    }

    /// A function whose result nobody may optimise away.
    pub fn value<T>(name: &'static str, function: impl Fn(u64) -> T + Copy + Send + Sync + 'static) -> Self {
        Self::call(name, move |number| {
            black_box(&function(black_box(number)));
        })
    }

    /// A future that is driven to its end.
    pub fn future<F: Future>(name: &'static str, future: impl Fn(u64) -> F + Copy + Send + Sync + 'static) -> Self {
        Self::value(name, move |number| call::drive(future(number)))
    }

    /// A service, of which each thread has a clone.
    pub fn service<S: Service<u64> + Clone + Send + 'static>(name: &'static str, service: S) -> Self {
        let service = Mutex::new(service);
        Self::new(name, move || {
            let mut service = service.lock().unwrap_or_else(PoisonError::into_inner).clone();
            move |number| call::serve(&mut service, number)
        })
    }

    /// For one thread only.
    #[must_use]
    pub fn alone(self) -> Self {
        Self { shared: false, ..self }
    }

    /// Calls it so often before anything is measured.
    #[must_use]
    pub fn after(self, calls: u64) -> Self {
        self.runner()(calls);
        self
    }

    /// This thread's way to it.
    pub fn runner(&self) -> Runner {
        (self.runner)()
    }
}
