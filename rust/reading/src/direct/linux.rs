//! Reading past the page cache: whole blocks of the file only, into memory that the disk can write to.

use std::fs::{File, OpenOptions};
use std::io::{Error, IoSliceMut};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};

/// Where the system does not say how offsets and addresses must be aligned: what every disk can do.
const USUAL_ALIGNMENT: usize = 4096;
/// What is larger is no alignment that a disk needs.
const MOST_ALIGNMENT: usize = 1 << 20;
/// What is aside of one read, in units of the alignment: a block at its beginning, less than two and a padding at its end.
const ASIDE_UNITS: usize = 4;

/// A second handle of a file, which reads past the page cache.
#[derive(Debug)]
pub(crate) struct DirectHandle {
    file: File,
    /// What offsets and lengths are multiples of.
    block: usize,
    /// What addresses are multiples of.
    address: usize,
    is_refused: AtomicBool,
}

/// Aligned memory of one reading thread, made when it is first needed.
#[derive(Debug, Default)]
pub(crate) struct Aside(Vec<u8>);

impl Aside {
    fn aligned(&mut self, alignment: usize) -> &mut [u8] {
        let size = ASIDE_UNITS * alignment;
        if self.0.len() < size + alignment {
            self.0 = vec![0; size + alignment];
        }
        let before = padding(self.0.as_ptr() as usize, alignment);
        &mut self.0[before..before + size]
    }
}

impl DirectHandle {
    /// Of the same inode, whatever has become of its name; None where that cannot be read past the page cache.
    pub(crate) fn of(file: &File) -> Option<Self> {
        let (block, address) = alignment(file)?;
        // The kernel's own name for an open file: a renamed or deleted one has no other.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).ok()?;
        let (known, opened) = (file.metadata().ok()?, direct.metadata().ok()?);
        let is_same = (known.dev(), known.ino()) == (opened.dev(), opened.ino());
        is_same.then_some(Self { file: direct, block, address, is_refused: AtomicBool::new(false) })
    }

    /// Fills the beginning of `memory` with the file's bytes from `begin` on; how many, which may be none.
    ///
    /// # Errors
    ///
    /// Whatever the system says; but that it does not read this file directly is 0 bytes, and asked once.
    pub(crate) fn read(&self, memory: &mut [u8], begin: u64, aside: &mut Aside) -> Result<usize, Error> {
        if self.is_refused.load(Ordering::Relaxed) {
            return Ok(0);
        }
        let aside = aside.aligned(self.address.max(self.block));
        let mut done = 0;
        while done < memory.len() {
            let (rest, from) = (&mut memory[done..], begin + done as u64);
            match self.read_some(rest, from, aside) {
                Ok(0) => break,
                Ok(got) => done += got,
                Err(error) if is_refusal(&error) => {
                    self.is_refused.store(true, Ordering::Relaxed);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// One call: whole blocks go into `memory`, the ends of others beside it. Where the disk cannot write to the place that a
    /// block belongs in, they go a little behind it, and are moved: memory elsewhere would lie in small pages.
    fn read_some(&self, memory: &mut [u8], begin: u64, aside: &mut [u8]) -> Result<usize, Error> {
        let block = self.block;
        #[allow(clippy::cast_possible_truncation)] // less than a block
        let skipped = (begin % block as u64) as usize;
        let head = if skipped == 0 { 0 } else { (block - skipped).min(memory.len()) };
        let shift = padding(memory.as_ptr() as usize + head, self.address);
        let room = memory.len().saturating_sub(head + shift);
        let whole = head..head + (room - room % block); // where the blocks belong
        let tail = memory.len() - whole.end;
        let (first, last) = aside.split_at_mut(block.max(self.address));
        let mut parts = Vec::with_capacity(3);
        if head > 0 {
            parts.push(IoSliceMut::new(&mut first[..block]));
        }
        if !whole.is_empty() {
            parts.push(IoSliceMut::new(&mut memory[whole.start + shift..whole.end + shift]));
        }
        if tail > 0 {
            parts.push(IoSliceMut::new(&mut last[..tail.next_multiple_of(block)]));
        }
        let got = read_vectored_at(&self.file, &mut parts, begin - skipped as u64)?;
        let got = got.saturating_sub(skipped).min(memory.len());
        let of_head = head.min(got);
        memory[..of_head].copy_from_slice(&first[skipped..skipped + of_head]);
        if shift > 0 && !whole.is_empty() {
            memory.copy_within(whole.start + shift..whole.end + shift, whole.start);
        }
        let of_tail = got.saturating_sub(whole.end);
        memory[whole.end..whole.end + of_tail].copy_from_slice(&last[..of_tail]);
        Ok(got)
    }
}

/// Bytes from an address to the next multiple.
fn padding(address: usize, multiple: usize) -> usize {
    address.next_multiple_of(multiple) - address
}

/// What offsets and addresses must be multiples of; None where nothing can be read directly.
#[expect(unsafe_code, reason = "statx is in no safe library that is used here")]
fn alignment(file: &File) -> Option<(usize, usize)> {
    let mut found = std::mem::MaybeUninit::<libc::statx>::zeroed();
    let (handle, nameless) = (file.as_raw_fd(), c"".as_ptr());
    // SAFETY: the handle is open as long as `file` is borrowed; `found` has room for what is written.
    let refused =
        unsafe { libc::statx(handle, nameless, libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, found.as_mut_ptr()) };
    // SAFETY: zeroed above, and zeros are numbers.
    let found = unsafe { found.assume_init() };
    if refused != 0 || found.stx_mask & libc::STATX_DIOALIGN == 0 {
        return Some((USUAL_ALIGNMENT, USUAL_ALIGNMENT));
    }
    let (block, address) = (found.stx_dio_offset_align as usize, found.stx_dio_mem_align as usize);
    let is_possible = block > 0 && address > 0 && block.max(address) <= MOST_ALIGNMENT;
    is_possible.then_some((block, address))
}

fn is_refusal(error: &Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS))
}

/// One read into several places; interrupted ones are tried again.
#[expect(unsafe_code, reason = "the standard library reads into several places at the shared offset only")]
fn read_vectored_at(file: &File, parts: &mut [IoSliceMut<'_>], begin: u64) -> Result<usize, Error> {
    let count = libc::c_int::try_from(parts.len()).map_err(Error::other)?;
    let offset = libc::off_t::try_from(begin).map_err(Error::other)?;
    loop {
        // SAFETY: the standard library promises that these slices are the system's `iovec`; they are borrowed for the call.
        let got = unsafe { libc::preadv(file.as_raw_fd(), parts.as_mut_ptr().cast(), count, offset) };
        if let Ok(got) = usize::try_from(got) {
            return Ok(got);
        }
        let error = Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
