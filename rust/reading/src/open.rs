//! Opening regular files without waiting, and reading a place in them without moving an offset that others share.

use std::fs::{File, OpenOptions};
use std::path::Path;

use crate::error::FileError;

/// The file and its length; what was opened is looked at, so no other file can take its place meanwhile.
///
/// # Errors
///
/// Whatever keeps it from being opened; anything but a regular file.
pub fn open_regular(path: &Path) -> Result<(File, u64), FileError> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // A pipe would keep the caller waiting until another process writes into it.
        options.custom_flags(libc::O_NONBLOCK);
    }
    let file = options.open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        let is_directory = metadata.is_dir();
        return Err(FileError::NotRegular(if is_directory { "a directory" } else { "a pipe, socket or device" }));
    }
    Ok((file, metadata.len()))
}

/// Fills `content` with the file's bytes from `offset` on; interrupted reads go on.
///
/// # Errors
///
/// Whatever the system says, and a file that ends before.
#[cfg(unix)]
pub fn read_exact_at(file: &File, content: &mut [u8], offset: u64) -> Result<(), FileError> {
    Ok(std::os::unix::fs::FileExt::read_exact_at(file, content, offset)?)
}

/// Fills `content` with the file's bytes from `offset` on; interrupted reads go on.
///
/// # Errors
///
/// Whatever the system says, and a file that ends before.
#[cfg(windows)]
pub fn read_exact_at(file: &File, mut content: &mut [u8], mut offset: u64) -> Result<(), FileError> {
    use std::io::ErrorKind;
    while !content.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, content, offset) {
            Ok(0) => return Err(std::io::Error::from(ErrorKind::UnexpectedEof).into()),
            Ok(got) => {
                content = &mut content[got..];
                offset += got as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
