use std::{convert::Infallible, fmt};

use rand::{Rng, SeedableRng, TryCryptoRng, TryRng, rngs::StdRng};
use zeroize::Zeroizing;

/// A generator whose state does not tell what it has given out.
///
/// [`StdRng`] can be run backwards by who reads its state out of memory: keys drawn an hour ago would
/// be known again, though they were erased themselves. This one draws its next seed first, then what
/// was asked for, and forgets the seed that both came from ("fast key erasure").
pub struct ForgetfulRng {
    seed: Zeroizing<[u8; 32]>,
}

impl ForgetfulRng {
    fn draw<T>(&mut self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        let mut rng = StdRng::from_seed(*self.seed);
        rng.fill_bytes(self.seed.as_mut());
        draw(&mut rng)
    }
}

impl SeedableRng for ForgetfulRng {
    type Seed = [u8; 32];

    fn from_seed(seed: [u8; 32]) -> Self {
        Self { seed: Zeroizing::new(seed) }
    }
}

impl TryRng for ForgetfulRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.draw(StdRng::next_u32))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.draw(StdRng::next_u64))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.draw(|rng| rng.fill_bytes(bytes));
        Ok(())
    }
}

impl TryCryptoRng for ForgetfulRng {}

impl fmt::Debug for ForgetfulRng {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ForgetfulRng(..)")
    }
}

#[cfg(test)]
mod tests {
    use rand::RngExt;

    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers_and_no_seed_stays() {
        let (mut one, mut other) = (ForgetfulRng::seed_from_u64(1), ForgetfulRng::seed_from_u64(1));
        let mut seeds = vec![*one.seed];
        for _ in 0..100 {
            let secret: [u8; 32] = one.random();
            assert_eq!(secret, other.random::<[u8; 32]>());
            // What was given out comes from a seed that is gone, and not from the one that is there.
            assert!(!seeds.contains(&one.seed) && *one.seed != secret);
            let mut now = StdRng::from_seed(*one.seed);
            assert!((0..100).all(|_| now.random::<[u8; 32]>() != secret));
            seeds.push(*one.seed);
        }
    }
}
