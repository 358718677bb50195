//! What the fleet looks like at one revision, and how one revision becomes the next.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Instance, InstanceId, Revision, ServiceName};

/// Every instance of every service at one revision. Immutable once published; callers hold it by `Arc`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The revision of the registry that this shows.
    pub revision: Revision,
    /// The instances by service, each list ordered by id. A service that once had instances keeps its empty list.
    pub services: BTreeMap<ServiceName, Arc<Vec<Instance>>>,
}

/// One step from a revision to a later one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The revision after the step.
    pub revision: Revision,
    /// The service that changed.
    pub service: ServiceName,
    /// The instance that changed.
    pub id: InstanceId,
    /// The instance as it is now; absent when it has left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<Instance>,
}

impl Snapshot {
    /// The instances of one service; empty when it is unknown.
    pub fn instances(&self, service: &str) -> &[Instance] {
        self.services.get(service).map_or(&[], |instances| instances.as_slice())
    }

    /// Takes one step. Applying a change twice is the same as once.
    pub fn apply(&mut self, change: &Change) {
        self.revision = self.revision.max(change.revision);
        let instances = Arc::make_mut(self.services.entry(change.service.clone()).or_default());
        let place = instances.binary_search_by(|instance| instance.id.cmp(&change.id));
        match (place, &change.instance) {
            (Ok(at), Some(instance)) => instances[at] = instance.clone(),
            (Err(at), Some(instance)) => instances.insert(at, instance.clone()),
            (Ok(at), None) => drop(instances.remove(at)),
            (Err(_), None) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(revision: u64, id: &str, port: Option<u16>) -> Change {
        let id = InstanceId::try_new(id).unwrap();
        let instance = port.map(|port| Instance::new(id.clone(), ([127, 0, 0, 1], port).into()));
        Change { revision: Revision(revision), service: ServiceName::try_new("order").unwrap(), id, instance }
    }

    #[test]
    fn changes_add_replace_and_remove() {
        let mut snapshot = Snapshot::default();
        for change in [change(1, "b", Some(2)), change(2, "a", Some(1)), change(3, "b", Some(3)), change(4, "a", None)]
        {
            snapshot.apply(&change);
            let once = snapshot.clone();
            snapshot.apply(&change);
            assert_eq!(snapshot, once);
        }
        assert_eq!(snapshot.revision, Revision(4));
        let ports: Vec<_> = snapshot.instances("order").iter().map(|i| i.port).collect();
        assert_eq!(ports, [3]);
        assert!(snapshot.instances("nobody").is_empty());
    }
}
