//! Trees from the names of tensors in files.

pub(crate) mod assemble;
pub(crate) mod live_names;
pub(crate) mod order;
pub(crate) mod outline;
pub(crate) mod stored;
