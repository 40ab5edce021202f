//! Which numbers of a session have come (BitChat protocol reference, section 5.4).

const SIZE: u32 = 1024;
const WORDS: usize = SIZE as usize / 64;

/// The last 1024 numbers. The apps mean the same and do it wrongly; this is what they mean.
#[derive(Clone, Debug, Default)]
pub struct Window {
    /// One more than the highest number that has come.
    end: u64,
    /// One bit for each number in the window, at its place modulo the size.
    seen: [u64; WORDS],
}

impl Window {
    /// Whether a number could be new.
    pub fn allows(&self, number: u32) -> bool {
        let number = u64::from(number);
        if number >= self.end {
            return true;
        }
        number + u64::from(SIZE) >= self.end && !self.has(number)
    }

    /// Takes a number in; its frame has been authenticated. False if it has come before.
    pub fn insert(&mut self, number: u32) -> bool {
        if !self.allows(number) {
            return false;
        }
        let number = u64::from(number);
        if number >= self.end {
            if number - self.end >= u64::from(SIZE) {
                self.seen = [0; WORDS];
            } else {
                (self.end..number).for_each(|skipped| self.clear(skipped));
            }
            self.end = number + 1;
        }
        let (word, bit) = place(number);
        self.seen[word] |= bit;
        true
    }

    fn has(&self, number: u64) -> bool {
        let (word, bit) = place(number);
        self.seen[word] & bit != 0
    }

    fn clear(&mut self, number: u64) {
        let (word, bit) = place(number);
        self.seen[word] &= !bit;
    }
}

fn place(number: u64) -> (usize, u64) {
    let place = (number % u64::from(SIZE)) as usize;
    (place / 64, 1 << (place % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_frames_are_taken_once_and_only_inside_the_window() {
        let mut window = Window::default();
        let mut take =
            |numbers: std::ops::Range<u32>| numbers.filter(|n| window.insert(*n)).count();
        assert_eq!(take(2000..3000), 1000);
        assert_eq!(take(2000..3000), 0);
        assert_eq!(take(1976..2000), 24);
        assert_eq!(take(1900..2000), 0);
        assert_eq!(take(3500..3501), 1);
        assert_eq!(take(2400..3500), 500);
    }

    #[test]
    fn agrees_with_a_set_of_everything_seen() {
        use rand::{RngExt, SeedableRng, rngs::StdRng};
        let mut rng = StdRng::seed_from_u64(5);
        let (mut window, mut seen) = (Window::default(), std::collections::BTreeSet::new());
        let mut base: u32 = 0;
        for _ in 0..50_000 {
            base += rng.random_range(0..4);
            if rng.random_bool(0.001) {
                base += 3000;
            }
            let number = base.saturating_sub(rng.random_range(0..1500));
            let highest = seen.last().copied();
            let recent = highest.is_none_or(|highest: u32| number + 1023 >= highest);
            assert_eq!(window.insert(number), recent && seen.insert(number), "{number}");
        }
    }
}
