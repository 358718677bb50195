//! Texts that only gateways can read and write: AES-256-GCM under keys that are derived from secrets (HKDF, RFC 5869), for cookies.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use ring::rand::{SecureRandom as _, SystemRandom};

/// The keys: the first seals, all of them open.
#[derive(Debug)]
pub(super) struct Seal {
    keys: Vec<LessSafeKey>,
    random: SystemRandom,
}

/// The system gives no random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoRandom;

impl Seal {
    /// Keys for secrets. `context` keeps what one filter has sealed from another.
    pub(super) fn new(secrets: &[Vec<u8>], context: &str) -> Self {
        let key = |secret: &Vec<u8>| {
            let derived = Salt::new(HKDF_SHA256, b"seawall oidc cookies").extract(secret);
            let info = [context.as_bytes()];
            let key = derived.expand(&info, &AES_256_GCM).expect("a key is shorter than HKDF's limit");
            LessSafeKey::new(UnboundKey::from(key))
        };
        Self { keys: secrets.iter().map(key).collect(), random: SystemRandom::new() }
    }

    /// 256 random bits, as text.
    ///
    /// # Errors
    /// [`NoRandom`].
    pub(super) fn random(&self) -> Result<String, NoRandom> {
        let mut bytes = [0; 32];
        self.random.fill(&mut bytes).map_err(|_| NoRandom)?;
        Ok(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// A text for `purpose`.
    ///
    /// # Errors
    /// [`NoRandom`].
    pub(super) fn seal(&self, purpose: &str, plain: &[u8]) -> Result<String, NoRandom> {
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(|_| NoRandom)?;
        let mut sealed = plain.to_vec();
        let key = self.keys.first().ok_or(NoRandom)?;
        let aad = Aad::from(purpose.as_bytes());
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed).map_err(|_| NoRandom)?;
        Ok(URL_SAFE_NO_PAD.encode([&nonce[..], &sealed].concat()))
    }

    /// What was sealed for `purpose`; nothing if that is not what this is.
    pub(super) fn open(&self, purpose: &str, text: &str) -> Option<Vec<u8>> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (nonce, sealed) = bytes.split_first_chunk::<NONCE_LEN>()?;
        self.keys.iter().find_map(|key| {
            let mut sealed = sealed.to_vec();
            let aad = Aad::from(purpose.as_bytes());
            let plain = key.open_in_place(Nonce::assume_unique_for_key(*nonce), aad, &mut sealed).ok()?;
            Some(plain.to_vec())
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_what_was_sealed_for_this_purpose_is_opened() {
        let (old, new) = (vec![1; 32], vec![2; 32]);
        let seal = Seal::new(std::slice::from_ref(&old), "a");
        let text = seal.seal("session", b"hello").unwrap();
        assert_eq!(seal.open("session", &text).as_deref(), Some(&b"hello"[..]));
        assert_eq!(seal.open("login", &text), None);
        assert_eq!(Seal::new(std::slice::from_ref(&old), "b").open("session", &text), None);
        let rotated = Seal::new(&[new.clone(), old], "a");
        assert_eq!(rotated.open("session", &text).as_deref(), Some(&b"hello"[..]));
        assert_eq!(seal.open("session", &rotated.seal("session", b"x").unwrap()), None);
        assert_ne!(text, seal.seal("session", b"hello").unwrap());
    }

    proptest! {
        #[test]
        fn nothing_else_is_opened(text in "[A-Za-z0-9_-]{0,100}|\\PC{0,50}", at in 0usize..40, bit in 0u8..8) {
            let seal = Seal::new(&[vec![1; 32]], "a");
            prop_assert_eq!(seal.open("session", &text), None);
            let mut bytes = URL_SAFE_NO_PAD.decode(seal.seal("session", b"hello world").unwrap()).unwrap();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(seal.open("session", &URL_SAFE_NO_PAD.encode(bytes)), None);
        }
    }
}
