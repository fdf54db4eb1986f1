//! Strict reading of headers, of safetensors and of GGUF files: names, element types and shapes of a checkpoint's tensors, never their data.
//!
//! [`parse`] is pure: bytes of a header in, entries out. [`read_files`] opens files, reads nothing but their headers, on
//! several threads, within limits that hold whatever the files say. [`join`] makes one table of several files.
//! [`parse_gguf`], [`read_gguf_files`] and [`join_gguf`] are the same for GGUF.
//!
//! ```
//! let header = br#"{"a.weight":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]}}"#;
//! let entries = planner_headers::parse(header, 12)?;
//! assert_eq!((entries[0].name.as_str(), entries[0].bytes()), ("a.weight", 12));
//! # Ok::<(), planner_headers::HeaderError>(())
//! ```

mod error;
mod file;
mod ggml;
mod gguf;
mod gguf_split;
mod index;
mod join;
mod parse;
mod replay;

pub use error::HeaderError;
pub use file::{read_file, read_files, read_gguf_files, read_open_files};
pub use ggml::{GGML_TYPES, GgmlType};
pub use gguf::{Fact, Gguf, GgufEntry, parse_gguf};
pub use gguf_split::join_gguf;
pub use index::{Index, parse_index, read_index};
pub use join::{JoinError, Joined, join};
pub use parse::{Entry, parse};
pub use replay::{replay_gguf, replay_header, replay_index};
pub use safetensors::Dtype;

/// Most bytes of one header; the format's own limit.
pub const HEADER_BYTES: u64 = 100_000_000;
/// Most bytes of an index.
pub const INDEX_BYTES: u64 = 200_000_000;
/// Most bytes of all headers of one checkpoint.
pub const ALL_HEADERS_BYTES: u64 = 400_000_000;
/// Most tensors of one file.
pub const FILE_TENSORS: usize = 1 << 18;
/// Most tensors of one checkpoint.
pub const ALL_TENSORS: usize = 1 << 20;
/// Most dimensions of a tensor.
pub const DIMENSIONS: usize = 64;
