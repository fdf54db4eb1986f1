//! The flattened model: rows, sizes, what shares tensors, and what is placed as a whole.

pub(crate) mod balance;
pub(crate) mod beside;
pub(crate) mod blocks;
pub(crate) mod builder;
pub(crate) mod by_name;
pub(crate) mod classes;
pub(crate) mod cover;
pub(crate) mod cutting;
pub(crate) mod fingerprint;
pub(crate) mod layout;
#[cfg(test)]
mod linear_time;
pub(crate) mod name_kinds;
pub(crate) mod options;
pub(crate) mod overview;
pub(crate) mod repeated;
pub(crate) mod shared;
pub(crate) mod sizes;
pub(crate) mod ties;
pub(crate) mod tree;
