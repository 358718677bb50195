//! What an operator sees of the locks in ZooKeeper.

use percent_encoding::percent_decode_str;
use zookeeper_client::Error;

use super::session::{Doing, Failed, asked};
use super::{ZooKeeper, view};
use crate::backend::BackendError;
use crate::backend::view::{ClaimView, LockView};
use crate::name::{ElectionName, LockName};
use crate::oversight::{MAX_NAMES, Oversight};

impl Oversight for ZooKeeper {
    async fn names(&self) -> Result<Vec<LockName>, BackendError> {
        let client = self.observer().await?;
        asked(Doing::Read, client.sync("/")).await.map_err(|error| error.of(&self.place))?;
        let mut names = Vec::new();
        for kind in ["lock", "elect"] {
            let mut nodes = match asked(Doing::Read, client.list_children(&self.place.directory(kind))).await {
                Ok(nodes) => nodes,
                Err(Failed::Is(Error::NoNode)) => continue,
                Err(error) => return Err(error.of(&self.place)),
            };
            nodes.sort();
            for node in nodes.iter().take(MAX_NAMES) {
                let Ok(name) = percent_decode_str(node).decode_utf8() else { continue };
                let name = match kind {
                    "lock" => LockName::try_new(&name).ok(),
                    _ => ElectionName::try_new(&name).ok().map(|name| LockName::of_election(&name)),
                };
                let Some(name) = name else { continue };
                // A queue that is empty goes by itself, a while later.
                if !self.queue(&client, &self.place.queue(&name)).await?.is_empty() {
                    names.push(name);
                }
            }
        }
        Ok(names)
    }

    async fn show(&self, name: &LockName) -> Result<LockView, BackendError> {
        let client = self.observer().await?;
        // What others have done is seen here after this, if there is anything to see.
        asked(Doing::Read, client.sync("/")).await.map_err(|error| error.of(&self.place))?;
        let mut claims = Vec::new();
        for node in self.queue(&client, &self.place.queue(name)).await? {
            claims.extend(self.read(&client, &node.path).await?.map(|(data, stat)| view(&data, &stat)));
        }
        Ok(LockView::of(name.clone(), claims))
    }

    async fn force(&self, name: &LockName, _by: &str, _why: &str) -> Result<Option<ClaimView>, BackendError> {
        let client = self.observer().await?;
        asked(Doing::Read, client.sync("/")).await.map_err(|error| error.of(&self.place))?;
        let queue = self.queue(&client, &self.place.queue(name)).await?;
        let Some(first) = queue.first() else { return Ok(None) };
        let Some((data, stat)) = self.read(&client, &first.path).await? else { return Ok(None) };
        Ok(self.delete(&client, &first.path).await?.then(|| view(&data, &stat)))
    }
}
