//! One pass of the sequential strategy: devices in order, modules in order, with or without a reservation.
//!
//! Names such as `current_max_size` in comments are those of accelerate's `infer_auto_device_map`, whose loop this is.

use crate::devices::{Device, DeviceKind};
use crate::error::Error;
use crate::ids::{NodeId, id_at};
use crate::model::layout::Layout;
use crate::model::options::Dialect;
use crate::outcome::{Outcome, Placement, Reason, Rule};
use crate::strategy::sequential::fallback::SmallRows;
use crate::strategy::sequential::frontier::Frontier;
use crate::strategy::sequential::ledger::{Claim, Ledger};
use crate::strategy::sequential::margin::Margin;
use crate::strategy::sequential::partners::Partners;
use crate::strategy::sequential::reservation::Reservation;

/// One walk over modules and devices.
pub(crate) struct Pass<'a> {
    layout: &'a Layout,
    devices: &'a [Device],
    margin: &'a mut Margin, // every comparison with a budget goes through it
    is_reserving: bool,
    fallback: bool,
    frontier: Frontier<'a>,
    reservation: Reservation,
    ledger: Ledger,
    small_rows: Option<SmallRows>, // made by the first fallback; most passes need none
    device: u32,                   // never falls: there is no way back to an earlier device
    is_filling: bool,              // the fallback goes on after its first find; only where nothing is reserved
    outcome: Outcome,
}

/// The current entry measured against the current device.
struct Trial {
    entry: NodeId,
    partners: Partners,
    claim: Option<Claim>,
    own_bits: i64,
    needed_bits: i64,
    room_bits: i64,
    shortage_bits: Option<i64>, // none where something that it shares tensors with lies elsewhere
}

impl<'a> Pass<'a> {
    pub(crate) fn new(
        layout: &'a Layout,
        devices: &'a [Device],
        fallback: bool,
        is_reserving: bool,
        margin: &'a mut Margin,
    ) -> Self {
        let limits: Vec<i64> = devices.iter().map(Device::limit_bits).collect();
        Self {
            layout,
            devices,
            margin,
            is_reserving,
            fallback,
            frontier: Frontier::new(layout),
            reservation: Reservation::new(layout),
            ledger: Ledger::new(&limits, layout.shared_groups.len()),
            small_rows: None,
            device: 0,
            is_filling: false,
            outcome: Outcome::default(),
        }
    }

    pub(crate) fn run(mut self) -> Result<Outcome, Error> {
        while let Some(entry) = self.frontier.current() {
            self.treat(entry)?;
        }
        Ok(self.into_outcome())
    }

    /// The outcome, unless something has to be offloaded or fits nowhere.
    pub(crate) fn run_unless_offloading(mut self) -> Option<Outcome> {
        while let Some(entry) = self.frontier.current() {
            self.treat(entry).ok()?;
            let last = self.outcome.placements.last();
            if last.is_some_and(|placed| self.devices[placed.device as usize].is_offload(self.devices)) {
                return None;
            }
        }
        Some(self.into_outcome())
    }

    fn into_outcome(mut self) -> Outcome {
        self.outcome.usage = self.ledger.into_usage();
        self.outcome
    }

    /// Places an entry, splits something, or goes to the next device: the rows of the truth table, in order.
    fn treat(&mut self, entry: NodeId) -> Result<(), Error> {
        // `max_layer_names = [n for n in max_layer_names if n != name and ...]`.
        self.reservation.meet(self.layout, entry);
        let homes = self.ledger.devices_of(self.layout, entry);
        // Ours, before any of accelerate's rules: part of it is committed elsewhere, so it cannot go here.
        if homes.iter().any(|&home| home != self.device) {
            self.treat_bound(entry, &homes);
            return Ok(());
        }
        let trial = self.try_current(entry);
        // `device_memory_used + module_size_with_ties <= current_max_size`.
        if self.fits(&trial) {
            self.place(trial, self.device, Rule::Fits);
            return Ok(());
        }
        let has_acted = self.split_tied(&trial)
            || self.split_current(&trial)
            || self.take_apart(&trial)
            || self.place_fallback(&trial);
        match homes.is_empty() {
            _ if has_acted => {}
            true => self.next_device(&trial)?,
            // All of its committed parts lie here already: it must stay here, however it gets in.
            false => self.treat_bound(entry, &homes),
        }
        Ok(())
    }

    fn fits(&mut self, trial: &Trial) -> bool {
        trial.shortage_bits.is_some_and(|shortage_bits| self.margin.holds(self.device, shortage_bits))
    }

    fn reserved_bits(&self) -> i64 {
        let is_main = self.is_reserving && self.devices[self.device as usize].is_main;
        if is_main { self.reservation.largest_bits() } else { 0 }
    }

    fn try_current(&mut self, entry: NodeId) -> Trial {
        let reserved_bits = self.reserved_bits();
        self.ledger.note_reserved(reserved_bits, self.device);
        // `current_max_size`, less `max_layer_size` on main devices; none for the disk.
        let limit = self.devices[self.device as usize].formula_limit_bits();
        let room_bits = match limit {
            i64::MAX => i64::MAX,
            bits => bits.saturating_sub(reserved_bits).saturating_sub(self.ledger.formula_used_bits(self.device)),
        };
        let partners = Partners::of_entry(self.layout, &self.frontier, entry);
        self.measure(entry, partners, room_bits)
    }

    fn measure(&self, entry: NodeId, partners: Partners, room_bits: i64) -> Trial {
        let own_bits = self.layout.formula_bits(entry);
        let mut unit = vec![entry];
        unit.extend(&partners.entries);
        // Two measures: accelerate's formula against what it calls available, and stored bytes against the budget.
        let claim = self.ledger.claim(self.layout, &unit, self.device);
        let needed_bits = own_bits.saturating_add(partners.extra_bits);
        let by_formula = needed_bits.saturating_sub(room_bits);
        let shortage_bits = claim.as_ref().map(|claim| by_formula.max(self.ledger.shortage_bits(claim, self.device)));
        Trial { entry, partners, claim, own_bits, needed_bits, room_bits, shortage_bits }
    }

    fn place(&mut self, trial: Trial, device: u32, rule: Rule) {
        let available_bits = trial.room_bits.min(self.ledger.left_bits(device));
        // The module first, then those tied to it, in the order in which they are met: the order of the map's keys.
        let entries =
            std::iter::once((trial.entry, rule)).chain(trial.partners.entries.iter().map(|&e| (e, Rule::Tied)));
        for (node, rule) in entries {
            self.frontier.place(node);
            // Out of the living layers; from `max_layer_names` accelerate does not strike tied modules.
            self.reservation.remove(self.layout, node);
            self.outcome.placements.push(Placement { node, device, is_lead: node == trial.entry });
            self.outcome.reasons.push(Reason { rule, node, device, needed_bits: trial.needed_bits, available_bits });
        }
        self.ledger.add_formula(trial.needed_bits, device);
        if let Some(claim) = trial.claim {
            self.ledger.meet(claim, device);
        }
    }

    fn note(&mut self, rule: Rule, node: NodeId, trial: &Trial) {
        let available_bits = trial.room_bits.min(self.ledger.left_bits(self.device));
        let reason = Reason { rule, node, device: self.device, needed_bits: trial.needed_bits, available_bits };
        self.outcome.reasons.push(reason);
    }

    /// The entry alone fits: the first module tied to it that can be split, is.
    fn split_tied(&mut self, trial: &Trial) -> bool {
        let Some(&tied) = trial.partners.entries.iter().find(|&&tied| self.layout.can_split(tied)) else {
            return false;
        };
        if !self.margin.holds(self.device, trial.own_bits.saturating_sub(trial.room_bits)) {
            return false;
        }
        self.note(Rule::SplitTied, tied, trial);
        self.split(tied);
        true
    }

    /// The entry does not fit. Where it would by accelerate's formula with equality to spare, only stored bytes forbid it.
    fn split_current(&mut self, trial: &Trial) -> bool {
        if !self.layout.can_split(trial.entry) {
            return false;
        }
        let short_by = |bits: i64| bits.saturating_sub(trial.room_bits);
        // `device_memory_used + module_size >= current_max_size`, hence the one bit.
        let is_tried = self.layout.dialect == Dialect::Transformers
            || !self.margin.holds(self.device, short_by(trial.own_bits).saturating_add(1))
            || self.margin.holds(self.device, short_by(trial.needed_bits));
        if !is_tried {
            return false;
        }
        self.note(Rule::Split, trial.entry, trial);
        self.split(trial.entry);
        true
    }

    fn split(&mut self, entry: NodeId) {
        self.open(entry);
        // `max_layer_size, max_layer_names = get_max_layer_size(...)` after every split.
        self.reservation.refresh(self.layout, None);
    }

    /// Replaces an entry by its children.
    fn open(&mut self, entry: NodeId) {
        self.frontier.split(entry);
        self.reservation.remove(self.layout, entry);
        for child in self.layout.tree().children(entry).filter(|&child| !self.layout.is_alias(child)) {
            self.reservation.add(self.layout, child);
        }
    }

    /// transformers: a block too large for the next accelerator as well goes there without what needs no placement.
    fn take_apart(&mut self, trial: &Trial) -> bool {
        let layout = self.layout;
        let block = trial.entry;
        if !layout.has_exempt || !layout.is_no_split(block) || layout.can_split(block) {
            return false;
        }
        let mut inside = block..layout.tree().end(block);
        if !inside.any(|row| layout.exempt.contains(row)) {
            return false;
        }
        let next = self.device + 1;
        let Some(device) = self.devices.get(next as usize).filter(|next| next.kind == DeviceKind::Accelerator) else {
            return false;
        };
        let needed_bits = self.ledger.formula_used_bits(next).saturating_add(trial.needed_bits);
        if self.margin.holds(next, needed_bits.saturating_sub(device.limit_bits())) {
            return false;
        }
        self.note(Rule::Split, block, trial);
        self.reservation.remove(layout, block);
        self.frontier.take_apart(block);
        true
    }

    /// The device is empty and the entry cannot go there: something smaller may.
    fn place_fallback(&mut self, blocked: &Trial) -> bool {
        let device = &self.devices[self.device as usize];
        // `device_memory_used[device] == 0 and fallback_allocation and device != "disk"`.
        let used = self.ledger.formula_used_bits(self.device);
        if !self.fallback || device.kind == DeviceKind::Disk || !(used == 0 || self.is_filling) {
            return false;
        }
        // accelerate keeps room for the largest layer here on every device, not only on the main ones.
        let kept = if self.is_reserving { self.reservation.largest_bits().max(blocked.needed_bits) } else { 0 };
        let limit_bits = device.formula_limit_bits().saturating_sub(kept).saturating_sub(used);
        let Some((trial, path)) = self.find_fallback(blocked.entry, limit_bits) else { return false };
        for ancestor in path {
            self.open(ancestor);
        }
        // accelerate looks for one smaller module on an empty device; a pass that reserves nothing goes on with more.
        self.is_filling = !self.is_reserving;
        // accelerate puts what it found at the head of its list, so its names are struck out as if its turn had come.
        self.reservation.meet_out_of_turn(self.layout, trial.entry);
        self.place(trial, self.device, Rule::Fallback);
        true
    }

    /// Depth-first: the first row behind the blocked entry that fits with all that is tied to it.
    fn find_fallback(&mut self, blocked: NodeId, limit_bits: i64) -> Option<(Trial, Vec<NodeId>)> {
        let layout = self.layout;
        let mut small_rows = self.small_rows.take().unwrap_or_else(|| SmallRows::new(layout));
        // Entries before the blocked one are placed, and what is inside of it was refused with it.
        let start = layout.tree().end(blocked);
        let (mut from, mut found) = (start, None);
        while let Some(row) = small_rows.next(from, limit_bits) {
            // Preorder: a child comes after its parent, so a module is tried whole before its parts.
            from = row + 1;
            let Some(path) = self.frontier.ancestors_to_split(row).filter(|_| !self.frontier.is_split(row)) else {
                // Placed and split rows never come back, so each is met here at most once in a pass.
                small_rows.forget(row);
                continue;
            };
            if self.is_lone(row) {
                continue;
            }
            let trial = self.measure_candidate(row, limit_bits);
            if self.fits(&trial) {
                found = Some((trial, path));
                break;
            }
        }
        let passed = start..found.as_ref().map_or(id_at(layout.tree().len()), |(trial, _)| trial.entry);
        self.note_too_large(&small_rows, passed, limit_bits);
        self.small_rows = Some(small_rows);
        found
    }

    /// A buffer of a module that would be, or was, split: accelerate's search meets children and parameters, and no buffers.
    fn is_lone(&self, row: NodeId) -> bool {
        let tree = self.layout.tree();
        tree.is_buffer(row) && tree.parent(row) != 0
    }

    fn measure_candidate(&self, row: NodeId, limit_bits: i64) -> Trial {
        let partners = Partners::of_candidate(self.layout, &self.frontier, row);
        self.measure(row, partners, limit_bits)
    }

    /// What rows lack that the search passed over for their size: each of them would be found first, were it to fit.
    fn note_too_large(&mut self, small_rows: &SmallRows, passed: std::ops::Range<NodeId>, limit_bits: i64) {
        for row in passed {
            let Some(bits) = small_rows.bits(row).filter(|&bits| bits > limit_bits) else { continue };
            if self.margin.may_narrow(self.device, bits.saturating_sub(limit_bits)) {
                let path = self.frontier.ancestors_to_split(row).filter(|_| !self.frontier.is_split(row));
                if path.is_some() && !self.is_lone(row) {
                    let trial = self.measure_candidate(row, limit_bits);
                    self.fits(&trial);
                }
            }
        }
    }

    /// An entry that shares a tensor with something on an earlier device follows it there, as far as it must.
    fn treat_bound(&mut self, entry: NodeId, homes: &[u32]) {
        // The first of several; with several the claim fails, and the entry is split to send each part to its own.
        let home = homes[0];
        let own_bits = self.layout.formula_bits(entry);
        let claim = self.ledger.claim(self.layout, &[entry], home);
        let shortage_bits = claim.as_ref().map(|claim| self.ledger.shortage_bits(claim, home));
        // INVARIANT: what cannot be split belongs to one group, whose bytes its home already counts.
        let is_admitted =
            !self.layout.can_split(entry) || shortage_bits.is_some_and(|bits| self.margin.holds(home, bits));
        let room_bits = self.ledger.left_bits(home);
        let trial = Trial {
            entry,
            partners: Partners::default(),
            claim,
            own_bits,
            needed_bits: own_bits,
            room_bits,
            shortage_bits,
        };
        if is_admitted {
            self.place(trial, home, Rule::Bound);
        } else {
            self.note(Rule::Split, entry, &trial);
            self.split(entry);
        }
    }

    fn next_device(&mut self, trial: &Trial) -> Result<(), Error> {
        self.note(Rule::NextDevice, trial.entry, trial);
        let reserved_bits = self.reserved_bits();
        let claimed_bits = trial.claim.as_ref().map_or(0, Claim::bits);
        if self.device as usize + 1 == self.devices.len() {
            let missing = (trial.needed_bits.saturating_sub(trial.room_bits))
                .max(claimed_bits.saturating_sub(self.ledger.left_bits(self.device)));
            return Err(Error::Exhausted {
                node: trial.entry,
                device: self.device,
                shortfall_bits: missing.max(1).unsigned_abs(),
                placed: self.outcome.placements.iter().map(|p| (p.node, p.device)).collect(),
            });
        }
        // `device_memory_used + current_memory_reserved`: what was kept free counts as used once the device is left.
        self.ledger.add_formula(reserved_bits, self.device);
        self.device += 1;
        self.is_filling = false;
        Ok(())
    }
}
