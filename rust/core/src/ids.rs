//! Numbers that stand for rows, tensors and element types.

/// Row of a module or tensor; the root is 0.
pub type NodeId = u32;
/// A tensor object; rows with the same id are tied.
pub type TensorId = u32;
/// A row in the table of element types.
pub type DTypeId = u16;
