//! Headers of a checkpoint's files as one frozen Python object, and the tree that their tensors make.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use planner_core::{
    ElementType, Error, Form, GeneralNames, LiveNames, Numbers, Outline, Slot, StoredTensor, tree_of_files,
};
use planner_headers::{
    Dtype, Entry, Fact, GgmlType, Gguf, HeaderError, JoinError, join, join_gguf, read_files, read_gguf_files,
    read_index, read_open_files,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::errors::{checkpoint, from_core};
use crate::reading::StoredFile;
use crate::tree::Tree;

/// (class, parameters, (child, forms), (buffer, is saved))
type FormRow = (String, Vec<String>, Vec<(String, Vec<u32>)>, Vec<(String, bool)>);

/// An index: which file holds which tensor.
#[pyclass(frozen, module = "planner._core")]
pub(crate) struct Index {
    inner: planner_headers::Index,
}

#[pymethods]
impl Index {
    /// Reads an index file, called `shown` in messages.
    #[staticmethod]
    fn read(py: Python<'_>, path: PathBuf, shown: &str) -> PyResult<Self> {
        let inner = py.detach(|| read_index(&path)).map_err(|error| checkpoint(py, shown, error.to_string()))?;
        Ok(Self { inner })
    }

    /// Names of the files that it lists.
    fn files(&self) -> Vec<String> {
        self.inner.files.clone()
    }

    /// Names of the tensors that it lists, each with the number of its file: by file, then by name.
    fn tensors(&self) -> Vec<(String, u32)> {
        let mut rows: Vec<_> = self.inner.file_of.iter().map(|(name, file)| (name.clone(), *file)).collect();
        rows.sort_unstable_by(|one, other| (one.1, &one.0).cmp(&(other.1, &other.0)));
        rows
    }

    /// Tensors that it lists.
    fn __len__(&self) -> usize {
        self.inner.file_of.len()
    }
}

/// Tensors of a checkpoint as columns.
#[pyclass(frozen, module = "planner._core")]
pub(crate) struct Headers {
    names: Vec<String>,
    types: Vec<String>,
    shapes: Vec<Vec<u64>>,
    foreign: Vec<u32>,
    tensors: Vec<StoredTensor>,
    general: GeneralNames,
    places: Option<Vec<Place>>, // None: of GGUF files
}

/// Where a tensor lies: file, begin, end.
type Place = (u32, u64, u64);

/// Name, place, type and shape of a tensor.
type Range<'py> = (String, u32, u64, u64, String, Bound<'py, PyTuple>);

#[pymethods]
impl Headers {
    /// Reads the headers of files; in the order of `index` if there is one; messages call them as in
    /// `shown`.
    #[staticmethod]
    fn read(py: Python<'_>, paths: Vec<PathBuf>, shown: Vec<String>, index: Option<&Index>) -> PyResult<Self> {
        let fault = |file: usize, reason: String| checkpoint(py, shown.get(file).map_or("", String::as_str), reason);
        let read = py.detach(|| read_files(&paths).map_err(header_fault).and_then(|files| table(files, index)));
        read.map_err(|(file, reason)| fault(file, reason))
    }

    /// Reads the headers of open files, through their handles.
    #[staticmethod]
    fn of_files(py: Python<'_>, files: Vec<PyRef<'_, StoredFile>>, index: Option<&Index>) -> PyResult<Self> {
        let opened: Vec<&planner_reading::StoredFile> = files.iter().map(|file| file.stored()).collect();
        let read = py.detach(|| read_open_files(&opened).map_err(header_fault).and_then(|read| table(read, index)));
        let shown = |file: usize| files.get(file).map_or("", |file| file.shown());
        read.map_err(|(file, reason)| checkpoint(py, shown(file), reason))
    }

    /// Reads the headers of the files of one GGUF model, in their order; also what the first says of the model.
    #[staticmethod]
    fn read_gguf(
        py: Python<'_>,
        paths: Vec<PathBuf>,
        shown: Vec<String>,
    ) -> PyResult<(Self, HashMap<String, FactValue>)> {
        let fault = |file: usize, reason: String| checkpoint(py, shown.get(file).map_or("", String::as_str), reason);
        let read = py.detach(|| read_gguf_files(&paths));
        let mut files = read.map_err(|(file, error)| fault(file, error.to_string()))?;
        let headers = gguf_headers(&files).map_err(|error| fault(error.file as usize, error.reason))?;
        let facts = files.drain(..).next().map(|first| first.facts).unwrap_or_default();
        Ok((headers, facts.into_iter().map(|(name, fact)| (name, FactValue::from(fact))).collect()))
    }

    /// Tensors.
    fn __len__(&self) -> usize {
        self.names.len()
    }

    /// Names in the files.
    fn names(&self) -> Vec<String> {
        self.names.clone()
    }

    /// Names in the files that an index does not list.
    fn foreign(&self) -> Vec<String> {
        self.foreign.iter().map(|&row| self.names[row as usize].clone()).collect()
    }

    /// (name, type, shape, bytes) of each tensor, as the format has them.
    fn rows(&self) -> Vec<(String, String, Vec<u64>, u64)> {
        let bytes = self.tensors.iter().map(|tensor| tensor.bytes);
        let columns = self.names.iter().zip(&self.types).zip(&self.shapes).zip(bytes);
        columns.map(|(((name, kind), shape), bytes)| (name.clone(), kind.clone(), shape.clone(), bytes)).collect()
    }

    /// (name, file, begin, end, type, shape) of each tensor: its place in the file, and what it is.
    fn ranges<'py>(&self, py: Python<'py>) -> PyResult<Vec<Range<'py>>> {
        let unknown = || PyValueError::new_err("of GGUF files, places of tensors are not kept");
        let places = self.places.as_ref().ok_or_else(unknown)?;
        let columns = self.names.iter().zip(places).zip(&self.types).zip(&self.shapes);
        let range = |(((name, &(file, begin, end)), kind), shape): (((&String, &Place), &String), &Vec<u64>)| {
            Ok((name.clone(), file, begin, end, kind.clone(), PyTuple::new(py, shape)?))
        };
        columns.map(range).collect()
    }

    /// Bytes of all tensors as stored.
    #[getter]
    fn total_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.bytes).sum()
    }

    /// Names with a zero byte for every part that is a number, each once, in the order in which they are met.
    fn general_names(&self) -> Vec<String> {
        self.general.names.clone()
    }

    /// The tree of a model with these tensors, and names in the files that are tied to others there.
    ///
    /// `live` gives, for every general name (or every name, if `by_name`), the names of the tensors that it becomes: parts
    /// between zero bytes are numbers, by their place in the general name. Rows that are `dropped` become nothing. `tied` are pairs of names, of a tensor and of
    /// the one that it is; `quantised` keeps modules that hold packed tensors from being cast.
    #[expect(clippy::too_many_arguments, reason = "keyword-only, one per thing that is known of the model")]
    #[pyo3(signature = (live, forms, bases, *, shown, by_name, dropped, tied, quantised))]
    fn tree(
        &self,
        py: Python<'_>,
        live: Vec<Vec<String>>,
        forms: Vec<FormRow>,
        bases: HashMap<String, Vec<String>>,
        shown: &str,
        by_name: bool,
        dropped: HashSet<usize>,
        tied: Vec<(String, String)>,
        quantised: bool,
    ) -> PyResult<(Tree, Vec<String>)> {
        let built = py.detach(|| {
            let outline = Outline::new(forms.into_iter().map(form).collect());
            let live = LiveNames { targets: live, by_name, dropped };
            let files = (&self.names[..], &self.tensors[..]);
            tree_of_files(&outline, files, &self.general, &live, &tied, quantised)
        });
        let (tree, doubled) = built.map_err(|error| match error {
            Error::ImpossibleName { .. } | Error::TreeTooLarge { .. } => checkpoint(py, shown, error.to_string()),
            other => from_core(py, other, |_| String::new()),
        })?;
        Ok((Tree::known(tree, bases, self.bytes_by_type()), doubled))
    }
}

impl Headers {
    /// Bytes of each type of the format, in the order in which types are met.
    fn bytes_by_type(&self) -> Vec<(String, u64)> {
        let mut found: Vec<(String, u64)> = Vec::new();
        for (kind, tensor) in self.types.iter().zip(&self.tensors) {
            match found.iter_mut().find(|(known, _)| known == kind) {
                Some((_, total)) => *total = total.saturating_add(tensor.bytes),
                None => found.push((kind.clone(), tensor.bytes)),
            }
        }
        found
    }
}

/// A fact of a GGUF file as Python has it.
#[derive(IntoPyObject)]
enum FactValue {
    Integer(i128),
    Float(f64),
    Boolean(bool),
    Text(String),
}

impl From<Fact> for FactValue {
    fn from(fact: Fact) -> Self {
        match fact {
            Fact::Integer(value) => Self::Integer(value),
            Fact::Float(value) => Self::Float(value),
            Fact::Boolean(value) => Self::Boolean(value),
            Fact::Text(value) => Self::Text(value),
        }
    }
}

fn header_fault((file, error): (usize, HeaderError)) -> (usize, String) {
    (file, error.to_string())
}

/// One table of all files' tensors, or the file that is at fault and why.
fn table(files: Vec<Vec<Entry>>, index: Option<&Index>) -> Result<Headers, (usize, String)> {
    let joined = join(files, index.map(|index| &index.inner));
    let joined = joined.map_err(|error| (error.file as usize, error.reason))?;
    let general = GeneralNames::new(&joined.names);
    let ranges = joined.begins.iter().zip(&joined.ends);
    let places: Vec<Place> =
        joined.files.iter().zip(ranges).map(|(&file, (&begin, &end))| (file, begin, end)).collect();
    let elements = joined.dtypes.iter().map(|&dtype| element_type(dtype));
    let widths = joined.shapes.iter().map(|shape| shape.last().map_or(0, |&size| size as u64));
    let sized = elements.zip(&places).zip(widths);
    let stored = |((element, &(_, begin, end)), width)| StoredTensor { element, bytes: end - begin, width };
    let tensors = sized.map(stored).collect();
    let types = joined.dtypes.iter().map(ToString::to_string).collect();
    let shapes = joined.shapes.into_iter().map(|shape| shape.into_iter().map(|size| size as u64).collect()).collect();
    Ok(Headers { names: joined.names, types, shapes, foreign: joined.foreign, tensors, general, places: Some(places) })
}

fn gguf_headers(files: &[Gguf]) -> Result<Headers, JoinError> {
    let joined = join_gguf(files)?;
    let names: Vec<String> = joined.iter().map(|tensor| tensor.name.clone()).collect();
    Ok(Headers {
        types: joined.iter().map(|tensor| tensor.kind.name.to_string()).collect(),
        shapes: joined.iter().map(|tensor| tensor.shape.clone()).collect(),
        foreign: Vec::new(),
        tensors: joined.iter().map(|tensor| ggml_tensor(tensor.kind, tensor.bytes)).collect(),
        general: GeneralNames::new(&names),
        names,
        places: None,
    })
}

/// Its bytes and nothing else: what runs GGUF files casts none of their tensors when it loads them.
fn ggml_tensor(kind: GgmlType, bytes: u64) -> StoredTensor {
    let bits = (kind.block_bytes * 8).div_ceil(kind.block_elements);
    StoredTensor { element: ElementType { numbers: Numbers::Unknown, bits }, bytes, width: 0 }
}

/// What the elements of a type of the format are.
fn element_type(dtype: Dtype) -> ElementType {
    let numbers = match dtype {
        Dtype::BOOL => Numbers::Boolean,
        Dtype::U8 | Dtype::I8 | Dtype::I16 | Dtype::U16 | Dtype::I32 | Dtype::U32 | Dtype::I64 | Dtype::U64 => {
            Numbers::Integer
        }
        Dtype::F4
        | Dtype::F6_E2M3
        | Dtype::F6_E3M2
        | Dtype::F8_E5M2
        | Dtype::F8_E4M3
        | Dtype::F8_E8M0
        | Dtype::F8_E4M3FNUZ
        | Dtype::F8_E5M2FNUZ
        | Dtype::F16
        | Dtype::BF16
        | Dtype::F32
        | Dtype::C64
        | Dtype::F64 => Numbers::Float,
        // A type that is newer than this list: the format may grow.
        _ => Numbers::Unknown,
    };
    ElementType { numbers, bits: dtype.bitsize() as u64 }
}

fn form((class, parameters, children, buffers): FormRow) -> Form {
    let slot = |(name, is_saved)| Slot { name, is_saved };
    Form { class, parameters, children, buffers: buffers.into_iter().map(slot).collect() }
}
