//! Why a file has no header that can be trusted; the words are the reason that people read.

use planner_reading::FileError;

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// It cannot be opened or read.
    #[error(transparent)]
    File(#[from] FileError),
    /// Does not begin as a GGUF file does.
    #[error("not a GGUF file")]
    NotGguf,
    /// A GGUF file for machines of the other byte order.
    #[error("a big-endian GGUF file; little-endian ones are read, which gguf-py's gguf_convert_endian makes of it")]
    BigEndian,
    /// A GGUF version that is not read.
    #[error("GGUF version {0}; versions 2 and 3 are read")]
    GgufVersion(u32),
    /// Fewer than the 8 bytes that say how long the header is.
    #[error("{0} bytes, too few for a safetensors file")]
    TooShort(u64),
    /// The header is larger than the format allows.
    #[error("says that its header has {said} bytes; at most {most} are allowed")]
    HeaderTooLarge {
        /// Length that the header is said to have.
        said: u64,
        /// Most bytes that are read.
        most: u64,
    },
    /// The header would end after the file.
    #[error("truncated: a header of {said} bytes in a file of {file_bytes}")]
    HeaderTruncated {
        /// Length that the header is said to have.
        said: u64,
        /// Length of the file.
        file_bytes: u64,
    },
    /// A file that is to be read as a whole is too large.
    #[error("{0} bytes; at most {1} are read")]
    FileTooLarge(u64, u64),
    /// An index that is not JSON, or not of the form that an index has.
    #[error("index is malformed: {0}")]
    BadIndex(String),
    /// All headers of a checkpoint together are too large.
    #[error("the headers of the checkpoint take more than {0} bytes")]
    AllHeadersTooLarge(u64),
    /// Not JSON, or not of the form that a header has.
    #[error("header is malformed: {0}")]
    Malformed(String),
    /// A key that is there twice.
    #[error("header lists '{0}' twice")]
    DuplicateName(String),
    /// A name with a zero byte.
    #[error("header has a name with a zero byte: {0:?}")]
    ZeroInName(String),
    /// Offsets, shapes and element types contradict each other.
    #[error("header contradicts itself: {0}")]
    Inconsistent(String),
    /// The tensors end before or after the file does.
    #[error("{}: the tensors take {said} bytes, the file holds {held} for them", if said > held { "truncated" } else { "bytes too many" })]
    DataLength {
        /// End of the last tensor.
        said: u64,
        /// Bytes after the header.
        held: u64,
    },
}

/// A name as messages show it: whole, or its beginning.
pub(crate) fn shown(name: &str) -> String {
    match name.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_string(),
    }
}
