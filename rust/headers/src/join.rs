//! One table of the tensors of several files, with or without an index that says which file holds what.

use std::collections::HashMap;

use safetensors::Dtype;

use crate::ALL_TENSORS;
use crate::error::shown;
use crate::index::Index;
use crate::parse::Entry;

/// Tensors of a checkpoint as columns.
#[derive(Debug, Default)]
pub struct Joined {
    /// Names in the files.
    pub names: Vec<String>,
    /// Element types.
    pub dtypes: Vec<Dtype>,
    /// Sizes by dimension.
    pub shapes: Vec<Vec<usize>>,
    /// Where their bytes begin in their file.
    pub begins: Vec<u64>,
    /// Where they end.
    pub ends: Vec<u64>,
    /// Index of the file.
    pub files: Vec<u32>,
    /// Rows that the index does not list.
    pub foreign: Vec<u32>,
}

/// What files and index contradict each other in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct JoinError {
    /// Index of the file that shows it.
    pub file: u32,
    /// What is wrong.
    pub reason: String,
}

/// Joins files; `index` says the file of each name.
///
/// A name in several files is one tensor if the index says which and the copies are alike. Tensors that the index does not
/// list are kept, because loaders load them.
///
/// # Errors
///
/// A name that two files hold and the index does not settle, a copy of another type or shape, a listed tensor that its file
/// lacks, more tensors than any model has.
pub fn join(files: Vec<Vec<Entry>>, index: Option<&Index>) -> Result<Joined, JoinError> {
    let count = files.iter().map(Vec::len).sum();
    if count > ALL_TENSORS {
        return Err(JoinError { file: 0, reason: format!("the checkpoint has more than {ALL_TENSORS} tensors") });
    }
    let mut joined = Joined::default();
    let mut rows: HashMap<String, u32> = HashMap::with_capacity(count);
    let mut copies = Vec::new();
    for (file, entries) in files.into_iter().enumerate() {
        let file = number(file);
        for entry in entries {
            let file_of = index.and_then(|index| index.file_of.get(&entry.name));
            if file_of.is_some_and(|&file_of| file_of != file) {
                copies.push((file, entry));
                continue;
            }
            let row = number(joined.names.len());
            if let Some(first) = rows.insert(entry.name.clone(), row) {
                return Err(twice(&entry, joined.files[first as usize], file));
            }
            if index.is_some() && file_of.is_none() {
                joined.foreign.push(row);
            }
            joined.push(entry, file);
        }
    }
    for (file, copy) in copies {
        joined.require_alike(&rows, file, &copy)?;
    }
    let missing = index.into_iter().flat_map(|index| &index.file_of).filter(|(name, _)| !rows.contains_key(*name));
    match missing.min_by_key(|&(name, file)| (file, name)) {
        Some((name, &file)) => {
            let reason = format!("holds no tensor '{}', which the index says it does", shown(name));
            Err(JoinError { file, reason })
        }
        None => Ok(joined),
    }
}

impl Joined {
    fn push(&mut self, entry: Entry, file: u32) {
        self.names.push(entry.name);
        self.dtypes.push(entry.dtype);
        self.shapes.push(entry.shape);
        self.begins.push(entry.begin);
        self.ends.push(entry.end);
        self.files.push(file);
    }

    fn require_alike(&self, rows: &HashMap<String, u32>, file: u32, copy: &Entry) -> Result<(), JoinError> {
        let Some(&row) = rows.get(&copy.name) else { return Ok(()) };
        let row = row as usize;
        if self.dtypes[row] == copy.dtype && self.shapes[row] == copy.shape {
            return Ok(());
        }
        let reason = format!(
            "holds '{}' as {:?} {:?}, the file that the index names as {:?} {:?}",
            shown(&copy.name),
            copy.dtype,
            copy.shape,
            self.dtypes[row],
            self.shapes[row]
        );
        Err(JoinError { file, reason })
    }
}

fn twice(entry: &Entry, first: u32, second: u32) -> JoinError {
    let reason = format!("holds '{}', which file number {} of the checkpoint holds too", shown(&entry.name), first + 1);
    JoinError { file: second, reason }
}

/// A place in a list of files or tensors. Tensors are at most `ALL_TENSORS`; the entries of 2^32 files fit no memory.
pub(crate) fn number(place: usize) -> u32 {
    #[allow(clippy::cast_possible_truncation)] // see above: no list is as long as that
    return place as u32;
}
