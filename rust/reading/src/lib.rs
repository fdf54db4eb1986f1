//! Open files of a checkpoint: which file it is, its bytes as memory, and reading them fast.
//!
//! A [`StoredFile`] is opened once and read through one handle until it is closed, whatever happens to its name.
//! [`FileMapping`] is its bytes as memory.
//!
//! The only crate with `unsafe`: every use stands in a module of its own kind of memory, and says why it holds.

mod error;
mod file_system;
mod mapping;
mod open;
mod stored_file;

pub use error::FileError;
pub use file_system::FileSystem;
pub use mapping::FileMapping;
pub use open::{open_regular, read_exact_at};
pub use stored_file::{Handle, Identity, StoredFile};
