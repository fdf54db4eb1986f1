//! accelerate's strategy: devices in order, modules in order, never back to an earlier device.
//!
//! Source: `infer_auto_device_map`, accelerate 1.15, utils/modeling.py; where the dialect says so, transformers 5.23,
//! integrations/accelerate.py. The repairs are listed in `ARCHITECTURE.md`. The chief of them: whatever the formula says,
//! a module is only placed where its stored bytes fit and where everything that shares tensors with it may lie, too.

use crate::error::Error;
use crate::frontier::Frontier;
use crate::layout::{Dialect, Layout};
use crate::ledger::{Claim, Ledger};
use crate::outcome::{Outcome, Placement, Reason, Rule};
use crate::problem::{Device, DeviceKind, Reserve, SequentialOptions};
use crate::strategy::fallback::SmallRows;
use crate::strategy::reservation::Reservation;
use crate::ties::Partners;
use crate::tree::NodeId;

/// Plans with accelerate's strategy.
///
/// # Errors
///
/// [`Error::Exhausted`] when the last device refuses a module; an unlimited last device never does.
///
/// # Guarantee
///
/// Every row is placed, tensors that are shared lie on one device, and no device exceeds its budget in stored bytes.
///
/// # Cost
///
/// O((rows + devices) · log rows) besides ties.
pub fn sequential(layout: &Layout, devices: &[Device], options: &SequentialOptions) -> Result<Outcome, Error> {
    if options.reserve == Reserve::IfOffloaded
        && let Ok(outcome) = Pass::new(layout, devices, options.fallback, false).run()
        && !is_offloading(&outcome, devices)
    {
        return Ok(outcome);
    }
    Pass::new(layout, devices, options.fallback, true).run()
}

/// Whether something lies where it cannot run.
fn is_offloading(outcome: &Outcome, devices: &[Device]) -> bool {
    let has_accelerator = devices.iter().any(|device| device.kind == DeviceKind::Accelerator);
    outcome.placements.iter().any(|placement| match devices[placement.device as usize].kind {
        DeviceKind::Accelerator => false,
        DeviceKind::Cpu => has_accelerator,
        DeviceKind::Disk => true,
    })
}

/// One walk over modules and devices.
struct Pass<'a> {
    layout: &'a Layout,
    devices: &'a [Device],
    is_reserving: bool,
    fallback: bool,
    frontier: Frontier<'a>,
    reservation: Reservation,
    ledger: Ledger,
    small_rows: Option<SmallRows>,
    device: u32,
    is_filling: bool, // the fallback goes on after its first find; only where nothing is reserved
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
    is_admitted: bool,
}

impl Trial {
    fn fits(&self) -> bool {
        self.is_admitted && self.needed_bits <= self.room_bits
    }
}

impl<'a> Pass<'a> {
    fn new(layout: &'a Layout, devices: &'a [Device], fallback: bool, is_reserving: bool) -> Self {
        let limits: Vec<i64> = devices.iter().map(Device::limit_bits).collect();
        Self {
            layout,
            devices,
            is_reserving,
            fallback,
            frontier: Frontier::new(layout),
            reservation: Reservation::new(layout),
            ledger: Ledger::new(&limits, layout.bonds.len()),
            small_rows: None,
            device: 0,
            is_filling: false,
            outcome: Outcome::default(),
        }
    }

    fn run(mut self) -> Result<Outcome, Error> {
        while let Some(entry) = self.frontier.current() {
            self.reservation.meet(self.layout, entry);
            self.treat(entry)?;
        }
        self.outcome.usage = self.ledger.into_usage();
        Ok(self.outcome)
    }

    /// Places an entry, splits something, or goes to the next device: the rows of the truth table, in order.
    fn treat(&mut self, entry: NodeId) -> Result<(), Error> {
        let homes = self.ledger.homes(self.layout, entry);
        if homes.iter().any(|&home| home != self.device) {
            self.treat_bound(entry, &homes);
            return Ok(());
        }
        let trial = self.try_current(entry);
        if trial.fits() {
            self.place(trial, self.device, Rule::Fits);
            return Ok(());
        }
        let has_acted = self.split_tied(&trial)
            || self.split_current(&trial)
            || self.take_apart(&trial)
            || self.place_fallback(&trial);
        match homes.is_empty() {
            _ if has_acted => {}
            true => self.next_device(trial)?,
            false => self.treat_bound(entry, &homes),
        }
        Ok(())
    }

    fn reserved_bits(&self) -> i64 {
        let is_main = self.is_reserving && self.devices[self.device as usize].is_main;
        if is_main { self.reservation.largest_bits() } else { 0 }
    }

    fn try_current(&mut self, entry: NodeId) -> Trial {
        let reserved_bits = self.reserved_bits();
        self.ledger.note_reserved(reserved_bits, self.device);
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
        let claim = self.ledger.claim(self.layout, &unit, self.device);
        let is_admitted = claim.as_ref().is_some_and(|claim| self.ledger.can_meet(claim, self.device));
        let needed_bits = own_bits.saturating_add(partners.extra_bits);
        Trial { entry, partners, claim, own_bits, needed_bits, room_bits, is_admitted }
    }

    fn place(&mut self, trial: Trial, device: u32, rule: Rule) {
        let available_bits = trial.room_bits.min(self.ledger.left_bits(device));
        let entries =
            std::iter::once((trial.entry, rule)).chain(trial.partners.entries.iter().map(|&e| (e, Rule::Tied)));
        for (node, rule) in entries {
            self.frontier.place(node);
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
        if trial.own_bits > trial.room_bits {
            return false;
        }
        let Some(&tied) = trial.partners.entries.iter().find(|&&tied| self.layout.can_split(tied)) else {
            return false;
        };
        self.note(Rule::SplitTied, tied, trial);
        self.split(tied);
        true
    }

    /// The entry does not fit. Where it would by accelerate's formula with equality to spare, only stored bytes forbid it.
    fn split_current(&mut self, trial: &Trial) -> bool {
        let is_too_large = trial.own_bits >= trial.room_bits || trial.needed_bits <= trial.room_bits;
        if !self.layout.can_split(trial.entry) || !(is_too_large || self.layout.dialect == Dialect::Transformers) {
            return false;
        }
        self.note(Rule::Split, trial.entry, trial);
        self.split(trial.entry);
        true
    }

    fn split(&mut self, entry: NodeId) {
        self.open(entry);
        self.reservation.refresh(self.layout, None);
    }

    /// Replaces an entry by its children.
    fn open(&mut self, entry: NodeId) {
        self.frontier.split(entry);
        self.reservation.remove(self.layout, entry);
        for child in self.layout.tree().children(entry).filter(|&child| !self.layout.is_twin(child)) {
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
        let next = self.device + 1;
        let is_next_too_small = self.devices.get(next as usize).is_some_and(|device| {
            let used = self.ledger.formula_used_bits(next);
            device.kind == DeviceKind::Accelerator && used + trial.needed_bits > device.limit_bits()
        });
        let mut inside = block..layout.tree().end(block);
        if !is_next_too_small || !inside.any(|row| layout.exempt.contains(row)) {
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
        self.is_filling = !self.is_reserving;
        self.reservation.meet_out_of_turn(self.layout, trial.entry);
        self.place(trial, self.device, Rule::Fallback);
        true
    }

    /// Depth-first: the first row behind the blocked entry that fits with all that is tied to it.
    fn find_fallback(&mut self, blocked: NodeId, limit_bits: i64) -> Option<(Trial, Vec<NodeId>)> {
        if limit_bits < 0 {
            return None;
        }
        let layout = self.layout;
        let mut small_rows = self.small_rows.take().unwrap_or_else(|| SmallRows::new(layout));
        let mut from = layout.tree().end(blocked);
        let mut found = None;
        while let Some(row) = small_rows.next(from, limit_bits) {
            from = row + 1;
            let Some(path) = self.frontier.ancestors_to_split(row).filter(|_| !self.frontier.is_split(row)) else {
                small_rows.forget(row);
                continue;
            };
            let partners = Partners::of_candidate(layout, &self.frontier, row);
            let trial = self.measure(row, partners, limit_bits);
            if trial.fits() {
                found = Some((trial, path));
                break;
            }
        }
        self.small_rows = Some(small_rows);
        found
    }

    /// An entry that shares a tensor with something on an earlier device follows it there, as far as it must.
    fn treat_bound(&mut self, entry: NodeId, homes: &[u32]) {
        let home = homes[0];
        let own_bits = self.layout.formula_bits(entry);
        let claim = self.ledger.claim(self.layout, &[entry], home);
        let can_follow = claim.as_ref().is_some_and(|claim| self.ledger.can_meet(claim, home));
        // INVARIANT: what cannot be split belongs to one bond, whose bytes its home already counts.
        let is_admitted = can_follow || !self.layout.can_split(entry);
        let room_bits = self.ledger.left_bits(home);
        let trial = Trial {
            entry,
            partners: Partners::default(),
            claim,
            own_bits,
            needed_bits: own_bits,
            room_bits,
            is_admitted,
        };
        if is_admitted {
            self.place(trial, home, Rule::Bound);
        } else {
            self.note(Rule::Split, entry, &trial);
            self.split(entry);
        }
    }

    fn next_device(&mut self, trial: Trial) -> Result<(), Error> {
        self.note(Rule::NextDevice, trial.entry, &trial);
        let reserved_bits = self.reserved_bits();
        let claimed_bits = trial.claim.as_ref().map_or(0, Claim::bits);
        if self.ledger.formula_used_bits(self.device) == 0 {
            let minimum = trial.needed_bits.saturating_add(reserved_bits).max(claimed_bits);
            self.outcome.minimums.push((self.device, minimum));
        }
        if self.device as usize + 1 == self.devices.len() {
            let missing = (trial.needed_bits.saturating_sub(trial.room_bits))
                .max(claimed_bits.saturating_sub(self.ledger.left_bits(self.device)));
            return Err(Error::Exhausted {
                node: trial.entry,
                device: self.device,
                shortfall_bits: missing.max(1) as u64,
                placed: self.outcome.placements.iter().map(|p| (p.node, p.device)).collect(),
            });
        }
        self.ledger.add_formula(reserved_bits, self.device);
        self.device += 1;
        self.is_filling = false;
        Ok(())
    }
}
