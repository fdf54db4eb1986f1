//! Numbers that stand for rows, tensors and element types.

/// Row of a module or tensor; the root is 0.
pub type NodeId = u32;
/// A tensor object; rows with the same id are tied.
pub type TensorId = u32;
/// A row in the table of element types.
pub type DTypeId = u16;

/// The most rows of one model, which are names of modules and tensors; bounds the memory of a tree to about 600 MB.
pub(crate) const NODE_LIMIT: usize = 30_000_000;

/// A place in a list as an id, or a length as the end of ids. Rows are limited to 30 million and parts of names in files to 3
/// million; tensors, names, classes, blocks and units are no more than rows, sets of devices are a million, and 2^32 parts of
/// keys would take hundreds of GiB.
pub(crate) fn id_at(place: usize) -> u32 {
    debug_assert!(u32::try_from(place).is_ok());
    #[allow(clippy::cast_possible_truncation)] // see above: no list is as long as that
    return place as u32;
}

/// A place in the table of element types. torch has some forty, safetensors half of that, and each is in it once.
pub(crate) fn dtype_at(place: usize) -> DTypeId {
    debug_assert!(DTypeId::try_from(place).is_ok());
    #[allow(clippy::cast_possible_truncation)] // see above: there are not so many types
    return place as DTypeId;
}
