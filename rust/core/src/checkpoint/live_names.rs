//! From names in files to the names of the tensors that they become, in general forms: with numbers left out.

use crate::ids::id_at;
use std::collections::{HashMap, HashSet};

use crate::names::is_number;

/// Stands for a number in the general form of a name; no name in a header has it.
const GAP: char = '\0';

/// General forms of names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GeneralNames {
    /// With a zero byte for every part that is a number, each once, in the order in which they are met.
    pub names: Vec<String>,
    /// By name, the place of its general form.
    of: Vec<u32>,
}

impl GeneralNames {
    /// The general forms of these names.
    ///
    /// # Cost
    ///
    /// O(bytes of names).
    pub fn new(names: &[String]) -> Self {
        let mut general = Self { names: Vec::new(), of: Vec::with_capacity(names.len()) };
        let mut known: HashMap<String, u32> = HashMap::new();
        for name in names {
            let mut text = String::with_capacity(name.len());
            for (place, part) in name.split('.').enumerate() {
                if place > 0 {
                    text.push('.');
                }
                if is_number(part) { text.push(GAP) } else { text.push_str(part) }
            }
            let next = id_at(general.names.len());
            let id = *known.entry(text).or_insert_with_key(|text| {
                general.names.push(text.clone());
                next
            });
            general.of.push(id);
        }
        general
    }
}

/// What tensors of files become.
#[derive(Debug, Clone, Default)]
pub struct LiveNames {
    /// By general name, or by name if `by_name`: names of the tensors that it becomes. Parts between zero bytes are numbers
    /// of the stored name, by their place among those.
    pub targets: Vec<Vec<String>>,
    /// Every name has targets of its own.
    pub by_name: bool,
    /// Rows of files that become nothing.
    pub dropped: HashSet<usize>,
}

/// A part of a row: the row, which part of how many, and the name of the tensor that it becomes or is merged into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) row: usize,
    pub(crate) number: u64,
    pub(crate) count: u64,
    pub(crate) name: String,
}

impl LiveNames {
    /// All parts of all rows, in their order.
    pub(crate) fn parts(&self, names: &[String], general: &GeneralNames) -> Vec<Part> {
        let split = |targets: &'_ Vec<String>| -> Vec<Vec<String>> {
            targets.iter().map(|target| target.split(GAP).map(String::from).collect()).collect()
        };
        let patterns: Vec<Vec<Vec<String>>> = self.targets.iter().map(split).collect();
        let mut parts = Vec::with_capacity(names.len());
        for (row, name) in names.iter().enumerate().filter(|(row, _)| !self.dropped.contains(row)) {
            let at = if self.by_name { row } else { general.of[row] as usize };
            let Some(targets) = patterns.get(at) else { continue };
            let numbers: Vec<&str> = name.split('.').filter(|part| is_number(part)).collect();
            for (number, target) in (0..).zip(targets) {
                parts.push(Part { row, number, count: targets.len() as u64, name: filled(target, &numbers) });
            }
        }
        parts
    }
}

/// A target with the numbers of a name: texts at even places stay, those at odd places say which number comes there.
fn filled(target: &[String], numbers: &[&str]) -> String {
    let mut name = String::new();
    for (place, text) in target.iter().enumerate() {
        if place % 2 == 0 {
            name.push_str(text);
        } else if let Some(number) = text.parse().ok().and_then(|number: usize| numbers.get(number)) {
            name.push_str(number);
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::{GeneralNames, LiveNames};

    fn texts(words: &[&str]) -> Vec<String> {
        words.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn general_names_leave_numbers_out() {
        let general = GeneralNames::new(&texts(&["h.0.w", "h.10.w", "h.1a.w", "3"]));
        assert_eq!((general.names, general.of), (texts(&["h.\0.w", "h.1a.w", "\0"]), vec![0, 0, 1, 2]));
    }

    fn live(names: &[&str], targets: &[&[&str]], by_name: bool, dropped: &[usize]) -> Vec<String> {
        let names = texts(names);
        let targets = targets.iter().map(|targets| texts(targets)).collect();
        let live = LiveNames { targets, by_name, dropped: dropped.iter().copied().collect() };
        let parts = live.parts(&names, &GeneralNames::new(&names)).into_iter();
        parts.map(|part| format!("{} {}/{} {}", part.row, part.number + 1, part.count, part.name)).collect()
    }

    #[test]
    fn targets_take_the_numbers_of_the_stored_name() {
        let names = ["h.7.e.2.w", "h.8.e.2.w"];
        assert_eq!(live(&names, &[&["m.\x000\0.x.\x001\0"]], false, &[]), ["0 1/1 m.7.x.2", "1 1/1 m.8.x.2"]);
        assert_eq!(live(&names, &[&["m.\x005\0.w"]], false, &[1]), ["0 1/1 m..w"], "a number that is not there");
        assert_eq!(live(&["qkv.0"], &[&["q", "k"]], false, &[]), ["0 1/2 q", "0 2/2 k"]);
    }

    #[test]
    fn targets_are_of_general_names_or_of_each_name() {
        assert_eq!(live(&["a.0", "a.1"], &[&["x"], &["y"]], true, &[]), ["0 1/1 x", "1 1/1 y"]);
        assert_eq!(live(&["a.0", "b"], &[&["x"]], false, &[]), ["0 1/1 x"], "b has no target");
    }
}
