//! What kind of file system a file lies in: it decides whether mapped pages are to be trusted.

use std::fs::File;

use crate::error::FileError;

/// Where the bytes of a file come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// A disk of this machine, or its memory.
    Local,
    /// Another machine.
    Network,
    /// A program, which may ask anybody.
    Fuse,
}

impl FileSystem {
    /// The file system of an open file; local where the system does not say.
    ///
    /// # Errors
    ///
    /// Whatever the system says.
    #[cfg(target_os = "linux")]
    #[expect(unsafe_code, reason = "fstatfs is in no safe library that is used here")]
    pub fn of(file: &File) -> Result<Self, FileError> {
        use std::os::fd::AsRawFd;
        let mut found = std::mem::MaybeUninit::<libc::statfs>::uninit();
        // SAFETY: the handle is open as long as `file` is borrowed; `found` has room for what is written.
        if unsafe { libc::fstatfs(file.as_raw_fd(), found.as_mut_ptr()) } != 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        // SAFETY: the call succeeded, so it has written all of it.
        let found = unsafe { found.assume_init() };
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // numbers of 32 bits, whatever holds them
        let number = found.f_type as u32;
        Ok(Self::numbered(number))
    }

    /// Local: this system does not say.
    ///
    /// # Errors
    ///
    /// None here.
    #[cfg(not(target_os = "linux"))]
    pub fn of(_file: &File) -> Result<Self, FileError> {
        Ok(Self::Local)
    }

    /// By the number that `statfs` gives.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    fn numbered(number: u32) -> Self {
        match number {
            0x6573_5546 => Self::Fuse,
            0x0000_6969 // NFS
            | 0x0000_517B // SMB
            | 0xFE53_4D42 // SMB 2
            | 0xFF53_4D42 // CIFS
            | 0x00C3_6400 // Ceph
            | 0x0BD0_0BD0 // Lustre
            | 0x4750_4653 // GPFS
            | 0x1983_0326 // BeeGFS
            | 0xAAD7_AAEA // PanFS
            | 0x5346_414F // AFS
            | 0x6B41_4653 // kAFS
            | 0x7375_7245 // Coda
            | 0x0102_1997 // 9P
            | 0x786F_4256 // shared folders of VirtualBox
            | 0x0116_1970 // GFS2
            | 0x7461_636F // OCFS2
            => Self::Network,
            _ => Self::Local,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::FileSystem;

    #[test]
    fn numbers_are_known() {
        let numbers = [0xEF53, 0x0102_1994, 0x6969, 0xFF53_4D42, 0x6573_5546];
        let kinds = [FileSystem::Local, FileSystem::Local, FileSystem::Network, FileSystem::Network, FileSystem::Fuse];
        assert_eq!(numbers.map(FileSystem::numbered), kinds);
    }
}
