//! A file's bytes as memory: private, so that what is written there reaches no file and no other process.

use std::fs::File;

use crate::error::FileError;

/// All bytes of a file, mapped. Pages come from the page cache; one that is written to becomes the process's own.
///
/// A page that the file no longer has, because it was cut, cannot be read: the process gets SIGBUS. Whoever reads compares
/// the file with what it was before.
#[derive(Debug)]
pub struct FileMapping {
    memory: Mapped,
}

impl FileMapping {
    /// Maps the first `size_bytes` of a file.
    ///
    /// # Errors
    ///
    /// Whatever the system says; more bytes than addresses.
    pub fn of(file: &File, size_bytes: u64) -> Result<Self, FileError> {
        let size = usize::try_from(size_bytes)
            .map_err(|_| FileError::Unreadable(format!("{size_bytes} bytes are more than this machine can address")))?;
        Ok(Self { memory: Mapped::of(file, size)? })
    }

    /// The first byte; valid as long as the mapping is.
    pub fn start(&self) -> *mut u8 {
        self.memory.start()
    }

    /// Bytes of the mapping.
    pub fn size_bytes(&self) -> usize {
        self.memory.size()
    }
}

#[cfg(unix)]
pub(crate) use unix::Mapped;

#[cfg(unix)]
mod unix {
    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::ptr::NonNull;

    use crate::error::FileError;

    /// Pages of a file; given back when this is dropped.
    #[derive(Debug)]
    pub(crate) struct Mapped {
        start: NonNull<u8>,
        size: usize,
    }

    #[expect(
        unsafe_code,
        reason = "the pages belong to no thread; what is read and written there is its users' business"
    )]
    // SAFETY: only an address and a size, which never change; the pages are unmapped by whoever drops it last.
    unsafe impl Send for Mapped {}
    #[expect(unsafe_code, reason = "as above")]
    // SAFETY: as above; nothing here reads or writes the pages.
    unsafe impl Sync for Mapped {}

    impl Mapped {
        #[expect(unsafe_code, reason = "mmap is in no safe library that is used here")]
        pub(crate) fn of(file: &File, size: usize) -> Result<Self, FileError> {
            if size == 0 {
                return Ok(Self { start: NonNull::dangling(), size }); // no system maps nothing
            }
            #[cfg(target_os = "linux")]
            // A file larger than the memory can be mapped: what is written to is few of its pages, or none.
            let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
            #[cfg(not(target_os = "linux"))]
            let flags = libc::MAP_PRIVATE;
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: the system chooses addresses that nobody has; the handle is open as long as `file` is borrowed.
            let start = unsafe { libc::mmap(std::ptr::null_mut(), size, protection, flags, file.as_raw_fd(), 0) };
            match NonNull::new(start.cast::<u8>()) {
                Some(start) if start.as_ptr().cast() != libc::MAP_FAILED => Ok(Self { start, size }),
                _ => Err(std::io::Error::last_os_error().into()),
            }
        }

        pub(crate) fn start(&self) -> *mut u8 {
            self.start.as_ptr()
        }

        pub(crate) fn size(&self) -> usize {
            self.size
        }
    }

    impl Drop for Mapped {
        #[expect(unsafe_code, reason = "munmap is in no safe library that is used here")]
        fn drop(&mut self) {
            if self.size > 0 {
                // SAFETY: these pages were mapped by `of`, and whoever used them has let go of this.
                unsafe { libc::munmap(self.start().cast(), self.size) };
            }
        }
    }
}

/// Where there is no mmap, a file's bytes are read into memory.
#[cfg(not(unix))]
#[derive(Debug)]
pub(crate) struct Mapped(crate::pages::Pages);

#[cfg(not(unix))]
impl Mapped {
    pub(crate) fn of(file: &File, size: usize) -> Result<Self, FileError> {
        let out_of_memory = |_| FileError::Unreadable(format!("no memory for its {size} bytes"));
        let mut pages = crate::pages::Pages::new(size).map_err(out_of_memory)?;
        crate::open::read_exact_at(file, pages.as_mut_slice(), 0)?;
        Ok(Self(pages))
    }

    pub(crate) fn start(&self) -> *mut u8 {
        self.0.start()
    }

    pub(crate) fn size(&self) -> usize {
        self.0.size()
    }
}
