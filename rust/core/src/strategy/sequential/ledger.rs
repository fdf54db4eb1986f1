//! The only accounting: bytes used per device, by the dialect's formula and as stored, and where shared groups lie.

use crate::ids::NodeId;
use crate::model::layout::Layout;
use crate::outcome::Usage;

/// Bytes and commitments so far.
#[derive(Debug)]
pub(crate) struct Ledger {
    usage: Vec<Usage>,
    left: Vec<i64>,         // what stored tensors may still use
    home: Vec<Option<u32>>, // by group
}

/// What placing something on a device would take.
#[derive(Debug)]
pub(crate) struct Claim {
    bits: i64,
    shared_groups: Vec<u32>, // those that are not committed yet
}

impl Ledger {
    pub(crate) fn new(limits_bits: &[i64], group_count: usize) -> Self {
        Self {
            usage: vec![Usage::default(); limits_bits.len()],
            left: limits_bits.to_vec(),
            home: vec![None; group_count],
        }
    }

    pub(crate) fn formula_used_bits(&self, device: u32) -> i64 {
        self.usage[device as usize].formula_bits
    }

    pub(crate) fn left_bits(&self, device: u32) -> i64 {
        self.left[device as usize]
    }

    /// The claim of some rows on a device, or `None` if a group of theirs lies elsewhere.
    pub(crate) fn claim(&self, layout: &Layout, nodes: &[NodeId], device: u32) -> Option<Claim> {
        let mut shared_groups = Vec::new();
        let mut bits = 0;
        for &node in nodes {
            layout.shared_groups.touching(layout.tree(), node, &mut shared_groups);
            // Tensors in no group count where they lie; those of a group count as a whole, once.
            bits += layout.shared_groups.loose_bits(node);
        }
        // What is committed here already was paid for by the part that committed it.
        shared_groups.retain(|&group| self.home[group as usize] != Some(device));
        if shared_groups.iter().any(|&group| self.home[group as usize].is_some()) {
            return None;
        }
        bits += shared_groups.iter().map(|&group| layout.shared_groups.bits(group)).sum::<i64>();
        Some(Claim { bits, shared_groups })
    }

    /// What a device lacks to meet a claim; none or fewer where it can.
    pub(crate) fn shortage_bits(&self, claim: &Claim, device: u32) -> i64 {
        claim.bits.saturating_sub(self.left[device as usize])
    }

    /// Takes what was claimed.
    pub(crate) fn meet(&mut self, claim: Claim, device: u32) {
        for group in claim.shared_groups {
            // INVARIANT: a group's home is set once and never changes; `claim` refuses any other device.
            self.home[group as usize] = Some(device);
        }
        self.usage[device as usize].used_bits += claim.bits;
        if self.left[device as usize] != i64::MAX {
            self.left[device as usize] -= claim.bits;
        }
    }

    /// Adds to what the dialect's formula counts.
    pub(crate) fn add_formula(&mut self, bits: i64, device: u32) {
        let used = &mut self.usage[device as usize].formula_bits;
        *used = used.saturating_add(bits);
    }

    /// Notes what is kept free.
    pub(crate) fn note_reserved(&mut self, bits: i64, device: u32) {
        self.usage[device as usize].reserved_bits = bits;
    }

    /// Devices to which shared groups inside a row are committed, each once and in order.
    pub(crate) fn devices_of(&self, layout: &Layout, node: NodeId) -> Vec<u32> {
        let mut shared_groups = Vec::new();
        layout.shared_groups.touching(layout.tree(), node, &mut shared_groups);
        let mut devices: Vec<u32> = shared_groups.into_iter().filter_map(|group| self.home[group as usize]).collect();
        devices.sort_unstable();
        devices.dedup();
        devices
    }

    pub(crate) fn into_usage(self) -> Vec<Usage> {
        self.usage
    }
}

impl Claim {
    pub(crate) fn bits(&self) -> i64 {
        self.bits
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::Ledger;
    use crate::testing::{layout, row};

    /// `a` and `b` share 4 bytes.
    const LINES: &[&str] = &["a.w 10", "a.s 4 @s", "b.w 20", "b.s 4 @s", "c.w 5"];

    #[test]
    fn a_shared_group_is_claimed_whole_and_once() {
        let layout = layout(LINES, &[]);
        let (a, b, c) = (row(&layout, "a"), row(&layout, "b"), row(&layout, "c"));
        let mut ledger = Ledger::new(&[40 * 8, i64::MAX], layout.shared_groups.len());
        let claim = ledger.claim(&layout, &[a], 0).unwrap();
        assert_eq!(claim.bits() / 8, 34, "b is as good as there, its 4 shared bytes once");
        assert_eq!(ledger.shortage_bits(&claim, 0) / 8, -6);
        ledger.meet(claim, 0);
        assert_eq!(ledger.claim(&layout, &[b], 0).map(|claim| claim.bits()), Some(0));
        assert!(ledger.claim(&layout, &[b], 1).is_none(), "its group lies elsewhere");
        assert_eq!((ledger.devices_of(&layout, b), ledger.devices_of(&layout, c)), (vec![0], vec![]));
        let claim = ledger.claim(&layout, &[c], 1).unwrap();
        ledger.meet(claim, 1);
        assert_eq!((ledger.left_bits(0) / 8, ledger.left_bits(1)), (6, i64::MAX), "no limit stays none");
        let used: Vec<i64> = ledger.into_usage().iter().map(|usage| usage.used_bits / 8).collect();
        assert_eq!(used, [34, 5]);
    }

    #[test]
    fn several_rows_claim_together() {
        let layout = layout(LINES, &[]);
        let rows = ["a", "b", "c"].map(|name| row(&layout, name));
        let ledger = Ledger::new(&[38 * 8], layout.shared_groups.len());
        let claim = ledger.claim(&layout, &rows, 0).unwrap();
        assert_eq!((claim.bits() / 8, ledger.shortage_bits(&claim, 0) / 8), (39, 1));
    }

    #[test]
    fn the_formula_is_counted_apart_and_does_not_wrap() {
        let mut ledger = Ledger::new(&[8, 8], 0);
        ledger.add_formula(i64::MAX, 1);
        ledger.add_formula(1, 1);
        ledger.note_reserved(3, 0);
        assert_eq!((ledger.formula_used_bits(0), ledger.formula_used_bits(1)), (0, i64::MAX));
        assert_eq!((ledger.left_bits(0), ledger.left_bits(1)), (8, 8));
        assert_eq!(ledger.into_usage()[0].reserved_bits, 3);
    }
}
