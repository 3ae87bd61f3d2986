//! What stands before the arguments of a request and before the result in an answer.
//!
//! Guarantee   what is damaged, or larger than it may be, is refused before memory is taken for it.
//! Layout      a request: flags (one byte), trace context (25 bytes), metadata if its flag is set, arguments; when they are
//!             compressed, their length (u32) and one LZ4 block. An answer: 0 and the result, or 1, its length (u32) and
//!             one LZ4 block. See docs/wire.md.
//! Limits      what is compressed is never larger than what the connection carries uncompressed.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use quorate_protocols::rpc::Refusal;

use super::metadata::Metadata;
use super::trace::{TRACE_BYTES, TraceContext};

/// Whether what travels is made smaller first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Compression {
    /// Never. The default: on a fast network, compressing costs more than it saves.
    #[default]
    Off,
    /// By LZ4, when it has more bytes than this and becomes smaller by it. Feature `lz4`.
    ///
    /// Do not compress what holds a secret beside what an attacker can choose: the size tells of it.
    #[cfg(feature = "lz4")]
    Lz4 {
        /// Shorter ones travel as they are: below some 512 bytes there is little to gain.
        above_bytes: usize,
    },
}

/// What a caller says of a call beside its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) trace: TraceContext,
    pub(super) metadata: Option<Arc<Metadata>>,
}

/// A request as the service finds it.
pub(super) struct Opened {
    pub(super) head: Head,
    pub(super) arguments: Bytes,
    /// The caller can read a compressed answer.
    pub(super) takes_lz4: bool,
}

impl Head {
    /// Writes what stands before the arguments.
    pub(super) fn put(&self, out: &mut BytesMut) {
        let mut start = [0; 1 + TRACE_BYTES];
        start[0] = if cfg!(feature = "lz4") { TAKES_LZ4 } else { 0 };
        start[1..].copy_from_slice(&self.trace.to_bytes());
        match &self.metadata {
            None => out.put_slice(&start),
            Some(metadata) => {
                start[0] |= METADATA;
                out.reserve(start.len() + size_of::<u16>() + metadata.bytes());
                out.put_slice(&start);
                metadata.encode(out);
            }
        }
    }
}

/// Compresses the arguments of a request, which begin at `at`.
#[cfg_attr(not(feature = "lz4"), expect(unused_variables, reason = "nothing is compressed"))]
pub(super) fn pack_request(request: Bytes, at: usize, compression: Compression) -> Bytes {
    match compression {
        Compression::Off => request,
        #[cfg(feature = "lz4")]
        Compression::Lz4 { above_bytes } => {
            let Some(block) = lz4::pack(&request[at..], above_bytes) else { return request };
            let mut out = BytesMut::with_capacity(at + block.len());
            out.put_slice(&request[..at]);
            out[0] |= COMPRESSED;
            out.put_slice(&block);
            out.freeze()
        }
    }
}

/// Opens a request.
///
/// # Errors
/// The refusal that its sender gets.
pub(super) fn open_request(mut request: Bytes, limit: usize) -> Result<Opened, Refusal> {
    let (flags, trace) = match request.split_first_chunk::<{ 1 + TRACE_BYTES }>() {
        Some(([flags, trace @ ..], _)) => (*flags, TraceContext::from_bytes(*trace)),
        None => return Err(Refusal::Malformed),
    };
    let trace = trace.ok_or(Refusal::Malformed)?;
    if flags & !(METADATA | COMPRESSED | TAKES_LZ4) != 0 {
        return Err(Refusal::Malformed);
    }
    request.advance(1 + TRACE_BYTES);
    let metadata = match flags & METADATA {
        0 => None,
        _ => Some(Arc::new(Metadata::decode(&mut request).ok_or(Refusal::Malformed)?)),
    };
    let arguments = match flags & COMPRESSED {
        0 => request,
        _ => unpack(request, limit).map_err(|error| match error {
            Unpacked::Unknown => Refusal::CompressionUnknown,
            Unpacked::Damaged | Unpacked::TooLarge => Refusal::Malformed,
        })?,
    };
    Ok(Opened { head: Head { trace, metadata }, arguments, takes_lz4: flags & TAKES_LZ4 != 0 })
}

/// Compresses an answer to somebody who can read it so.
pub(super) fn pack_answer(answer: Bytes, compression: Compression) -> Bytes {
    match compression {
        Compression::Off => answer,
        #[cfg(feature = "lz4")]
        Compression::Lz4 { above_bytes } => {
            let Some(block) = answer.get(1..).and_then(|result| lz4::pack(result, above_bytes)) else {
                return answer;
            };
            let mut out = BytesMut::with_capacity(1 + block.len());
            out.put_u8(ANSWER_LZ4);
            out.put_slice(&block);
            out.freeze()
        }
    }
}

/// Opens an answer; one without anything is that of a one-way call.
///
/// # Errors
/// What is wrong with it, for people.
pub(super) fn open_answer(mut answer: Bytes, limit: usize) -> Result<Bytes, &'static str> {
    let Some(kind) = answer.first().copied() else { return Ok(answer) };
    answer.advance(1);
    match kind {
        ANSWER_PLAIN => Ok(answer),
        ANSWER_LZ4 => unpack(answer, limit).map_err(|error| match error {
            Unpacked::Unknown => "it is compressed, and this side cannot read that",
            Unpacked::Damaged => "its compressed form is damaged",
            Unpacked::TooLarge => "uncompressed it exceeds what the connection carries",
        }),
        _ => Err("it begins with an unknown kind"),
    }
}

enum Unpacked {
    #[cfg_attr(feature = "lz4", expect(dead_code, reason = "this side knows it"))]
    Unknown,
    #[cfg_attr(not(feature = "lz4"), expect(dead_code, reason = "nobody looks inside"))]
    Damaged,
    #[cfg_attr(not(feature = "lz4"), expect(dead_code, reason = "nobody looks inside"))]
    TooLarge,
}

#[cfg(not(feature = "lz4"))]
fn unpack(_: Bytes, _: usize) -> Result<Bytes, Unpacked> {
    Err(Unpacked::Unknown)
}

#[cfg(feature = "lz4")]
fn unpack(packed: Bytes, limit: usize) -> Result<Bytes, Unpacked> {
    lz4::unpack(packed, limit)
}

#[cfg(feature = "lz4")]
mod lz4 {
    use bytes::{Buf, Bytes};

    use super::Unpacked;

    /// The length and the block, when it has more bytes than that and becomes smaller.
    pub(super) fn pack(bytes: &[u8], above: usize) -> Option<Vec<u8>> {
        if bytes.len() <= above {
            return None;
        }
        let length = u32::try_from(bytes.len()).ok()?;
        let mut out = vec![0; size_of::<u32>() + lz4_flex::block::get_maximum_output_size(bytes.len())];
        out[..size_of::<u32>()].copy_from_slice(&length.to_le_bytes());
        let written = lz4_flex::block::compress_into(bytes, &mut out[size_of::<u32>()..]).ok()?;
        out.truncate(size_of::<u32>() + written);
        (out.len() < bytes.len()).then_some(out)
    }

    pub(super) fn unpack(mut packed: Bytes, limit: usize) -> Result<Bytes, Unpacked> {
        let length = u32::from_le_bytes(*packed.first_chunk().ok_or(Unpacked::Damaged)?) as usize;
        packed.advance(size_of::<u32>());
        if length > limit {
            return Err(Unpacked::TooLarge);
        }
        // No block says more than this: memory is taken only for what the bytes that came can be.
        if length > packed.len().saturating_mul(RATIO_MAX) {
            return Err(Unpacked::Damaged);
        }
        let mut out = vec![0; length];
        match lz4_flex::block::decompress_into(&packed, &mut out) {
            Ok(written) if written == length => Ok(out.into()),
            _ => Err(Unpacked::Damaged),
        }
    }

    /// A byte of a block adds 255 bytes to the length of a match, at most.
    const RATIO_MAX: usize = 255;
}

const METADATA: u8 = 1;
const COMPRESSED: u8 = 2;
const TAKES_LZ4: u8 = 4;

/// Before a result that travels as it is.
pub(super) const ANSWER_PLAIN: u8 = 0;
const ANSWER_LZ4: u8 = 1;

#[cfg(test)]
mod tests {
    use super::super::metadata::Key;
    use super::*;

    const KEY: Key<u64> = Key::new("key");
    const LIMIT: usize = 1 << 20;

    fn head(with_metadata: bool) -> Head {
        let metadata = || Arc::new(Metadata::new().with(&KEY, &7).expect("it is small"));
        Head { trace: TraceContext::root(), metadata: with_metadata.then(metadata) }
    }

    fn request(head: &Head, arguments: &[u8], compression: Compression) -> Bytes {
        let mut out = BytesMut::new();
        head.put(&mut out);
        let at = out.len();
        out.put_slice(arguments);
        pack_request(out.freeze(), at, compression)
    }

    #[test]
    fn a_request_is_opened_as_it_was_closed() {
        for with_metadata in [false, true] {
            let head = head(with_metadata);
            let opened = open_request(request(&head, b"arguments", Compression::Off), LIMIT);
            let opened = opened.unwrap_or_else(|refusal| panic!("{refusal}"));
            assert_eq!((opened.head, &opened.arguments[..]), (head, &b"arguments"[..]));
        }
    }

    #[test]
    fn what_is_damaged_is_refused() {
        let whole = request(&head(true), b"", Compression::Off);
        for length in 0..whole.len() {
            assert!(open_request(whole.slice(..length), LIMIT).is_err());
        }
        let mut unknown = whole.to_vec();
        unknown[0] |= 0x40;
        assert!(open_request(unknown.into(), LIMIT).is_err());
        assert!(open_answer(Bytes::from_static(&[9]), LIMIT).is_err());
        assert_eq!(open_answer(Bytes::new(), LIMIT), Ok(Bytes::new()));
    }

    #[cfg(feature = "lz4")]
    #[test]
    fn what_is_compressed_comes_out_as_it_went_in_and_never_larger_than_it_may_be() {
        let text = "the same again and again, ".repeat(100);
        let lz4 = Compression::Lz4 { above_bytes: 512 };
        let packed = request(&head(true), text.as_bytes(), lz4);
        assert!(packed.len() < 300, "{} bytes", packed.len());
        let opened = open_request(packed.clone(), LIMIT).unwrap_or_else(|refusal| panic!("{refusal}"));
        assert_eq!(opened.arguments, text.as_bytes());
        assert!(opened.takes_lz4);
        assert!(open_request(packed, text.len() - 1).is_err());
        // A short one travels as it is, and so does one that does not become smaller.
        assert_eq!(request(&head(false), &[0; 512], lz4).len(), 1 + TRACE_BYTES + 512);
        let mut noise: Vec<u8> = Vec::new();
        let mut trace = TraceContext::root();
        while noise.len() < 1_000 {
            trace = trace.child();
            noise.extend(trace.span_id().to_le_bytes());
        }
        assert_eq!(request(&head(false), &noise, lz4).len(), 1 + TRACE_BYTES + noise.len());

        let mut answer = vec![ANSWER_PLAIN];
        answer.extend(text.as_bytes());
        let packed = pack_answer(answer.into(), lz4);
        assert!(packed.len() < 300);
        assert_eq!(open_answer(packed.clone(), LIMIT).as_deref(), Ok(text.as_bytes()));
        assert!(open_answer(packed.clone(), text.len() - 1).is_err());
        // A length that the bytes cannot be takes no memory.
        let bomb = Bytes::from_static(&[ANSWER_LZ4, 0, 0, 16, 0, 1, 2, 3]);
        assert!(open_answer(bomb, LIMIT * 4).is_err());
        for length in 1..packed.len() {
            assert!(open_answer(packed.slice(..length), LIMIT).is_err());
        }
    }
}
