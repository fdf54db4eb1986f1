//! Whole numbers of one width in another.

/// The lesser of a count and a number of any size.
pub(crate) fn at_most(count: u32, number: u64) -> u32 {
    u32::try_from(number).map_or(count, |number| number.min(count))
}

/// A number of any size, or the largest that there is room for.
pub(crate) fn saturated(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
