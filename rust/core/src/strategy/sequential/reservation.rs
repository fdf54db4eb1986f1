//! Room for the largest layer still to be placed, with accelerate's memory of it.
//!
//! accelerate remembers the names of all layers of the largest size, strikes out those inside each module it treats, and
//! looks for a new largest only when no name is left or something was split. Modules placed because another was tied to
//! them are never struck out, so the size can be stale; users' maps depend on it. Names need not be kept: a module that
//! is treated was whole when the names were taken, so the number of its layers of that size says how many go.

use std::collections::BTreeMap;

use crate::ids::NodeId;
use crate::model::layout::Layout;

/// The largest layer and how many of its size have not been treated.
#[derive(Debug)]
pub(crate) struct Reservation {
    live: BTreeMap<i64, u64>, // size of the largest layer of an entry -> number of such layers
    largest_bits: i64,
    unmet: u64,
    epoch: u32,
    met: Option<(NodeId, u32)>,
}

impl Reservation {
    /// Looks at the root's children; its direct tensors count as layers this once.
    pub(crate) fn new(layout: &Layout) -> Self {
        let mut reservation = Self { live: BTreeMap::new(), largest_bits: 0, unmet: 0, epoch: 0, met: None };
        let tree = layout.tree();
        let mut first: BTreeMap<i64, u64> = BTreeMap::new();
        for child in tree.children(0).filter(|&child| !layout.is_alias(child)) {
            reservation.add(layout, child);
            // `get_max_layer_size` is called with the root's children and, at the start only, its direct tensors.
            if !tree.is_module(child) {
                *first.entry(layout.formula_bits(child)).or_default() += 1;
            }
        }
        for (&size, &count) in &reservation.live {
            *first.entry(size).or_default() += count;
        }
        if let Some((&size, &count)) = first.last_key_value() {
            (reservation.largest_bits, reservation.unmet) = (size, count);
        }
        reservation
    }

    pub(crate) fn largest_bits(&self) -> i64 {
        self.largest_bits
    }

    /// A module becomes an entry.
    pub(crate) fn add(&mut self, layout: &Layout, entry: NodeId) {
        let (size, count) = layout.largest_layer(entry);
        if count > 0 {
            *self.live.entry(size).or_default() += u64::from(count);
        }
    }

    /// An entry is placed or split.
    pub(crate) fn remove(&mut self, layout: &Layout, entry: NodeId) {
        let (size, count) = layout.largest_layer(entry);
        if let Some(left) = self.live.get_mut(&size) {
            *left = left.saturating_sub(u64::from(count));
            if *left == 0 {
                self.live.remove(&size);
            }
        }
    }

    /// The current entry is treated: its layers are struck out, once, and a new largest is sought when none is left.
    pub(crate) fn meet(&mut self, layout: &Layout, entry: NodeId) {
        // The same entry comes again on the next device; names are struck out once, until they are collected anew.
        if self.met != Some((entry, self.epoch)) {
            self.strike(layout, entry);
        }
        // The entry was taken from the list before the search: its own layers do not count.
        if self.unmet == 0 {
            self.refresh(layout, Some(entry));
        }
        self.met = Some((entry, self.epoch));
    }

    /// An entry other than the current one is treated.
    pub(crate) fn meet_out_of_turn(&mut self, layout: &Layout, entry: NodeId) {
        self.strike(layout, entry);
        if self.unmet == 0 {
            self.refresh(layout, Some(entry));
        }
    }

    /// Looks for the largest layer among the entries.
    pub(crate) fn refresh(&mut self, layout: &Layout, except: Option<NodeId>) {
        let (except_size, except_count) = except.map_or((0, 0), |entry| layout.largest_layer(entry));
        (self.largest_bits, self.unmet) = (0, 0);
        for (&size, &count) in self.live.iter().rev() {
            let count = if size == except_size { count.saturating_sub(u64::from(except_count)) } else { count };
            if count > 0 {
                (self.largest_bits, self.unmet) = (size, count);
                break;
            }
        }
        // Names that were struck out before this say nothing of the new ones.
        self.epoch += 1;
    }

    fn strike(&mut self, layout: &Layout, entry: NodeId) {
        let (size, count) = match layout.largest_layer(entry) {
            // A direct tensor of the root is a layer in the first collection only.
            (_, 0) if self.epoch == 0 => (layout.formula_bits(entry), 1),
            layer => layer,
        };
        if size == self.largest_bits {
            self.unmet = self.unmet.saturating_sub(u64::from(count));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Reservation;
    use crate::testing::{layout, row};

    /// Layers of 10, 10, 10, 4 and 6 bytes: `b` has one that counts, `c` two.
    const LINES: &[&str] = &["a.w 10", "b.x.w 10", "b.y.w 4", "c.x.w 10", "c.y.w 10", "d.w 6"];

    #[test]
    fn layers_of_the_largest_size_are_struck_out_with_their_module() {
        let layout = layout(LINES, &[]);
        let mut reservation = Reservation::new(&layout);
        let mut largest = Vec::new();
        for name in ["a", "b", "c", "d"] {
            let entry = row(&layout, name);
            reservation.meet(&layout, entry);
            reservation.remove(&layout, entry);
            largest.push(reservation.largest_bits() / 8);
        }
        assert_eq!(largest, [10, 10, 6, 0]);
    }

    #[test]
    fn an_entry_is_struck_out_once_until_the_next_look() {
        let layout = layout(LINES, &[]);
        let a = row(&layout, "a");
        let mut reservation = Reservation::new(&layout);
        (0..9).for_each(|_| reservation.meet(&layout, a));
        assert_eq!((reservation.largest_bits() / 8, reservation.unmet), (10, 3));
        reservation.refresh(&layout, None);
        reservation.meet(&layout, a);
        assert_eq!(reservation.unmet, 3, "a new look finds all four again, and it is struck out again");
    }

    #[test]
    fn what_is_met_out_of_turn_is_struck_out_each_time() {
        let layout = layout(LINES, &[]);
        let mut reservation = Reservation::new(&layout);
        reservation.meet_out_of_turn(&layout, row(&layout, "a"));
        reservation.meet_out_of_turn(&layout, row(&layout, "b"));
        assert_eq!(reservation.unmet, 2);
    }

    /// As in accelerate, what is placed because something was tied to it is never struck out.
    #[test]
    fn the_largest_layer_can_be_stale() {
        let layout = layout(LINES, &[]);
        let mut reservation = Reservation::new(&layout);
        for name in ["a", "b", "c"] {
            reservation.remove(&layout, row(&layout, name));
        }
        reservation.meet(&layout, row(&layout, "d"));
        assert_eq!(reservation.largest_bits() / 8, 10);
        reservation.refresh(&layout, None);
        assert_eq!(reservation.largest_bits() / 8, 6);
    }

    #[test]
    fn direct_tensors_of_the_root_count_once() {
        let layout = layout(&["w 12", "a.w 10"], &[]);
        let mut reservation = Reservation::new(&layout);
        assert_eq!(reservation.largest_bits() / 8, 12);
        reservation.meet(&layout, row(&layout, "w"));
        assert_eq!(reservation.largest_bits() / 8, 10);
        reservation.refresh(&layout, None);
        assert_eq!(reservation.largest_bits() / 8, 10, "no later look finds them");
    }
}
