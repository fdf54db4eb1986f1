//! Tensors as files hold them: what they become in a live model, and the tree of that.

use std::collections::{HashMap, HashSet};

use crate::checkpoint::assemble::{Named, assemble};
use crate::checkpoint::live_names::{GeneralNames, LiveNames};
use crate::checkpoint::outline::Outline;
use crate::error::Error;
use crate::ids::{TensorId, dtype_at, id_at};
use crate::model::tree::{DType, Tensor, Tree};

/// What the elements of a tensor are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Numbers {
    /// Truth values.
    Boolean,
    /// Whole numbers.
    Integer,
    /// Floating-point numbers, complex ones too.
    Float,
    /// Of a type that is not known: counted as its bytes.
    Unknown,
}

/// A type of elements in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ElementType {
    /// What they are.
    pub numbers: Numbers,
    /// Bits of one.
    pub bits: u64,
}

impl ElementType {
    /// How it counts: accelerate counts a boolean as one bit, and only floating-point numbers are cast.
    fn dtype(self) -> DType {
        let formula_bits = if self.numbers == Numbers::Boolean { 1 } else { self.bits };
        let castable = self.numbers == Numbers::Float && self.bits >= 8;
        DType { formula_bits, stored_bits: self.bits, castable }
    }

    /// A tensor counts as its bytes and nothing else: torch has no elements smaller than a byte.
    fn is_opaque(self) -> bool {
        self.bits < 8 || self.numbers == Numbers::Unknown
    }

    /// A quantizer packs weights into such elements.
    fn may_be_packed(self) -> bool {
        self.bits <= 8 || (self.numbers == Numbers::Integer && self.bits <= 32)
    }
}

/// A tensor in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredTensor {
    /// Its elements.
    pub element: ElementType,
    /// Its bytes.
    pub bytes: u64,
    /// Length of its last dimension; 0 where that is not known.
    pub width: u64,
}

impl StoredTensor {
    /// One of its parts, which are as equal as can be.
    fn part(self, part: u64, parts: u64) -> Piece {
        let share = |whole: u64| whole / parts + u64::from(part < whole % parts);
        let opaque_bytes = self.element.is_opaque().then(|| share(self.bytes));
        Piece {
            element: self.element,
            numel: share(self.bytes * 8 / self.element.bits.max(1)),
            opaque_bytes,
            width: self.width,
        }
    }
}

/// A tensor of the live model while it is put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    element: ElementType,
    numel: u64,
    opaque_bytes: Option<u64>,
    width: u64,
}

impl Piece {
    fn bytes(self) -> u64 {
        self.opaque_bytes.unwrap_or(self.numel * self.element.bits / 8)
    }

    /// Two that become one: as large as both.
    fn merged(self, other: Self) -> Self {
        let is_alike = self.element == other.element && self.opaque_bytes.is_none() && other.opaque_bytes.is_none();
        let bytes = self.bytes().saturating_add(other.bytes());
        let numel = self.numel.saturating_add(other.numel);
        // Files say neither first: what is packed decides, and not the scales that are counted with it.
        let is_first = self.element.may_be_packed() || !other.element.may_be_packed();
        let element = if is_first { self.element } else { other.element };
        let width = if self.width == other.width { self.width } else { 0 };
        Self { element, numel, opaque_bytes: (!is_alike).then_some(bytes), width }
    }
}

/// The tree of a model whose tensors lie in files, and names in the files that are tied to others there.
///
/// What several tensors become together is as large as all of them; what one becomes in several parts is divided evenly.
/// `tied` are pairs of names, of a tensor and of the one that it is. Where a model is `quantised`, modules that hold packed
/// tensors are not cast.
///
/// # Errors
///
/// Those of [`assemble`].
///
/// # Cost
///
/// O(parts of names + names × ties), and a sort among siblings.
pub fn tree_of_files(
    outline: &Outline,
    (names, tensors): (&[String], &[StoredTensor]),
    general: &GeneralNames,
    live: &LiveNames,
    tied: &[(String, String)],
    is_quantised: bool,
) -> Result<(Tree, Vec<String>), Error> {
    let (mut leaves, mut pieces) = live_tensors((names, tensors), general, live);
    if is_quantised {
        keep_packed(&leaves, &mut pieces);
    }
    let doubled = tie(&mut leaves, tied);
    let (dtypes, tensors) = by_dtype(&pieces);
    Ok((assemble(outline, &dtypes, &tensors, &leaves)?, doubled))
}

fn live_tensors(
    (names, tensors): (&[String], &[StoredTensor]),
    general: &GeneralNames,
    live: &LiveNames,
) -> (Vec<Named>, Vec<Piece>) {
    let mut leaves: Vec<Named> = Vec::with_capacity(names.len());
    let mut pieces: Vec<Piece> = Vec::with_capacity(names.len());
    let mut by_name: HashMap<String, TensorId> = HashMap::with_capacity(names.len());
    for part in live.parts(names, general) {
        let piece = tensors[part.row].part(part.number, part.count);
        if let Some(&id) = by_name.get(&part.name) {
            pieces[id as usize] = pieces[id as usize].merged(piece);
        } else {
            let id = id_at(pieces.len());
            pieces.push(piece);
            by_name.insert(part.name.clone(), id);
            leaves.push((part.name, id));
        }
    }
    (leaves, pieces)
}

/// Modules with a tensor that a quantizer packed keep all of their tensors as stored: scales are not weights to be cast.
fn keep_packed(names: &[Named], pieces: &mut [Piece]) {
    let owner = |name: &str| name.rsplit_once('.').map_or("", |(owner, _)| owner).to_string();
    let packed: HashSet<String> = (names.iter())
        .filter(|(_, id)| pieces[*id as usize].element.may_be_packed())
        .map(|(name, _)| owner(name))
        .collect();
    for (name, id) in names {
        if packed.contains(&owner(name)) {
            let piece = &mut pieces[*id as usize];
            piece.opaque_bytes = Some(piece.bytes());
        }
    }
}

/// Makes names of one tensor of names that a model ties; returns those that the files hold beside what they are tied to.
fn tie(names: &mut Vec<Named>, tied: &[(String, String)]) -> Vec<String> {
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

/// The table of element types, and the tensors with their places in it.
fn by_dtype(pieces: &[Piece]) -> (Vec<DType>, Vec<Tensor>) {
    let mut elements: Vec<ElementType> = Vec::new();
    let mut tensors = Vec::with_capacity(pieces.len());
    for &Piece { element, numel, opaque_bytes, width } in pieces {
        let known = elements.iter().position(|&known| known == element);
        let place = known.unwrap_or(elements.len());
        if known.is_none() {
            elements.push(element);
        }
        tensors.push(Tensor { numel, dtype: dtype_at(place), opaque_bytes, width });
    }
    (elements.into_iter().map(ElementType::dtype).collect(), tensors)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{ElementType, Numbers, Piece, StoredTensor, keep_packed, tie, tree_of_files};
    use crate::checkpoint::live_names::{GeneralNames, LiveNames};
    use crate::checkpoint::outline::Outline;
    use crate::model::layout::Layout;
    use crate::model::options::{Cast, LayoutOptions};

    const HALF: ElementType = ElementType { numbers: Numbers::Float, bits: 16 };
    const FULL: ElementType = ElementType { numbers: Numbers::Float, bits: 32 };
    const FOUR: ElementType = ElementType { numbers: Numbers::Float, bits: 4 };
    const BYTE: ElementType = ElementType { numbers: Numbers::Integer, bits: 8 };
    const LONG: ElementType = ElementType { numbers: Numbers::Integer, bits: 64 };
    const BOOL: ElementType = ElementType { numbers: Numbers::Boolean, bits: 8 };

    /// Tensors of a model in files: their names there with what they become, types and bytes.
    type Rows<'a> = [(&'a str, &'a [&'a str], ElementType, u64)];

    /// Live names with their stored bytes, cast to 32 bits, and names that are tied to others.
    fn sizes(rows: &Rows, tied: &[(&str, &str)], is_quantised: bool) -> (Vec<(String, i64)>, Vec<String>) {
        let names: Vec<String> = rows.iter().map(|row| row.0.to_string()).collect();
        let tensors: Vec<StoredTensor> =
            rows.iter().map(|&(_, _, element, bytes)| StoredTensor { element, bytes, width: 0 }).collect();
        let targets = rows.iter().map(|row| row.1.iter().map(ToString::to_string).collect()).collect();
        let live = LiveNames { targets, by_name: true, ..LiveNames::default() };
        let tied: Vec<(String, String)> = tied.iter().map(|&(one, other)| (one.into(), other.into())).collect();
        let general = GeneralNames::new(&names);
        let files = (&names[..], &tensors[..]);
        let (tree, doubled) = tree_of_files(&Outline::default(), files, &general, &live, &tied, is_quantised).unwrap();
        let cast = Some(Cast { formula_bits: 32, planned_bits: 32 });
        let layout = Layout::new(tree.into(), LayoutOptions { cast, ..LayoutOptions::default() }).unwrap();
        let tree = layout.tree();
        let leaves = tree.rows().filter_map(|row| Some((row, tree.tensor_id(row)?)));
        let mut sizes: Vec<(String, i64)> =
            leaves.map(|(row, id)| (tree.full_name(row), layout.planned_bits(id) / 8)).collect();
        sizes.sort_unstable();
        (sizes, doubled)
    }

    fn sizes_of(rows: &Rows) -> Vec<(String, i64)> {
        sizes(rows, &[], false).0
    }

    #[test]
    fn floats_are_cast_and_nothing_else_is() {
        let rows: &Rows =
            &[("a", &["a"], HALF, 8), ("b", &["b"], BYTE, 8), ("c", &["c"], BOOL, 8), ("d", &["d"], FOUR, 8)];
        let expected = [("a", 16), ("b", 8), ("c", 8), ("d", 8)].map(|(name, bytes)| (name.to_string(), bytes));
        assert_eq!(sizes_of(rows), expected);
    }

    #[test]
    fn parts_are_as_equal_as_can_be() {
        assert_eq!(
            sizes_of(&[("qkv", &["q", "k", "v"], FULL, 32)]),
            [("k", 12), ("q", 12), ("v", 8)].map(|(n, b)| (n.into(), b))
        );
        assert_eq!(sizes_of(&[("ab", &["a", "b"], FOUR, 5)]), [("a", 3), ("b", 2)].map(|(n, b)| (n.into(), b)));
    }

    #[test]
    fn what_becomes_one_is_as_large_as_all() {
        assert_eq!(sizes_of(&[("a", &["x"], HALF, 4), ("b", &["x"], HALF, 6)]), [("x".to_string(), 20)]);
        assert_eq!(sizes_of(&[("a", &["x"], HALF, 4), ("b", &["x"], FULL, 8)]), [("x".to_string(), 12)], "not cast");
    }

    #[test]
    fn modules_with_packed_tensors_are_not_cast() {
        let rows: &Rows = &[("m.w", &["m.w"], BYTE, 8), ("m.scale", &["m.scale"], HALF, 2), ("n.w", &["n.w"], HALF, 2)];
        let of =
            |is_quantised| sizes(rows, &[], is_quantised).0.into_iter().map(|(_, bytes)| bytes).collect::<Vec<i64>>();
        assert_eq!((of(false), of(true)), (vec![4, 8, 4], vec![2, 8, 4]));
        let piece = |element| Piece { element, numel: 1, opaque_bytes: None, width: 0 };
        let mut pieces = [piece(LONG), piece(FULL)];
        keep_packed(&[("m.i".to_string(), 0), ("m.w".to_string(), 1)], &mut pieces);
        assert_eq!(pieces.map(|piece| piece.opaque_bytes), [None, None], "indices are not packed weights");
    }

    #[test]
    fn a_width_is_kept_where_it_is_one() {
        let of = |width| StoredTensor { element: HALF, bytes: 24, width };
        let (names, tensors) = (["a", "b", "c"].map(String::from), [of(4), of(4), of(3)]);
        let targets = [vec!["x"], vec!["x", "y"], vec!["x", "z"]];
        let of_targets = |merged: usize| {
            let targets = targets[..merged].iter().map(|row| row.iter().map(ToString::to_string).collect()).collect();
            let live = LiveNames { targets, by_name: true, ..LiveNames::default() };
            let (names, tensors) = (&names[..merged], &tensors[..merged]);
            let general = GeneralNames::new(names);
            let outline = Outline::default();
            let (tree, _) = tree_of_files(&outline, (names, tensors), &general, &live, &[], false).unwrap();
            tree.widths()
        };
        let row = |name: &str, width| (name.to_string(), width);
        assert_eq!(of_targets(2), [row("x", 4), row("y", 4)]);
        assert_eq!(of_targets(3), [row("y", 4), row("z", 3)], "x is of tensors of different widths");
    }

    #[test]
    fn tied_names_are_one_tensor() {
        let rows: &Rows = &[("e", &["e"], FULL, 4), ("h", &["h"], FULL, 8)];
        let (found, doubled) = sizes(rows, &[("h", "e"), ("g", "e"), ("x", "y")], false);
        assert_eq!(found.into_iter().map(|(name, _)| name).collect::<Vec<String>>(), ["e", "g", "h"]);
        assert_eq!(doubled, ["h"], "the files hold it beside e");
        let mut names = vec![("e".to_string(), 0), ("h".to_string(), 0)];
        assert!(tie(&mut names, &[("h".to_string(), "e".to_string())]).is_empty(), "one already");
    }
}
