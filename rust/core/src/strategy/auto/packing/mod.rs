//! Units anywhere: as many bits as can be resident, each unit on one device.

pub(crate) mod arrange;
pub(crate) mod branch;
pub(crate) mod offload;
pub(crate) mod pack;
pub(crate) mod reshape;
pub(crate) mod table;
pub(crate) mod tiers;

use crate::strategy::auto::counts::at_most;
use crate::strategy::auto::instance::Instance;
use crate::strategy::auto::packing::tiers::{FoundTiers, Tiers, tiers};
use crate::strategy::steps::Steps;

/// What must fit where.
#[derive(Debug)]
pub(crate) struct Task<'a> {
    pub(crate) instance: &'a Instance<'a>,
    /// Room for resident units on each bin: its capacity less what it keeps for streaming.
    pub(crate) limits: Vec<u64>,
    /// The same for each pool.
    pub(crate) pools: Vec<u64>,
    /// Classes that must be resident: larger than what there is room to stream, or at home on bins only.
    pub(crate) must: Vec<bool>,
    /// No packing can offload less.
    pub(crate) floor: u64,
}

/// How many units of each class lie where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packing {
    /// By bin and class.
    pub(crate) counts: Vec<Vec<u32>>,
    /// By class.
    pub(crate) offloaded: Vec<u32>,
    /// Of `offloaded`.
    pub(crate) offloaded_bits: u64,
    /// Where these lie.
    pub(crate) tiers: Tiers,
}

impl Packing {
    /// What is made as small as can be.
    pub(crate) fn cost(&self) -> (u64, u64) {
        (self.offloaded_bits, self.tiers.disk_bits)
    }
}

/// The best packing found, and whether nothing can be better.
#[derive(Debug)]
pub(crate) struct Packed {
    /// With homes for all that it offloads.
    pub(crate) best: Option<Packing>,
    /// No packing offloads less, whatever is on disk.
    pub(crate) is_complete: bool,
}

impl Packed {
    pub(crate) fn offer(&mut self, packing: Packing) {
        if self.best.as_ref().is_none_or(|best| packing.cost() < best.cost()) {
            self.best = Some(packing);
        }
    }
}

impl<'a> Task<'a> {
    /// With room kept on a bin, and everything larger than what it is kept for resident.
    pub(crate) fn new(instance: &'a Instance<'a>, streaming: Option<(usize, u64)>) -> Option<Self> {
        let mut limits: Vec<u64> = instance.bins.iter().map(|bin| bin.capacity).collect();
        let mut pools = instance.pools.clone();
        let largest = streaming.map(|(_, largest)| largest);
        if let Some((bin, largest)) = streaming {
            limits[bin] = limits[bin].checked_sub(instance.room(largest))?;
            if let Some(pool) = instance.bins[bin].pool {
                pools[pool] = pools[pool].checked_sub(instance.room(largest))?;
            }
        }
        let must: Vec<bool> = instance.classes.iter().map(|class| class.must_stay(largest)).collect();
        let mut task = Self { instance, limits, pools, must, floor: 0 };
        let room = joint_room(instance, &task.limits, &task.pools);
        let is_forced = |index: usize| instance.classes[index].is_forced_off();
        if (0..task.must.len()).any(|index| task.must[index] && is_forced(index)) || task.sum(|i| task.must[i]) > room {
            return None;
        }
        // Three bounds: what fits on no bin, total size against joint room, and the block that is streamed.
        task.floor = task.sum(is_forced).max(instance.total.saturating_sub(room)).max(largest.unwrap_or(0));
        Some(task)
    }

    /// With nothing kept and nothing that must be resident; where running takes anything, each bin has room for what needs most.
    pub(crate) fn relaxed(instance: &'a Instance<'a>) -> Self {
        let need = instance.classes.iter().map(|class| class.need.peak).max().unwrap_or(0);
        let limits = instance.bins.iter().map(|bin| bin.capacity.saturating_sub(bin.shared + need)).collect();
        Self { instance, limits, pools: instance.pools.clone(), must: vec![false; instance.classes.len()], floor: 0 }
    }

    /// Bits of some classes.
    fn sum(&self, of: impl Fn(usize) -> bool) -> u64 {
        let classes = self.instance.classes.iter().enumerate().filter(|(index, _)| of(*index));
        classes.map(|(_, class)| class.bits * u64::from(class.count())).sum()
    }

    /// Steps that looking at one packing is worth.
    pub(crate) fn work(&self) -> u64 {
        (self.instance.classes.len() * self.instance.bins.len() / 16 + 1) as u64
    }

    /// Room left on the cpu beside resident units.
    pub(crate) fn cpu_room(&self, counts: &[Vec<u32>]) -> Option<u64> {
        let Some(cpu) = self.instance.cpu else { return Some(0) };
        let Some(pool) = cpu.pool else { return Some(cpu.capacity) };
        let mates = self.instance.bins.iter().zip(counts).filter(|(bin, _)| bin.pool == Some(pool));
        let used: u64 = mates.map(|(_, row)| weigh(self.instance, row)).sum();
        self.pools[pool].checked_sub(used).map(|left| left.min(cpu.capacity))
    }

    /// A packing with its homes for what is offloaded; nothing where there are none. The flag says whether the search
    /// for those was complete.
    pub(crate) fn close(&self, counts: Vec<Vec<u32>>, steps: &mut Steps) -> (Option<Packing>, bool) {
        let mut offloaded: Vec<u32> =
            self.instance.classes.iter().map(crate::strategy::auto::instance::Class::count).collect();
        for row in &counts {
            offloaded.iter_mut().zip(row).for_each(|(left, &count)| *left -= count);
        }
        for (count, class) in offloaded.iter_mut().zip(&self.instance.classes) {
            if class.bits == 0 && !class.is_forced_off() {
                *count = 0; // these weigh nothing and join their neighbours
            }
        }
        if offloaded.iter().zip(&self.must).any(|(&count, &must)| must && count > 0) {
            return (None, true);
        }
        let Some(room) = self.cpu_room(&counts) else { return (None, true) };
        let FoundTiers { best, is_complete } = tiers(self.instance, &offloaded, room, steps);
        let offloaded_bits = weigh(self.instance, &offloaded);
        (best.map(|tiers| Packing { counts, offloaded, offloaded_bits, tiers }), is_complete)
    }
}

/// What bins hold together.
pub(crate) fn joint_room(instance: &Instance, limits: &[u64], pools: &[u64]) -> u64 {
    let mut sum = 0u64;
    let mut pooled = vec![0u64; pools.len()];
    for (bin, &limit) in instance.bins.iter().zip(limits) {
        match bin.pool {
            Some(pool) => pooled[pool] = pooled[pool].saturating_add(limit),
            None => sum = sum.saturating_add(limit),
        }
    }
    pooled.iter().zip(pools).fold(sum, |sum, (&own, &joint)| sum.saturating_add(own.min(joint)))
}

/// Bits of counts by class.
pub(crate) fn weigh(instance: &Instance, counts: &[u32]) -> u64 {
    instance.classes.iter().zip(counts).map(|(class, &count)| class.bits * u64::from(count)).sum()
}

/// Largest first, each to the bin with the least room that takes it; those that must be resident before all others.
pub(crate) fn best_fit(task: &Task) -> Vec<Vec<u32>> {
    best_fit_of(task, &[true, false])
}

/// The same of units that must be resident, of those that need not, or of both in some order.
pub(crate) fn best_fit_of(task: &Task, musts: &[bool]) -> Vec<Vec<u32>> {
    let instance = task.instance;
    let mut limits = task.limits.clone();
    let mut pools = task.pools.clone();
    let mut counts = vec![vec![0u32; instance.classes.len()]; instance.bins.len()];
    // Those that must stay go first: a unit that may be offloaded never takes their room.
    for &must in musts {
        for (index, class) in instance.classes.iter().enumerate().filter(|(index, _)| task.must[*index] == must) {
            let mut left = class.count();
            while left > 0 && class.weight() > 0 {
                let room =
                    |bin: usize| instance.bins[bin].pool.map_or(limits[bin], |pool| limits[bin].min(pools[pool]));
                let fits = (0..limits.len()).filter(|&bin| class.allows(bin) && room(bin) >= class.weight());
                // Best fit: the tightest bin that takes it, so wide rooms stay whole; the first of equal ones.
                let Some(bin) = fits.min_by_key(|&bin| room(bin)) else { break };
                // All that fit at once: the next unit of the class would find the same bin the tightest.
                let taken = at_most(left, room(bin) / class.weight());
                let bits = class.weight() * u64::from(taken);
                limits[bin] -= bits;
                if let Some(pool) = instance.bins[bin].pool {
                    pools[pool] -= bits;
                }
                counts[bin][index] += taken;
                left -= taken;
            }
        }
    }
    counts
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{Task, best_fit, best_fit_of, joint_room, weigh};
    use crate::devices::{Device, DeviceKind};
    use crate::strategy::auto::instance::Instance;
    use crate::strategy::auto::problem::Options;
    use crate::strategy::steps::Steps;
    use crate::testing::units;

    fn device(kind: DeviceKind, bits: u64, pool: Option<u32>) -> Device {
        Device { kind, capacity_bits: Some(bits), pool, is_main: false }
    }

    /// Two cards, a cpu, and a disk.
    fn devices(cards: [u64; 2], cpu: u64) -> Vec<Device> {
        let card = |bits| device(DeviceKind::Accelerator, bits, None);
        vec![card(cards[0]), card(cards[1]), device(DeviceKind::Cpu, cpu, None), Device::unlimited_disk()]
    }

    /// Classes are by size, largest first: 7, 5, 3, 2.
    const SIZES: [u64; 6] = [3, 7, 5, 3, 2, 3];

    #[test]
    fn a_task_keeps_room_and_lets_nothing_larger_out() {
        let (units, options) = (units(&SIZES), Options { staging_blocks: 2, ..Options::default() });
        let devices = devices([12, 9], 100);
        let instance = Instance::new(&units, &devices, &options).unwrap();
        let task = Task::new(&instance, Some((1, 3))).unwrap();
        assert_eq!(
            (task.limits.as_slice(), task.must.as_slice()),
            ([12, 3].as_slice(), [true, true, false, false].as_slice())
        );
        assert_eq!(task.floor, 23 - 15);
        assert!(Task::new(&instance, Some((1, 5))).is_none(), "two blocks of 5 have no room");
        assert!(Task::new(&instance, Some((0, 5))).is_some());
        assert!(Task::new(&instance, None).is_none(), "with nothing streamed all must stay, and cannot");
        assert_eq!(Task::relaxed(&instance).must, [false; 4]);
    }

    #[test]
    fn best_fit_is_largest_first_where_least_room_takes_it() {
        let (units, options, devices) = (units(&SIZES), Options::default(), devices([12, 9], 100));
        let instance = Instance::new(&units, &devices, &options).unwrap();
        let task = Task::new(&instance, Some((0, 3))).unwrap();
        assert_eq!(best_fit(&task), [[1, 0, 0, 1], [0, 1, 1, 0]]);
        assert_eq!(best_fit_of(&task, &[true]), [[1, 0, 0, 0], [0, 1, 0, 0]]);
    }

    #[test]
    fn closing_counts_what_is_offloaded_and_finds_it_a_place() {
        let (units, options, devices) = (units(&SIZES), Options::default(), devices([12, 9], 3));
        let instance = Instance::new(&units, &devices, &options).unwrap();
        let task = Task::new(&instance, Some((0, 3))).unwrap();
        let (packing, is_complete) = task.close(best_fit(&task), &mut Steps::new(100));
        let packing = packing.unwrap();
        assert_eq!((packing.offloaded.as_slice(), packing.offloaded_bits), ([0, 0, 2, 0].as_slice(), 6));
        assert_eq!((packing.cost(), is_complete), ((6, 3), true), "one of 3 on the cpu, the other on disk");
        let (packing, _) = task.close(vec![vec![0; 4]; 2], &mut Steps::new(100));
        assert!(packing.is_none(), "7 and 5 must stay");
    }

    #[test]
    fn a_pool_is_counted_once() {
        let (units, options) = (units(&SIZES), Options { pools: vec![14], ..Options::default() });
        let shared = |kind, bits| device(kind, bits, Some(0));
        let card = |bits| shared(DeviceKind::Accelerator, bits);
        let devices = [card(12), card(9), shared(DeviceKind::Cpu, 10), device(DeviceKind::Accelerator, 4, None)];
        let instance = Instance::new(&units, &devices, &options).unwrap();
        let task = Task::relaxed(&instance);
        assert_eq!(joint_room(&instance, &task.limits, &task.pools), 14 + 4);
        let counts = best_fit(&task);
        let used: Vec<u64> = counts.iter().map(|row| weigh(&instance, row)).collect();
        assert!(used[0] + used[1] <= 14, "{used:?}");
        assert_eq!(task.cpu_room(&counts), Some(14 - used[0] - used[1]));
    }
}
