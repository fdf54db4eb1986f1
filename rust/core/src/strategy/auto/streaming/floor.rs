//! What every plan offloads at least, in a few sums.

use crate::strategy::auto::counts::saturated;
use crate::strategy::auto::instance::{Class, Instance};
use crate::strategy::auto::packing::{joint_room, weigh};

/// Bits that every plan offloads; nothing where there is no plan.
///
/// All that runs on bins takes their joint room: weights that stay and caches of all that they run. A bin that runs anything
/// gives up what is shared, and the need of one of its units, which is at least the least need of any. So what has no room
/// beside the caches is streamed, and if that is anything, room is kept for the smallest streamed block as well. Of what is
/// offloaded some may stay, so what is offloaded is more: at least as much as if those units were offloaded, in parts, of
/// which least stays.
pub(crate) fn floor(instance: &Instance) -> Option<u64> {
    let classes = || instance.classes.iter().filter(|class| !class.is_weightless);
    let is_whole = instance.runs_units_whole();
    let least_need = |class: &Class| match class.streamed {
        // One block of it may run there, and that not the one that needs most.
        Some(_) if !is_whole => 0,
        Some(_) => class.streamed_need.peak,
        None => class.need.peak,
    };
    let need = classes().map(least_need).min().unwrap_or(0);
    let rooms: Vec<u64> = instance.bins.iter().map(|bin| bin.capacity.saturating_sub(bin.shared + need)).collect();
    let room = joint_room(instance, &rooms, &instance.pools);
    // Where the cpu runs a unit that is offloaded, its cache lies there.
    let kept = classes().map(|class| class.least_exec() * u64::from(class.count())).sum::<u64>();
    let forced = weigh(instance, &instance.forced_counts());
    let room = room.checked_sub(kept)?;
    let over = instance.total.saturating_sub(room);
    let is_streamed = classes().all(|class| class.streamed.is_some() || !class.can_offload());
    let least =
        classes().filter(|class| class.can_offload() && class.bits > 0).filter_map(|class| class.streamed).min();
    let over = match least {
        _ if over == 0 => 0,
        Some(least) if is_streamed => over.saturating_add(instance.room(least)),
        None if is_streamed => return None,
        _ => over,
    };
    let holders = [instance.cpu, instance.disk].into_iter().flatten();
    let most = holders.fold(0u64, |sum, holder| sum.saturating_add(holder.capacity));
    let floor = offloaded(instance, over)?.max(forced);
    (floor <= most).then_some(floor)
}

/// Bits of what is offloaded at least, so that so many bits leave the bins; nothing where they cannot.
fn offloaded(instance: &Instance, over: u64) -> Option<u64> {
    let stays = |class: &Class| class.stay.streamed > 0;
    if !instance.classes.iter().any(stays) {
        return Some(over);
    }
    let leaves = |class: &Class| class.bits - class.stay.streamed;
    let mut classes: Vec<&Class> =
        instance.classes.iter().filter(|class| class.can_offload() && leaves(class) > 0).collect();
    // By how much of each bit leaves; compared crosswise, for fractions are not exact.
    let product = |one: u64, other: u64| u128::from(one) * u128::from(other);
    classes.sort_by(|one, other| product(leaves(other), one.bits).cmp(&product(leaves(one), other.bits)));
    let (mut over, mut bits) = (over, 0u64);
    for class in classes {
        let all = leaves(class) * u64::from(class.count());
        if over <= all {
            return Some(bits + saturated(product(over, class.bits).div_ceil(u128::from(leaves(class)))));
        }
        over -= all;
        bits += class.bits * u64::from(class.count());
    }
    (over == 0).then_some(bits)
}
