//! What stands in `Signature-Input` and `Signature`, and the text that is signed (RFC 9421, 2).
//!
//! One signature of a request is read, without parameters of its components. Parsing is that of structured fields (RFC 9651), of
//! which it needs a part: dictionaries, inner lists, strings, integers and byte sequences.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{HOST, HeaderMap, HeaderName};
use http::request::Parts;

use super::{SIGNATURE, SIGNATURE_INPUT};

/// The most that is signed of one request.
const MOST: usize = 32;

/// A signature, not verified.
#[derive(Debug, PartialEq)]
pub(super) struct Signature {
    pub(super) keyid: String,
    pub(super) created: u64,
    pub(super) expires: Option<u64>,
    pub(super) alg: Option<String>,
    pub(super) bytes: Vec<u8>,
    components: Vec<String>,
    /// The inner list with its parameters, as it came.
    params: String,
}

/// Whether it names something of a request: what begins with `@`, or a header.
pub(super) fn is_component(name: &str) -> bool {
    match name {
        "@method" | "@path" | "@query" | "@request-target" | "@authority" => true,
        _ => !name.starts_with('@') && HeaderName::try_from(name).is_ok(),
    }
}

impl Signature {
    /// The one signature of a request.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn read(headers: &HeaderMap) -> Result<Self, &'static str> {
        let input = one(headers, &SIGNATURE_INPUT)?.ok_or("the request is not signed")?;
        let (label, params) = input.split_once('=').ok_or("signature-input is none")?;
        if label.is_empty()
            || !label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-.*".contains(&b))
        {
            return Err("signature-input is none");
        }
        let bytes = one(headers, &SIGNATURE)?.ok_or("the request is not signed")?;
        let bytes = bytes.strip_prefix(label).and_then(|rest| rest.strip_prefix("=:")?.strip_suffix(':'));
        let bytes =
            bytes.and_then(|bytes| STANDARD.decode(bytes).ok()).ok_or("signature is none, or has another label")?;
        let mut text = Text(params);
        let components = text.inner_list().ok_or("what is signed is no list of names")?;
        if components.iter().enumerate().any(|(at, name)| components[..at].contains(name)) {
            return Err("what is signed is named twice");
        }
        let mut signature = Self {
            keyid: String::new(),
            created: 0,
            expires: None,
            alg: None,
            bytes,
            components,
            params: params.to_owned(),
        };
        let (mut keyid, mut created, mut nonce) = (None, None, false);
        while !text.0.is_empty() {
            let (name, value) = text.parameter().ok_or("the parameters of signature-input are none")?;
            match (name, value) {
                ("keyid", Value::String(value)) if keyid.is_none() => keyid = Some(value),
                ("created", Value::Integer(value)) if created.is_none() => created = Some(value),
                ("expires", Value::Integer(value)) if signature.expires.is_none() => signature.expires = Some(value),
                ("alg", Value::String(value)) if signature.alg.is_none() => signature.alg = Some(value),
                ("nonce", Value::String(value)) if !nonce => nonce = !value.is_empty(),
                ("tag", Value::String(_)) => {}
                _ => return Err("a parameter of signature-input is given twice, or not known"),
            }
        }
        if !nonce {
            return Err("the signature has no nonce");
        }
        signature.created = created.ok_or("the signature does not say when it was created")?;
        signature.keyid = keyid.ok_or("the signature does not name its key")?;
        Ok(signature)
    }

    /// Whether something is signed; all of a target is its path and its query too.
    pub(super) fn covers(&self, name: &str) -> bool {
        let has = |name: &str| self.components.iter().any(|own| own == name);
        has(name) || (matches!(name, "@path" | "@query") && has("@request-target"))
    }

    /// The text that is signed.
    ///
    /// # Errors
    /// The request has not what is signed.
    pub(super) fn base(&self, parts: &Parts) -> Result<String, &'static str> {
        let mut base = String::new();
        for name in &self.components {
            let value = component(name, parts).ok_or("something is signed that the request does not have")?;
            let _ = writeln!(base, "\"{name}\": {value}");
        }
        let _ = write!(base, "\"@signature-params\": {}", self.params);
        Ok(base)
    }
}

fn component(name: &str, parts: &Parts) -> Option<String> {
    let uri = &parts.uri;
    Some(match name {
        "@method" => parts.method.to_string(),
        "@path" => uri.path().to_owned(),
        "@query" => format!("?{}", uri.query().unwrap_or_default()),
        "@request-target" => uri.path_and_query()?.to_string(),
        "@authority" => {
            let header = || parts.headers.get(HOST)?.to_str().ok();
            let authority = uri.authority().map(http::uri::Authority::as_str).or_else(header)?.to_ascii_lowercase();
            authority.strip_suffix(":80").unwrap_or(&authority).to_owned()
        }
        _ => {
            let values = parts.headers.get_all(name).iter().map(|value| value.to_str().ok().map(str::trim));
            let values = values.collect::<Option<Vec<_>>>()?;
            if values.is_empty() {
                return None;
            }
            values.join(", ")
        }
    })
}

/// The only value of a header; two would be read differently by others.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, &'static str> {
    let mut values = headers.get_all(name).iter();
    let first = values.next().map(|value| value.to_str().map_err(|_| "a signature is not of ASCII")).transpose()?;
    if values.next().is_some() { Err("there are two signatures") } else { Ok(first.map(str::trim)) }
}

/// What is left to read.
struct Text<'a>(&'a str);

enum Value {
    String(String),
    Integer(u64),
}

impl<'a> Text<'a> {
    fn take(&mut self, what: &str) -> Option<()> {
        self.0 = self.0.strip_prefix(what)?;
        Some(())
    }

    /// `("@method" "content-digest")`
    fn inner_list(&mut self) -> Option<Vec<String>> {
        let mut names = Vec::new();
        self.take("(")?;
        loop {
            self.0 = self.0.trim_start_matches(' ');
            if self.take(")").is_some() {
                return Some(names);
            }
            let name = self.string()?;
            if names.len() == MOST || name != name.to_ascii_lowercase() || !is_component(&name) {
                return None;
            }
            names.push(name);
            if !self.0.starts_with([' ', ')']) {
                return None;
            }
        }
    }

    /// `;created=1618884473`
    fn parameter(&mut self) -> Option<(&'a str, Value)> {
        self.take(";")?;
        self.0 = self.0.trim_start_matches(' ');
        let (name, rest) = self.0.split_once('=')?;
        self.0 = rest;
        if self.0.starts_with('"') {
            return Some((name, Value::String(self.string()?)));
        }
        let end = self.0.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.0.len());
        let (digits, rest) = self.0.split_at(end);
        self.0 = rest;
        if digits.len() > 15 { None } else { Some((name, Value::Integer(digits.parse().ok()?))) }
    }

    fn string(&mut self) -> Option<String> {
        self.take("\"")?;
        let mut text = String::new();
        let mut chars = self.0.char_indices();
        while let Some((at, char)) = chars.next() {
            match char {
                '"' => {
                    self.0 = &self.0[at + 1..];
                    return Some(text);
                }
                '\\' => text.push(chars.next().map(|(_, char)| char).filter(|char| matches!(char, '"' | '\\'))?),
                ' '..='~' => text.push(char),
                _ => return None,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Request};
    use proptest::prelude::*;
    use ring::hmac;

    use super::*;

    fn parts(headers: &[(&str, &str)]) -> Parts {
        let mut request =
            Request::builder().method("POST").uri("/foo?param=Value&Pet=dog").header("host", "Example.com:80");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    /// The example of RFC 9421, B.2.5, whose key is in B.1.5; with a nonce, which we ask for, the signature is ours.
    #[test]
    fn what_is_signed_is_what_the_rfc_says() {
        let input = r#"sig-b25=("date" "@authority" "content-type");created=1618884473;keyid="test-shared-secret""#;
        let headers = [
            ("date", "Tue, 20 Apr 2021 02:07:55 GMT"),
            ("content-type", "application/json"),
            ("signature-input", input),
            ("signature", "sig-b25=:pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8=:"),
        ];
        let request = parts(&headers);
        assert_eq!(Signature::read(&request.headers), Err("the signature has no nonce"));
        let bytes = STANDARD.decode("pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8=").unwrap();
        let signature = Signature {
            keyid: "test-shared-secret".into(),
            created: 1_618_884_473,
            expires: None,
            alg: None,
            bytes,
            components: ["date", "@authority", "content-type"].map(str::to_owned).to_vec(),
            params: input.split_once('=').unwrap().1.to_owned(),
        };
        let secret = "uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ==";
        let key = hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(secret).unwrap());
        let base = signature.base(&request).unwrap();
        assert!(hmac::verify(&key, base.as_bytes(), &signature.bytes).is_ok(), "{base}");
    }

    #[test]
    fn signatures_are_read_or_their_faults_said() {
        let read = |input: &str, bytes: &str| {
            Signature::read(&parts(&[("signature-input", input), ("signature", bytes)]).headers)
        };
        let good = r#"s=("@method" "@path");created=1;nonce="n";keyid="a\"b";alg="hmac-sha256";expires=9"#;
        let signature = read(good, "s=:YWJj:").unwrap();
        assert_eq!((&*signature.keyid, signature.created, signature.expires), ("a\"b", 1, Some(9)));
        assert_eq!(
            (&*signature.bytes, signature.covers("@path"), signature.covers("@query")),
            (&b"abc"[..], true, false)
        );
        let whole = read(r#"s=("@request-target");created=1;nonce="n";keyid="a""#, "s=:YWJj:").unwrap();
        assert!(whole.covers("@path") && whole.covers("@query"));
        for (input, bytes) in [
            (r#"s=("@method");created=1;nonce="n";keyid="a""#, "t=:YWJj:"),
            (r#"s=("@method");created=1;nonce="n";keyid="a""#, "s=:***:"),
            (r#"s=("@method");created=1;nonce="n""#, "s=:YWJj:"),
            (r#"s=("@method");nonce="n";keyid="a""#, "s=:YWJj:"),
            (r#"s=("@method");created=1;nonce="";keyid="a""#, "s=:YWJj:"),
            (r#"s=("@method" "@method");created=1;nonce="n";keyid="a""#, "s=:YWJj:"),
            (r#"s=("@method";req);created=1;nonce="n";keyid="a""#, "s=:YWJj:"),
            (r#"s=("@status");created=1;nonce="n";keyid="a""#, "s=:YWJj:"),
            (r#"s=("Date");created=1;nonce="n";keyid="a""#, "s=:YWJj:"),
            (r#"s=("@method");created=1;created=2;nonce="n";keyid="a""#, "s=:YWJj:"),
            (r#"s=("@method");created=-1;nonce="n";keyid="a""#, "s=:YWJj:"),
            (r#"s=("@method");created=1;nonce="n";keyid="a", t=("@path")"#, "s=:YWJj:"),
            ("s=", "s=:YWJj:"),
            ("", ""),
        ] {
            assert!(read(input, bytes).is_err(), "{input} {bytes}");
        }
        let twice = parts(&[("signature-input", good), ("signature-input", good), ("signature", "s=:YWJj:")]);
        assert_eq!(Signature::read(&twice.headers), Err("there are two signatures"));
    }

    proptest! {
        #[test]
        fn nothing_that_a_client_sends_is_too_much(input in "[ -~]{0,80}", tail in "[a-z=\";() @0-9]{0,60}", bytes in "[ -~]{0,40}") {
            for input in [input.clone(), format!("s=(\"@method\" {tail}"), format!("s=(\"@method\"){tail}")] {
                let mut headers = HeaderMap::new();
                headers.insert(SIGNATURE_INPUT, HeaderValue::try_from(input).unwrap());
                headers.insert(SIGNATURE, HeaderValue::try_from(bytes.clone()).unwrap());
                let _ = Signature::read(&headers);
                headers.insert(SIGNATURE, HeaderValue::from_static("s=:YWJj:"));
                let _ = Signature::read(&headers);
            }
        }
    }
}
