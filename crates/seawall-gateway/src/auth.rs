//! What the filters of authentication have in common: where credentials stand, keys and signatures, what is known of a
//! caller, and the answers to those who may not pass.

pub(crate) mod claims;
pub(crate) mod credential;
pub(crate) mod denied;
pub(crate) mod identity;
pub(crate) mod jwk;
pub(crate) mod jws;
pub(crate) mod keys;
pub(crate) mod place;
pub(crate) mod recent;
pub(crate) mod watched;

/// Seconds since 1970, by the clock of the machine.
pub(crate) fn now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}
