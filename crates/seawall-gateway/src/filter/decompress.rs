//! Decompressing requests on their way, for services that cannot: bounded, since a small body may become a very large one.

use std::io::{self, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, HeaderValue};
use http::{Request, StatusCode};
use http_body::{Body, Frame, SizeHint};
use schemars::JsonSchema;
use seawall_proxy::RequestBody;
use seawall_proxy::body::BodyError;
use seawall_proxy::filter::{Answering, Filter, Next};
use seawall_types::Size;
use serde::{Deserialize, Serialize};

use super::{FilterError, refused};

/// How far requests are decompressed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DecompressConfig {
    /// What a body may become; a larger one is answered with 413. Default 10 MiB.
    #[serde(default = "limit")]
    pub limit: Size,
}

const fn limit() -> Size {
    Size::bytes(10 << 20)
}

#[derive(Debug)]
pub(crate) struct Decompress {
    limit: u64,
}

impl Decompress {
    pub(crate) fn try_new(config: &DecompressConfig) -> Result<Self, FilterError> {
        match config.limit.get() {
            0 => Err(FilterError("`limit` is 0: nothing would ever pass".to_owned())),
            limit => Ok(Self { limit }),
        }
    }
}

/// What is wrong with a body, beside what its own error says.
#[derive(Clone, Copy)]
enum Wrong {
    Nothing,
    TooLarge,
    Garbage,
}

impl Filter for Decompress {
    fn call<'a>(&'a self, mut request: Request<RequestBody>, next: Next<'a>) -> Answering<'a> {
        Box::pin(async move {
            let codings: Vec<_> = request.headers().get_all(CONTENT_ENCODING).iter().cloned().collect();
            let coding = match &codings[..] {
                [] => return next.run(request).await,
                _ if request.body().is_end_stream() => return next.run(request).await,
                [one] => one.to_str().unwrap_or_default().trim().to_ascii_lowercase(),
                // One within the other.
                _ => "several codings".to_owned(),
            };
            if coding == "identity" {
                return next.run(request).await;
            }
            let sink = Sink { made: Vec::new(), left: self.limit };
            let decoder = match &*coding {
                "gzip" | "x-gzip" => Decoder::Gzip(Box::new(flate2::write::MultiGzDecoder::new(sink))),
                "br" => Decoder::Br(Box::new(brotli::DecompressorWriter::new(sink, 4096))),
                "zstd" => match zstd(sink) {
                    Ok(decoder) => decoder,
                    Err(error) => return refused(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
                },
                _ => {
                    let detail = format!("the body's coding, {}, is none of gzip, br and zstd", coding.escape_debug());
                    let mut response = refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, &detail);
                    response.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip, br, zstd"));
                    return response;
                }
            };
            request.headers_mut().remove(CONTENT_ENCODING);
            request.headers_mut().remove(CONTENT_LENGTH);
            let wrong = Arc::new(AtomicU8::new(Wrong::Nothing as u8));
            let request = request.map(|body| {
                let plain = Plain { body, decoder: Some(decoder), wrong: wrong.clone() };
                RequestBody::Made(Box::pin(plain))
            });
            let response = next.run(request).await;
            let wrong = wrong.load(Ordering::Relaxed);
            if wrong == Wrong::TooLarge as u8 {
                let detail = format!("the body is larger than {} when it is decompressed", Size::bytes(self.limit));
                return refused(StatusCode::PAYLOAD_TOO_LARGE, &detail);
            }
            if wrong == Wrong::Garbage as u8 {
                return refused(StatusCode::BAD_REQUEST, &format!("the body is not what its coding, {coding}, says"));
            }
            response
        })
    }
}

/// Windows above 8 MiB are nothing that a client has to send (RFC 9659).
fn zstd(sink: Sink) -> io::Result<Decoder> {
    let mut decoder = zstd::stream::raw::Decoder::new()?;
    decoder.set_parameter(zstd::stream::raw::DParameter::WindowLogMax(23))?;
    Ok(Decoder::Zstd(Box::new(zstd::stream::zio::Writer::new(sink, decoder))))
}

enum Decoder {
    Gzip(Box<flate2::write::MultiGzDecoder<Sink>>),
    Br(Box<brotli::DecompressorWriter<Sink>>),
    Zstd(Box<zstd::stream::zio::Writer<Sink, zstd::stream::raw::Decoder<'static>>>),
}

/// Takes so much, and then no more.
struct Sink {
    made: Vec<u8>,
    left: u64,
}

const FULL: io::ErrorKind = io::ErrorKind::QuotaExceeded;

impl Write for Sink {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.left = self.left.checked_sub(data.len() as u64).ok_or(FULL)?;
        self.made.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Decoder {
    fn write(&mut self, data: &[u8]) -> io::Result<Bytes> {
        let sink = match self {
            Self::Gzip(decoder) => {
                decoder.write_all(data)?;
                decoder.flush()?;
                decoder.get_mut()
            }
            Self::Br(decoder) => {
                decoder.write_all(data)?;
                decoder.get_mut()
            }
            Self::Zstd(decoder) => {
                decoder.write_all(data)?;
                decoder.flush()?;
                decoder.writer_mut()
            }
        };
        Ok(std::mem::take(&mut sink.made).into())
    }

    /// What is left; an error where the end is missing.
    fn end(self) -> io::Result<Bytes> {
        let sink = match self {
            Self::Gzip(decoder) => decoder.finish()?,
            Self::Br(decoder) => decoder.into_inner().map_err(|_| io::ErrorKind::UnexpectedEof)?,
            Self::Zstd(mut decoder) => {
                decoder.finish()?;
                decoder.into_inner().0
            }
        };
        Ok(sink.made.into())
    }
}

/// A body that is decompressed as it comes.
struct Plain {
    body: RequestBody,
    /// Until the end.
    decoder: Option<Decoder>,
    wrong: Arc<AtomicU8>,
}

impl Body for Plain {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        loop {
            let Some(decoder) = &mut this.decoder else { return Poll::Ready(None) };
            let made = match ready!(Pin::new(&mut this.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => decoder.write(&data),
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => this.decoder.take().map_or_else(|| Ok(Bytes::new()), Decoder::end),
            };
            match made {
                Ok(made) if made.is_empty() => {}
                Ok(made) => return Poll::Ready(Some(Ok(Frame::data(made)))),
                Err(error) => {
                    let wrong = if error.kind() == FULL { Wrong::TooLarge } else { Wrong::Garbage };
                    this.wrong.store(wrong as u8, Ordering::Relaxed);
                    this.decoder = None;
                    return Poll::Ready(Some(Err(BodyError::Filter(error.into()))));
                }
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoders(limit: u64) -> [(Decoder, Vec<u8>); 3] {
        let sink = || Sink { made: Vec::new(), left: limit };
        let zeros = vec![0; 1 << 20];
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(&zeros).unwrap();
        let mut br = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 20);
        br.write_all(&zeros).unwrap();
        [
            (Decoder::Gzip(Box::new(flate2::write::MultiGzDecoder::new(sink()))), gzip.finish().unwrap()),
            (Decoder::Br(Box::new(brotli::DecompressorWriter::new(sink(), 4096))), br.into_inner()),
            (zstd(sink()).unwrap(), zstd::encode_all(&zeros[..], 3).unwrap()),
        ]
    }

    #[test]
    fn all_comes_out_and_a_bomb_does_not_go_off() {
        for (mut decoder, bytes) in decoders(1 << 20) {
            let mut made = 0;
            for piece in bytes.chunks(100) {
                made += decoder.write(piece).unwrap().len();
            }
            assert_eq!(made + decoder.end().unwrap().len(), 1 << 20);
        }
        for (mut decoder, bytes) in decoders((1 << 20) - 1) {
            let wrong = decoder.write(&bytes).and_then(|_| decoder.end());
            assert_eq!(wrong.unwrap_err().kind(), FULL);
        }
    }

    #[test]
    fn garbage_is_said_to_be_some() {
        for (mut decoder, _) in decoders(1 << 20) {
            assert!(decoder.write(b"this is no compressed body at all").and_then(|_| decoder.end()).is_err());
        }
        for (mut decoder, bytes) in decoders(1 << 20) {
            let cut = decoder.write(&bytes[..bytes.len() / 2]).and_then(|_| decoder.end());
            assert!(cut.is_err(), "its end is missing");
        }
    }
}
