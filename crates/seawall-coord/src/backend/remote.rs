//! Sessions and locks over control's HTTP API.

/// To come.
#[derive(Clone, Debug)]
pub struct Remote;
