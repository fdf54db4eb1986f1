//! Trees from the names of tensors in files.

pub(crate) mod assemble;
pub(crate) mod order;
pub(crate) mod outline;
