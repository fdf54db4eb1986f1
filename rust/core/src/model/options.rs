//! How a tree is to be read, by row.

use crate::ids::NodeId;

/// Whose rules are followed where two planners differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dialect {
    /// accelerate 1.15.
    #[default]
    Accelerate,
    /// transformers 5.23: element sizes as stored, each tied module counted once, the current module always split.
    Transformers,
}

/// The dtype that weights will be loaded with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cast {
    /// Bits per element by accelerate's `dtype_byte_size`.
    pub formula_bits: u64,
    /// Bits per element as stored.
    pub planned_bits: u64,
}

/// The size of one tensor row, said from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Explicit {
    /// The row.
    pub node: NodeId,
    /// Its bits by formula.
    pub formula_bits: u64,
    /// Its bits as stored.
    pub planned_bits: u64,
}

/// Which rows are one tensor.
#[derive(Debug, Clone, Default)]
pub enum Tied {
    /// Rows that hold the same object.
    #[default]
    ByIdentity,
    /// Said from outside, on top of identity.
    Named {
        /// Rows that are, or will be, one tensor.
        groups: Vec<Vec<NodeId>>,
        /// Rows that the formula does not count.
        uncounted: Vec<NodeId>,
    },
}

/// How to read a tree.
#[derive(Debug, Clone, Default)]
pub struct LayoutOptions {
    /// Exact class names of modules that stay on one device.
    pub no_split_classes: Vec<String>,
    /// Modules that may be taken apart all the same.
    pub containers: Vec<NodeId>,
    /// Whose rules.
    pub dialect: Dialect,
    /// The dtype of the load, if it differs.
    pub cast: Option<Cast>,
    /// Sizes said from outside.
    pub explicit: Vec<Explicit>,
    /// Ties.
    pub tied: Tied,
    /// Rows that need no place when the block that holds them has to be taken apart.
    pub exempt: Vec<NodeId>,
}
