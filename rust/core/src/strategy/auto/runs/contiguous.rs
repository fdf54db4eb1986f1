//! Plans in which each device executes one run, once it is settled what is offloaded.

use crate::ids::id_at;
use crate::strategy::auto::instance::Instance;
use crate::strategy::auto::packing::tiers::Tiers;
use crate::strategy::auto::plan::{Place, Plan, Staging, lay_out};
use crate::strategy::auto::runs::fill::spread;
use crate::strategy::auto::runs::prefix::{Prefix, Room, Runs};
use crate::strategy::auto::runs::sets::any_order;
use crate::strategy::steps::Steps;

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
    /// Proven: there is none.
    DoesNotFit,
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
    let Some(track) = Track::new(instance, split, sequence, is_strict) else { return Runnable::DoesNotFit };
    let found = match orders {
        Orders::Given => track.in_given_order(&track.rooms),
        Orders::Any if instance.has_shared_bins() => return Runnable::Undecided,
        Orders::Any => match any_order(&track.prefix, &track.rooms, steps) {
            Some(found) => found.ok(),
            None => return Runnable::Undecided,
        },
    };
    match found {
        Some(runs) => track.plan(runs),
        // Where rooms share memory the longest runs are a heuristic; by themselves they reach as far as any runs do.
        None if instance.has_shared_bins() && track.in_given_order(&track.rooms_apart()).is_some() => {
            Runnable::Undecided
        }
        None => Runnable::DoesNotFit,
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
            let mut limit = bin.capacity.saturating_sub(bin.shared);
            if split.staging_device == Some(index) {
                limit = limit.checked_sub(reserved)?;
                if let Some(pool) = bin.pool {
                    pools[pool] = pools[pool].checked_sub(reserved)?;
                }
            }
            // A pool with one bin is only a smaller limit; rooms know a pool where two of them share it.
            limit = bin.pool.map_or(limit, |pool| limit.min(pools[pool].saturating_sub(bin.shared)));
            rooms.push(Room { limit, scale: bin.capacity, pool: bin.pool.filter(|_| !is_alone) });
        }
        let offloaded = |unit: u32| split.offloaded[unit as usize];
        let has_cpu_room = is_strict
            && (0..id_at(instance.units.len())).any(|unit| {
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
                (false, _) => (instance.class(unit).weight(), u128::from(instance.class(unit).bins)),
                // Buffers do not count as returns, so they do not tie a run to the executor.
                (true, _) if !is_strict || instance.units[unit as usize].buffers_only => (0, u128::MAX),
                (true, _) if instance.class(unit).leads_by_cpu => (0, cpu_bit),
                (true, Some(bin)) => (0, 1 << bin),
                (true, None) => (0, 0),
            });
        let prefix = prefix.with_pools(pools);
        // What is offloaded needs something where it runs, too; with demands, only attempts that offload nothing come here.
        let prefix =
            if instance.demands.is_some() { prefix.with_peaks(|unit| instance.class(unit).need.peak) } else { prefix };
        Some(Self { instance, split, rooms, prefix, has_cpu_room })
    }

    /// The bins in the order given, the cpu's run anywhere among theirs.
    fn in_given_order(&self, rooms: &[Room]) -> Option<Runs> {
        let given: Vec<usize> = (0..self.instance.bins.len()).collect();
        if !self.has_cpu_room {
            return self.prefix.in_order(rooms, &given);
        }
        (0..=given.len()).rev().find_map(|at| {
            let mut order = given.clone();
            order.insert(at, given.len());
            self.prefix.in_order(rooms, &order)
        })
    }

    /// The rooms as if none shared memory with another.
    fn rooms_apart(&self) -> Vec<Room> {
        self.rooms.iter().map(|room| Room { pool: None, ..*room }).collect()
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
        let plan = Plan { places, staging: Staging::One(self.split.staging_device) };
        // Rooms are an abstraction; the plan is measured against the devices themselves, and a misfit proves nothing.
        if plan.is_valid(self.instance) { Runnable::Fits(plan) } else { Runnable::Undecided }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{Orders, Runnable, Split, runs};
    use crate::devices::{Device, DeviceKind};
    use crate::ids::id_at;
    use crate::strategy::auto::instance::Instance;
    use crate::strategy::auto::problem::{Mode, Options};
    use crate::strategy::steps::Steps;
    use crate::testing::units;

    /// What is said of runs on accelerators in the order given, each a capacity and perhaps a pool.
    fn in_order(sizes: &[u64], cards: &[(u64, Option<u32>)], pools: &[u64]) -> Runnable {
        let card = |&(bits, pool): &(u64, Option<u32>)| Device {
            kind: DeviceKind::Accelerator,
            capacity_bits: Some(bits),
            pool,
            is_main: false,
        };
        let (units, devices): (Vec<_>, Vec<Device>) = (units(sizes), cards.iter().map(card).collect());
        let options = Options { pools: pools.to_vec(), mode: Mode::GpuOnly, ..Options::default() };
        let instance = Instance::new(&units, &devices, &options).unwrap();
        let sequence = (0..id_at(units.len())).collect();
        runs(&instance, &Split::nothing(&instance), sequence, (Orders::Given, true), &mut Steps::new(10_000))
    }

    /// Whether any borders give every card a run within its capacity and every pool within its own.
    fn is_possible(sizes: &[u64], cards: &[(u64, Option<u32>)], pools: &[u64]) -> bool {
        let Some((&(bits, pool), others)) = cards.split_first() else { return sizes.is_empty() };
        (0..=sizes.len()).any(|end| {
            let weight: u64 = sizes[..end].iter().sum();
            let mut left = pools.to_vec();
            let has_room = pool.is_none_or(|pool| {
                let left = &mut left[pool as usize];
                let has_room = weight <= *left;
                *left = left.saturating_sub(weight);
                has_room
            });
            weight <= bits && has_room && is_possible(&sizes[end..], others, &left)
        })
    }

    /// The first card takes 2 + 1 and leaves its pool 1 for the last one, which needs 2; with the 1 on the card between all fit.
    #[test]
    fn longest_runs_that_fail_in_a_pool_prove_nothing() {
        let (sizes, cards, pools) = ([2, 1, 2], [(3, Some(0)), (1, None), (2, Some(0))], [4]);
        assert!(is_possible(&sizes, &cards, &pools));
        assert!(matches!(in_order(&sizes, &cards, &pools), Runnable::Undecided));
        assert!(
            matches!(in_order(&[2, 2, 2], &cards, &pools), Runnable::DoesNotFit),
            "not even with memory of their own"
        );
    }

    #[test]
    fn what_is_said_of_runs_in_order_is_true_with_and_without_pools() {
        let mut state = 1u64;
        let mut below = |end: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % end
        };
        let mut undecided = 0;
        for _ in 0..4_000 {
            let sizes: Vec<u64> = (0..=below(5)).map(|_| 1 + below(4)).collect();
            let cards: Vec<(u64, Option<u32>)> = (0..=below(4))
                .map(|_| (1 + below(7), [None, Some(0), Some(0), Some(1)][usize::try_from(below(4)).unwrap()]))
                .collect();
            let pools = [1 + below(8), 1 + below(8)];
            let is_possible = is_possible(&sizes, &cards, &pools);
            match in_order(&sizes, &cards, &pools) {
                Runnable::Fits(_) => assert!(is_possible, "{sizes:?} {cards:?} {pools:?}"),
                Runnable::DoesNotFit => assert!(!is_possible, "{sizes:?} {cards:?} {pools:?}"),
                Runnable::Undecided => undecided += 1,
            }
        }
        assert!((1..400).contains(&undecided), "{undecided}");
    }
}
