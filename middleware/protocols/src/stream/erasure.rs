//! An erasure code for small blocks: of k data shards and m parity shards any k bring the data back.
//!
//! Guarantee   whichever m shards of a block are lost, reconstruction gives every data shard bit for bit; with more lost it
//!             says so and touches nothing. The first parity shard is the plain XOR of the data, so m = 1 is XOR parity.
//! Method      Reed-Solomon over GF(2^8) (polynomial 0x11d) by a systematic Cauchy matrix, whose every square part can be
//!             inverted, scaled so that its first row and first column are ones. A shard is eight stripes, and bit i of
//!             stripe c is bit c of the i-th symbol: multiplying by a constant is then an 8 x 8 matrix of bits over
//!             stripes, and all work on data is XOR of long runs, which compilers turn into vector code on every processor.
//! Source      Reed & Solomon 1960; Blömer et al. 1995 (XOR-based Cauchy codes); Plank & Xu 2006 (scaling the matrix).
//! Limits      [`SHARDS_MAX`] shards; a shard is a multiple of [`STRIPES`] bytes.

/// Data and parity shards of one block, at most: as many as the field has elements.
pub const SHARDS_MAX: usize = 256;

/// A shard's length is a multiple of so many bytes.
pub const STRIPES: usize = 8;

/// The code of blocks of one shape. Build it once: it is a table of k times m bytes.
#[derive(Debug, Clone)]
pub struct ErasureCode {
    data: usize,
    parity: usize,
    /// Row by row: what each data shard is multiplied by in each parity shard.
    matrix: Vec<u8>,
}

impl ErasureCode {
    /// Blocks of `data` shards protected by `parity` shards.
    ///
    /// # Errors
    /// [`CodeError::Shape`] unless there is one of each at least and [`SHARDS_MAX`] in all at most.
    pub fn new(data: usize, parity: usize) -> Result<Self, CodeError> {
        if data == 0 || parity == 0 || data.saturating_add(parity) > SHARDS_MAX {
            return Err(CodeError::Shape { data, parity });
        }
        // Cauchy: 1 / (x_i + y_j) with all x and y different. Scaling a row or a column by a constant changes no rank.
        let cauchy = |row: usize, column: usize| inverse((row ^ (parity + column)) as u8);
        let mut matrix = Vec::with_capacity(data * parity);
        for row in 0..parity {
            let first = divide(cauchy(row, 0), cauchy(0, 0));
            matrix.extend(
                (0..data).map(|column| divide(divide(cauchy(row, column), cauchy(0, column)), first)),
            );
        }
        Ok(Self { data, parity, matrix })
    }

    /// Data shards of a block.
    pub const fn data(&self) -> usize {
        self.data
    }

    /// Parity shards of a block.
    pub const fn parity(&self) -> usize {
        self.parity
    }

    /// Writes the parity of `data` into `parity`, which must have the same lengths.
    ///
    /// # Errors
    /// [`CodeError::Count`], [`CodeError::Length`].
    pub fn encode<D: AsRef<[u8]>>(&self, data: &[D], parity: &mut [Vec<u8>]) -> Result<(), CodeError> {
        if data.len() != self.data || parity.len() != self.parity {
            return Err(CodeError::Count {
                shards: data.len() + parity.len(),
                expected: self.data + self.parity,
            });
        }
        let sources: Vec<&[u8]> = data.iter().map(AsRef::as_ref).collect();
        check_lengths(sources.iter().map(|shard| shard.len()).chain(parity.iter().map(Vec::len)))?;
        for (row, out) in self.matrix.chunks_exact(self.data).zip(parity) {
            combine(out, row, &sources);
        }
        Ok(())
    }

    /// Fills in the data shards that are `None`; `shards` are the data in order and then the parity. Missing parity stays
    /// missing. Gives how many it brought back.
    ///
    /// # Errors
    /// [`CodeError::TooFew`] when fewer than k are there, [`CodeError::Count`], [`CodeError::Length`]. Nothing is changed then.
    pub fn reconstruct(&self, shards: &mut [Option<Vec<u8>>]) -> Result<usize, CodeError> {
        if shards.len() != self.data + self.parity {
            return Err(CodeError::Count { shards: shards.len(), expected: self.data + self.parity });
        }
        let length = check_lengths(shards.iter().flatten().map(Vec::len))?;
        let lost: Vec<usize> = (0..self.data).filter(|at| shards[*at].is_none()).collect();
        let rows: Vec<usize> =
            (0..self.parity).filter(|row| shards[self.data + row].is_some()).take(lost.len()).collect();
        if rows.len() < lost.len() {
            return Err(CodeError::TooFew { there: shards.iter().flatten().count(), needed: self.data });
        }
        // The lost ones times their part of the matrix are the parities less what the others contributed.
        let part = rows.iter().flat_map(|row| lost.iter().map(|column| self.factor(*row, *column))).collect();
        let solved = invert(part, lost.len());
        let kept: Vec<usize> = (0..self.data).filter(|at| shards[*at].is_some()).collect();
        let places = kept.iter().copied().chain(rows.iter().map(|row| self.data + row));
        let sources: Vec<&[u8]> = places.filter_map(|at| shards[at].as_deref()).collect();
        let mut found = Vec::with_capacity(lost.len());
        let mut factors = Vec::with_capacity(sources.len());
        for weights in solved.chunks_exact(lost.len().max(1)) {
            factors.clear();
            factors.extend(kept.iter().map(|column| {
                rows.iter()
                    .zip(weights)
                    .fold(0, |sum, (row, weight)| sum ^ times(*weight, self.factor(*row, *column)))
            }));
            factors.extend_from_slice(weights);
            let mut out = vec![0; length];
            combine(&mut out, &factors, &sources);
            found.push(out);
        }
        for (at, shard) in lost.iter().zip(found) {
            shards[*at] = Some(shard);
        }
        Ok(lost.len())
    }

    fn factor(&self, row: usize, column: usize) -> u8 {
        self.matrix[row * self.data + column]
    }
}

/// Why a block could not be coded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodeError {
    /// There is no such code.
    #[error("no code has {data} data and {parity} parity shards")]
    Shape {
        /// Data shards.
        data: usize,
        /// Parity shards.
        parity: usize,
    },
    /// Not the shards of one block.
    #[error("{shards} shards are not a block of {expected}")]
    Count {
        /// How many were given.
        shards: usize,
        /// How many a block has.
        expected: usize,
    },
    /// Shards of different lengths, or not of a multiple of [`STRIPES`].
    #[error("a shard of {length} bytes beside one of {other}, or no multiple of {STRIPES}")]
    Length {
        /// The first shard's.
        length: usize,
        /// The one that does not fit.
        other: usize,
    },
    /// Too many were lost. More shards of the block would help.
    #[error("{there} shards are there where {needed} are needed")]
    TooFew {
        /// How many are there.
        there: usize,
        /// How many are needed.
        needed: usize,
    },
}

fn check_lengths(mut lengths: impl Iterator<Item = usize>) -> Result<usize, CodeError> {
    let length = lengths.next().unwrap_or(0);
    match lengths.find(|other| *other != length) {
        Some(other) => Err(CodeError::Length { length, other }),
        None if !length.is_multiple_of(STRIPES) => Err(CodeError::Length { length, other: length }),
        None => Ok(length),
    }
}

/// `out` becomes the sum of the sources times their factors.
fn combine(out: &mut [u8], factors: &[u8], sources: &[&[u8]]) {
    let stripe = out.len() / STRIPES;
    if stripe == 0 {
        return;
    }
    let mut terms: Vec<&[u8]> = Vec::with_capacity(sources.len() * STRIPES);
    for (row, out) in out.chunks_exact_mut(stripe).enumerate() {
        terms.clear();
        for (factor, source) in factors.iter().zip(sources) {
            let mut bits = PRODUCT_ROWS[usize::from(*factor)][row];
            while bits != 0 {
                let at = bits.trailing_zeros() as usize * stripe;
                terms.push(&source[at..at + stripe]);
                bits &= bits - 1;
            }
        }
        sum(out, &terms);
    }
}

/// `out` becomes the XOR of all terms, which are as long as it is.
fn sum(out: &mut [u8], terms: &[&[u8]]) {
    match out.len() {
        // The stripes of what fills a packet, 1,200 to 1,280 bytes, are two of these; larger parts do not fit into registers.
        80.. => sum_by::<80>(out, terms),
        16.. => sum_by::<16>(out, terms),
        _ => sum_by::<1>(out, terms),
    }
}

/// In parts of `N` bytes, whose sum stays in registers; the last part overlaps the one before, so that no short one is left.
fn sum_by<const N: usize>(out: &mut [u8], terms: &[&[u8]]) {
    let Some(last) = out.len().checked_sub(N) else { return };
    let mut at = 0;
    loop {
        let mut total = [0; N];
        for part in terms.iter().filter_map(|term| term[at..].first_chunk::<N>()) {
            for (total, byte) in total.iter_mut().zip(part) {
                *total ^= byte;
            }
        }
        out[at..at + N].copy_from_slice(&total);
        if at == last {
            return;
        }
        at = last.min(at + N);
    }
}

/// The inverse of a square matrix that has one, as every square part of a Cauchy matrix does; by elimination.
fn invert(mut matrix: Vec<u8>, size: usize) -> Vec<u8> {
    let mut result = vec![0; size * size];
    for at in 0..size {
        result[at * size + at] = 1;
    }
    for at in 0..size {
        if let Some(pivot) = (at..size).find(|row| matrix[row * size + at] != 0) {
            for column in 0..size {
                matrix.swap(at * size + column, pivot * size + column);
                result.swap(at * size + column, pivot * size + column);
            }
        }
        let scale = inverse(matrix[at * size + at]);
        for column in 0..size {
            matrix[at * size + column] = times(matrix[at * size + column], scale);
            result[at * size + column] = times(result[at * size + column], scale);
        }
        for row in (0..size).filter(|row| *row != at) {
            let factor = matrix[row * size + at];
            for column in 0..size {
                matrix[row * size + column] ^= times(factor, matrix[at * size + column]);
                result[row * size + column] ^= times(factor, result[at * size + column]);
            }
        }
    }
    result
}

fn times(a: u8, b: u8) -> u8 {
    if a == 0 || b == 0 {
        return 0;
    }
    POWERS[usize::from(LOGARITHMS[usize::from(a)]) + usize::from(LOGARITHMS[usize::from(b)])]
}

fn divide(a: u8, b: u8) -> u8 {
    times(a, inverse(b))
}

/// Of zero: zero, which no caller asks for.
fn inverse(a: u8) -> u8 {
    if a == 0 { 0 } else { POWERS[255 - usize::from(LOGARITHMS[usize::from(a)])] }
}

const fn doubled(a: u8) -> u8 {
    (a << 1) ^ (0x1d * (a >> 7))
}

/// Powers of 2, twice around.
const POWERS: [u8; 512] = {
    let mut powers = [0; 512];
    let (mut power, mut at) = (1, 0);
    while at < 512 {
        powers[at] = power;
        power = doubled(power);
        at += 1;
    }
    powers
};

const LOGARITHMS: [u8; 256] = {
    let mut logarithms = [0; 256];
    let mut at = 0;
    while at < 255 {
        logarithms[POWERS[at] as usize] = at as u8;
        at += 1;
    }
    logarithms
};

/// For each factor and each bit of a product, which bits of the other number it is the XOR of.
static PRODUCT_ROWS: [[u8; STRIPES]; 256] = {
    let mut rows = [[0; STRIPES]; 256];
    let mut factor = 0;
    while factor < 256 {
        let (mut product, mut column) = (factor as u8, 0);
        while column < STRIPES {
            let mut row = 0;
            while row < STRIPES {
                rows[factor][row] |= ((product >> row) & 1) << column;
                row += 1;
            }
            product = doubled(product);
            column += 1;
        }
        factor += 1;
    }
    rows
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Multiplication by the definition: polynomials over GF(2) modulo x^8 + x^4 + x^3 + x^2 + 1.
    fn times_by_definition(a: u8, b: u8) -> u8 {
        let mut product =
            (0..8).filter(|bit| b >> bit & 1 == 1).fold(0u16, |sum, bit| sum ^ (u16::from(a) << bit));
        for bit in (8..16).rev().filter(|bit| *bit >= 8) {
            if product >> bit & 1 == 1 {
                product ^= 0x11d << (bit - 8);
            }
        }
        product as u8
    }

    /// The symbols of a shard: bit c of symbol i is bit i of stripe c.
    fn symbols(shard: &[u8]) -> Vec<u8> {
        let stripe = shard.len() / STRIPES;
        let bit = |c: usize, i: usize| shard[c * stripe + i / 8] >> (i % 8) & 1;
        (0..shard.len()).map(|i| (0..STRIPES).fold(0, |symbol, c| symbol | bit(c, i) << c)).collect()
    }

    fn block(data: usize, length: usize, seed: u64) -> Vec<Vec<u8>> {
        let mut state = seed | 1;
        let mut byte = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..data).map(|_| (0..length).map(|_| byte()).collect()).collect()
    }

    #[test]
    fn m04_products_are_those_of_the_definition() {
        for a in 0..=255u8 {
            assert!(a == 0 || times(a, inverse(a)) == 1);
            for b in 0..=255u8 {
                let product = times_by_definition(a, b);
                assert_eq!(times(a, b), product);
                let by_bits = (0..8).fold(0, |sum, row| {
                    sum | ((PRODUCT_ROWS[usize::from(a)][row] & b).count_ones() as u8 & 1) << row
                });
                assert_eq!(by_bits, product);
            }
        }
    }

    #[test]
    fn m04_every_pattern_of_so_many_losses_as_there_is_parity_is_repaired() {
        // Any k of the n shards: all patterns of small blocks, which proves that the matrix has no singular part.
        for (k, m) in [(1, 1), (2, 3), (4, 2), (5, 4), (8, 3)] {
            let code = ErasureCode::new(k, m).expect("a shape that is allowed");
            let data = block(k, 24, 7);
            let mut parity = vec![vec![0; 24]; m];
            code.encode(&data, &mut parity).expect("equal lengths");
            for lost in (0..1u32 << (k + m)).filter(|lost| lost.count_ones() as usize <= m) {
                let whole = data.iter().chain(&parity).cloned();
                let mut shards: Vec<_> =
                    whole.enumerate().map(|(at, s)| (lost >> at & 1 == 0).then_some(s)).collect();
                let missing = (lost & ((1 << k) - 1)).count_ones() as usize;
                assert_eq!(code.reconstruct(&mut shards), Ok(missing));
                assert!(
                    shards.iter().zip(&data).all(|(shard, data)| shard.as_ref() == Some(data)),
                    "{k} {m} {lost:b}"
                );
            }
        }
    }

    #[test]
    fn m04_the_first_parity_is_the_xor_of_the_data() {
        let code = ErasureCode::new(20, 4).expect("a shape that is allowed");
        let data = block(20, 1_200, 3);
        let mut parity = vec![vec![0; 1_200]; 4];
        code.encode(&data, &mut parity).expect("equal lengths");
        let xor: Vec<u8> = (0..1_200).map(|i| data.iter().fold(0, |sum, shard| sum ^ shard[i])).collect();
        assert_eq!(parity[0], xor);
    }

    proptest! {
        #[test]
        fn m04_parity_is_that_of_the_reference_and_losses_are_repaired(
            k in 1usize..33, m in 1usize..9, eighths in 1usize..40, seed: u64,
        ) {
            let code = ErasureCode::new(k, m).expect("a shape that is allowed");
            let (length, data) = (eighths * STRIPES, block(k, eighths * STRIPES, seed));
            let mut parity = vec![vec![0; length]; m];
            code.encode(&data, &mut parity).expect("equal lengths");
            let of_data: Vec<_> = data.iter().map(|shard| symbols(shard)).collect();
            for (row, parity) in parity.iter().enumerate() {
                let reference: Vec<u8> = (0..length)
                    .map(|i| (0..k).fold(0, |sum, j| sum ^ times_by_definition(code.factor(row, j), of_data[j][i])))
                    .collect();
                prop_assert_eq!(symbols(parity), reference);
            }
            // As many lost as can be, anywhere.
            let mut order: Vec<usize> = (0..k + m).collect();
            order.sort_by_key(|at| (seed ^ *at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let mut shards: Vec<_> = data.iter().chain(&parity).cloned().map(Some).collect();
            for at in &order[..m] {
                shards[*at] = None;
            }
            let lost = order[..m].iter().filter(|at| **at < k).count();
            prop_assert_eq!(code.reconstruct(&mut shards), Ok(lost));
            prop_assert!(shards.iter().zip(&data).all(|(shard, data)| shard.as_ref() == Some(data)));
            // One more is one too many, and says so.
            if lost > 0 {
                let mut shards: Vec<_> = data.iter().chain(&parity).cloned().map(Some).collect();
                for at in &order[..m + 1] {
                    shards[*at] = None;
                }
                let before = shards.clone();
                prop_assert_eq!(code.reconstruct(&mut shards), Err(CodeError::TooFew { there: k - 1, needed: k }));
                prop_assert_eq!(shards, before);
            }
        }
    }

    #[test]
    fn m04_shards_that_are_no_block_are_refused() {
        assert!(ErasureCode::new(0, 1).is_err() && ErasureCode::new(1, 0).is_err());
        assert!(ErasureCode::new(200, 57).is_err() && ErasureCode::new(200, 56).is_ok());
        let code = ErasureCode::new(2, 1).expect("a shape that is allowed");
        let mut parity = vec![vec![0; 8]];
        assert!(matches!(code.encode(&[vec![0; 8]], &mut parity), Err(CodeError::Count { .. })));
        assert!(matches!(
            code.encode(&[vec![0; 8], vec![0; 16]], &mut parity),
            Err(CodeError::Length { .. })
        ));
        let odd = code.reconstruct(&mut [Some(vec![0; 9]), None, Some(vec![0; 9])]);
        assert_eq!(odd, Err(CodeError::Length { length: 9, other: 9 }));
        assert!(matches!(code.reconstruct(&mut [None, None]), Err(CodeError::Count { .. })));
        assert!(matches!(code.reconstruct(&mut [None, None, None]), Err(CodeError::TooFew { .. })));
    }
}
