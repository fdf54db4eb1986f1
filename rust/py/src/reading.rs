//! Open files of a checkpoint and their memory, as frozen Python objects.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_int;
use std::path::PathBuf;
use std::sync::Arc;

use planner_reading::{Destination, FileError, FileSystem, Handle, Piece, ReadError, Span};
use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyBufferError, PyMemoryError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use crate::errors::{checkpoint, unreadable};

/// One file of a checkpoint, opened once.
#[pyclass(frozen, module = "planner._core")]
pub(crate) struct StoredFile {
    inner: Arc<planner_reading::StoredFile>,
    shown: String,
    mapping: PyOnceLock<Py<FileMapping>>,
}

impl StoredFile {
    /// What messages call it.
    pub(crate) fn shown(&self) -> &str {
        &self.shown
    }

    /// What is read.
    pub(crate) fn stored(&self) -> &planner_reading::StoredFile {
        &self.inner
    }

    /// The handle. Its lock is held under the GIL only, so that no fork can leave it locked.
    pub(crate) fn handle(&self, py: Python<'_>) -> PyResult<Arc<Handle>> {
        self.inner.handle().map_err(|error| self.fault(py, &error))
    }

    fn fault(&self, py: Python<'_>, error: &FileError) -> PyErr {
        checkpoint(py, &self.shown, error.to_string())
    }
}

#[pymethods]
impl StoredFile {
    /// Opens a regular file, called `shown` in messages.
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf, shown: String) -> PyResult<Self> {
        let opened = py.detach(|| planner_reading::StoredFile::open(path));
        let inner = opened.map_err(|error| checkpoint(py, &shown, error.to_string()))?;
        Ok(Self { inner: Arc::new(inner), shown, mapping: PyOnceLock::new() })
    }

    /// Where it was opened.
    #[getter]
    fn path(&self) -> String {
        self.inner.path().to_string_lossy().into_owned()
    }

    /// What messages call it.
    #[getter(shown)]
    fn shown_name(&self) -> &str {
        &self.shown
    }

    /// Its length when it was opened.
    #[getter]
    fn size_bytes(&self) -> u64 {
        self.inner.identity().size_bytes
    }

    /// Device, inode, size and time of the last write, of the handle when it was opened.
    #[getter]
    fn identity(&self) -> (u64, u64, u64, i128) {
        let identity = self.inner.identity();
        (identity.device, identity.inode, identity.size_bytes, identity.modified_ns)
    }

    /// In what the file is not what it was when it was opened, as words that go behind its name.
    fn change(&self, py: Python<'_>) -> PyResult<Option<String>> {
        self.inner.change().map_err(|error| self.fault(py, &error))
    }

    /// Its bytes as memory; the same object each time.
    fn map(&self, py: Python<'_>) -> PyResult<Py<FileMapping>> {
        let made = self.mapping.get_or_try_init(py, || {
            let inner = self.inner.map().map_err(|error| self.fault(py, &error))?;
            Py::new(py, FileMapping { inner })
        });
        made.map(|mapping| mapping.clone_ref(py))
    }

    /// The same file with memory of its own. One whose handle was closed, and whose name another file has by now, keeps the memory it has.
    fn mapped_apart(&self, py: Python<'_>) -> Self {
        let apart = Self { inner: Arc::clone(&self.inner), shown: self.shown.clone(), mapping: PyOnceLock::new() };
        if let Some(made) = self.mapping.get(py)
            && !self.inner.is_open()
            && apart.map(py).is_err()
        {
            apart.mapping.set(py, made.clone_ref(py)).ok();
        }
        apart
    }

    /// Lets the page cache read bytes of it.
    fn page_in(&self, py: Python<'_>, begin: u64, end: u64) -> PyResult<()> {
        let mapping = self.map(py)?;
        let mapping = &mapping.get().inner;
        py.detach(|| mapping.page_in(begin, end));
        Ok(())
    }

    /// Lets go of the handle; mappings and reads that have begun stay.
    fn close(&self) {
        self.inner.close();
    }

    /// Whether it can be read.
    #[getter]
    fn is_open(&self) -> bool {
        self.inner.is_open()
    }

    /// Opens it again by its path, if it was closed.
    fn reopen(&self, py: Python<'_>) -> PyResult<()> {
        self.inner.reopen().map_err(|error| self.fault(py, &error))
    }

    /// "local", "network" or "fuse".
    fn file_system(&self, py: Python<'_>) -> PyResult<&'static str> {
        let found = self.inner.file_system().map_err(|error| self.fault(py, &error))?;
        Ok(match found {
            FileSystem::Local => "local",
            FileSystem::Network => "network",
            FileSystem::Fuse => "fuse",
        })
    }
}

/// A file's bytes as memory that can be written to, for this process alone.
#[pyclass(frozen, module = "planner._core")]
pub(crate) struct FileMapping {
    inner: planner_reading::FileMapping,
}

#[pymethods]
impl FileMapping {
    /// Bytes.
    fn __len__(&self) -> usize {
        self.inner.size_bytes()
    }

    #[expect(unsafe_code, reason = "the interpreter's protocol for lending memory has no safe form")]
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let (start, size_bytes) = (slf.get().inner.start(), slf.get().inner.size_bytes());
        // SAFETY: `view` is the interpreter's; the memory lives as long as `slf`, which the view holds from here on.
        unsafe { lend(slf.as_any(), start, size_bytes, view, flags) }
    }
}

/// Memory of huge pages, as far as the system has them.
#[pyclass(frozen, module = "planner._core")]
pub(crate) struct PageBuffer {
    inner: planner_reading::PageBuffer,
}

#[pymethods]
impl PageBuffer {
    /// At least as many bytes, zeroed and all there.
    #[new]
    fn new(py: Python<'_>, size_bytes: usize) -> PyResult<Self> {
        let made = py.detach(|| planner_reading::PageBuffer::new(size_bytes));
        made.map(|inner| Self { inner }).map_err(|error| PyMemoryError::new_err(error.to_string()))
    }

    /// Bytes.
    fn __len__(&self) -> usize {
        self.inner.size_bytes()
    }

    /// Bytes.
    #[getter]
    fn size_bytes(&self) -> usize {
        self.inner.size_bytes()
    }

    /// Bytes that lie in huge pages now.
    fn huge_bytes(&self, py: Python<'_>) -> u64 {
        py.detach(|| self.inner.huge_bytes())
    }

    #[expect(unsafe_code, reason = "as above")]
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let (start, size_bytes) = (slf.get().inner.start(), slf.get().inner.size_bytes());
        // SAFETY: `view` is the interpreter's; the memory lives as long as `slf`, which the view holds from here on.
        unsafe { lend(slf.as_any(), start, size_bytes, view, flags) }
    }
}

/// (file, begin, end, at)
type SpanRow = (usize, u64, u64, u64);

/// Reads spans of files into a buffer; bytes that were read, and of these directly.
#[pyfunction]
#[expect(unsafe_code, reason = "memory of the interpreter's objects is known by its address only")]
pub(crate) fn read_spans(
    py: Python<'_>,
    files: Vec<PyRef<'_, StoredFile>>,
    spans: Vec<SpanRow>,
    buffer: &Bound<'_, PyAny>,
    direct: bool,
    threads: usize,
) -> PyResult<(u64, u64)> {
    let buffer = PyUntypedBuffer::get(buffer)?;
    if buffer.readonly() || !buffer.is_c_contiguous() {
        return Err(PyBufferError::new_err("the buffer cannot be written to as one piece"));
    }
    // Of many files few are read at once, and those that have no handle of their own get one for the time.
    let mut used: Vec<usize> = spans.iter().map(|&(file, ..)| file).collect();
    used.sort_unstable();
    used.dedup();
    let lacking = || PyValueError::new_err(format!("there is no file number {}", used.last().unwrap_or(&0)));
    let named = used.iter().map(|&file| files.get(file)).collect::<Option<Vec<_>>>().ok_or_else(lacking)?;
    let handles = named.iter().map(|file| file.handle(py)).collect::<PyResult<Vec<_>>>()?;
    let handles: Vec<&Handle> = handles.iter().map(AsRef::as_ref).collect();
    let place = |file: usize| used.partition_point(|&other| other < file);
    let spans = spans.into_iter().map(|(file, begin, end, at)| Span { file: place(file), begin, end, at });
    let spans: Vec<Span> = spans.collect();
    // SAFETY: the view that `buffer` holds keeps the bytes there until the end of this function.
    let destination = unsafe { Destination::new(buffer.buf_ptr().cast(), buffer.len_bytes()) };
    let read = py.detach(|| planner_reading::read_spans(&handles, &spans, destination, direct, threads));
    let shown = |file: usize| named.get(file).map_or("", |file| file.shown());
    match read {
        Ok(read) => Ok((read.total, read.direct)),
        Err(ReadError::Spans(error)) => Err(PyValueError::new_err(error.to_string())),
        Err(error) => Err(unreadable(py, error.file().map_or("", shown), &error.to_string())),
    }
}

/// Pieces of files as one piece of memory, and at which byte of that the first begins; None where pages do not allow it.
#[pyfunction]
pub(crate) fn map_pieces(
    py: Python<'_>,
    files: Vec<PyRef<'_, StoredFile>>,
    pieces: Vec<(usize, u64, u64)>,
) -> PyResult<Option<(FileMapping, usize)>> {
    let mut handles: HashMap<usize, Arc<Handle>> = HashMap::new();
    for &(number, begin, end) in &pieces {
        let file =
            files.get(number).ok_or_else(|| PyValueError::new_err(format!("there is no file number {number}")))?;
        if begin > end || end > file.inner.identity().size_bytes {
            let size_bytes = file.inner.identity().size_bytes;
            return Err(PyValueError::new_err(format!("{}: bytes {begin} to {end} of {size_bytes}", file.shown())));
        }
        if let Entry::Vacant(place) = handles.entry(number) {
            if let Some(change) = file.change(py)? {
                return Err(checkpoint(py, file.shown(), change));
            }
            place.insert(file.handle(py)?);
        }
    }
    let rows = pieces.iter().filter_map(|&(number, begin, end)| {
        let handle = handles.get(&number)?;
        Some(Piece { file: handle.file(), begin, end })
    });
    let rows: Vec<Piece<'_>> = rows.collect();
    let mapped = py.detach(|| planner_reading::FileMapping::of_pieces(&rows));
    match mapped {
        Ok(found) => Ok(found.map(|(inner, first)| (FileMapping { inner }, first))),
        Err(error) => {
            let shown = pieces.first().and_then(|&(number, ..)| files.get(number)).map_or("", |file| file.shown());
            Err(unreadable(py, shown, &error.to_string()))
        }
    }
}

/// Bytes of whole pages of a span that are in the page cache, and of all its pages.
#[pyfunction]
pub(crate) fn cached_bytes(py: Python<'_>, file: PyRef<'_, StoredFile>, begin: u64, end: u64) -> PyResult<(u64, u64)> {
    let handle = file.handle(py)?;
    let found = py.detach(|| planner_reading::cached_bytes(&handle, begin, end));
    Ok((found.cached, found.asked))
}

/// Lends memory that `owner` keeps until it is collected.
///
/// # Safety
///
/// `view` must be one that the interpreter asks to be filled, and the bytes must stay as long as `owner` does.
#[expect(unsafe_code, reason = "as above")]
unsafe fn lend(
    owner: &Bound<'_, PyAny>,
    start: *mut u8,
    size_bytes: usize,
    view: *mut ffi::Py_buffer,
    flags: c_int,
) -> PyResult<()> {
    let size_bytes = ffi::Py_ssize_t::try_from(size_bytes)?;
    let writable = 0;
    // SAFETY: as promised by the caller; the view takes a reference to its owner.
    let filled = unsafe { ffi::PyBuffer_FillInfo(view, owner.as_ptr(), start.cast(), size_bytes, writable, flags) };
    if filled == 0 { Ok(()) } else { Err(PyErr::fetch(owner.py())) }
}
