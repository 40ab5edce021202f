//! Hiding lengths in coarse steps (BitChat protocol reference, section 2.4).

const STEPS: [usize; 4] = [256, 512, 1024, 2048];
/// A pad says its own length in one byte.
const MOST: usize = 255;
/// What the apps leave room for when they choose a step.
const ROOM: usize = 16;

/// Pads to the step that the apps would choose, or leaves the bytes alone where the pad would not
/// fit its length byte.
pub fn pad(bytes: &mut Vec<u8>) {
    let Some(target) = STEPS.into_iter().find(|step| *step >= bytes.len() + ROOM) else {
        return;
    };
    let count = target - bytes.len();
    if count <= MOST {
        bytes.resize(target, count as u8);
    }
}

/// What is left once a pad is cut, or `None` where there is none.
///
/// Decode as it is before trying this: real data can end in what looks like a pad.
pub fn unpad(bytes: &[u8]) -> Option<&[u8]> {
    let count = usize::from(*bytes.last()?);
    let kept = bytes.len().checked_sub(count)?;
    let (kept, pad) = bytes.split_at(kept);
    (count > 0 && pad.iter().all(|byte| usize::from(*byte) == count)).then_some(kept)
}
