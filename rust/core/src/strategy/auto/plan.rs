//! A plan while it is searched for: where each unit lies, and which device executes what is offloaded.

use crate::ids::id_at;
use crate::strategy::auto::counts::saturated;
use crate::strategy::auto::demands::Need;
use crate::strategy::auto::instance::{Bin, Instance};
use crate::strategy::auto::packing::tiers::Tiers;
use crate::strategy::auto::problem::Fill;

/// Where a unit lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Bin(usize),
    Cpu,
    Disk,
}

/// The bins to which offloaded units are streamed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Staging {
    /// All to one; nothing where nothing is streamed.
    One(Option<usize>),
    /// By unit; what is said of a unit at home on a bin means nothing.
    Each(Vec<usize>),
}

/// A place for every unit, and the bins to which offloaded ones are streamed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// By unit.
    pub(crate) places: Vec<Place>,
    pub(crate) staging: Staging,
}

/// Bits by device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Load {
    /// What lies there.
    pub(crate) used: Vec<u64>,
    /// What is kept free for streaming.
    pub(crate) reserved: Vec<u64>,
    /// What lies there for the blocks that run there, and what these need at once, with what is given up for running any.
    pub(crate) running: Vec<Need>,
}

impl Staging {
    /// The bin to which a unit is streamed.
    pub(crate) fn of(&self, unit: u32) -> Option<usize> {
        match self {
            Self::One(bin) => *bin,
            Self::Each(bins) => bins.get(unit as usize).copied(),
        }
    }
}

impl Load {
    /// All that is taken of a device.
    pub(crate) fn sum(&self, device: u32) -> u64 {
        let device = device as usize;
        self.used[device] + self.reserved[device] + self.running[device].bits()
    }
}

impl Plan {
    /// Two units change places, and the bins to which they are streamed.
    pub(crate) fn swap(&mut self, one: usize, other: usize) {
        self.places.swap(one, other);
        if let Staging::Each(bins) = &mut self.staging {
            bins.swap(one, other);
        }
    }

    pub(crate) fn home(&self, instance: &Instance, unit: u32) -> Option<u32> {
        match self.places[unit as usize] {
            Place::Bin(bin) => instance.bins.get(bin).map(|bin| bin.device),
            Place::Cpu => instance.cpu.map(|cpu| cpu.device),
            Place::Disk => instance.disk.map(|disk| disk.device),
        }
    }

    /// The device that executes a unit's first block, by which the unit is counted.
    pub(crate) fn executor(&self, instance: &Instance, unit: u32) -> Option<u32> {
        self.executor_of(instance, unit, instance.class(unit).leads_by_cpu)
    }

    /// The devices that execute its blocks.
    pub(crate) fn executors(&self, instance: &Instance, unit: u32) -> Option<Vec<u32>> {
        let blocks = instance.units[unit as usize].block_bits.iter();
        blocks.map(|&bits| self.executor_of(instance, unit, instance.is_by_cpu(bits))).collect()
    }

    fn executor_of(&self, instance: &Instance, unit: u32, is_by_cpu: bool) -> Option<u32> {
        match self.places[unit as usize] {
            Place::Bin(bin) => instance.bins.get(bin).map(|bin| bin.device),
            _ if is_by_cpu => instance.cpu.map(|cpu| cpu.device),
            _ => self.staging.of(unit).and_then(|bin| instance.bins.get(bin)).map(|bin| bin.device),
        }
    }

    /// Changes of the executing device beyond those that its number of devices needs.
    pub(crate) fn returns(&self, instance: &Instance) -> u32 {
        let counted = (0..id_at(instance.units.len())).filter(|&unit| !instance.units[unit as usize].buffers_only);
        let (mut seen, mut last, mut runs) = (0u64, None, 0u32);
        for executor in counted.filter_map(|unit| self.executor(instance, unit)) {
            if last != Some(executor) {
                (last, runs) = (Some(executor), runs + 1);
                seen |= 1 << executor;
            }
        }
        runs - seen.count_ones()
    }

    /// What the fill makes as small as can be.
    pub(crate) fn unevenness(&self, instance: &Instance) -> Vec<u64> {
        let load = self.load(instance);
        let taken = |device: usize| load.used[device] + load.running[device].bits();
        let used = || instance.bins.iter().map(|bin| (taken(bin.device as usize), bin.capacity));
        // Whole numbers of 2^-62, rounded up: equal on every machine, as floats might not be.
        let fraction =
            |(used, capacity): (u64, u64)| saturated((u128::from(used) << 62).div_ceil(u128::from(capacity)));
        let peak = used().map(fraction).max().unwrap_or(0);
        match instance.options.fill {
            Fill::Even => vec![peak],
            Fill::Fewest => vec![used().filter(|(used, _)| *used > 0).count() as u64, peak],
            // Compared as lists, the first device decides; the more it holds, the smaller its entry.
            Fill::InOrder => used().map(|(used, _)| u64::MAX - used).collect(),
        }
    }

    pub(crate) fn load(&self, instance: &Instance) -> Load {
        let nothing = vec![0; instance.device_count];
        let running = vec![Need::default(); instance.device_count];
        let mut load = Load { used: nothing.clone(), reserved: nothing, running };
        for unit in 0..id_at(instance.units.len()) {
            let Some(home) = self.home(instance, unit) else { continue };
            load.used[home as usize] += instance.units[unit as usize].bits;
            // The largest block is enough: streamed blocks come one after another, `staging_blocks` of them at once.
            let mut reserve = |bin: Option<&Bin>, largest: Option<u64>| {
                if let (Some(bin), Some(bits)) = (bin, largest) {
                    let reserved = &mut load.reserved[bin.device as usize];
                    *reserved = instance.room(bits).max(*reserved);
                }
            };
            let (place, class) = (self.places[unit as usize], instance.class(unit));
            if matches!(place, Place::Cpu | Place::Disk) {
                reserve(self.staging.of(unit).and_then(|bin| instance.bins.get(bin)), class.streamed);
            }
            if place == Place::Disk {
                // What the cpu executes from disk passes through its memory; what lies there is there already.
                reserve(instance.cpu.as_ref(), class.hosted);
            }
        }
        if instance.demands.is_some() {
            self.run(instance, &mut load);
        }
        load
    }

    /// Adds what running takes.
    fn run(&self, instance: &Instance, load: &mut Load) {
        let mut runs = vec![false; instance.device_count];
        for unit in 0..id_at(instance.units.len()) {
            let (place, class) = (self.places[unit as usize], instance.class(unit));
            let (streams, hosts) = (class.streamed.is_some(), class.hosted.is_some());
            let mut hosted_need = class.hosted_need;
            if place == Place::Disk {
                hosted_need.exec += class.stay.hosted;
            }
            let parts = match place {
                Place::Bin(_) => [(streams || hosts, false, class.need), (false, true, Need::default())],
                _ => [(streams, false, class.streamed_need), (hosts, true, hosted_need)],
            };
            for (is_any, is_by_cpu, need) in parts {
                if let (true, Some(device)) = (is_any, self.executor_of(instance, unit, is_by_cpu)) {
                    let running = &mut load.running[device as usize];
                    *running = running.and(need);
                    runs[device as usize] = true;
                }
            }
        }
        for holder in instance.bins.iter().chain(&instance.cpu).filter(|holder| runs[holder.device as usize]) {
            load.running[holder.device as usize].peak += holder.shared;
        }
    }

    /// Every unit has a home and an executor, and no device or pool holds more than it can.
    pub(crate) fn is_valid(&self, instance: &Instance) -> bool {
        let all = 0..id_at(instance.units.len());
        let load = self.load(instance);
        let mut pools = vec![0u64; instance.pools.len()];
        let holders = instance.bins.iter().chain(&instance.cpu).chain(&instance.disk);
        for holder in holders {
            let sum = load.sum(holder.device);
            if sum > holder.capacity {
                return false;
            }
            if let Some(pool) = holder.pool {
                pools[pool] += sum;
            }
        }
        pools.iter().zip(&instance.pools).all(|(used, joint)| used <= joint)
            && all.into_iter().all(|unit| {
                self.home(instance, unit)
                    .is_some_and(|home| instance.units[unit as usize].allowed_devices >> home & 1 == 1)
                    && self.executors(instance, unit).is_some()
            })
    }
}

/// Changes of the home along the execution order.
pub(crate) fn breaks(places: &[Place]) -> usize {
    places.windows(2).filter(|pair| pair[0] != pair[1]).count()
}

/// Puts offloaded units on cpu and disk as their classes say, the first of each class on the cpu.
pub(crate) fn lay_out(instance: &Instance, places: &mut [Place], offloaded: &[bool], tiers: &Tiers) {
    let mut on_cpu = tiers.on_cpu.clone();
    on_cpu.resize(instance.classes.len(), 0);
    for unit in (0..places.len()).filter(|&unit| offloaded[unit]) {
        let left = &mut on_cpu[instance.class_of[unit] as usize];
        places[unit] = if *left > 0 { Place::Cpu } else { Place::Disk };
        *left = left.saturating_sub(1);
    }
}
