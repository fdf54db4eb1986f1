//! What one device keeps of what it runs, so that it streams as little as can be.

use crate::strategy::auto::instance::{Bin, Class, Instance};

/// No way of running the units.
pub(crate) const NEVER: u64 = u64::MAX;

/// Nodes of the search for one vector.
const MOST_NODES: u64 = 4_096;

/// The search for one device; the answer for one vector is kept until the next is asked for.
pub(crate) struct Keeper<'a> {
    instance: &'a Instance<'a>,
    bin: Bin,
    index: usize,
    /// By class: units that the device runs.
    counts: Vec<u32>,
    /// Classes of them, the commonest last.
    present: Vec<usize>,
    taken: Vec<u32>,
    /// Fewest bits that are not kept, and by class what is.
    best: u64,
    kept: Vec<u32>,
    /// Looked at so far, over all vectors.
    pub(crate) nodes: u64,
    nodes_left: u64,
    /// No vector was too large to be searched to its end.
    pub(crate) is_exact: bool,
}

/// A part of the classes is settled.
#[derive(Clone, Copy)]
struct Node {
    at: usize,
    room: u64,
    peak: u64,
    left_out: u64,
    /// Nothing larger is streamed.
    largest: Option<u64>,
}

impl<'a> Keeper<'a> {
    /// A device with some capacity, which is its own or less.
    pub(crate) fn new(instance: &'a Instance<'a>, index: usize, capacity: u64) -> Self {
        let nothing = vec![0; instance.classes.len()];
        Self {
            instance,
            bin: Bin { capacity, ..instance.bins[index] },
            index,
            counts: nothing.clone(),
            present: Vec::new(),
            taken: nothing.clone(),
            best: NEVER,
            kept: nothing,
            nodes: 0,
            nodes_left: 0,
            is_exact: true,
        }
    }

    /// Fewest bits that are offloaded of so many units of each class that the device runs, or sees run by the cpu;
    /// [`NEVER`] where it cannot. [`Keeper::kept`] says what is not offloaded then.
    pub(crate) fn least(&mut self, counts: &[u32]) -> u64 {
        self.counts.clear();
        self.counts.extend_from_slice(counts);
        self.present.clear();
        let classes = &self.instance.classes;
        self.present.extend((0..counts.len()).filter(|&class| counts[class] > 0 && !classes[class].is_weightless));
        self.present.sort_by_key(|&class| counts[class]);
        if let Some(bits) = self.whole() {
            self.kept.clone_from(&self.counts);
            return bits;
        }
        self.best = NEVER;
        self.kept.fill(0);
        self.taken.fill(0);
        let classes = || self.present.iter().map(|&class| &self.instance.classes[class]);
        if classes().all(|class| class.streamed.is_none() && class.can_offload()) {
            // The cpu runs all of them, and this device nothing.
            self.best = classes().zip(&self.present).map(|(class, &at)| class.bits * u64::from(counts[at])).sum();
        }
        let Some(room) = self.bin.capacity.checked_sub(self.bin.shared) else { return self.best };
        let mut sizes: Vec<Option<u64>> =
            classes().filter(|class| class.can_offload()).map(|class| class.streamed).collect();
        // Each largest size in turn: room is kept for it, and what is larger stays.
        sizes.sort_unstable();
        sizes.dedup();
        for largest in sizes {
            if let Some(room) = room.checked_sub(largest.map_or(0, |size| self.instance.room(size))) {
                self.nodes_left = MOST_NODES;
                self.place(Node { at: 0, room, peak: 0, left_out: 0, largest });
            }
        }
        self.best
    }

    /// By class: what the device keeps of the vector that was asked for last.
    pub(crate) fn kept(&self) -> &[u32] {
        &self.kept
    }

    /// 0 where all can be kept.
    fn whole(&self) -> Option<u64> {
        if self.present.is_empty() {
            return Some(0);
        }
        let (mut sum, mut peak) = (self.bin.shared, 0);
        for &at in &self.present {
            let class = &self.instance.classes[at];
            if !class.allows(self.index) {
                return None;
            }
            sum += class.weight() * u64::from(self.counts[at]);
            peak = peak.max(class.need.peak);
        }
        (sum + peak <= self.bin.capacity).then_some(0)
    }

    /// Fewest and most units of a class that are kept.
    fn limits(&self, class: &Class, count: u32, largest: Option<u64>) -> (u32, u32) {
        let cannot_stream = class.streamed.is_some() && !self.instance.may_stream(self.index);
        let least = if class.must_stay(largest) || cannot_stream { count } else { 0 };
        (least, if class.allows(self.index) { count } else { 0 })
    }

    /// Every number of units of a class, most first, then the next class.
    fn place(&mut self, node: Node) {
        self.nodes += 1;
        let Some(left) = self.nodes_left.checked_sub(1) else {
            self.is_exact = false;
            return;
        };
        self.nodes_left = left;
        let at = self.present[node.at];
        let (class, count) = (&self.instance.classes[at], self.counts[at]);
        let (least, most) = self.limits(class, count, node.largest);
        if node.at + 1 == self.present.len() {
            self.last(node, (least, most));
            return;
        }
        let streams = class.streamed.is_some();
        for kept in (least..=most).rev() {
            let left_out = node.left_out + class.bits * u64::from(count - kept);
            if left_out >= self.best {
                return;
            }
            let weight = class.weight() * u64::from(kept) + class.streamed_need.exec * u64::from(count - kept);
            let own = if kept > 0 { class.need.peak } else { 0 };
            let own = if streams && kept < count { own.max(class.streamed_need.peak) } else { own };
            let peak = node.peak.max(own);
            let Some(room) = node.room.checked_sub(weight).filter(|&room| room >= peak) else { continue };
            self.taken[at] = kept;
            self.place(Node { at: node.at + 1, room, peak, left_out, ..node });
        }
    }

    /// As many of the last class as there is room for.
    fn last(&mut self, node: Node, (least, most): (u32, u32)) {
        let at = self.present[node.at];
        let (class, count) = (&self.instance.classes[at], self.counts[at]);
        let need = class.streamed_need;
        // Each one that is kept takes this more than one that is streamed.
        let extra = class.weight() - need.exec;
        let streamed = need.exec * u64::from(count);
        let peak = node.peak.max(class.need.peak);
        let room = node.room.checked_sub(streamed).and_then(|room| room.checked_sub(peak));
        let kept = room.map_or(0, |room| {
            room.checked_div(extra).map_or(most, |fits| u32::try_from(fits).map_or(most, |fits| fits.min(most)))
        });
        let can_stream_all = || {
            let peak = node.peak.max(if class.streamed.is_some() { need.peak } else { 0 });
            streamed.saturating_add(peak) <= node.room
        };
        if kept < least || (kept == 0 && !can_stream_all()) {
            return;
        }
        let left_out = node.left_out + class.bits * u64::from(count - kept);
        if left_out < self.best {
            self.best = left_out;
            self.taken[at] = kept;
            self.kept.clone_from(&self.taken);
        }
    }
}
