//! The best packing: by a table where there are few kinds of blocks, else by branch and bound.

use crate::strategy::auto::packing::branch;
use crate::strategy::auto::packing::table;
use crate::strategy::auto::packing::{Packed, Task, best_fit};
use crate::strategy::steps::Steps;

/// The best packing that beats a cost.
pub(crate) fn pack(task: &Task, below: Option<(u64, u64)>, steps: &mut Steps) -> Packed {
    let mut packed = Packed { best: None, is_complete: false };
    // Best fit decreasing is the first answer, and often meets the bound, which is a proof.
    if let (Some(packing), _) = task.close(best_fit(task), steps) {
        packed.offer(packing);
    }
    if packed.best.as_ref().is_some_and(|best| best.cost() <= (task.floor, 0)) {
        packed.is_complete = true;
        return packed;
    }
    // The table's work is known beforehand; branching is for what is too large for it, and may take all steps.
    if !table::search(task, &mut packed, steps) {
        branch::search(task, below, &mut packed, steps);
    }
    packed
}
