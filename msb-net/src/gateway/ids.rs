//! Tables by flow.
//!
//! Every frame and every event of a socket looks up several. Flows are numbered
//! by us, one after the other, so nobody can choose numbers that collide, and a
//! hash need not keep anybody from it: what does the same for addresses and
//! ports, which guests choose, costs several times as much.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::FlowId;

/// A table by flow.
pub(crate) type FlowMap<V> = HashMap<FlowId, V, BuildHasherDefault<Spread>>;

/// Spreads a number over 64 bits by one multiplication.
#[derive(Debug, Default)]
pub(crate) struct Spread(u64);

/// 2⁶⁴ divided by the golden ratio, to the next odd number.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

impl Hasher for Spread {
    fn write_u64(&mut self, number: u64) {
        self.0 = number.wrapping_mul(FACTOR);
    }

    fn write(&mut self, bytes: &[u8]) {
        // Not what a flow's number is hashed by, and right all the same.
        for byte in bytes {
            self.0 = (self.0.rotate_left(8) ^ u64::from(*byte)).wrapping_mul(FACTOR);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
