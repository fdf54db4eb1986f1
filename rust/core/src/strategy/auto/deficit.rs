//! The least capacity which, added to one device alone, changes the answer.

use std::sync::Arc;

use crate::devices::{Device, DeviceKind};
use crate::ids::id_at;
use crate::strategy::auto::demands::{Demands, Need};
use crate::strategy::auto::instance::{Instance, UNLIMITED};
use crate::strategy::auto::problem::{Execute, Mode, Options, Unit};
use crate::strategy::auto::search::Search;
use crate::strategy::steps::Steps;

/// Parts of the step limit that one question may take.
const PARTS: u64 = 16;

/// Units times devices that all questions together may look at.
const MOST_WORK: u64 = 1 << 25;

/// Sizes of blocks that are looked at one by one.
const MOST_TURNS: usize = 32;

/// Least extra capacity of each single device with which nothing is offloaded; `None` where no amount helps. An answer is
/// too large where the step limit, or the number of questions that so large a problem is worth, came before a better one.
pub fn shortfall(units: &[Unit], devices: &[Device], options: &Options) -> Vec<Option<u64>> {
    // Nothing stays of what is not offloaded, and without demands an answer is exact.
    let demands = options.demands.as_deref().map(Demands::without_stays).filter(|demands| !demands.is_nothing());
    to_work(units, devices, &Options { mode: Mode::GpuOnly, demands: demands.map(Arc::new), ..options.clone() })
}

/// The same with which there is any plan.
pub(crate) fn to_work(units: &[Unit], devices: &[Device], options: &Options) -> Vec<Option<u64>> {
    let options = Options { search_steps: options.search_steps / PARTS, ..options.clone() };
    let mut steps_left = options.search_steps.saturating_mul(PARTS);
    let work = (units.len() * devices.len() * devices.len()).max(1) as u64;
    let questions = MOST_WORK / work;
    let mut found: Vec<Option<u64>> = Vec::with_capacity(devices.len());
    for device in 0..devices.len() {
        let deficit = Deficit { units, devices, options: &options, device, questions };
        // Where running takes more than weights a question is dear, and what one device lacks its like lacks.
        let like = (0..device).find(|&other| options.demands.is_some() && deficit.is_like(other));
        found.push(like.map_or_else(|| deficit.least(&mut steps_left), |other| found[other]));
    }
    found
}

/// An answer may be too large by so small a power of two of all units, where running takes more than weights.
const TOLERANCE: u32 = 12;

/// What one device lacks.
struct Deficit<'a> {
    units: &'a [Unit],
    devices: &'a [Device],
    options: &'a Options,
    device: usize,
    /// How often it may be asked for a better answer.
    questions: u64,
}

impl Deficit<'_> {
    /// Whether it may be exchanged for another device in every plan.
    fn is_like(&self, other: usize) -> bool {
        let (one, two) = (&self.devices[self.device], &self.devices[other]);
        let shared = |device: usize| self.options.demands.as_ref().map(|demands| demands.shared(id_at(device)));
        let may = |unit: &Unit, device: usize| unit.allowed_devices.checked_shr(id_at(device)).map(|mask| mask & 1);
        (one.kind, one.capacity_bits, one.pool) == (two.kind, two.capacity_bits, two.pool)
            && shared(self.device) == shared(other)
            && self.units.iter().all(|unit| may(unit, self.device) == may(unit, other))
    }

    fn least(mut self, steps_left: &mut u64) -> Option<u64> {
        self.devices[self.device].capacity_bits.filter(|&capacity| capacity > 0)?;
        let running = self.running();
        let total = self.units.iter().fold(running.exec, |sum, unit| sum.saturating_add(unit.bits));
        let staged = self.units.iter().flat_map(|unit| &unit.block_bits).max().copied().unwrap_or(0);
        let kept = staged.saturating_mul(u64::from(self.options.staging_blocks));
        // INVARIANT: `high` works and `low` does not. With room for all, for streaming and for running all, more capacity is of
        // no use.
        let mut high = total.saturating_add(kept).saturating_add(running.peak).min(UNLIMITED);
        if !self.works(high, steps_left) {
            return None;
        }
        if self.works(0, steps_left) {
            return Some(0);
        }
        // From what is lacking in sum in growing steps, for that is near the answer, and then by halves.
        let mut low = total.saturating_sub(self.joint_capacity()).saturating_sub(1).min(high - 1);
        for turn in self.turns().into_iter().filter(|turn| (low + 1..high).contains(turn)).collect::<Vec<u64>>() {
            // An end between two questions leaves `high`, which works: too large, never too small.
            if self.questions == 0 {
                break;
            }
            self.questions -= 1;
            if self.works(turn, steps_left) {
                high = turn;
                break;
            }
            low = turn;
        }
        let mut step = Some(staged.max(1));
        // Where running takes more than weights a question is dear, and a last bit of little worth.
        let tolerance = if self.options.demands.is_some() { total >> TOLERANCE } else { 0 };
        while high - low > tolerance.max(1) && self.questions > 0 {
            self.questions -= 1;
            let halfway = low + (high - low) / 2;
            let more = step.map_or(halfway, |step| low.saturating_add(step).min(halfway));
            if self.works(more, steps_left) {
                (high, step) = (more, None);
            } else {
                low = more;
                step = step.map(|step| step.saturating_mul(2));
            }
        }
        Some(high)
    }

    /// What the device needs if it runs all units.
    fn running(&self) -> Need {
        let Some(demands) = &self.options.demands else { return Need::default() };
        let positions = self.units.iter().flat_map(|unit| &unit.positions);
        let all = positions.fold(Need::default(), |sum, &position| sum.and(demands.of(position)));
        Need { peak: all.peak.saturating_add(demands.shared(id_at(self.device))), ..all }
    }

    /// The last amounts before more room asks for more: with one bit more, a block that was larger than every accelerator,
    /// and ran on the cpu, is streamed and needs room. Between two of them, more only helps.
    fn turns(&self) -> Vec<u64> {
        let is_card = |device: &&Device| device.kind == DeviceKind::Accelerator;
        let capacity = |device: &Device| device.capacity_bits.unwrap_or(UNLIMITED);
        let own = &self.devices[self.device];
        // Where nothing is streamed, more capacity asks for nothing more.
        if !is_card(&own) || self.options.mode == Mode::GpuOnly || self.options.execute_offloaded == Execute::Cpu {
            return Vec::new();
        }
        let widest = self.devices.iter().filter(is_card).map(capacity).max().unwrap_or(0);
        let blocks = self.units.iter().flat_map(|unit| unit.block_bits.iter().map(|&bits| bits.min(unit.bits)));
        // At `bits - capacity` the block is streamed, so the last amount before that is one less.
        let mut turns: Vec<u64> = blocks.filter(|&bits| bits > widest).map(|bits| bits - 1 - capacity(own)).collect();
        turns.sort_unstable();
        turns.dedup();
        turns.truncate(MOST_TURNS);
        turns
    }

    /// What all devices that may hold anything hold at most.
    fn joint_capacity(&self) -> u64 {
        let is_card = |device: &Device| device.kind == DeviceKind::Accelerator;
        let only_cards = self.options.mode == Mode::GpuOnly && self.devices.iter().any(is_card);
        let holders = self.devices.iter().filter(|device| !only_cards || is_card(device));
        holders.fold(0, |sum, device| sum.saturating_add(device.capacity_bits.unwrap_or(UNLIMITED)))
    }

    fn works(&self, more: u64, steps_left: &mut u64) -> bool {
        let mut devices = self.devices.to_vec();
        let device = &mut devices[self.device];
        device.capacity_bits = device.capacity_bits.map(|capacity| capacity.saturating_add(more));
        let mut options = self.options.clone();
        // The limit of its pool rises with it, else the extra capacity would not count.
        let pool = device.pool.and_then(|pool| options.pools.get_mut(pool as usize));
        if let Some(pool) = pool {
            *pool = pool.saturating_add(more);
        }
        let Ok(instance) = Instance::new(self.units, &devices, &options) else { return false };
        let mut search = Search::new(&instance, Steps::new(options.search_steps.min(*steps_left)));
        let found = search.is_feasible();
        *steps_left -= search.steps.taken().min(*steps_left);
        found
    }
}
