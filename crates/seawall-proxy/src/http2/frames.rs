//! Frames of HTTP/2 that serve nothing: PING, SETTINGS, PRIORITY, unknown ones, and DATA without any. Each is allowed and costs
//! little, and a client that sends them to no end keeps a worker busy. So a connection has so many of them at once, so many a
//! second, and more where something is passed on: clients measure their way with a PING now and then as data comes and goes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// How many a connection may send at once, and how many a second in the long run.
const BURST: u64 = 5000;
const RATE: u64 = 500;
/// For so many bytes of bodies or answers it may send one more.
const BYTES: u64 = 1024;
/// What a connection begins with (RFC 9113, 3.4), in bytes.
const PREFACE: usize = 24;
const HEAD: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;

/// Counts the frames of one connection.
#[derive(Debug)]
struct Frames {
    /// Bytes of a payload that are still to come.
    rest: usize,
    head: [u8; HEAD],
    filled: usize,
    left: u64,
    bytes: u64,
    since: Instant,
}

impl Frames {
    fn new(now: Instant) -> Self {
        Self { rest: PREFACE, head: [0; HEAD], filled: 0, left: BURST, bytes: 0, since: now }
    }

    /// Whether the next bytes stay within bounds.
    fn read(&mut self, mut bytes: &[u8]) -> bool {
        let mut within = true;
        while !bytes.is_empty() {
            let skipped = self.rest.min(bytes.len());
            self.rest -= skipped;
            bytes = &bytes[skipped..];
            let taken = (HEAD - self.filled).min(bytes.len());
            self.head[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
            if self.filled == HEAD {
                self.filled = 0;
                let [a, b, c, kind, flags, ..] = self.head;
                self.rest = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                within &= self.begins(kind, flags);
            }
        }
        within
    }

    fn begins(&mut self, kind: u8, flags: u8) -> bool {
        match kind {
            HEADERS => self.left = (self.left + 1).min(BURST),
            DATA if self.rest > 0 => self.passed(self.rest),
            DATA if flags & END_STREAM != 0 => {}
            DATA | PRIORITY | SETTINGS | PING => return self.spend(),
            kind if kind > CONTINUATION => return self.spend(),
            // Windows, resets and header blocks have bounds of their own.
            _ => {}
        }
        true
    }

    /// So many bytes that are of use have passed, in either direction.
    fn passed(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        self.left = (self.left + self.bytes / BYTES).min(BURST);
        self.bytes %= BYTES;
    }

    fn spend(&mut self) -> bool {
        if self.left == 0 {
            let now = Instant::now();
            let earned = now.saturating_duration_since(self.since).as_millis() * u128::from(RATE) / 1000;
            self.left = u64::try_from(earned).unwrap_or(BURST).min(BURST);
            self.since = now;
        }
        let within = self.left > 0;
        self.left = self.left.saturating_sub(1);
        within
    }
}

/// A connection that breaks when too many such frames come.
#[derive(Debug)]
pub(crate) struct Bounded<S> {
    stream: S,
    frames: Frames,
}

impl<S> Bounded<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, frames: Frames::new(Instant::now()) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if self.frames.read(&buffer.filled()[before..]) {
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(Err(io::Error::other("frames that serve nothing, without end")))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        self.frames.passed(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, slices))?;
        self.frames.passed(written);
        Poll::Ready(Ok(written))
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
    use std::time::Duration;

    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = payload.len() as u32;
        let head = [&length.to_be_bytes()[1..], &[kind, flags], &1_u32.to_be_bytes()].concat();
        [&head, payload].concat()
    }

    /// A connection that has begun.
    fn begun() -> Frames {
        let mut frames = Frames::new(Instant::now());
        assert!(frames.read(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"));
        frames
    }

    fn sent(frames: &mut Frames, frame: &[u8]) -> u64 {
        (0..BURST * 2).take_while(|_| frames.read(frame)).count() as u64
    }

    #[tokio::test(start_paused = true)]
    async fn frames_that_serve_nothing_are_bounded() {
        for useless in [
            frame(PING, 0, &[0; 8]),
            frame(SETTINGS, 0, &[]),
            frame(PRIORITY, 0, &[0; 5]),
            frame(DATA, 0, &[]),
            frame(0x42, 0, b"whatever"),
        ] {
            let mut frames = begun();
            assert_eq!(sent(&mut frames, &useless), BURST, "{useless:?}");
            tokio::time::advance(Duration::from_secs(1)).await;
            assert_eq!(sent(&mut frames, &useless), RATE, "{useless:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_sends_or_gets_something_may_go_on() {
        let ping = frame(PING, 0, &[0; 8]);
        for useful in [frame(DATA, 0, &[0; 1024]), frame(HEADERS, 5, b"x")] {
            let mut frames = begun();
            let both = [ping.as_slice(), &useful].concat();
            assert_eq!(sent(&mut frames, &both), BURST * 2, "{useful:?}");
        }
        let mut frames = begun();
        for _ in 0..BURST * 2 {
            assert!(frames.read(&ping));
            frames.passed(1024);
        }
        assert_eq!(sent(&mut begun(), &frame(DATA, END_STREAM, &[])), BURST * 2, "it ends a body");
    }

    #[tokio::test(start_paused = true)]
    async fn it_does_not_matter_how_the_bytes_come() {
        let mut frames = begun();
        let all = frame(PING, 0, &[0; 8]).repeat(BURST as usize);
        let cut = all.chunks(7).all(|part| frames.read(part));
        assert!(cut && frames.left == 0 && frames.rest == 0 && frames.filled == 0);
    }
}
