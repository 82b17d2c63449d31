//! Which sectors of an interrupted write are on the device: the classes of subsets that a crash enumeration goes through.

use std::fmt;

/// The sectors of one write that landed. The others hold what they held before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Landed {
    None,
    All,
    /// The first so many.
    First(usize),
    /// The last so many.
    Last(usize),
    /// All but this one.
    AllBut(usize),
    /// This one alone.
    Only(usize),
    /// Every second one, from this one (0 or 1) on.
    Alternate(usize),
    /// Those whose bit is drawn from this seed.
    Drawn(u64),
}

impl Landed {
    /// Whether sector `index` of `count` landed.
    pub fn contains(self, index: usize, count: usize) -> bool {
        match self {
            Landed::None => false,
            Landed::All => true,
            Landed::First(len) => index < len,
            Landed::Last(len) => count - index <= len,
            Landed::AllBut(one) => index != one,
            Landed::Only(one) => index == one,
            Landed::Alternate(start) => index % 2 == start % 2,
            Landed::Drawn(seed) => mixed(seed ^ (index as u64).rotate_left(32)) & 1 == 1,
        }
    }
}

impl fmt::Display for Landed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// All classes for a write of `bytes` on a device that tears at `sector` bytes: nothing, everything, torn before and after every
/// sector from both ends, each sector missing alone, each sector there alone, every second one, and `drawn` ones from `seed`.
///
/// A tear at a sector of 4096 is a tear at every eighth sector of 512; the drawn ones are for the finer sectors only.
pub fn landed_classes(bytes: usize, sector: usize, drawn: u64, seed: u64) -> Vec<Landed> {
    let fine = sector == super::image::SECTOR_LEN;
    let step = (sector / super::image::SECTOR_LEN).max(1);
    let count = bytes.div_ceil(sector);
    let mut classes = vec![Landed::None, Landed::All];
    for sectors in 1..count {
        classes.push(Landed::First(sectors * step));
        classes.push(Landed::Last(sectors * step));
    }
    if fine && count > 2 {
        for sector in 1..count - 1 {
            classes.push(Landed::AllBut(sector));
            classes.push(Landed::Only(sector));
        }
        classes.push(Landed::Alternate(0));
        classes.push(Landed::Alternate(1));
        classes.extend((0..drawn).map(|draw| Landed::Drawn(mixed(seed.wrapping_add(draw)))));
    }
    classes
}

/// A number that has little to do with `seed` any more (the finaliser of splitmix64).
pub(crate) fn mixed(seed: u64) -> u64 {
    let mut x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
