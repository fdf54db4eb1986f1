//! One table of the tensors of a GGUF model that is split into several files.

use std::collections::HashMap;

use crate::ALL_TENSORS;
use crate::error::shown;
use crate::gguf::{Gguf, GgufEntry};
use crate::join::{JoinError, number};

const COUNT: &str = "split.count";
const PLACE: &str = "split.no";
const TENSORS: &str = "split.tensors.count";

/// All tensors of files that are given in their order.
///
/// # Errors
///
/// Files that say that they are others, or of other number, than are given; a name that two of them hold; more or fewer
/// tensors than the first file promises.
pub fn join_gguf(files: &[Gguf]) -> Result<Vec<&GgufEntry>, JoinError> {
    let fault = |file: usize, reason: String| JoinError { file: number(file), reason };
    let mut holders: HashMap<&str, usize> = HashMap::new();
    let mut tensors = Vec::new();
    for (place, file) in files.iter().enumerate() {
        let count = file.integer(COUNT).unwrap_or(1);
        // A count of 0 is how one file says that it is all.
        if count != files.len() as i128 && !(count == 0 && files.len() == 1) {
            return Err(fault(place, format!("says that it is one of {count} files; {} are there", files.len())));
        }
        let said = file.integer(PLACE).unwrap_or(0);
        if said != place as i128 {
            return Err(fault(
                place,
                format!("says that it is file {said} of {count}, counted from 0, and not {place}"),
            ));
        }
        for tensor in &file.tensors {
            if let Some(first) = holders.insert(&tensor.name, place) {
                let reason = format!("holds '{}', which file number {} holds too", shown(&tensor.name), first + 1);
                return Err(fault(place, reason));
            }
            tensors.push(tensor);
        }
    }
    if tensors.len() > ALL_TENSORS {
        return Err(fault(0, format!("the model has more than {ALL_TENSORS} tensors")));
    }
    let promised = files.first().and_then(|first| first.integer(TENSORS));
    match promised {
        Some(promised) if promised != tensors.len() as i128 => {
            Err(fault(0, format!("promises {promised} tensors; the files hold {}", tensors.len())))
        }
        _ => Ok(tensors),
    }
}
