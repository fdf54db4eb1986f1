//! Plans in which each device executes one run, once it is settled what is offloaded.

use crate::strategy::auto::instance::Instance;
use crate::strategy::auto::packing::tiers::Tiers;
use crate::strategy::auto::plan::{Place, Plan, lay_out};
use crate::strategy::auto::runs::fill::spread;
use crate::strategy::auto::runs::prefix::{Prefix, Room, Runs};
use crate::strategy::auto::steps::Steps;

/// What is offloaded, where it lies, and to which bin it is streamed.
#[derive(Debug, Clone)]
pub(crate) struct Split {
    /// By unit.
    pub(crate) offloaded: Vec<bool>,
    pub(crate) tiers: Tiers,
    pub(crate) staging_device: Option<usize>,
}

/// Which orders of devices are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Orders {
    Given,
    Any,
}

/// The answer of one attempt.
#[derive(Debug)]
pub(crate) enum Runnable {
    Fits(Plan),
    /// The first unit left over, where units are taken in order.
    DoesNotFit(Option<u32>),
    Undecided,
}

/// Units, weights and rooms of one attempt.
struct Track<'a> {
    instance: &'a Instance<'a>,
    split: &'a Split,
    rooms: Vec<Room>,
    prefix: Prefix,
    /// The last room is the cpu's.
    has_cpu_room: bool,
}

impl Split {
    /// Nothing is offloaded.
    pub(crate) fn nothing(instance: &Instance) -> Self {
        Self { offloaded: vec![false; instance.units.len()], tiers: Tiers::default(), staging_device: None }
    }

    /// Room kept for streaming, on its bin and on the cpu.
    fn reserved(&self, instance: &Instance) -> (u64, u64) {
        let mut on_cpu = self.tiers.on_cpu.clone();
        on_cpu.resize(instance.classes.len(), 0);
        let mut counts = vec![0u32; instance.classes.len()];
        for unit in (0..self.offloaded.len()).filter(|&unit| self.offloaded[unit]) {
            counts[instance.class_of[unit] as usize] += 1;
        }
        let classes = || instance.classes.iter().zip(counts.iter().zip(&on_cpu));
        let streamed = classes().filter(|(_, (count, _))| **count > 0).filter_map(|(class, _)| class.streamed);
        let hosted = classes().filter(|(_, (count, held))| count > held).filter_map(|(class, _)| class.hosted);
        (instance.room(streamed.max().unwrap_or(0)), instance.room(hosted.max().unwrap_or(0)))
    }
}

/// Gives each device one run. `sequence` is the order of the units; offloaded ones are part of the run of the device that
/// executes them, or of any run where `is_strict` is not set.
pub(crate) fn runs(
    instance: &Instance,
    split: &Split,
    sequence: Vec<u32>,
    (orders, is_strict): (Orders, bool),
    steps: &mut Steps,
) -> Runnable {
    let Some(track) = Track::new(instance, split, sequence, is_strict) else { return Runnable::DoesNotFit(None) };
    let given: Vec<usize> = (0..instance.bins.len()).collect();
    let found = match orders {
        Orders::Given if !track.has_cpu_room => track.prefix.in_order(&track.rooms, &given),
        Orders::Given => track.with_cpu_anywhere(&given),
        Orders::Any if instance.has_shared_bins() => return Runnable::Undecided,
        Orders::Any => match track.prefix.any_order(&track.rooms, steps) {
            Some(found) => found.map_err(|()| track.prefix.len()),
            None => return Runnable::Undecided,
        },
    };
    match found {
        Ok(runs) => track.plan(runs),
        Err(end) => Runnable::DoesNotFit(track.prefix.sequence.get(end).copied()),
    }
}

impl<'a> Track<'a> {
    fn new(instance: &'a Instance<'a>, split: &'a Split, sequence: Vec<u32>, is_strict: bool) -> Option<Self> {
        let (reserved, cpu_reserved) = split.reserved(instance);
        let held: u64 = split.tiers.on_cpu.iter().zip(&instance.classes).map(|(&n, c)| u64::from(n) * c.bits).sum();
        let mut pools = instance.pools.clone();
        // The cpu's part of a shared memory is settled by the split; the accelerators have what it leaves.
        if let Some(pool) = instance.cpu.and_then(|cpu| cpu.pool) {
            pools[pool] = pools[pool].checked_sub(held + cpu_reserved)?;
        }
        let mut rooms = Vec::with_capacity(instance.bins.len() + 1);
        let is_alone = !instance.has_shared_bins();
        for (index, bin) in instance.bins.iter().enumerate() {
            let mut limit = bin.capacity;
            if split.staging_device == Some(index) {
                limit = limit.checked_sub(reserved)?;
                if let Some(pool) = bin.pool {
                    pools[pool] = pools[pool].checked_sub(reserved)?;
                }
            }
            // A pool with one bin is only a smaller limit; rooms know a pool where two of them share it.
            limit = bin.pool.map_or(limit, |pool| limit.min(pools[pool]));
            rooms.push(Room { limit, scale: bin.capacity, pool: bin.pool.filter(|_| !is_alone) });
        }
        let offloaded = |unit: u32| split.offloaded[unit as usize];
        let has_cpu_room = is_strict
            && (0..instance.units.len() as u32).any(|unit| {
                offloaded(unit) && instance.class(unit).leads_by_cpu && !instance.units[unit as usize].buffers_only
            });
        // One bit more than there are bins, of which there may be 64.
        let cpu_bit = 1u128 << rooms.len();
        if has_cpu_room {
            // The cpu executes a run, too; what it executes is offloaded, and weighs nothing here.
            rooms.push(Room { limit: 0, scale: 0, pool: None });
        }
        let prefix =
            Prefix::new(instance, sequence, rooms.len(), |unit| match (offloaded(unit), split.staging_device) {
                (false, _) => (instance.units[unit as usize].bits, u128::from(instance.class(unit).bins)),
                // Buffers do not count as returns, so they do not tie a run to the executor.
                (true, _) if !is_strict || instance.units[unit as usize].buffers_only => (0, u128::MAX),
                (true, _) if instance.class(unit).leads_by_cpu => (0, cpu_bit),
                (true, Some(bin)) => (0, 1 << bin),
                (true, None) => (0, 0),
            });
        let prefix = prefix.with_pools(pools);
        Some(Self { instance, split, rooms, prefix, has_cpu_room })
    }

    /// The bins in the order given, the cpu's run anywhere among theirs.
    fn with_cpu_anywhere(&self, given: &[usize]) -> Result<Runs, usize> {
        let mut furthest = 0;
        for at in (0..=given.len()).rev() {
            let mut order = given.to_vec();
            order.insert(at, given.len());
            match self.prefix.in_order(&self.rooms, &order) {
                Ok(runs) => return Ok(runs),
                Err(end) => furthest = furthest.max(end),
            }
        }
        Err(furthest)
    }

    fn plan(&self, runs: Runs) -> Runnable {
        let runs = spread(&self.prefix, &self.rooms, runs, self.instance.options.fill);
        let mut places = vec![Place::Disk; self.instance.units.len()];
        let mut from = 0;
        for (&room, &end) in runs.rooms.iter().zip(&runs.ends) {
            for &unit in &self.prefix.sequence[from..end] {
                places[unit as usize] = Place::Bin(room);
            }
            from = end;
        }
        lay_out(self.instance, &mut places, &self.split.offloaded, &self.split.tiers);
        let plan = Plan { places, staging_device: self.split.staging_device };
        // Rooms are an abstraction; the plan is measured against the devices themselves, and a misfit proves nothing.
        if plan.is_valid(self.instance) { Runnable::Fits(plan) } else { Runnable::Undecided }
    }
}
