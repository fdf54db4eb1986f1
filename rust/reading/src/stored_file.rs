//! A file that is opened once: what it was then, and the handle through which all of it is read.

use std::fs::{File, Metadata};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::direct::DirectHandle;
use crate::error::FileError;
use crate::file_system::FileSystem;
use crate::mapping::FileMapping;
use crate::open::open_regular;

/// Which file it is, and which state of it. Devices and inodes are zero where the system has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Number of the device.
    pub device: u64,
    /// Number on the device.
    pub inode: u64,
    /// Length.
    pub size_bytes: u64,
    /// When it was last written to, in nanoseconds since 1970.
    pub modified_ns: i128,
}

impl Identity {
    /// Of an open file, now.
    fn of(file: &File) -> Result<Self, FileError> {
        Ok(Self::from(&file.metadata()?))
    }

    /// In what a file is not what it was, as words that go behind its name.
    fn change_to(&self, now: &Self) -> Option<String> {
        if (self.device, self.inode) != (now.device, now.inode) {
            return Some("is another file now than the one that was opened".to_string());
        }
        if self.size_bytes != now.size_bytes {
            let (now, then) = (now.size_bytes, self.size_bytes);
            return Some(format!("is {now} bytes now, was {then} when it was opened"));
        }
        (self.modified_ns != now.modified_ns).then(|| "was written to since it was opened".to_string())
    }
}

impl From<&Metadata> for Identity {
    #[cfg(unix)]
    fn from(metadata: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        let modified_ns = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        Self { device: metadata.dev(), inode: metadata.ino(), size_bytes: metadata.len(), modified_ns }
    }

    #[cfg(not(unix))]
    fn from(metadata: &Metadata) -> Self {
        let modified = metadata.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
        let modified_ns = modified.map_or(0, |time| i128::try_from(time.as_nanos()).unwrap_or(0));
        Self { device: 0, inode: 0, size_bytes: metadata.len(), modified_ns }
    }
}

/// What a file is read through; closed when the last one who reads lets go of it.
#[derive(Debug)]
pub struct Handle {
    file: File,
    size_bytes: u64,
    direct: OnceLock<Option<DirectHandle>>,
}

impl Handle {
    fn new(file: File, identity: &Identity) -> Arc<Self> {
        Arc::new(Self { file, size_bytes: identity.size_bytes, direct: OnceLock::new() })
    }

    /// The file's length when it was opened.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The handle that reads past the page cache, opened when it is first asked for.
    pub(crate) fn direct(&self) -> Option<&DirectHandle> {
        if let Some(known) = self.direct.get() {
            return known.as_ref();
        }
        // Opened before anything is locked: a process forked meanwhile finds no lock that nobody opens. One may be in vain.
        let opened = DirectHandle::of(&self.file);
        self.direct.get_or_init(|| opened).as_ref()
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// One file of a checkpoint.
#[derive(Debug)]
pub struct StoredFile {
    path: PathBuf,
    identity: Identity,
    handle: Mutex<Option<Arc<Handle>>>,
}

impl StoredFile {
    /// Opens a regular file.
    ///
    /// # Errors
    ///
    /// Whatever keeps it from being opened; anything but a regular file.
    pub fn open(path: PathBuf) -> Result<Self, FileError> {
        let (file, _) = open_regular(&path)?;
        let identity = Identity::of(&file)?;
        Ok(Self { path, identity, handle: Mutex::new(Some(Handle::new(file, &identity))) })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it was when it was opened.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The handle; whoever holds it can go on reading after [`close`](Self::close). Of a file that was closed, one of its own.
    ///
    /// # Errors
    ///
    /// Of a file that was closed: whatever keeps it from being opened; another file at its path, or one that was changed.
    pub fn handle(&self) -> Result<Arc<Handle>, FileError> {
        let kept = self.slot().clone();
        kept.map_or_else(|| self.opened_again(), Ok)
    }

    fn opened_again(&self) -> Result<Arc<Handle>, FileError> {
        let (file, _) = open_regular(&self.path)?;
        match self.identity.change_to(&Identity::of(&file)?) {
            Some(change) => Err(FileError::Changed(change)),
            None => Ok(Handle::new(file, &self.identity)),
        }
    }

    /// Whether it has a handle that stays.
    pub fn is_open(&self) -> bool {
        self.slot().is_some()
    }

    /// Lets go of the handle; reads that have begun end as they would have.
    pub fn close(&self) {
        let handle = self.slot().take();
        drop(handle); // behind the lock, because closing may take long
    }

    /// Opens it again, if it was closed.
    ///
    /// # Errors
    ///
    /// Whatever keeps it from being opened; another file at its path, or one that was changed.
    pub fn reopen(&self) -> Result<(), FileError> {
        if self.is_open() {
            return Ok(());
        }
        let handle = self.opened_again()?;
        self.slot().get_or_insert(handle);
        Ok(())
    }

    /// In what the file is not what it was, as words that go behind its name. Of a file that was closed, nothing where another one lies
    /// at its path now, or none: what is mapped of it stays as it was.
    ///
    /// # Errors
    ///
    /// Whatever the system says.
    pub fn change(&self) -> Result<Option<String>, FileError> {
        let kept = self.slot().clone();
        if let Some(handle) = kept {
            return Ok(self.identity.change_to(&Identity::of(handle.file())?));
        }
        let Ok((file, _)) = open_regular(&self.path) else { return Ok(None) };
        let now = Identity::of(&file)?;
        let is_same_file = (now.device, now.inode) == (self.identity.device, self.identity.inode);
        Ok(if is_same_file { self.identity.change_to(&now) } else { None })
    }

    /// Its bytes as memory, as many as it had when it was opened.
    ///
    /// # Errors
    ///
    /// A file that is not what it was; whatever the system says.
    pub fn map(&self) -> Result<FileMapping, FileError> {
        if let Some(change) = self.change()? {
            return Err(FileError::Changed(change));
        }
        FileMapping::of(self.handle()?.file(), self.identity.size_bytes)
    }

    /// What it lies in.
    ///
    /// # Errors
    ///
    /// As of [`handle`](Self::handle); whatever the system says.
    pub fn file_system(&self) -> Result<FileSystem, FileError> {
        FileSystem::of(self.handle()?.file())
    }

    fn slot(&self) -> MutexGuard<'_, Option<Arc<Handle>>> {
        self.handle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
