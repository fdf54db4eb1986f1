//! Open files of a checkpoint: which file it is, its bytes as memory, and reading them fast.
//!
//! A [`StoredFile`] is opened once and read through one handle until it is closed, whatever happens to its name.
//! [`FileMapping`] is its bytes as memory, [`cached_bytes`] says how many of them are in the page cache, and
//! [`read_spans`] reads them into memory, past the page cache if asked to; fastest into a [`PageBuffer`].
//!
//! The only crate with `unsafe`: every use stands in a module of its own kind of memory, and says why it holds.

mod cached;
mod destination;
#[cfg_attr(target_os = "linux", path = "direct/linux.rs")]
#[cfg_attr(not(target_os = "linux"), path = "direct/elsewhere.rs")]
mod direct;
mod error;
mod file_system;
mod mapping;
mod open;
mod pages;
mod read;
mod replay;
mod spans;
mod stored_file;

pub use cached::{CachedBytes, cached_bytes};
pub use destination::Destination;
pub use error::FileError;
pub use file_system::FileSystem;
pub use mapping::{FileMapping, Piece};
pub use open::{open_regular, read_exact_at};
pub use pages::{HUGE_PAGE_BYTES, OutOfMemory, PageBuffer};
pub use read::{BytesRead, ReadError, read_spans};
pub use replay::{replay_spans, replayed_byte};
pub use spans::{Span, SpanError};
pub use stored_file::{Handle, Identity, StoredFile};
