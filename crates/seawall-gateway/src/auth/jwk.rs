//! Keys that verify signatures: JSON Web Keys (RFC 7517), and what each may be used for.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::{hmac, signature};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The most keys of a set that are looked at.
const MOST: usize = 100;

/// How a token may be signed. There is no `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Algorithm {
    /// HMAC with SHA-256.
    HS256,
    /// HMAC with SHA-384.
    HS384,
    /// HMAC with SHA-512.
    HS512,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    RS256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    RS384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    RS512,
    /// RSASSA-PSS with SHA-256.
    PS256,
    /// RSASSA-PSS with SHA-384.
    PS384,
    /// RSASSA-PSS with SHA-512.
    PS512,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// ECDSA on P-384 with SHA-384.
    ES384,
    /// Ed25519.
    EdDSA,
}

impl Algorithm {
    const ALL: [(&'static str, Self); 13] = [
        ("HS256", Self::HS256),
        ("HS384", Self::HS384),
        ("HS512", Self::HS512),
        ("RS256", Self::RS256),
        ("RS384", Self::RS384),
        ("RS512", Self::RS512),
        ("PS256", Self::PS256),
        ("PS384", Self::PS384),
        ("PS512", Self::PS512),
        ("ES256", Self::ES256),
        ("ES384", Self::ES384),
        ("EdDSA", Self::EdDSA),
        // RFC 9864.
        ("Ed25519", Self::EdDSA),
    ];

    /// By its name in a header.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(own, _)| *own == name).map(|(_, algorithm)| *algorithm)
    }

    /// Whether it needs a secret that both sides have.
    pub(crate) const fn is_symmetric(self) -> bool {
        matches!(self, Self::HS256 | Self::HS384 | Self::HS512)
    }

    const fn hmac(self) -> Option<hmac::Algorithm> {
        match self {
            Self::HS256 => Some(hmac::HMAC_SHA256),
            Self::HS384 => Some(hmac::HMAC_SHA384),
            Self::HS512 => Some(hmac::HMAC_SHA512),
            _ => None,
        }
    }

    const fn rsa(self) -> Option<&'static signature::RsaParameters> {
        match self {
            Self::RS256 => Some(&signature::RSA_PKCS1_2048_8192_SHA256),
            Self::RS384 => Some(&signature::RSA_PKCS1_2048_8192_SHA384),
            Self::RS512 => Some(&signature::RSA_PKCS1_2048_8192_SHA512),
            Self::PS256 => Some(&signature::RSA_PSS_2048_8192_SHA256),
            Self::PS384 => Some(&signature::RSA_PSS_2048_8192_SHA384),
            Self::PS512 => Some(&signature::RSA_PSS_2048_8192_SHA512),
            _ => None,
        }
    }
}

/// One key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Key {
    kid: Option<String>,
    /// What the key says that it is for.
    alg: Option<Algorithm>,
    material: Material,
}

#[derive(Clone, PartialEq)]
enum Material {
    Secret(Vec<u8>),
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

impl std::fmt::Debug for Material {
    /// A secret is not for logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Secret(_) => "Secret",
            Self::Rsa { .. } => "Rsa",
            Self::P256(_) => "P256",
            Self::P384(_) => "P384",
            Self::Ed25519(_) => "Ed25519",
        })
    }
}

/// The keys of one issuer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct KeySet(Vec<Key>);

/// The members of a JWK that are looked at.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    k: Option<String>,
}

impl Key {
    /// A key that others must not know.
    pub(crate) fn secret(secret: &[u8]) -> Self {
        Self { kid: None, alg: None, material: Material::Secret(secret.to_vec()) }
    }

    /// # Errors
    /// Why it can verify nothing here.
    fn try_new(jwk: Jwk) -> Result<Self, &'static str> {
        if jwk.usage.as_deref().is_some_and(|usage| usage != "sig") {
            return Err("it is not for signatures");
        }
        if jwk.key_ops.is_some_and(|ops| !ops.iter().any(|op| op == "verify")) {
            return Err("it is not for verifying");
        }
        let part = |part: Option<String>| {
            let bytes = part.and_then(|text| URL_SAFE_NO_PAD.decode(text).ok()).filter(|bytes| !bytes.is_empty());
            bytes.ok_or("a part of it is missing or not base64url")
        };
        let point = |size: usize| {
            let (x, y) = (part(jwk.x.clone())?, part(jwk.y.clone())?);
            if x.len() != size || y.len() != size {
                return Err("its point is not of its curve");
            }
            Ok([&[4], &*x, &*y].concat())
        };
        let material = match (&*jwk.kty, jwk.crv.as_deref()) {
            ("RSA", _) => Material::Rsa { n: number(part(jwk.n)?), e: number(part(jwk.e)?) },
            ("EC", Some("P-256")) => Material::P256(point(32)?),
            ("EC", Some("P-384")) => Material::P384(point(48)?),
            ("OKP", Some("Ed25519")) => Material::Ed25519(part(jwk.x)?),
            ("oct", _) => Material::Secret(part(jwk.k)?),
            _ => return Err("its type or curve is not known here"),
        };
        let alg = match jwk.alg.as_deref() {
            None => None,
            Some(name) => Some(Algorithm::named(name).ok_or("its algorithm is not known here")?),
        };
        let key = Self { kid: jwk.kid, alg, material };
        match alg {
            Some(alg) if !key.fits(alg) => Err("its algorithm is not one of its type, or its secret is too short"),
            _ => Ok(key),
        }
    }

    /// Whether the material is of the kind that the algorithm needs. A secret has at least as many bits as the hash (RFC 7518,
    /// 3.2).
    fn fits(&self, alg: Algorithm) -> bool {
        match &self.material {
            Material::Secret(secret) => {
                alg.hmac().is_some_and(|hmac| secret.len() >= hmac.digest_algorithm().output_len())
            }
            Material::Rsa { .. } => alg.rsa().is_some(),
            Material::P256(_) => alg == Algorithm::ES256,
            Material::P384(_) => alg == Algorithm::ES384,
            Material::Ed25519(_) => alg == Algorithm::EdDSA,
        }
    }

    /// The algorithm that the key is for, if it is for one alone.
    fn own(&self) -> Option<Algorithm> {
        self.alg.or(match self.material {
            Material::P256(_) => Some(Algorithm::ES256),
            Material::P384(_) => Some(Algorithm::ES384),
            Material::Ed25519(_) => Some(Algorithm::EdDSA),
            Material::Secret(_) | Material::Rsa { .. } => None,
        })
    }

    /// Whether a token that names `alg` may be verified by it, where only `allowed` may be used: what the key itself says
    /// always holds, and nothing is allowed that neither says.
    pub(crate) fn is_for(&self, alg: Algorithm, allowed: &[Algorithm]) -> bool {
        let listed = if allowed.is_empty() { self.own() == Some(alg) } else { allowed.contains(&alg) };
        listed && self.fits(alg) && self.alg.is_none_or(|own| own == alg)
    }

    /// Whether `signature` is that of `message`.
    pub(crate) fn verifies(&self, alg: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        let by = |algorithm: &'static dyn signature::VerificationAlgorithm, key: &[u8]| {
            signature::UnparsedPublicKey::new(algorithm, key).verify(message, signature).is_ok()
        };
        match &self.material {
            Material::Secret(secret) => alg.hmac().is_some_and(|algorithm| {
                let key = hmac::Key::new(algorithm, secret);
                hmac::verify(&key, message, signature).is_ok()
            }),
            Material::Rsa { n, e } => alg.rsa().is_some_and(|parameters| {
                let key = signature::RsaPublicKeyComponents { n, e };
                key.verify(parameters, message, signature).is_ok()
            }),
            Material::P256(point) => by(&signature::ECDSA_P256_SHA256_FIXED, point),
            Material::P384(point) => by(&signature::ECDSA_P384_SHA384_FIXED, point),
            Material::Ed25519(key) => by(&signature::ED25519, key),
        }
    }
}

impl KeySet {
    /// One key alone.
    pub(crate) fn of(key: Key) -> Self {
        Self(vec![key])
    }

    /// Reads a set: `{"keys": [...]}`. Keys that can verify nothing here are passed over; secrets are, unless `secrets` are
    /// allowed, for whatever everybody can fetch is none.
    ///
    /// # Errors
    /// It is no set, or none of its keys can be used.
    pub(crate) fn parse(text: &[u8], secrets: bool) -> Result<Self, String> {
        let set: Value = serde_json::from_slice(text).map_err(|error| format!("not JSON: {error}"))?;
        let keys = set.get("keys").and_then(Value::as_array).ok_or("no key set: it has no list `keys`")?;
        let mut usable = Vec::new();
        let mut why = "it is empty".to_owned();
        for (at, jwk) in keys.iter().take(MOST).enumerate() {
            let key = serde_json::from_value::<Jwk>(jwk.clone()).map_err(|error| error.to_string());
            match key.and_then(|jwk| Key::try_new(jwk).map_err(str::to_owned)) {
                Ok(Key { material: Material::Secret(_), .. }) if !secrets => {
                    why = format!("key {at}: a secret is not to be fetched from where others can");
                }
                Ok(key) => usable.push(key),
                Err(error) => why = format!("key {at}: {error}"),
            }
        }
        if usable.is_empty() { Err(format!("no key of the set can be used: {why}")) } else { Ok(Self(usable)) }
    }

    /// The keys that may have signed what names `kid`, or names none. A key without a name may be any.
    pub(crate) fn candidates<'a>(&'a self, kid: Option<&'a str>) -> impl Iterator<Item = &'a Key> {
        self.0.iter().filter(move |key| match (kid, &key.kid) {
            (Some(kid), Some(own)) => kid == own,
            _ => true,
        })
    }
}

/// Without the zeros in front, which some write.
fn number(bytes: Vec<u8>) -> Vec<u8> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes[zeros..].to_vec()
}
