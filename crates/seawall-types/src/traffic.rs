//! How the requests of splits are divided.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ServiceName;

/// What each service gets of a split's requests, in proportion to the others.
pub type Shares = BTreeMap<ServiceName, u32>;

/// The splits whose requests are divided otherwise than the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Another one after each change; means nothing by itself.
    pub version: String,
    /// The shares, by the split's name.
    pub splits: BTreeMap<ServiceName, Shares>,
}
