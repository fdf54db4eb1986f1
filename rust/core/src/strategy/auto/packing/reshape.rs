//! Another packing of the same resident units, whose devices hold nearly what a run of the execution order would give them.
//!
//! A table over the devices from the last to the first says which counts the later devices can still take. Going through
//! the devices in order, each takes the counts nearest to its run among those that leave a packing of the rest.

use crate::ids::id_at;
use crate::strategy::auto::counts::at_most;
use crate::strategy::auto::instance::Instance;
use crate::strategy::auto::packing::table::{Dimension, Table};
use crate::strategy::auto::packing::{Packing, Task};
use crate::strategy::steps::Steps;

/// Units that are not given to a device yet, in execution order, and what of them is offloaded.
struct Rest<'a> {
    instance: &'a Instance<'a>,
    units: Vec<u32>,
    /// By class, streamed to the bin.
    streamed: Vec<u32>,
    staging_device: Option<usize>,
}

/// The choice of one device.
struct Pick<'a> {
    table: &'a Table<'a>,
    dimensions: Vec<Dimension>,
    wanted: Vec<u64>,
    /// Devices after this one, and what is left to place from this one on.
    after: usize,
    state: usize,
    copies: u64,
    /// Copies of the commonest that this one may take, and their size.
    most: u64,
    bits: u64,
    /// Distance, vector and copies.
    best: Option<(u64, usize, u64)>,
}

/// The counts by bin and class; nothing where the table is too large.
pub(crate) fn near_runs(
    task: &Task,
    packing: &Packing,
    staging_device: Option<usize>,
    steps: &mut Steps,
) -> Option<Vec<Vec<u32>>> {
    let instance = task.instance;
    // A table over bins one by one does not see a limit that is common to two of them.
    if instance.has_shared_bins() || instance.has_shared_cpu() {
        return None;
    }
    // What is resident stays resident, and so the cost stays: only its holder changes.
    let mut counts = vec![0u32; instance.classes.len()];
    for row in &packing.counts {
        counts.iter_mut().zip(row).for_each(|(sum, &count)| *sum += count);
    }
    let bins = instance.bins.len();
    // From the last bin to the first, so that layer k says what the last k bins can take.
    let mut table = Table::new(task, counts, (0..bins).rev().collect())?;
    if !table.build(steps) {
        return None;
    }
    let mut rest = Rest::new(instance, packing, staging_device);
    // INVARIANT: the bins from here on can take what `state` and `copies` still hold.
    let (mut state, mut copies) = (table.full(), table.count(table.commonest));
    let mut shaped = vec![vec![0u32; instance.classes.len()]; bins];
    for (bin, row) in shaped.iter_mut().enumerate() {
        let wanted = rest.wanted(bin, task.limits[bin]);
        let (taken, taken_copies) = Pick::new(&table, &wanted, bins - bin - 1, (state, copies)).run(task, bin)?;
        for (dimension, &class) in table.rare.iter().enumerate() {
            row[class] = at_most(u32::MAX, table.digit(taken, dimension));
        }
        row[table.commonest] = at_most(u32::MAX, taken_copies);
        // Vectors are numbers with a digit for each class, and no digit borrows: subtraction is by digit.
        (state, copies) = (state - taken, copies - taken_copies);
        rest.remove(bin, row);
    }
    Some(shaped)
}

impl<'a> Rest<'a> {
    fn new(instance: &'a Instance<'a>, packing: &Packing, staging_device: Option<usize>) -> Self {
        let streamed = |(class, &offloaded): (&crate::strategy::auto::instance::Class, &u32)| {
            if class.leads_by_cpu { 0 } else { offloaded }
        };
        let streamed = instance.classes.iter().zip(&packing.offloaded).map(streamed).collect();
        let weighs = |&unit: &u32| instance.class(unit).bits > 0;
        Self { instance, units: (0..id_at(instance.units.len())).filter(weighs).collect(), streamed, staging_device }
    }

    /// Resident units by class in the run that a bin would take from here.
    fn wanted(&self, bin: usize, limit: u64) -> Vec<u32> {
        let mut offloaded =
            if self.staging_device == Some(bin) { self.streamed.clone() } else { vec![0; self.streamed.len()] };
        let mut left = limit.saturating_add(crate::strategy::auto::packing::weigh(self.instance, &offloaded));
        let mut wanted = vec![0u32; offloaded.len()];
        for &unit in &self.units {
            let index = self.instance.class_of[unit as usize] as usize;
            let Some(rest) = left.checked_sub(self.instance.classes[index].bits) else { break };
            if offloaded[index] > 0 {
                offloaded[index] -= 1;
            } else if self.instance.classes[index].allows(bin) {
                wanted[index] += 1;
            } else {
                break;
            }
            left = rest;
        }
        wanted
    }

    /// The first units of each class go to the bin.
    fn remove(&mut self, bin: usize, resident: &[u32]) {
        let mut share = resident.to_vec();
        if self.staging_device == Some(bin) {
            share.iter_mut().zip(&self.streamed).for_each(|(share, &offloaded)| *share += offloaded);
        }
        let instance = self.instance;
        self.units.retain(|&unit| {
            let left = &mut share[instance.class_of[unit as usize] as usize];
            let is_taken = *left > 0;
            *left = left.saturating_sub(1);
            !is_taken
        });
    }
}

impl<'a> Pick<'a> {
    fn new(table: &'a Table<'a>, wanted: &[u32], after: usize, (state, copies): (usize, u64)) -> Self {
        let mut order: Vec<u64> = table.rare.iter().map(|&class| u64::from(wanted[class])).collect();
        order.push(u64::from(wanted[table.commonest]));
        Self { table, dimensions: Vec::new(), wanted: order, after, state, copies, most: 0, bits: 1, best: None }
    }

    fn run(mut self, task: &Task, bin: usize) -> Option<(usize, u64)> {
        let class = &task.instance.classes[self.table.commonest];
        let left = |dimension| self.table.digit(self.state, dimension);
        self.dimensions =
            self.table.dimensions(bin, |dimension| self.table.count(self.table.rare[dimension]) - left(dimension));
        self.most = if class.allows(bin) { self.copies } else { 0 };
        self.bits = class.bits;
        self.extend((0, 0), task.limits[bin], 0);
        self.best.map(|(_, state, copies)| (state, copies))
    }

    fn extend(&mut self, (state, dimension): (usize, usize), room: u64, distance: u64) {
        if self.best.is_some_and(|(least, ..)| distance >= least) {
            return;
        }
        let Some(&Dimension { bits, stride, left }) = self.dimensions.get(dimension) else {
            self.offer(state, room, distance);
            return;
        };
        let (mut state, mut room) = (state, room);
        for count in 0..=left {
            let offloaded = count.abs_diff(self.wanted[dimension]);
            self.extend((state, dimension + 1), room, distance + offloaded);
            if room < bits {
                break;
            }
            (state, room) = (state + stride, room - bits);
        }
    }

    /// The copies of the commonest nearest to those wanted, if the devices after this one can take the rest.
    fn offer(&mut self, state: usize, room: u64, distance: u64) {
        let Some(later) = self.table.most(self.after, self.state - state) else { return };
        // Between what the later bins leave over and what this one has room for.
        let (least, most) = (self.copies.saturating_sub(later), self.most.min(room / self.bits));
        if least > most {
            return;
        }
        let wanted = self.wanted.last().copied().unwrap_or(0);
        let copies = wanted.clamp(least, most);
        let distance = distance + copies.abs_diff(wanted);
        if self.best.is_none_or(|(nearest, ..)| distance < nearest) {
            self.best = Some((distance, state, copies));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::near_runs;
    use crate::devices::Device;
    use crate::strategy::auto::instance::Instance;
    use crate::strategy::auto::packing::{Packing, Task, weigh};
    use crate::strategy::auto::problem::Options;
    use crate::strategy::steps::Steps;
    use crate::testing::units;

    /// The counts by bin of units of these bytes, reshaped from what a packing offloads and has resident.
    fn reshaped(
        sizes: &[u64],
        bins: &[u64],
        counts: Vec<Vec<u32>>,
        streaming: Option<(usize, u64)>,
    ) -> Option<Vec<Vec<u32>>> {
        let (units, options) = (units(&sizes.iter().map(|bytes| bytes * 8).collect::<Vec<u64>>()), Options::default());
        let devices = crate::testing::devices(bins, 1_000);
        let instance = Instance::new(&units, &devices, &options).unwrap();
        let task = Task::new(&instance, streaming.map(|(bin, bytes)| (bin, bytes * 8))).unwrap();
        let (packing, _) = task.close(counts, &mut Steps::new(1_000));
        let packing: Packing = packing.unwrap();
        let shaped = near_runs(&task, &packing, streaming.map(|(bin, _)| bin), &mut Steps::new(10_000))?;
        for (row, &limit) in shaped.iter().zip(&task.limits) {
            assert!(weigh(&instance, row) <= limit);
        }
        for class in 0..instance.classes.len() {
            let all = |rows: &[Vec<u32>]| rows.iter().map(|row| row[class]).sum::<u32>();
            assert_eq!(all(&shaped), all(&packing.counts), "the same units are resident");
        }
        Some(shaped)
    }

    #[test]
    fn bins_take_what_their_runs_would() {
        let shaped = reshaped(&[3, 3, 2, 2, 2], &[6, 6], vec![vec![0, 3], vec![2, 0]], None);
        assert_eq!(shaped, Some(vec![vec![2, 0], vec![0, 3]]));
    }

    /// 11 + 5 would be the run of the first, which leaves the other too much: with the second 5 it does not, and that is
    /// nearer than 11 + 6 + 6.
    #[test]
    fn the_nearest_is_taken_that_leaves_a_packing_of_the_rest() {
        let sizes = [11, 5, 11, 5, 6, 6];
        let shaped = reshaped(&sizes, &[23, 23], vec![vec![2, 0, 0], vec![0, 2, 2]], None);
        assert_eq!(shaped, Some(vec![vec![1, 0, 2], vec![1, 2, 0]]));
    }

    /// 10 less the 4 that are kept, and two of 4 that are streamed: 4 + 4 + 4 + 2.
    #[test]
    fn the_run_of_the_staging_device_is_longer_by_what_it_streams() {
        let sizes = [4, 4, 4, 2, 2, 2];
        let shaped = reshaped(&sizes, &[10, 6], vec![vec![0, 3], vec![1, 0]], Some((0, 4)));
        assert_eq!(shaped, Some(vec![vec![1, 1], vec![0, 2]]));
    }

    #[test]
    fn without_steps_or_with_shared_memory_there_is_none() {
        let (units, options) = (units(&[3, 3, 2, 2, 2]), Options { pools: vec![12], ..Options::default() });
        let packing = |task: &Task| task.close(vec![vec![0, 3], vec![2, 0]], &mut Steps::new(100)).0.unwrap();
        let mut devices = vec![Device::unlimited_disk(); 2];
        for device in &mut devices {
            (device.kind, device.capacity_bits) = (crate::devices::DeviceKind::Accelerator, Some(6));
        }
        let instance = Instance::new(&units, &devices, &options).unwrap();
        let task = Task::new(&instance, None).unwrap();
        assert_eq!(near_runs(&task, &packing(&task), None, &mut Steps::new(0)), None);
        assert!(near_runs(&task, &packing(&task), None, &mut Steps::new(1_000)).is_some());
        for device in &mut devices {
            device.pool = Some(0);
        }
        let instance = Instance::new(&units, &devices, &options).unwrap();
        let task = Task::new(&instance, None).unwrap();
        assert_eq!(near_runs(&task, &packing(&task), None, &mut Steps::new(1_000)), None);
    }
}
