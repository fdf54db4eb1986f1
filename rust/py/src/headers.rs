//! Headers of a checkpoint's files as one frozen Python object, and the tree that their tensors make.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use planner_core::{DType, Error, Form, Outline, Slot, Tensor, TensorId, assemble, is_number};
use planner_headers::{Dtype, Joined, join, read_files, read_index};
use pyo3::prelude::*;

use crate::errors::{checkpoint, from_core};
use crate::tree::Tree;

/// Stands for a number in the general form of a name; no name in a header has it.
const GAP: char = '\0';

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

    /// Tensors that it lists.
    fn __len__(&self) -> usize {
        self.inner.homes.len()
    }
}

/// Tensors of a checkpoint as columns.
#[pyclass(frozen, module = "planner._core")]
pub(crate) struct Headers {
    inner: Joined,
    general: Vec<String>,
    general_of: Vec<u32>,
}

#[pymethods]
impl Headers {
    /// Reads the headers of files; in the order of `index` if there is one; messages call them as in
    /// `shown`.
    #[staticmethod]
    fn read(py: Python<'_>, paths: Vec<PathBuf>, shown: Vec<String>, index: Option<&Index>) -> PyResult<Self> {
        let fault = |file: usize, reason: String| checkpoint(py, shown.get(file).map_or("", String::as_str), reason);
        let files = py.detach(|| read_files(&paths)).map_err(|(file, error)| fault(file, error.to_string()))?;
        let joined = py.detach(|| join(files, index.map(|index| &index.inner)));
        let inner = joined.map_err(|error| fault(error.file as usize, error.reason))?;
        let (general, general_of) = py.detach(|| generalise(&inner.names));
        Ok(Self { inner, general, general_of })
    }

    /// Tensors.
    fn __len__(&self) -> usize {
        self.inner.names.len()
    }

    /// Names in the files.
    fn names(&self) -> Vec<String> {
        self.inner.names.clone()
    }

    /// (name, element type, shape, bytes, number of the file) of every tensor.
    fn rows(&self) -> Vec<(String, String, Vec<usize>, u64, u32)> {
        let row = |row: usize| {
            let name = self.inner.names[row].clone();
            let dtype = format!("{:?}", self.inner.dtypes[row]);
            (name, dtype, self.inner.shapes[row].clone(), self.inner.bytes[row], self.inner.files[row])
        };
        (0..self.inner.names.len()).map(row).collect()
    }

    /// Names in the files that an index does not list.
    fn foreign(&self) -> Vec<String> {
        self.inner.foreign.iter().map(|&row| self.inner.names[row as usize].clone()).collect()
    }

    /// Bytes of all tensors as stored.
    #[getter]
    fn total_bytes(&self) -> u64 {
        self.inner.bytes.iter().sum()
    }

    /// Names with a zero byte for every part that is a number, each once, in the order in which they are met.
    fn general_names(&self) -> Vec<String> {
        self.general.clone()
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
            let (mut names, mut tensors) = self.live_tensors(&live, by_name, &dropped);
            if quantised {
                keep_packed(&names, &mut tensors);
            }
            let doubled = tie(&mut names, &tied);
            let dtypes: Vec<DType> = DTYPES.iter().map(|&dtype| describe(dtype)).collect();
            assemble(&outline, &dtypes, &tensors, &names).map(|tree| (tree, doubled))
        });
        let (tree, doubled) = built.map_err(|error| match error {
            Error::ImpossibleName { .. } | Error::TreeTooLarge { .. } => checkpoint(py, shown, error.to_string()),
            other => from_core(py, other, |_| String::new()),
        })?;
        Ok((Tree::known(tree, bases), doubled))
    }
}

impl Headers {
    /// Live names with their tensors. What several tensors become together is as large as all of them; what one becomes in
    /// several parts is divided evenly.
    fn live_tensors(
        &self,
        live: &[Vec<String>],
        by_name: bool,
        dropped: &HashSet<usize>,
    ) -> (Vec<(String, TensorId)>, Vec<Tensor>) {
        let mut names: Vec<(String, TensorId)> = Vec::with_capacity(self.inner.names.len());
        let mut tensors: Vec<Tensor> = Vec::with_capacity(self.inner.names.len());
        let mut by_live: HashMap<String, TensorId> = HashMap::with_capacity(self.inner.names.len());
        let patterns: Vec<Vec<Vec<&str>>> =
            live.iter().map(|targets| targets.iter().map(|target| target.split(GAP).collect()).collect()).collect();
        for row in (0..self.inner.names.len()).filter(|row| !dropped.contains(row)) {
            let general = if by_name { row } else { self.general_of[row] as usize };
            let Some(targets) = patterns.get(general) else { continue };
            let source = &self.inner.names[row];
            let numbers: Vec<&str> = source.split('.').filter(|part| is_number(part)).collect();
            for (part, target) in targets.iter().enumerate() {
                let name = fill(target, &numbers);
                let piece = self.piece(row, part as u64, targets.len() as u64);
                match by_live.get(&name) {
                    Some(&id) => tensors[id as usize] = merged(tensors[id as usize], piece),
                    None => {
                        let id = tensors.len() as TensorId;
                        tensors.push(piece);
                        by_live.insert(name.clone(), id);
                        names.push((name, id));
                    }
                }
            }
        }
        (names, tensors)
    }

    fn piece(&self, row: usize, part: u64, parts: u64) -> Tensor {
        let dtype = self.inner.dtypes[row];
        let bytes = self.inner.bytes[row];
        let elements = bytes * 8 / dtype.bitsize() as u64;
        let share = |whole: u64| whole / parts + u64::from(part < whole % parts);
        let opaque_bytes = is_opaque(dtype).then(|| share(bytes));
        Tensor { numel: share(elements), dtype: dtype_id(dtype), opaque_bytes }
    }
}

/// The element types of the format, in the order of their ids; a later one would be counted as stored, and never cast.
const DTYPES: [Dtype; 22] = [
    Dtype::BOOL,
    Dtype::F4,
    Dtype::F6_E2M3,
    Dtype::F6_E3M2,
    Dtype::U8,
    Dtype::I8,
    Dtype::F8_E5M2,
    Dtype::F8_E4M3,
    Dtype::F8_E8M0,
    Dtype::F8_E4M3FNUZ,
    Dtype::F8_E5M2FNUZ,
    Dtype::I16,
    Dtype::U16,
    Dtype::F16,
    Dtype::BF16,
    Dtype::I32,
    Dtype::U32,
    Dtype::F32,
    Dtype::C64,
    Dtype::F64,
    Dtype::I64,
    Dtype::U64,
];

fn dtype_id(dtype: Dtype) -> u16 {
    DTYPES.iter().position(|&known| known == dtype).map_or(0, |place| place as u16)
}

fn describe(dtype: Dtype) -> DType {
    let bits = dtype.bitsize() as u64;
    let castable = matches!(
        dtype,
        Dtype::F8_E5M2
            | Dtype::F8_E4M3
            | Dtype::F8_E8M0
            | Dtype::F8_E4M3FNUZ
            | Dtype::F8_E5M2FNUZ
            | Dtype::F16
            | Dtype::BF16
            | Dtype::F32
            | Dtype::C64
            | Dtype::F64
    );
    DType { formula_bits: if dtype == Dtype::BOOL { 1 } else { bits }, stored_bits: bits, castable }
}

/// Whether a tensor counts as its bytes and nothing else: elements smaller than a byte, and types newer than this table.
fn is_opaque(dtype: Dtype) -> bool {
    dtype.bitsize() < 8 || !DTYPES.contains(&dtype)
}

fn stored_bytes(tensor: Tensor) -> u64 {
    let bits = DTYPES.get(tensor.dtype as usize).map_or(8, |dtype| dtype.bitsize() as u64);
    tensor.opaque_bytes.unwrap_or(tensor.numel * bits / 8)
}

/// Two tensors that become one.
fn merged(left: Tensor, right: Tensor) -> Tensor {
    let is_alike = left.dtype == right.dtype && left.opaque_bytes.is_none() && right.opaque_bytes.is_none();
    let bytes = stored_bytes(left).saturating_add(stored_bytes(right));
    let numel = left.numel.saturating_add(right.numel);
    Tensor { numel, dtype: left.dtype, opaque_bytes: (!is_alike).then_some(bytes) }
}

/// Modules with a tensor that a quantizer packed keep all of their tensors as stored: scales are not weights to be cast.
fn keep_packed(names: &[(String, TensorId)], tensors: &mut [Tensor]) {
    let owner = |name: &str| name.rsplit_once('.').map_or("", |(owner, _)| owner).to_string();
    let is_packed = |tensor: Tensor| {
        let stored = DTYPES.get(tensor.dtype as usize).copied().unwrap_or(Dtype::U8);
        stored.bitsize() <= 8 || matches!(stored, Dtype::I16 | Dtype::U16 | Dtype::I32 | Dtype::U32)
    };
    let packed: HashSet<String> =
        names.iter().filter(|(_, id)| is_packed(tensors[*id as usize])).map(|(name, _)| owner(name)).collect();
    for (name, id) in names {
        if packed.contains(&owner(name)) {
            let tensor = &mut tensors[*id as usize];
            tensor.opaque_bytes = Some(stored_bytes(*tensor));
        }
    }
}

/// Makes names of one tensor of names that a model ties; returns those that the files hold beside what they are tied to.
fn tie(names: &mut Vec<(String, TensorId)>, tied: &[(String, String)]) -> Vec<String> {
    let mut doubled = Vec::new();
    for (target, source) in tied {
        let find = |wanted: &str| names.iter().position(|(name, _)| name == wanted);
        match (find(target), find(source)) {
            (Some(target_row), Some(source_row)) if names[target_row].1 != names[source_row].1 => {
                names[target_row].1 = names[source_row].1;
                doubled.push(target.clone());
            }
            (None, Some(row)) => names.push((target.clone(), names[row].1)),
            (Some(row), None) => names.push((source.clone(), names[row].1)),
            _ => {}
        }
    }
    doubled
}

fn fill(target: &[&str], numbers: &[&str]) -> String {
    let part = |(place, &text): (usize, &&'_ str)| match place % 2 {
        0 => text.to_string(),
        _ => text.parse().ok().and_then(|number: usize| numbers.get(number)).map_or("", |number| number).to_string(),
    };
    target.iter().enumerate().map(part).collect()
}

/// General forms of names, and the general form of each.
fn generalise(names: &[String]) -> (Vec<String>, Vec<u32>) {
    let mut general: Vec<String> = Vec::new();
    let mut known: HashMap<String, u32> = HashMap::new();
    let mut general_of = Vec::with_capacity(names.len());
    for name in names {
        let mut text = String::with_capacity(name.len());
        for (place, part) in name.split('.').enumerate() {
            if place > 0 {
                text.push('.');
            }
            if is_number(part) { text.push(GAP) } else { text.push_str(part) }
        }
        let next = general.len() as u32;
        let id = *known.entry(text).or_insert_with_key(|text| {
            general.push(text.clone());
            next
        });
        general_of.push(id);
    }
    (general, general_of)
}

fn form((class, parameters, children, buffers): FormRow) -> Form {
    let slot = |(name, is_saved)| Slot { name, is_saved };
    Form { class, parameters, children, buffers: buffers.into_iter().map(slot).collect() }
}
