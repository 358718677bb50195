//! The policies by name, with their state, and the events of all of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Clock, Events, Guard, InvalidPolicies, Name, Policies};

/// Makes a [`Guard`] of each service's policy when it is first asked for, and keeps it. Cheap to clone; all clones share
/// the guards.
#[derive(Clone, Debug)]
pub struct Registry {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    clock: Clock,
    events: Arc<Events>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    policies: Policies,
    guards: HashMap<Name, Arc<Guard>>,
}

impl Registry {
    /// The policies by name, and nobody called yet.
    ///
    /// # Errors
    /// [`InvalidPolicies`] if a value is out of its range, contradicts another, or has no effect.
    pub fn new(policies: Policies) -> Result<Self, InvalidPolicies> {
        Self::with_clock(policies, Clock::default())
    }

    /// [`Registry::new`] by another clock.
    ///
    /// # Errors
    /// As there.
    pub fn with_clock(policies: Policies, clock: Clock) -> Result<Self, InvalidPolicies> {
        policies.check()?;
        let inner = Mutex::new(Inner { policies, guards: HashMap::new() });
        Ok(Self { shared: Arc::new(Shared { clock, events: Arc::default(), inner }) })
    }

    /// The guard of a service. A guard is kept for as long as the registry: use names of services, of which there are few.
    pub fn guard(&self, service: &str) -> Arc<Guard> {
        let name = Name::new(service);
        let mut inner = self.lock();
        let Inner { policies, guards } = &mut *inner;
        let make = || Arc::new(Guard::new(name, policies.of(service), self.shared.clock.clone(), self.events()));
        guards.entry(name).or_insert_with(make).clone()
    }

    /// All guards, by name.
    pub fn guards(&self) -> Vec<Arc<Guard>> {
        let mut guards: Vec<_> = self.lock().guards.values().cloned().collect();
        guards.sort_by_key(|guard| guard.name());
        guards
    }

    /// Goes on under other policies; no guard loses its state.
    ///
    /// # Errors
    /// [`InvalidPolicies`]; then everything stays as it was.
    pub fn reload(&self, policies: Policies) -> Result<(), InvalidPolicies> {
        policies.check()?;
        let mut inner = self.lock();
        for (name, guard) in &inner.guards {
            guard.reload(policies.of(name));
        }
        inner.policies = policies;
        Ok(())
    }

    /// What the policies are.
    pub fn policies(&self) -> Policies {
        self.lock().policies.clone()
    }

    /// What happens to them.
    pub fn events(&self) -> Arc<Events> {
        self.shared.events.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
