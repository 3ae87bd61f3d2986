//! The bytes of packets: fixed little-endian layouts, length-checked, under a checksum.
//!
//! Guarantee   decoding any bytes gives a packet within its limits or nothing; nothing is allocated.
//! Layout      docs/wire.md, "Packets of udp links".

/// The version in a hello.
pub(super) const VERSION: u8 = 1;
/// A hello is this long, so that no answer to it is longer than what was received, and so that only a path which
/// carries packets of this size makes a connection.
pub(super) const HELLO_BYTES: usize = 1200;
/// Runs of packet numbers that one acknowledgement tells of; older ones are told of no more.
pub(super) const ACK_RUNS_MAX: usize = 32;
/// More packets than anybody sends: what lies behind a number can be counted without an overflow.
const NUMBERS_MAX: u64 = 1 << 62;
/// What a packet takes beside its acknowledgement and its piece of the stream, at most: header, number, flags, a
/// challenge and a response.
const DATA_HEAD_BYTES: usize = HEADER_BYTES + 8 + 1;
/// A packet with nothing but a challenge.
pub(super) const CHALLENGE_BYTES: usize = DATA_HEAD_BYTES + 8;
const ACK_HEAD_BYTES: usize = 8 + 4 + 8 + 1;
const PIECE_HEAD_BYTES: usize = 8;
const RUN_BYTES: usize = 8;
/// Kind, checksum, receiver's and sender's connection.
const HEADER_BYTES: usize = 1 + 4 + 8 + 8;

const HELLO: u8 = 1;
const RETRY: u8 = 2;
const WELCOME: u8 = 3;
const DATA: u8 = 4;
const RESET: u8 = 5;

const WANTS_ACK: u8 = 1;
const ACKS: u8 = 2;
const CHALLENGE: u8 = 4;
const RESPONSE: u8 = 8;
const STOP: u8 = 16;
const ABORT: u8 = 32;
const PIECE: u8 = 64;
const END: u8 = 128;

/// A packet: from one connection id to another. Ids are 64 random bits: who does not see the packets cannot name them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Packet<'a> {
    /// The receiver's id of the connection; 0 in a hello, when nobody knows it yet.
    pub(super) to: u64,
    pub(super) from: u64,
    pub(super) body: Body<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Body<'a> {
    /// The dialler wants a connection and grants `credit` bytes.
    Hello {
        version: u8,
        cookie: Option<Cookie>,
        credit: u64,
    },
    /// Say it again with this cookie: proof that the dialler is where it says.
    Retry {
        cookie: Cookie,
    },
    /// The listener has a connection for the dialler and grants `credit` bytes.
    Welcome {
        credit: u64,
    },
    Data(Data<'a>),
    /// There is no such connection here (any more).
    Reset {
        reason: Reason,
    },
}

/// Binds a dialler's address, its id and a moment to the listener's secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cookie {
    /// When it was made, by the listener's clock; never 0.
    pub(super) stamp: u64,
    pub(super) proof: u64,
}

/// Why there is no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    Unknown,
    Refused,
    Version,
    /// There was one, and both of its directions have ended as they should.
    Over,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Data<'a> {
    pub(super) number: u64,
    pub(super) wants_ack: bool,
    pub(super) acks: Option<Acks<'a>>,
    pub(super) challenge: Option<u64>,
    pub(super) response: Option<u64>,
    /// The sender of the packet reads no more.
    pub(super) stops: bool,
    /// The sender of the packet writes no more, and what it wrote is incomplete.
    pub(super) aborts: bool,
    pub(super) piece: Option<Piece<'a>>,
}

/// A piece of the stream.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Piece<'a> {
    pub(super) offset: u64,
    pub(super) bytes: &'a [u8],
    /// The stream ends behind it.
    pub(super) ends: bool,
}

/// What has arrived, and how far the peer may send.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Acks<'a> {
    /// The stream's offset up to which the peer may send.
    pub(super) credit: u64,
    /// How long the largest number waited for this, in microseconds.
    pub(super) delay_micros: u32,
    pub(super) largest: u64,
    runs: &'a [u8],
}

impl<'a> Acks<'a> {
    /// The runs, first and last number of each, highest first.
    pub(super) fn runs(&self) -> impl Iterator<Item = (u64, u64)> + 'a {
        let largest = self.largest;
        self.runs.chunks_exact(RUN_BYTES).map(move |run| {
            let (low, high) = run_of(run);
            (largest - u64::from(low), largest - u64::from(high))
        })
    }
}

/// Bytes left for a piece in a packet of `packet_bytes` with so many runs to acknowledge.
pub(super) fn piece_bytes_max(packet_bytes: usize, ack_runs: Option<usize>) -> usize {
    let acks = ack_runs.map_or(0, |runs| ACK_HEAD_BYTES + runs * RUN_BYTES);
    packet_bytes.saturating_sub(DATA_HEAD_BYTES + acks + PIECE_HEAD_BYTES)
}

/// Appends a packet without a piece or with its bytes to follow: [`seal`] what begins at the returned place.
pub(super) fn begin(out: &mut Vec<u8>, to: u64, from: u64, kind: Kind) -> usize {
    let start = out.len();
    out.push(match kind {
        Kind::Hello => HELLO,
        Kind::Retry => RETRY,
        Kind::Welcome => WELCOME,
        Kind::Data => DATA,
        Kind::Reset => RESET,
    });
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&to.to_le_bytes());
    out.extend_from_slice(&from.to_le_bytes());
    start
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Hello,
    Retry,
    Welcome,
    Data,
    Reset,
}

/// Puts the checksum of the packet that begins at `start` and ends where `out` ends.
pub(super) fn seal(out: &mut [u8], start: usize) {
    let sum = checksum(&out[start..]);
    out[start + 1..start + 5].copy_from_slice(&sum.to_le_bytes());
}

pub(super) fn put_hello(out: &mut Vec<u8>, from: u64, cookie: Option<Cookie>, credit: u64) {
    let start = begin(out, 0, from, Kind::Hello);
    out.push(VERSION);
    put_cookie(out, cookie.unwrap_or(Cookie { stamp: 0, proof: 0 }));
    out.extend_from_slice(&credit.to_le_bytes());
    out.resize(start + HELLO_BYTES, 0);
    seal(out, start);
}

pub(super) fn put_retry(out: &mut Vec<u8>, to: u64, cookie: Cookie) {
    let start = begin(out, to, 0, Kind::Retry);
    put_cookie(out, cookie);
    seal(out, start);
}

pub(super) fn put_welcome(out: &mut Vec<u8>, to: u64, from: u64, credit: u64) {
    let start = begin(out, to, from, Kind::Welcome);
    out.extend_from_slice(&credit.to_le_bytes());
    seal(out, start);
}

pub(super) fn put_reset(out: &mut Vec<u8>, to: u64, from: u64, reason: Reason) {
    let start = begin(out, to, from, Kind::Reset);
    out.push(match reason {
        Reason::Unknown => 1,
        Reason::Refused => 2,
        Reason::Version => 3,
        Reason::Over => 4,
    });
    seal(out, start);
}

/// What goes into a packet of data before its piece's bytes; `ack_runs` is highest first.
pub(super) struct Head<'a> {
    pub(super) to: u64,
    pub(super) from: u64,
    /// Everything but the acknowledgement; the bytes of the piece follow behind the head.
    pub(super) data: Data<'a>,
    pub(super) acks: Option<AcksOut<'a>>,
}

pub(super) struct AcksOut<'a> {
    pub(super) credit: u64,
    pub(super) delay_micros: u32,
    /// First and last number of each, highest first.
    pub(super) runs: &'a [(u64, u64)],
}

/// Appends the head of a packet of data; append the piece's bytes, then [`seal`] from the returned place.
pub(super) fn put_data(out: &mut Vec<u8>, head: &Head<'_>) -> usize {
    let Head { to, from, data, acks } = head;
    let start = begin(out, *to, *from, Kind::Data);
    let bit = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
    out.extend_from_slice(&data.number.to_le_bytes());
    out.push(
        bit(data.wants_ack, WANTS_ACK)
            | bit(acks.is_some(), ACKS)
            | bit(data.challenge.is_some(), CHALLENGE)
            | bit(data.response.is_some(), RESPONSE)
            | bit(data.stops, STOP)
            | bit(data.aborts, ABORT)
            | bit(data.piece.is_some(), PIECE)
            | bit(data.piece.is_some_and(|piece| piece.ends), END),
    );
    if let Some(acks) = acks {
        let largest = acks.runs.first().map_or(0, |(_, last)| *last);
        out.extend_from_slice(&acks.credit.to_le_bytes());
        out.extend_from_slice(&acks.delay_micros.to_le_bytes());
        out.extend_from_slice(&largest.to_le_bytes());
        let count_at = out.len();
        out.push(0);
        for (first, last) in acks.runs.iter().take(ACK_RUNS_MAX) {
            // What lies further back than this has been told of long ago.
            let (Ok(low), Ok(high)) = (u32::try_from(largest - first), u32::try_from(largest - last)) else {
                break;
            };
            out.extend_from_slice(&low.to_le_bytes());
            out.extend_from_slice(&high.to_le_bytes());
            out[count_at] += 1;
        }
    }
    for token in [data.challenge, data.response].into_iter().flatten() {
        out.extend_from_slice(&token.to_le_bytes());
    }
    if let Some(piece) = data.piece {
        out.extend_from_slice(&piece.offset.to_le_bytes());
    }
    start
}

/// Reads a packet; `None` when the bytes are none.
pub(super) fn decode(datagram: &[u8], checks_sum: bool) -> Option<Packet<'_>> {
    let mut rest = datagram;
    let kind = take_u8(&mut rest)?;
    let sum = take_u32(&mut rest)?;
    if checks_sum && sum != checksum(datagram) {
        return None;
    }
    let (to, from) = (take_u64(&mut rest)?, take_u64(&mut rest)?);
    let body = match kind {
        HELLO => {
            let version = take_u8(&mut rest)?;
            let cookie = take_cookie(&mut rest)?;
            let credit = take_u64(&mut rest)?;
            if datagram.len() < HELLO_BYTES {
                return None;
            }
            return Some(Packet { to, from, body: Body::Hello { version, cookie, credit } });
        }
        RETRY => Body::Retry { cookie: take_cookie(&mut rest)?? },
        WELCOME => Body::Welcome { credit: take_u64(&mut rest)? },
        DATA => Body::Data(take_data(&mut rest)?),
        RESET => Body::Reset {
            reason: match take_u8(&mut rest)? {
                1 => Reason::Unknown,
                2 => Reason::Refused,
                3 => Reason::Version,
                4 => Reason::Over,
                _ => return None,
            },
        },
        _ => return None,
    };
    rest.is_empty().then_some(Packet { to, from, body })
}

fn take_data<'a>(rest: &mut &'a [u8]) -> Option<Data<'a>> {
    let number = take_u64(rest).filter(|number| *number < NUMBERS_MAX)?;
    let flags = take_u8(rest)?;
    let acks = if flags & ACKS == 0 { None } else { Some(take_acks(rest)?) };
    let challenge = if flags & CHALLENGE == 0 { None } else { Some(take_u64(rest)?) };
    let response = if flags & RESPONSE == 0 { None } else { Some(take_u64(rest)?) };
    let piece = match (flags & PIECE != 0, flags & END != 0) {
        (true, ends) => {
            let offset = take_u64(rest)?;
            Some(Piece { offset, bytes: std::mem::take(rest), ends })
        }
        (false, false) => None,
        (false, true) => return None,
    };
    Some(Data {
        number,
        wants_ack: flags & WANTS_ACK != 0,
        acks,
        challenge,
        response,
        stops: flags & STOP != 0,
        aborts: flags & ABORT != 0,
        piece,
    })
}

fn take_acks<'a>(rest: &mut &'a [u8]) -> Option<Acks<'a>> {
    let (credit, delay_micros, largest) = (take_u64(rest)?, take_u32(rest)?, take_u64(rest)?);
    let count = usize::from(take_u8(rest)?);
    if count > ACK_RUNS_MAX {
        return None;
    }
    let (runs, behind) = rest.split_at_checked(count * RUN_BYTES)?;
    *rest = behind;
    // From the highest down, none touching the one before, none below zero.
    let mut below = None;
    for run in runs.chunks_exact(RUN_BYTES) {
        let (low, high) = run_of(run);
        let is_first = below.is_none_or(|below| high > below);
        if low < high || u64::from(low) > largest || !is_first {
            return None;
        }
        below = Some(low);
    }
    Some(Acks { credit, delay_micros, largest, runs })
}

fn run_of(run: &[u8]) -> (u32, u32) {
    let half = |at: usize| run[at..at + 4].iter().rev().fold(0, |all, byte| all << 8 | u32::from(*byte));
    (half(0), half(4))
}

fn put_cookie(out: &mut Vec<u8>, cookie: Cookie) {
    out.extend_from_slice(&cookie.stamp.to_le_bytes());
    out.extend_from_slice(&cookie.proof.to_le_bytes());
}

/// Outer `None`: there are not so many bytes; inner: the stamp of no cookie.
fn take_cookie(rest: &mut &[u8]) -> Option<Option<Cookie>> {
    let cookie = Cookie { stamp: take_u64(rest)?, proof: take_u64(rest)? };
    Some((cookie.stamp != 0).then_some(cookie))
}

fn checksum(packet: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&packet[..1]), &packet[5..])
}

fn take_u8(rest: &mut &[u8]) -> Option<u8> {
    let (first, behind) = rest.split_first()?;
    *rest = behind;
    Some(*first)
}

fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    let (bytes, behind) = rest.split_first_chunk()?;
    *rest = behind;
    Some(u32::from_le_bytes(*bytes))
}

fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    let (bytes, behind) = rest.split_first_chunk()?;
    *rest = behind;
    Some(u64::from_le_bytes(*bytes))
}
