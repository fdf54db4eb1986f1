//! All names of a model in few words: modules that hold the same names are of one kind, which is told once.

use std::collections::{BTreeMap, HashMap};

use crate::model::tree::Tree;
use crate::names::is_number;

/// Most digits of a number that is told as part of a range.
const DIGITS: usize = 18;

/// What a module holds, by name; a tensor holds nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct NameKind {
    /// Members with their kinds, by name.
    pub named: Vec<(String, u32)>,
    /// Numbered members with their kinds: ranges such as `0-79,81`, by their first number.
    pub numbered: Vec<(String, u32)>,
}

impl Tree {
    /// The kinds of a model's modules and tensors: members are of kinds before their own, and the model is of the last.
    ///
    /// A member with a dot in its own name has no name that can be asked for; it is left out.
    ///
    /// # Cost
    ///
    /// O(rows), and a sort among siblings.
    pub fn name_kinds(&self) -> Vec<NameKind> {
        let mut kinds: Vec<NameKind> = Vec::new();
        let mut known: HashMap<NameKind, u32> = HashMap::new();
        let mut kind_of = vec![0u32; self.len()];
        for node in self.rows().rev() {
            let kind = self.name_kind(node, &kind_of);
            let id = *known.entry(kind).or_insert_with_key(|kind| {
                kinds.push(kind.clone());
                crate::ids::id_at(kinds.len() - 1)
            });
            kind_of[node as usize] = id;
        }
        kinds
    }

    fn name_kind(&self, node: u32, kind_of: &[u32]) -> NameKind {
        let mut named: BTreeMap<&str, u32> = BTreeMap::new();
        let mut numbers: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        let members = self.is_module(node).then(|| self.children(node)).into_iter().flatten();
        for child in members.filter(|&child| !self.local_name(child).contains('.')) {
            let (name, kind) = (self.local_name(child), kind_of[child as usize]);
            if let Some(number) = plain_number(name) {
                numbers.entry(kind).or_default().push(number);
            } else {
                let place = named.entry(name).or_insert(kind);
                // A tensor and a module of one name: the module has the more names.
                if self.is_module(child) {
                    *place = kind;
                }
            }
        }
        let mut numbered: Vec<(u64, String, u32)> =
            numbers.into_iter().map(|(kind, mut all)| (sorted_first(&mut all), ranges(&all), kind)).collect();
        numbered.sort_unstable();
        NameKind {
            named: named.into_iter().map(|(name, kind)| (name.to_string(), kind)).collect(),
            numbered: numbered.into_iter().map(|(_, text, kind)| (text, kind)).collect(),
        }
    }
}

/// The number that a name is, if it is written as numbers are.
fn plain_number(name: &str) -> Option<u64> {
    let is_plain = is_number(name) && name.len() <= DIGITS && (name == "0" || !name.starts_with('0'));
    if is_plain { name.parse().ok() } else { None }
}

fn sorted_first(numbers: &mut Vec<u64>) -> u64 {
    numbers.sort_unstable();
    numbers.dedup();
    numbers.first().copied().unwrap_or_default()
}

/// Sorted numbers as ranges, both ends included.
fn ranges(numbers: &[u64]) -> String {
    let mut spans: Vec<(u64, u64)> = Vec::new();
    for &number in numbers {
        match spans.last_mut() {
            Some(span) if span.1 + 1 == number => span.1 = number,
            _ => spans.push((number, number)),
        }
    }
    let words =
        spans.iter().map(|&(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") });
    words.collect::<Vec<String>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::{NameKind, ranges};
    use crate::testing::tree;

    fn kind(named: &[(&str, u32)], numbered: &[(&str, u32)]) -> NameKind {
        let own = |rows: &[(&str, u32)]| rows.iter().map(|&(name, kind)| (name.to_string(), kind)).collect();
        NameKind { named: own(named), numbered: own(numbered) }
    }

    #[test]
    fn what_looks_alike_is_told_once() {
        let found =
            tree(&["embed.w 1", "layers.0.a.w 1", "layers.1.w 1", "layers.2.a.w 1", "layers.3.a.w 1"]).name_kinds();
        let expected = [
            kind(&[], &[]),
            kind(&[("w", 0)], &[]),
            kind(&[("a", 1)], &[]),
            kind(&[], &[("0,2-3", 2), ("1", 1)]),
            kind(&[("embed", 1), ("layers", 3)], &[]),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_number_is_one_only_as_numbers_are_written() {
        let found = tree(&["00.w 1", "0.w 1"]).name_kinds();
        assert_eq!(found.last(), Some(&kind(&[("00", 1)], &[("0", 1)])));
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
    }

    #[test]
    fn a_model_without_anything_is_of_the_only_kind() {
        assert_eq!(tree(&[]).name_kinds(), [NameKind::default()]);
    }
}
