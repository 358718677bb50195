//! Compressing answers on their way, for clients that take it.
//!
//! What the service sends is compressed as it comes. When it pauses, what has been compressed so far is flushed, so that a stream of
//! events reaches its reader at once; while it does not, nothing is flushed, and compresses better.

use std::io::{self, Write};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG,
    HeaderMap, HeaderValue,
};
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use schemars::JsonSchema;
use seawall_proxy::body::BodyError;
use seawall_proxy::filter::{Answering, Filter, Next};
use seawall_proxy::{RequestBody, ResponseBody};
use seawall_types::Size;
use serde::{Deserialize, Serialize};
use zstd::zstd_safe::CParameter;

use super::{FilterError, vary};

/// Which answers are compressed, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CompressConfig {
    /// In which order of preference, among those that the client likes equally well. Default zstd, br, gzip.
    #[serde(default = "algorithms")]
    pub algorithms: Vec<Coding>,
    /// Smaller answers, where their size is known, stay as they are. Default 1 KiB.
    #[serde(default = "min_size")]
    pub min_size: Size,
    /// Which kinds: `text/*`, `application/json`; a kind ending in `+json` or `+xml` is of theirs. Default: text, JSON, XML, JavaScript,
    /// WebAssembly, SVG, and fonts that are not compressed by themselves.
    #[serde(default = "types")]
    pub types: Vec<String>,
}

/// A coding of contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Coding {
    /// RFC 1952.
    Gzip,
    /// Brotli, RFC 7932.
    Br,
    /// Zstandard, RFC 8878.
    Zstd,
}

fn algorithms() -> Vec<Coding> {
    vec![Coding::Zstd, Coding::Br, Coding::Gzip]
}

const fn min_size() -> Size {
    Size::bytes(1 << 10)
}

fn types() -> Vec<String> {
    [
        "text/*",
        "application/json",
        "application/xml",
        "application/javascript",
        "application/wasm",
        "image/svg+xml",
        "image/bmp",
        "font/ttf",
        "font/otf",
    ]
    .map(str::to_owned)
    .into()
}

impl Coding {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Br => "br",
            Self::Zstd => "zstd",
        }
    }
}

#[derive(Debug)]
pub(crate) struct Compress {
    algorithms: Vec<Coding>,
    min_size: u64,
    types: Vec<String>,
}

impl Compress {
    pub(crate) fn try_new(config: &CompressConfig) -> Result<Self, FilterError> {
        if config.algorithms.is_empty() {
            return Err(FilterError("`algorithms` is empty: leave it out, or name gzip, br or zstd".to_owned()));
        }
        for kind in &config.types {
            let halves = kind.split_once('/').is_some_and(|(front, back)| !front.is_empty() && !back.is_empty());
            if !halves || kind.contains([' ', ';']) {
                return Err(FilterError(format!("`{kind}` is no kind of content such as text/* or application/json")));
            }
        }
        let types = config.types.iter().map(|kind| kind.to_ascii_lowercase()).collect();
        Ok(Self { algorithms: config.algorithms.clone(), min_size: config.min_size.get(), types })
    }

    /// Whether the answer is one to compress for anybody who takes it.
    fn suits(&self, response: &Response<ResponseBody>) -> bool {
        let headers = response.headers();
        let bodiless = matches!(
            response.status(),
            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED | StatusCode::PARTIAL_CONTENT | StatusCode::RESET_CONTENT
        );
        // A digest is of the bytes as they are; a range too.
        let exact = [
            CONTENT_ENCODING.as_str(),
            CONTENT_RANGE.as_str(),
            "content-digest",
            "repr-digest",
            "digest",
            "content-md5",
        ];
        let fixed = headers
            .get_all(CACHE_CONTROL)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.split(',').any(|directive| directive.trim().eq_ignore_ascii_case("no-transform")));
        let length = response.body().size_hint();
        let small = length.exact().is_some_and(|length| length < self.min_size);
        let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        !bodiless && !exact.iter().any(|name| headers.contains_key(*name)) && !fixed && !small && self.takes(kind)
    }

    fn takes(&self, kind: &str) -> bool {
        let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let suffix = kind.rsplit_once('+').map(|(_, suffix)| format!("application/{suffix}"));
        self.types.iter().any(|own| match own.strip_suffix('*') {
            Some(front) => kind.starts_with(front),
            None => *own == kind || suffix.as_ref().is_some_and(|suffix| own == suffix),
        })
    }
}

/// The coding that the client likes best, by its weights; among those of the same weight the first of ours (RFC 9110, 12.5.3).
fn choose(headers: &HeaderMap, ours: &[Coding]) -> Option<Coding> {
    let mut wanted: Vec<(String, u16)> = Vec::new();
    for value in headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok()) {
        for part in value.split(',') {
            let mut words = part.split(';').map(str::trim);
            let coding = words.next().unwrap_or_default().to_ascii_lowercase();
            let weight = words.find_map(|word| word.strip_prefix("q=").or_else(|| word.strip_prefix("Q=")));
            // What cannot be read is not wanted.
            let weight = weight.map_or(Some(1.0), |weight| weight.trim().parse::<f32>().ok()).unwrap_or(0.0);
            wanted.push((coding, (weight.clamp(0.0, 1.0) * 1000.0) as u16));
        }
    }
    let weight = |coding: &str| {
        let named = wanted.iter().find(|(own, _)| own == coding || (coding == "gzip" && own == "x-gzip"));
        named.or_else(|| wanted.iter().find(|(own, _)| own == "*")).map(|(_, weight)| *weight)
    };
    // Unless it is named, the plain answer is always welcome, and never better than one that is asked for.
    let plain = wanted.iter().find(|(own, _)| own == "identity").map_or(0, |(_, weight)| *weight);
    let mut best = None;
    for algorithm in ours {
        let weight = weight(algorithm.as_str()).unwrap_or(0);
        if weight > 0 && weight >= plain && best.is_none_or(|(_, before)| weight > before) {
            best = Some((*algorithm, weight));
        }
    }
    best.map(|(algorithm, _)| algorithm)
}

impl Filter for Compress {
    fn call<'a>(&'a self, request: Request<RequestBody>, next: Next<'a>) -> Answering<'a> {
        Box::pin(async move {
            let algorithm = choose(request.headers(), &self.algorithms);
            let head = request.method() == Method::HEAD;
            let mut response = next.run(request).await;
            if !self.suits(&response) {
                return response;
            }
            // Others, who take it or not, get another answer, even where this one stays as it is.
            vary(response.headers_mut(), "accept-encoding");
            let Some(algorithm) = algorithm.filter(|_| !head) else { return response };
            let headers = response.headers_mut();
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static(algorithm.as_str()));
            headers.remove(CONTENT_LENGTH);
            headers.remove(ACCEPT_RANGES);
            if let Some(tag) = headers.get(ETAG).filter(|tag| !tag.as_bytes().starts_with(b"W/")) {
                // Not byte for byte the same.
                let weak = HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat());
                drop(weak.map(|weak| headers.insert(ETAG, weak)));
            }
            response.map(|body| match Encoder::new(algorithm) {
                Ok(encoder) => {
                    ResponseBody::made(Compressed { body, encoder: Some(encoder), dirty: false, trailers: None })
                }
                Err(error) => ResponseBody::made(Broken(Some(error))),
            })
        })
    }
}

/// A body that could not even begin.
struct Broken(Option<io::Error>);

impl Body for Broken {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Ready(self.0.take().map(|error| Err(BodyError::Filter(error.into()))))
    }
}

/// A compressor into a buffer of its own.
enum Encoder {
    Gzip(flate2::write::GzEncoder<Vec<u8>>),
    Br(Box<brotli::CompressorWriter<Vec<u8>>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

impl Encoder {
    /// Of levels and windows that hold less than half a MiB, since a stream of events holds it for as long as it lasts. On text that
    /// costs some 2% of what the usual ones save.
    fn new(algorithm: Coding) -> io::Result<Self> {
        Ok(match algorithm {
            Coding::Gzip => Self::Gzip(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(5))),
            Coding::Br => Self::Br(Box::new(brotli::CompressorWriter::new(Vec::new(), 4096, 3, 16))),
            Coding::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3)?;
                encoder.window_log(17)?;
                encoder.set_parameter(CParameter::HashLog(15))?;
                encoder.set_parameter(CParameter::ChainLog(14))?;
                Self::Zstd(encoder)
            }
        })
    }

    fn writer(&mut self) -> &mut dyn Write {
        match self {
            Self::Gzip(encoder) => encoder,
            Self::Br(encoder) => encoder,
            Self::Zstd(encoder) => encoder,
        }
    }

    /// What has been compressed and not been taken yet.
    fn take(&mut self) -> Bytes {
        let buffer = match self {
            Self::Gzip(encoder) => encoder.get_mut(),
            Self::Br(encoder) => encoder.get_mut(),
            Self::Zstd(encoder) => encoder.get_mut(),
        };
        std::mem::take(buffer).into()
    }

    fn finish(self) -> io::Result<Bytes> {
        Ok(match self {
            Self::Gzip(encoder) => encoder.finish()?.into(),
            Self::Br(encoder) => encoder.into_inner().into(),
            Self::Zstd(encoder) => encoder.finish()?.into(),
        })
    }
}

/// A body that is compressed as it comes.
struct Compressed {
    body: ResponseBody,
    /// Until the end.
    encoder: Option<Encoder>,
    /// Something has been written since the last flush.
    dirty: bool,
    trailers: Option<Frame<Bytes>>,
}

impl Compressed {
    fn write(&mut self, data: &[u8]) -> io::Result<Bytes> {
        let Some(encoder) = &mut self.encoder else { return Ok(Bytes::new()) };
        encoder.writer().write_all(data)?;
        self.dirty = true;
        Ok(encoder.take())
    }

    fn flush(&mut self) -> io::Result<Bytes> {
        let Some(encoder) = &mut self.encoder else { return Ok(Bytes::new()) };
        encoder.writer().flush()?;
        self.dirty = false;
        Ok(encoder.take())
    }
}

impl Body for Compressed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        loop {
            if this.encoder.is_none() {
                return Poll::Ready(this.trailers.take().map(Ok));
            }
            let made = match Pin::new(&mut this.body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => this.write(&data),
                    Err(trailers) => {
                        this.trailers = Some(trailers);
                        end(&mut this.encoder)
                    }
                },
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(None) => end(&mut this.encoder),
                Poll::Pending if this.dirty => this.flush(),
                Poll::Pending => return Poll::Pending,
            };
            match made {
                Ok(made) if made.is_empty() => {}
                Ok(made) => return Poll::Ready(Some(Ok(Frame::data(made)))),
                Err(error) => return Poll::Ready(Some(Err(BodyError::Filter(error.into())))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.encoder.is_none() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

fn end(encoder: &mut Option<Encoder>) -> io::Result<Bytes> {
    encoder.take().map_or_else(|| Ok(Bytes::new()), Encoder::finish)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;

    use super::*;

    fn plain(algorithm: Coding, bytes: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        let read = match algorithm {
            Coding::Gzip => flate2::read::GzDecoder::new(bytes).read_to_end(&mut plain),
            Coding::Br => brotli::Decompressor::new(bytes, 4096).read_to_end(&mut plain),
            Coding::Zstd => zstd::stream::read::Decoder::new(bytes).unwrap().read_to_end(&mut plain),
        };
        // What has no end yet is read as far as it goes.
        let _ = read;
        plain
    }

    fn compressed(algorithm: Coding) -> Compressed {
        let encoder = Some(Encoder::new(algorithm).unwrap());
        Compressed { body: ResponseBody::whole(""), encoder, dirty: false, trailers: None }
    }

    #[test]
    fn what_has_been_flushed_can_be_read() {
        for algorithm in algorithms() {
            let mut body = compressed(algorithm);
            let mut sent = body.write(b"data: 1\n\n").unwrap().to_vec();
            sent.extend(body.flush().unwrap());
            assert_eq!(plain(algorithm, &sent), b"data: 1\n\n", "{algorithm:?}");
            sent.extend(body.write(b"data: 2\n\n").unwrap());
            sent.extend(end(&mut body.encoder).unwrap());
            assert_eq!(plain(algorithm, &sent), b"data: 1\n\ndata: 2\n\n", "{algorithm:?}");
        }
    }

    proptest! {
        #[test]
        fn it_comes_out_as_it_went_in(pieces: Vec<(Vec<u8>, bool)>) {
            for algorithm in algorithms() {
                let mut body = compressed(algorithm);
                let mut sent = Vec::new();
                for (piece, flush) in &pieces {
                    sent.extend(body.write(piece).unwrap());
                    if *flush {
                        sent.extend(body.flush().unwrap());
                    }
                }
                sent.extend(end(&mut body.encoder).unwrap());
                let whole: Vec<u8> = pieces.iter().flat_map(|(piece, _)| piece.clone()).collect();
                prop_assert_eq!(plain(algorithm, &sent), whole);
            }
        }
    }

    #[test]
    fn the_client_chooses() {
        let ours = algorithms();
        for (accepts, chosen) in [
            (&["gzip, deflate, br, zstd"][..], Some(Coding::Zstd)),
            (&["gzip;q=1.0, br;q=0.5, *;q=0"], Some(Coding::Gzip)),
            (&["gzip", "BR"], Some(Coding::Br)),
            (&["*"], Some(Coding::Zstd)),
            (&["*, zstd;q=0"], Some(Coding::Br)),
            (&["identity, gzip;q=0.5"], None),
            (&["identity;q=0.5, gzip"], Some(Coding::Gzip)),
            (&["gzip;q=0"], None),
            (&["gzip;q=x"], None),
            (&["x-gzip"], Some(Coding::Gzip)),
            (&["deflate"], None),
            (&[""], None),
            (&[], None),
        ] {
            let mut headers = HeaderMap::new();
            for value in accepts {
                headers.append(ACCEPT_ENCODING, value.parse().unwrap());
            }
            assert_eq!(choose(&headers, &ours), chosen, "{accepts:?}");
        }
    }

    #[test]
    fn some_answers_stay_as_they_are() {
        let compress = Compress::try_new(&serde_json::from_str("{}").unwrap()).unwrap();
        let response = |status: u16, fields: &[(&str, &str)], size: usize| {
            let mut response = Response::builder().status(status);
            for (name, value) in fields {
                response = response.header(*name, *value);
            }
            response.body(ResponseBody::whole("a".repeat(size))).unwrap()
        };
        let json = ("content-type", "application/json; charset=utf-8");
        for (status, fields, size, suits) in [
            (200, &[json][..], 2000, true),
            (404, &[json], 2000, true),
            (200, &[("content-type", "application/problem+json")], 2000, true),
            (200, &[("content-type", "TEXT/html")], 2000, true),
            (200, &[("content-type", "image/png")], 2000, false),
            (200, &[], 2000, false),
            (200, &[json], 1000, false),
            (206, &[json], 2000, false),
            (304, &[json], 2000, false),
            (200, &[json, ("content-encoding", "br")], 2000, false),
            (200, &[json, ("cache-control", "public, No-Transform")], 2000, false),
            (200, &[json, ("content-digest", "sha-256=:a:")], 2000, false),
        ] {
            assert_eq!(compress.suits(&response(status, fields, size)), suits, "{status} {fields:?} {size}");
        }
        for json in [r#"{"algorithms": []}"#, r#"{"types": ["json"]}"#] {
            assert!(Compress::try_new(&serde_json::from_str(json).unwrap()).is_err(), "{json}");
        }
    }
}
