//! Modules that have to come along with another one, because they share a parameter.

use crate::ids::NodeId;
use crate::model::layout::Layout;
use crate::model::options::Dialect;
use crate::strategy::sequential::frontier::Frontier;

/// Entries that share a parameter with a module, and what the dialect adds to its size for them.
#[derive(Debug, Default)]
pub(crate) struct Partners {
    pub(crate) entries: Vec<NodeId>,
    pub(crate) extra_bits: i64,
}

impl Partners {
    /// Partners of an entry of the frontier.
    pub(crate) fn of_entry(layout: &Layout, frontier: &Frontier, entry: NodeId) -> Self {
        Self::of(layout, entry, |row| frontier.entry_of(row))
    }

    /// Partners of a row below an entry, were its ancestors split.
    pub(crate) fn of_candidate(layout: &Layout, frontier: &Frontier, candidate: NodeId) -> Self {
        Self::of(layout, candidate, |row| frontier.entry_beside(row, candidate))
    }

    fn of(layout: &Layout, node: NodeId, entry_of: impl Fn(NodeId) -> Option<NodeId>) -> Self {
        let tree = layout.tree();
        let mut partners = Self::default();
        for group in layout.groups.crossing(node, tree.end(node)) {
            for &row in &layout.groups.members()[group as usize] {
                if tree.contains(node, row) {
                    continue;
                }
                // Placed already: it does not come along any more. Whether that is permitted, the ledger knows.
                let Some(entry) = entry_of(row) else { continue };
                let is_new = !partners.entries.contains(&entry);
                if is_new {
                    partners.entries.push(entry);
                }
                partners.extra_bits = partners.extra_bits.saturating_add(match layout.dialect {
                    // The tensor counts where it is met first, and that is here: only the fallback looks back.
                    Dialect::Accelerate if row < node => layout.formula_bits(entry),
                    // Once per tied parameter, less that parameter: accelerate's get_module_size_with_ties.
                    Dialect::Accelerate => layout.formula_bits(entry) - layout.formula_bits(row),
                    Dialect::Transformers if is_new => layout.formula_bits(entry),
                    Dialect::Transformers => 0,
                });
            }
        }
        partners
    }
}
