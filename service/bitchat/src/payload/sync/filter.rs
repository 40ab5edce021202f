//! A Golomb-coded set of packet ids (BitChat protocol reference, section 8.2).

use sha2::{Digest, Sha256};

/// For one false positive in a hundred: ceil(log2(100)).
const P: u8 = 7;

/// A set of packet ids with a few false members.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Filter {
    /// How many low bits of a difference are written plainly.
    pub p: u8,
    /// Values lie below this.
    pub m: u32,
    /// The differences.
    pub data: Vec<u8>,
}

impl Filter {
    /// A filter of at most `max_bytes` over packet ids, the newest first; what does not fit is left
    /// out from the old end.
    pub fn of(ids: &[[u8; 16]], max_bytes: usize) -> Self {
        let capacity = max_bytes * 8 / (usize::from(P) + 2);
        let mut count = ids.len().min(capacity);
        loop {
            let m = ((count as u32) << P).max(1);
            let data = encode(&values(&ids[..count], m));
            if data.len() <= max_bytes {
                return Self { p: P, m, data };
            }
            count -= (count / 10).max(1);
        }
    }

    /// The values that it holds, in order. At most 8 for each byte of data.
    pub fn values(&self) -> Vec<u32> {
        let mut bits = Bits { data: &self.data, at: 0 };
        let mut values = Vec::new();
        let mut previous = 0_u64;
        while let Some(difference) = bits.difference(self.p) {
            let value = previous + difference + 1;
            if value >= u64::from(self.m) {
                break;
            }
            values.push(value as u32);
            previous = value;
        }
        values
    }

    /// The value of a packet id in this filter; it is a member if [`values`](Self::values) has it.
    pub fn value(&self, id: &[u8; 16]) -> u32 {
        value(id, self.m)
    }
}

/// The first 63 bits of the hash of an id.
fn hash(id: &[u8; 16]) -> u64 {
    let digest = Sha256::digest(id);
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(first) & (u64::MAX >> 1)
}

fn value(id: &[u8; 16], m: u32) -> u32 {
    ((hash(id) % u64::from(m)) as u32).max(1)
}

fn values(ids: &[[u8; 16]], m: u32) -> Vec<u32> {
    let mut values: Vec<u32> = ids.iter().map(|id| value(id, m)).collect();
    values.sort_unstable();
    values.dedup();
    values
}

fn encode(values: &[u32]) -> Vec<u8> {
    let mut data = Vec::new();
    let mut length = 0;
    let mut push = |bit: bool| {
        if length % 8 == 0 {
            data.push(0);
        }
        if bit && let Some(last) = data.last_mut() {
            *last |= 0x80 >> (length % 8);
        }
        length += 1;
    };
    let mut previous = 0;
    for value in values {
        let difference = value - previous - 1;
        (0..difference >> P).for_each(|_| push(true));
        push(false);
        (0..P).rev().for_each(|bit| push(difference & (1 << bit) != 0));
        previous = *value;
    }
    data
}

struct Bits<'a> {
    data: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn difference(&mut self, p: u8) -> Option<u64> {
        let mut quotient = 0_u64;
        while self.next()? {
            quotient += 1;
        }
        let mut low = 0;
        for _ in 0..p {
            low = low << 1 | u64::from(self.next()?);
        }
        Some(quotient << p | low)
    }

    fn next(&mut self) -> Option<bool> {
        let byte = self.data.get(self.at / 8)?;
        let bit = byte & (0x80 >> (self.at % 8)) != 0;
        self.at += 1;
        Some(bit)
    }
}
