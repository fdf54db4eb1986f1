//! Why a file cannot be used; the words are the reason that people read.

use std::io::{Error, ErrorKind};

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// There is no such file.
    #[error("no such file")]
    Missing,
    /// The file may not be read.
    #[error("permission denied")]
    Denied,
    /// A directory, a pipe, a socket or a device.
    #[error("not a regular file but {0}")]
    NotRegular(&'static str),
    /// It is not what it was when it was opened; the words say in what.
    #[error("{0}")]
    Changed(String),
    /// The system refuses to read it.
    #[error("cannot be read: {0}")]
    Unreadable(String),
}

impl FileError {
    /// What only a fault in here could cause.
    pub(crate) fn thread_died() -> Self {
        Self::Unreadable("a reading thread died".to_string())
    }
}

impl From<Error> for FileError {
    fn from(error: Error) -> Self {
        match error.kind() {
            ErrorKind::NotFound => Self::Missing,
            ErrorKind::PermissionDenied => Self::Denied,
            ErrorKind::UnexpectedEof => Self::Unreadable("it became shorter while it was read".to_string()),
            _ => Self::Unreadable(error.to_string()),
        }
    }
}
