//! accelerate's strategy: devices in order, modules in order, never back to an earlier device.
//!
//! Source: `infer_auto_device_map`, accelerate 1.15, utils/modeling.py; where the dialect says so, transformers 5.23,
//! integrations/accelerate.py. The repairs are listed in `ARCHITECTURE.md`. The chief of them: whatever the formula says,
//! a module is only placed where its stored bytes fit and where everything that shares tensors with it may lie, too.
//!
//! An example: modules `a`, `b`, `c` of 2, 1 and 3 bytes, an accelerator of 4, a cpu of 6, with fallback. The largest
//! module (3) is kept free on the accelerator, which leaves 1: `a` does not fit and cannot be split; the accelerator
//! is empty, so a smaller one is looked for, and `b` goes there. `a` still does not fit, and the next device is the
//! cpu, which keeps 3 as well: 2 <= 6 - 3 holds `a`. No module is left beside `c`, so nothing is kept, and 2 + 3 <=
//! 6. It is the example of the crate's first page.

mod fallback;
mod frontier;
mod ledger;
pub(crate) mod margin;
mod partners;
mod pass;
mod reservation;

use crate::devices::{Device, Reserve, SequentialOptions};
use crate::error::Error;
use crate::model::layout::Layout;
use crate::outcome::Outcome;
use crate::strategy::sequential::margin::Margin;
use crate::strategy::sequential::pass::Pass;

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
    run(layout, devices, *options, &mut Margin::default())
}

/// As [`sequential`], with how far the budget of one device may rise and those of the others may fall before a decision is
/// another one. The outcome may be an error, whose margin is as good.
pub fn sequential_with_margin(
    layout: &Layout,
    devices: &[Device],
    options: &SequentialOptions,
    rising: u32,
) -> (Result<Outcome, Error>, Margin) {
    let mut margin = Margin::of_rising(rising, devices.len());
    let result = run(layout, devices, *options, &mut margin);
    (result, margin)
}

fn run(layout: &Layout, devices: &[Device], options: SequentialOptions, margin: &mut Margin) -> Result<Outcome, Error> {
    // Room for offloaded layers is of use only if some are, which a first pass without it shows.
    if options.reserve == Reserve::IfOffloaded && may_hold_all(layout, devices, margin) {
        let pass = Pass::new(layout, devices, options.fallback, false, margin);
        if let Some(outcome) = pass.run_unless_offloading() {
            return Ok(outcome);
        }
    }
    Pass::new(layout, devices, options.fallback, true, margin).run()
}

/// Whether the devices on which nothing is offloaded have room for the bytes of the model; without it, no pass is needed
/// to know that something is offloaded.
fn may_hold_all(layout: &Layout, devices: &[Device], margin: &mut Margin) -> bool {
    if layout.has_exempt {
        return true; // not every tensor needs a place
    }
    let is_home = |device: &&Device| !device.is_offload(devices);
    let room_bits = devices.iter().filter(is_home).fold(0i64, |sum, device| sum.saturating_add(device.limit_bits()));
    let missing_bits = layout.total_bits().saturating_sub(room_bits);
    // INVARIANT: at most one budget rises, so what all lack together, that one lacks.
    if let Some(rising) = margin.rising()
        && is_home(&&devices[rising as usize])
    {
        margin.holds(rising, missing_bits);
    }
    missing_bits <= 0
}
