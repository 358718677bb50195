//! Strict framing of HTTP/1: a message that two readers could cut at different places is refused before hyper reads it.
//!
//! hyper takes liberties that RFC 9112 allows: with `Transfer-Encoding` it forgets `Content-Length`, it takes a coding before
//! `chunked` for none, a line may end with a bare LF, equal lengths may stand there twice. What hyper hands on is clear again, but
//! a proxy in front of us may have read something else, and taken a part of it for the next request, or the other way round.
//!
//! So the bytes are followed, and no more: where a message begins, and how long its body is. Nothing is held back and nothing is
//! kept but the begin of a line that is cut by a read. The line that is refused gets a zero byte for its end: hyper answers 400
//! and closes. All else that is wrong with a message is hyper's to judge; what it refuses, ends the connection too.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A field that says how long a body is has no reason to be longer, in bytes.
const LINE: usize = 64;

/// Follows the messages of one connection.
#[derive(Debug)]
struct Scanner {
    state: State,
    /// The begin of a line, the rest of which was not there yet; one byte more than what counts.
    line: Vec<u8>,
    /// The last byte of it.
    last: u8,
    length: Option<u64>,
    chunked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before a request; empty lines there are passed over (RFC 9112, 2.2).
    Between,
    Head,
    /// So much of a body is to come, or of a chunk with its end.
    Body(u64),
    Chunk(u64),
    /// Within the line before a chunk: its size so far.
    Size(u64),
    Extension(u64),
    Trailers,
    /// Nothing is looked at: refused, or to be refused by hyper.
    Over,
}

impl Scanner {
    fn new() -> Self {
        Self { state: State::Between, line: Vec::new(), last: 0, length: None, chunked: false }
    }

    /// Looks at the next bytes; makes those invalid that are refused.
    fn scan(&mut self, bytes: &mut [u8]) {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &mut bytes[at..];
            at += match self.state {
                State::Between | State::Head | State::Trailers => self.take_line(rest),
                State::Body(left) => {
                    let taken = most(left, rest);
                    self.state = if left > taken { State::Body(left - taken) } else { State::Between };
                    taken as usize
                }
                State::Chunk(left) => {
                    let taken = most(left, rest);
                    self.state = if left > taken { State::Chunk(left - taken) } else { State::Size(0) };
                    taken as usize
                }
                State::Size(size) => {
                    self.state = size_goes_on(size, &mut rest[0]);
                    1
                }
                State::Extension(size) => match memchr::memchr(b'\n', rest) {
                    // The chunk has a line's end of its own.
                    Some(end) => {
                        self.state = if size == 0 { State::Trailers } else { State::Chunk(size.saturating_add(2)) };
                        end + 1
                    }
                    None => rest.len(),
                },
                State::Over => return,
            };
        }
    }

    /// Takes a line, or the begin of one; returns how many bytes.
    fn take_line(&mut self, rest: &mut [u8]) -> usize {
        let end = memchr::memchr(b'\n', rest);
        // What follows it is for the client alone, and read by others as a part of the target; hyper drops it.
        if self.state == State::Between
            && let Some(hash) = memchr::memchr(b'#', &rest[..end.unwrap_or(rest.len())])
        {
            rest[hash] = 0;
            self.state = State::Over;
            return rest.len();
        }
        let Some(end) = end else {
            self.keep(rest);
            return rest.len();
        };
        let before = if end > 0 { rest[end - 1] } else { self.last };
        let fine = before == b'\r'
            && if self.line.is_empty() {
                self.judge(&rest[..end])
            } else {
                self.keep(&rest[..end]);
                let line = std::mem::take(&mut self.line);
                let fine = self.judge(&line);
                self.line = line;
                fine
            };
        self.line.clear();
        self.last = 0;
        if !fine {
            rest[end] = 0;
            self.state = State::Over;
        }
        end + 1
    }

    fn keep(&mut self, part: &[u8]) {
        let room = (LINE + 1).saturating_sub(self.line.len());
        self.line.extend_from_slice(&part[..part.len().min(room)]);
        self.last = part.last().copied().unwrap_or(self.last);
    }

    /// Whether a line may stand where it does. It ends with a CR, unless it is a long one that was not kept whole.
    fn judge(&mut self, line: &[u8]) -> bool {
        let empty = matches!(line, b"\r");
        match self.state {
            State::Between if empty => true,
            State::Between => {
                (self.state, self.length, self.chunked) = (State::Head, None, false);
                true
            }
            State::Head if empty => {
                self.state = match (self.chunked, self.length) {
                    (true, Some(_)) => return false,
                    (true, None) => State::Size(0),
                    (false, None | Some(0)) => State::Between,
                    (false, Some(length)) => State::Body(length),
                };
                true
            }
            State::Head => self.field(line),
            _ => {
                if empty {
                    self.state = State::Between;
                }
                true
            }
        }
    }

    /// Whether a field of a head is clear about the length of the body, or says nothing of it.
    fn field(&mut self, line: &[u8]) -> bool {
        if let Some(value) = value(line, b"content-length:") {
            let first = self.length.is_none();
            let digits = value.iter().all(u8::is_ascii_digit);
            self.length = std::str::from_utf8(value).ok().filter(|_| digits).and_then(|value| value.parse().ok());
            return first && self.length.is_some() && line.len() <= LINE;
        }
        if let Some(value) = value(line, b"transfer-encoding:") {
            let first = !std::mem::replace(&mut self.chunked, true);
            return first && value.eq_ignore_ascii_case(b"chunked") && line.len() <= LINE;
        }
        true
    }
}

/// How much of `left` there is.
fn most(left: u64, rest: &[u8]) -> u64 {
    left.min(rest.len() as u64)
}

/// What follows the next byte of a chunk's size.
fn size_goes_on(size: u64, byte: &mut u8) -> State {
    match (*byte as char).to_digit(16) {
        Some(digit) => size.checked_mul(16).map_or(State::Over, |size| State::Size(size + u64::from(digit))),
        None if matches!(byte, b'\r' | b';') => State::Extension(size),
        None => {
            *byte = 0;
            State::Over
        }
    }
}

/// The value of the field of that name, which has its colon and is in small letters.
fn value<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (front, value) = line.split_at_checked(name.len())?;
    front.eq_ignore_ascii_case(name).then(|| value.trim_ascii())
}

/// A connection whose bytes are looked at on their way in, until it speaks another protocol.
#[derive(Debug)]
pub(crate) struct Strict<S> {
    stream: S,
    scanner: Scanner,
    tunnel: Arc<AtomicBool>,
}

impl<S> Strict<S> {
    /// `tunnel` is set when what comes is no HTTP any more.
    pub(crate) fn new(stream: S, tunnel: Arc<AtomicBool>) -> Self {
        Self { stream, scanner: Scanner::new(), tunnel }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Strict<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if !self.tunnel.load(Ordering::Relaxed) {
            self.scanner.scan(&mut buffer.filled_mut()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Strict<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What comes out, cut into reads at these places; and where the scanner stands.
    fn scanned(bytes: &[u8], cuts: &[usize]) -> (Vec<u8>, State) {
        let mut bytes = bytes.to_vec();
        let mut scanner = Scanner::new();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).chain([0, bytes.len()]).collect();
        cuts.sort_unstable();
        for pair in cuts.windows(2) {
            scanner.scan(&mut bytes[pair[0]..pair[1]]);
        }
        (bytes, scanner.state)
    }

    const HEAD: &str = "POST / HTTP/1.1\r\nhost: a\r\n";

    #[test]
    fn clear_messages_pass_as_they_are() {
        for (message, state) in [
            ("GET / HTTP/1.1\r\nhost: a\r\n\r\n", State::Between),
            ("\r\n\r\nGET / HTTP/1.0\r\n\r\n", State::Between),
            ("POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello", State::Between),
            ("POST / HTTP/1.1\r\nContent-Length:\t05 \r\n\r\nhel", State::Body(2)),
            ("POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\nGET", State::Between),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: CHUNKED\r\n\r\n3\r\nabc\r\n0\r\n\r\n", State::Between),
            ("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n00A;x=\"y\"\r\n0123456789\r\n", State::Size(0)),
            ("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: y\r\n\r\nGET ", State::Between),
            // What looks like a field of a head in a body is none.
            ("POST / HTTP/1.1\r\ncontent-length: 37\r\n\r\n\ncontent-length: 1\ncontent-length: 2\n", State::Between),
            ("GET / HTTP/1.1\r\nx-content-length: 5\r\ncontent-length-x: 6\r\n\r\n", State::Between),
        ] {
            assert_eq!(scanned(message.as_bytes(), &[]), (message.as_bytes().to_vec(), state), "{message:?}");
        }
    }

    #[test]
    fn what_two_readers_could_cut_differently_is_refused() {
        for more in [
            "\r\nGET /a#b HTTP/1.1\r\nhost: a\r\n\r\n",
            "content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
            "transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n",
            "content-length: 5\r\ncontent-length: 5\r\n\r\n",
            "content-length: 5, 5\r\n\r\n",
            "content-length: +5\r\n\r\n",
            "content-length: 5 5\r\n\r\n",
            "content-length:\r\n\r\n",
            "content-length: 99999999999999999999\r\n\r\n",
            "transfer-encoding: gzip, chunked\r\n\r\n",
            "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n",
            "transfer-encoding: x\r\n\r\n",
            "transfer-encoding:\x0bchunked\r\n\r\n",
            "x: y\n\r\n",
            "x: y\r\n\n",
            "transfer-encoding: chunked\r\n\r\n5 \r\nhello\r\n",
            "transfer-encoding: chunked\r\n\r\n0x5\r\nhello\r\n",
            "transfer-encoding: chunked\r\n\r\n0\r\nx: y\n\r\n",
        ] {
            let message = format!("{HEAD}{more}");
            let (bytes, state) = scanned(message.as_bytes(), &[]);
            assert_eq!(state, State::Over, "{message:?}");
            assert!(bytes.contains(&0), "{message:?}");
        }
        let padded = format!("{HEAD}content-length: {}5\r\n\r\nhello", " ".repeat(LINE));
        assert_eq!(scanned(padded.as_bytes(), &[]).1, State::Over);
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_the_bytes_come(
            lines in prop::collection::vec(
                prop::sample::select(vec![
                    "GET / HTTP/1.1\r\n", "GET /#a HTTP/1.1\r\n", "\r\n", "\n", "content-length: 3\r\n", "Content-Length: 3, 3\r\n", "x: y\r\n", "abc",
                    "transfer-encoding: chunked\r\n", "3\r\nabc\r\n", "0\r\n\r\n", "0;x\r\n", "x: y\n", "\r", " ", "\0",
                    "content-length:                                                                          3\r\n",
                ]),
                0..12,
            ),
            cuts in prop::collection::vec(any::<usize>(), 0..8),
        ) {
            let bytes = lines.concat();
            prop_assert_eq!(scanned(bytes.as_bytes(), &cuts), scanned(bytes.as_bytes(), &[]));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), cuts in prop::collection::vec(any::<usize>(), 0..4)) {
            scanned(&bytes, &cuts);
        }
    }
}
