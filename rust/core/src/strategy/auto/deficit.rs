//! The least capacity which, added to one device alone, changes the answer.

use super::model::{Device, Mode, Options, Unit};
use super::scene::{Scene, UNLIMITED};
use super::solve::Search;
use super::steps::Steps;

/// Parts of the step limit that one question may take.
const PARTS: u64 = 16;

/// Least extra capacity of each single device with which nothing is offloaded; `None` where no amount helps. An answer is
/// too large where the step limit came before a better one.
pub fn shortfall(units: &[Unit], devices: &[Device], options: &Options) -> Vec<Option<u64>> {
    to_work(units, devices, &Options { mode: Mode::GpuOnly, ..options.clone() })
}

/// The same with which there is any plan.
pub(crate) fn to_work(units: &[Unit], devices: &[Device], options: &Options) -> Vec<Option<u64>> {
    let options = Options { search_steps: options.search_steps / PARTS, ..options.clone() };
    let mut left = options.search_steps.saturating_mul(PARTS);
    (0..devices.len()).map(|device| least(units, devices, &options, device, &mut left)).collect()
}

fn least(units: &[Unit], devices: &[Device], options: &Options, device: usize, left: &mut u64) -> Option<u64> {
    let capacity = devices[device].capacity_bits.filter(|&capacity| capacity > 0)?;
    let mut works = |more: u64| {
        let mut devices = devices.to_vec();
        devices[device].capacity_bits = Some(capacity.saturating_add(more));
        let mut options = options.clone();
        let pool = devices[device].pool.and_then(|pool| options.pools.get_mut(pool as usize));
        pool.into_iter().for_each(|pool| *pool = pool.saturating_add(more));
        let Ok(scene) = Scene::new(units, &devices, &options) else { return false };
        let mut search = Search::new(&scene, Steps::new(options.search_steps.min(*left)));
        let found = search.run().is_some();
        *left -= search.steps.taken().min(*left);
        found
    };
    let total = units.iter().fold(0u64, |sum, unit| sum.saturating_add(unit.bits));
    let staged = units.iter().flat_map(|unit| &unit.block_bits).max().copied().unwrap_or(0);
    let most = total.saturating_add(staged.saturating_mul(u64::from(options.staging_blocks))).min(UNLIMITED);
    if !works(most) {
        return None;
    }
    let (mut low, mut high) = (0, most);
    if works(0) {
        return Some(0);
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if works(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    Some(high)
}
