//! The problem as the search sees it: devices that execute, devices that only hold, and classes of like units.

use crate::ids::id_at;
use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::devices::{Device, DeviceKind};
use crate::strategy::auto::demands::{Demands, Need};
use crate::strategy::auto::problem::{Execute, Failure, Mode, Options, Unit};

/// Stands for no limit; sums of such numbers do not overflow.
pub(crate) const UNLIMITED: u64 = u64::MAX / 256;

/// A device that may execute, or that may hold what is offloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bin {
    /// Its number among the devices given; bins are numbered by themselves.
    pub(crate) device: u32,
    /// Bits, above 0 and at most [`UNLIMITED`]; no more than its pool's.
    pub(crate) capacity: u64,
    /// Set only where another device of the search shares the memory.
    pub(crate) pool: Option<usize>,
    /// What it gives up where it runs anything.
    pub(crate) shared: u64,
}

/// Units that differ in nothing but their place.
#[derive(Debug, Clone)]
#[allow(clippy::struct_excessive_bools)] // facts that do not depend on each other
pub(crate) struct Class {
    /// Of each unit.
    pub(crate) bits: u64,
    /// The most that is streamed of one block to a bin when it is offloaded; nothing where the cpu executes all of them.
    pub(crate) streamed: Option<u64>,
    /// The same of blocks that the cpu executes.
    pub(crate) hosted: Option<u64>,
    /// The cpu executes the first block, by which a unit is counted, when it is offloaded.
    pub(crate) leads_by_cpu: bool,
    /// Bins it may be at home on and that are large enough for it: bit `b` stands for bin `b`.
    pub(crate) bins: u64,
    /// What its blocks need where they run, all of them.
    pub(crate) need: Need,
    /// Those that are streamed to a bin when it is offloaded, with what of them stays there.
    pub(crate) streamed_need: Need,
    /// Those that the cpu executes then; what of them stays there is in its bits where it lies there.
    pub(crate) hosted_need: Need,
    /// What stays, of those that are streamed to a bin, and of those that the cpu executes.
    pub(crate) stay: Stay,
    /// In no count: it takes nothing wherever it is, and joins its neighbours.
    pub(crate) is_weightless: bool,
    /// It may be offloaded to the cpu: permitted, and what of it the cpu must execute has a cpu.
    pub(crate) on_cpu: bool,
    /// The same of the disk.
    pub(crate) on_disk: bool,
    /// Numbers of its units, ascending, never empty.
    pub(crate) units: Vec<u32>,
}

impl Class {
    pub(crate) fn count(&self) -> u32 {
        id_at(self.units.len())
    }

    /// Takes on the bin that runs it beside what is streamed, wherever it lies.
    pub(crate) fn least_exec(&self) -> u64 {
        self.streamed_need.exec - self.stay.streamed
    }

    /// Takes on the bin where it is at home.
    pub(crate) fn weight(&self) -> u64 {
        self.bits + self.need.exec
    }

    pub(crate) fn can_offload(&self) -> bool {
        self.on_cpu || self.on_disk
    }

    pub(crate) fn allows(&self, bin: usize) -> bool {
        self.bins >> bin & 1 == 1
    }

    /// Cannot be offloaded while nothing larger than this is streamed to an accelerator.
    pub(crate) fn must_stay(&self, largest: Option<u64>) -> bool {
        !self.can_offload() || self.streamed.is_some_and(|bits| largest.is_none_or(|largest| bits > largest))
    }

    pub(crate) fn is_forced_off(&self) -> bool {
        self.bins == 0
    }
}

/// Part of a unit's bits that is where its blocks run when it is offloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Stay {
    pub(crate) streamed: u64,
    pub(crate) hosted: u64,
}

/// Everything that does not change during the search.
#[derive(Debug, Clone)]
pub(crate) struct Instance<'a> {
    /// In execution order; the number of a unit is its place here, and its bits add up to `total`.
    pub(crate) units: &'a [Unit],
    /// Of all devices given, also of those without capacity; at most 64, for homes are bits of a word.
    pub(crate) device_count: usize,
    /// As given; `mode` has done its part in `cpu` and `disk` already.
    pub(crate) options: &'a Options,
    /// An accelerator has capacity; otherwise the cpu is the only bin, and there is none if there is no cpu either.
    pub(crate) has_accelerator: bool,
    /// Devices that execute, in the order given; all are accelerators, or the only one is the cpu.
    pub(crate) bins: Vec<Bin>,
    /// Holds what is offloaded; never a bin at the same time.
    pub(crate) cpu: Option<Bin>,
    /// Holds what is offloaded and is in no pool.
    pub(crate) disk: Option<Bin>,
    /// Joint capacity by pool; of use only where a `Bin` has the pool.
    pub(crate) pools: Vec<u64>,
    /// Largest first, each unit in exactly one; equal keys make one class, so the order is the same for every run.
    pub(crate) classes: Vec<Class>,
    /// By unit, the number of its class: `classes[class_of[u]].units` contains `u`.
    pub(crate) class_of: Vec<u32>,
    /// Bins in the order in which a loader looks for its main device: see `map_alone`.
    pub(crate) main_order: Vec<usize>,
    /// Bins to which offloaded units may be streamed: bit `b` stands for bin `b`.
    pub(crate) streaming_bins: u64,
    /// Capacity of the widest bin: a block larger than that is executed by the cpu.
    pub(crate) widest: u64,
    /// What running takes; nothing where that is nothing, so that such problems are those of weights alone.
    pub(crate) demands: Option<&'a Demands>,
    /// Bits of all units; below [`UNLIMITED`], so that sums of a few such numbers do not overflow.
    pub(crate) total: u64,
}

impl<'a> Instance<'a> {
    pub(crate) fn new(units: &'a [Unit], devices: &[Device], options: &'a Options) -> Result<Self, Failure> {
        if devices.len() > u64::BITS as usize {
            return Err(Failure::TooManyDevices { count: devices.len() });
        }
        let total = units.iter().try_fold(0u64, |sum, unit| sum.checked_add(unit.bits));
        let total = total.filter(|&total| total < UNLIMITED).ok_or(Failure::TooLarge)?;
        let demands = options.demands.as_deref().filter(|demands| !demands.is_nothing());
        if demands.is_some_and(|demands| !demands.fits(total, UNLIMITED)) {
            return Err(Failure::TooLarge);
        }
        let Sides { has_accelerator, bins, cpu, disk, pools } = sides(devices, options, demands);
        let widest = bins.iter().map(|bin| bin.capacity).max().unwrap_or(0);
        let mut main_order: Vec<usize> = (0..bins.len()).collect();
        let rank = |bin: usize| options.main_order.iter().position(|&device| device == bins[bin].device);
        // Stable: devices that the loader's order leaves out come last, as they were given.
        main_order.sort_by_key(|&bin| rank(bin).unwrap_or(usize::MAX));
        let mut instance = Self {
            units,
            device_count: devices.len(),
            options,
            has_accelerator,
            bins,
            cpu,
            disk,
            pools,
            classes: Vec::new(),
            class_of: Vec::new(),
            main_order,
            streaming_bins: u64::MAX,
            widest,
            demands,
            total,
        };
        instance.classify();
        Ok(instance)
    }

    fn classify(&mut self) {
        // A sorted map: the order of classes decides ties in the search, and must not hang on a hasher.
        let mut classes: BTreeMap<_, Vec<u32>> = BTreeMap::new();
        for (index, unit) in self.units.iter().enumerate() {
            let largest = |by_cpu: bool| {
                let blocks = unit.block_bits.iter().enumerate().filter(|&(_, &bits)| self.is_by_cpu(bits) == by_cpu);
                // Blocks of a unit may count shared tensors each; none needs more room than the unit.
                blocks.map(|(block, &bits)| bits.min(unit.bits) - self.stay(unit, block, bits)).max()
            };
            let leads_by_cpu = unit.block_bits.first().is_some_and(|&bits| self.is_by_cpu(bits));
            // All that the search asks of a unit but its place; what is left out here must not decide anything.
            let needs = (self.need(unit, |_| true), self.need(unit, |by_cpu| by_cpu), self.stays(unit));
            let key = (Reverse(unit.bits), largest(false), largest(true), leads_by_cpu, unit.allowed_devices, needs);
            classes.entry(key).or_default().push(id_at(index));
        }
        self.class_of = vec![0; self.units.len()];
        let all_bins = self.bins.iter().enumerate().fold(0, |mask, (index, _)| mask | 1u64 << index);
        for ((Reverse(bits), streamed, hosted, leads_by_cpu, homes, (need, hosted_need, stay)), units) in classes {
            let may = |bin: &Bin| homes >> bin.device & 1 == 1;
            let has_room = |bin: &Bin| bits + need.bits() + bin.shared <= bin.capacity;
            let fits = self.bins.iter().enumerate().filter(|(_, bin)| may(bin) && has_room(bin));
            let bins = fits.fold(0, |mask, (index, _)| mask | 1 << index);
            let mut streamed_need = self.need(&self.units[units[0] as usize], |by_cpu| !by_cpu);
            streamed_need.exec += stay.streamed;
            // What only the cpu can execute is not offloaded without one, not even to disk.
            let can_execute = hosted.is_none() || self.cpu.is_some();
            let class = Class {
                bits,
                streamed,
                hosted,
                leads_by_cpu,
                bins,
                need,
                streamed_need,
                hosted_need,
                stay,
                is_weightless: match self.demands {
                    None => bits == 0 && bins != 0,
                    // A device that runs it may give up something for that, so it has to be free to go anywhere.
                    Some(_) => bits == 0 && need == Need::default() && bins == all_bins,
                },
                on_cpu: can_execute && self.cpu.as_ref().is_some_and(may),
                on_disk: can_execute && self.disk.as_ref().is_some_and(may),
                units,
            };
            for &unit in &class.units {
                self.class_of[unit as usize] = id_at(self.classes.len());
            }
            self.classes.push(class);
        }
    }

    /// What the blocks of a unit need where they run: those that the cpu executes when it is offloaded, or the others.
    fn need(&self, unit: &Unit, is_counted: impl Fn(bool) -> bool) -> Need {
        let Some(demands) = self.demands else { return Need::default() };
        let blocks = unit.positions.iter().zip(&unit.block_bits).filter(|(_, bits)| is_counted(self.is_by_cpu(**bits)));
        blocks.fold(Need::default(), |sum, (&position, _)| sum.and(demands.of(position)))
    }

    /// Of a block of a unit, what stays where it runs.
    fn stay(&self, unit: &Unit, block: usize, block_bits: u64) -> u64 {
        let Some(demands) = self.demands else { return 0 };
        unit.positions.get(block).map_or(0, |&position| demands.stay(position, block_bits.min(unit.bits)))
    }

    /// Of a unit, no more than it has, although blocks that share tensors may count these each.
    fn stays(&self, unit: &Unit) -> Stay {
        let mut left = unit.bits;
        let mut stays = Stay::default();
        if self.demands.is_some() {
            for (block, &bits) in unit.block_bits.iter().enumerate() {
                let stay = self.stay(unit, block, bits).min(left);
                left -= stay;
                *(if self.is_by_cpu(bits) { &mut stays.hosted } else { &mut stays.streamed }) += stay;
            }
        }
        stays
    }

    /// The cpu executes a block of this size when it is offloaded. That is a matter of one block: a unit is streamed block
    /// by block, so no block's executor changes when blocks are joined.
    pub(crate) fn is_by_cpu(&self, block_bits: u64) -> bool {
        self.has_accelerator && (block_bits > self.widest || self.options.execute_offloaded == Execute::Cpu)
    }

    /// The first block of a unit that is larger than every accelerator, if there is a cpu to execute it.
    pub(crate) fn oversized(&self, unit: u32) -> Option<u32> {
        let blocks = &self.units[unit as usize].block_bits;
        let block = blocks.iter().position(|&bits| bits > self.widest)?;
        (self.has_accelerator && self.cpu.is_some()).then_some(id_at(block))
    }

    /// Bins to which offloaded units may be streamed.
    pub(crate) fn streaming(&self) -> impl Iterator<Item = usize> {
        (0..self.bins.len()).filter(|&bin| self.may_stream(bin))
    }

    /// Offloaded units may be streamed to a bin.
    pub(crate) fn may_stream(&self, bin: usize) -> bool {
        self.streaming_bins >> bin & 1 == 1
    }

    /// Class of a unit.
    pub(crate) fn class(&self, unit: u32) -> &Class {
        &self.classes[self.class_of[unit as usize] as usize]
    }

    /// Room to keep for streaming pieces of a size.
    pub(crate) fn room(&self, streamed: u64) -> u64 {
        streamed.saturating_mul(u64::from(self.options.staging_blocks)).min(UNLIMITED)
    }

    /// Two devices that execute share memory.
    pub(crate) fn has_shared_bins(&self) -> bool {
        let pools: Vec<usize> = self.bins.iter().filter_map(|bin| bin.pool).collect();
        pools.iter().enumerate().any(|(index, pool)| pools[..index].contains(pool))
    }

    /// The cpu shares memory with a device that executes.
    pub(crate) fn has_shared_cpu(&self) -> bool {
        self.cpu.is_some_and(|cpu| cpu.pool.is_some())
    }

    /// Every unit that may be offloaded is run by one bin, if by any. The blocks of others could run on different bins, each with
    /// what stays there, and a search by units does not look at that.
    pub(crate) fn runs_units_whole(&self) -> bool {
        let streams_parts = |class: &Class| {
            let blocks = &self.units[class.units[0] as usize].block_bits;
            class.can_offload() && blocks.iter().filter(|&&bits| !self.is_by_cpu(bits)).count() > 1
        };
        self.bins.len() < 2 || !self.classes.iter().any(streams_parts)
    }

    /// Runs tell whether there are returns: no unit is ignored in counting them, and none that weighs nothing could be
    /// offloaded to be executed elsewhere.
    pub(crate) fn is_plain(&self) -> bool {
        let is_loose = |class: &Class| {
            let is_free = class.bins.count_ones() == id_at(self.bins.len());
            class.bits == 0 && class.can_offload() && (class.hosted.is_some() || !is_free)
        };
        self.units.iter().all(|unit| !unit.buffers_only) && !self.classes.iter().any(is_loose)
    }

    /// Something fits on no bin.
    pub(crate) fn has_forced(&self) -> bool {
        self.classes.iter().any(Class::is_forced_off)
    }

    /// Units that can be at home on no device that executes.
    pub(crate) fn forced_counts(&self) -> Vec<u32> {
        self.classes.iter().map(|class| if class.is_forced_off() { class.count() } else { 0 }).collect()
    }
}

/// Devices by what they do.
struct Sides {
    has_accelerator: bool,
    bins: Vec<Bin>,
    cpu: Option<Bin>,
    disk: Option<Bin>,
    pools: Vec<u64>,
}

fn sides(devices: &[Device], options: &Options, demands: Option<&Demands>) -> Sides {
    let pool_of = |device: &Device| device.pool.map(|pool| pool as usize).filter(|&pool| pool < options.pools.len());
    let capacity_of = |device: &Device| {
        let own = device.capacity_bits.unwrap_or(UNLIMITED).min(UNLIMITED);
        pool_of(device).map_or(own, |pool| own.min(options.pools[pool]))
    };
    // A device without capacity neither holds nor executes, and decides nothing about the others.
    let live = || devices.iter().enumerate().filter(|(_, device)| capacity_of(device) > 0);
    let has_accelerator = live().any(|(_, device)| device.kind == DeviceKind::Accelerator);
    let executes = if has_accelerator { DeviceKind::Accelerator } else { DeviceKind::Cpu };
    let make = |(index, device): (usize, &Device)| Bin {
        device: id_at(index),
        capacity: capacity_of(device),
        // A pool with one live member is no more than a smaller capacity, which `capacity_of` has seen to.
        shared: demands.map_or(0, |demands| demands.shared(id_at(index))),
        pool: pool_of(device).filter(|&pool| live().filter(|(_, other)| pool_of(other) == Some(pool)).count() > 1),
    };
    let first = |kind| live().find(|(_, device)| device.kind == kind).map(make);
    let bins: Vec<Bin> = live().filter(|(_, device)| device.kind == executes).map(make).collect();
    // Host memory is one: the first cpu stands for all of them.
    let bins = if has_accelerator { bins } else { bins.into_iter().take(1).collect() };
    let may_offload = options.mode != Mode::GpuOnly;
    let cpu = if has_accelerator && may_offload { first(DeviceKind::Cpu) } else { None };
    let disk = if options.mode == Mode::Any { first(DeviceKind::Disk) } else { None };
    let pools = options.pools.iter().map(|&pool| pool.min(UNLIMITED)).collect();
    Sides { has_accelerator, bins, cpu, disk: disk.map(|disk| Bin { pool: None, ..disk }), pools }
}
