//! W3C Trace Context (`traceparent`, version 00): read, passed on, or started.

use std::fmt;

/// The trace that a request belongs to, and the span that is its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace: u128,
    span: u64,
    flags: u8,
}

impl TraceContext {
    /// The name of the header.
    pub const HEADER: &str = "traceparent";

    /// The trace's own number.
    pub const fn trace_id(self) -> u128 {
        self.trace
    }

    /// A new trace, marked as sampled.
    pub fn start() -> Self {
        Self { trace: fastrand::u128(1..), span: fastrand::u64(1..), flags: 1 }
    }

    /// Reads a header's value; `None` when it is not valid, in which case the caller starts a new trace.
    pub fn parse(text: &[u8]) -> Option<Self> {
        if text.len() < 55 || text[2] != b'-' || text[35] != b'-' || text[52] != b'-' {
            return None;
        }
        let version = hex(&text[..2])?;
        // Version ff is forbidden; a later version may go on after the flags, this one may not.
        if version == 0xff || (version == 0 && text.len() != 55) || (text.len() > 55 && text[55] != b'-') {
            return None;
        }
        let parsed = Self {
            trace: hex(&text[3..35])?,
            span: u64::try_from(hex(&text[36..52])?).ok()?,
            flags: u8::try_from(hex(&text[53..55])?).ok()?,
        };
        (parsed.trace != 0 && parsed.span != 0).then_some(parsed)
    }

    /// The same trace with a new span, to be sent to the next hop.
    #[must_use]
    pub fn child(self) -> Self {
        Self { span: fastrand::u64(1..), ..self }
    }

    /// The header's value.
    pub fn to_header(self) -> [u8; 55] {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        put_hex(&mut text[3..35], self.trace);
        put_hex(&mut text[36..52], u128::from(self.span));
        put_hex(&mut text[53..55], u128::from(self.flags));
        text
    }
}

impl fmt::Display for TraceContext {
    /// The trace id alone, as it appears in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.trace)
    }
}

/// Lower-case hexadecimal only, as the standard demands.
fn hex(text: &[u8]) -> Option<u128> {
    text.iter().try_fold(0, |sum, byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        Some(sum << 4 | u128::from(digit))
    })
}

fn put_hex(into: &mut [u8], mut value: u128) {
    for byte in into.iter_mut().rev() {
        *byte = b"0123456789abcdef"[(value & 15) as usize];
        value >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_goes_in_and_out() {
        let text = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let context = TraceContext::parse(text).unwrap();
        assert_eq!(&context.to_header(), text);
        assert_eq!(context.to_string(), "0af7651916cd43dd8448eb211c80319c");
        let child = context.child();
        assert_eq!((child.trace, child.flags), (context.trace, context.flags));
        assert_ne!(child.span, context.span);
        let started = TraceContext::start();
        assert_eq!(TraceContext::parse(&started.to_header()), Some(started));
    }

    #[test]
    fn what_the_standard_forbids_is_refused() {
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-extra",
            "00-0af7651916cd43dd8448eb211c80319cXb7ad6b7169203331-01",
        ] {
            assert_eq!(TraceContext::parse(bad.as_bytes()), None, "{bad}");
        }
        assert!(TraceContext::parse(b"01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more").is_some());
    }
}
