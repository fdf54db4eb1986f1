//! Every way in which planning can fail, as values with numbers; wording for people is made outside.

use crate::ids::NodeId;

/// Why there is no tree, no layout or no plan.
// Not `non_exhaustive`: the binding must not compile before it knows what a new variant means in Python.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Occurs when the tree names more modules and tensors than ids exist for, as shared modules nested in shared
    /// modules do: each level doubles the names.
    #[error("the tree names more than {limit} modules and tensors")]
    TreeTooLarge {
        /// The largest number of nodes.
        limit: usize,
    },
    /// Occurs when the name of a tensor in a file cannot be that of a tensor in a module.
    #[error("'{}' cannot be the name of a tensor in a module", name.chars().take(80).collect::<String>())]
    ImpossibleName {
        /// The name.
        name: String,
    },
    /// Occurs when sizes do not fit the 60 bits that bits are counted in.
    #[error("node {node} makes the model larger than {limit_bytes} bytes")]
    SizeOverflow {
        /// The node at which the sum became too large.
        node: NodeId,
        /// The largest total that can be planned.
        limit_bytes: u64,
    },
    /// Occurs when a module fits on no device that may still take it.
    #[error("node {node} does not fit on device {device}: {shortfall_bits} bits short")]
    Exhausted {
        /// The first node without a place.
        node: NodeId,
        /// Index of the device that refused it last.
        device: u32,
        /// What that device lacks, in bits.
        shortfall_bits: u64,
        /// What had been placed, as (node, device), in order.
        placed: Vec<(NodeId, u32)>,
    },
}
