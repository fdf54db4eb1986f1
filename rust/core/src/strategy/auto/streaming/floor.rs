//! What every plan offloads at least, in a few sums.

use crate::strategy::auto::instance::Instance;
use crate::strategy::auto::packing::{joint_room, weigh};

/// Bits that every plan offloads; nothing where there is no plan.
///
/// All that runs on bins takes their joint room: weights that stay and caches of all that they run. A bin that runs anything
/// gives up what is shared, and the need of one of its units, which is at least the least need of any. So what has no room
/// beside the caches is offloaded, and if that is anything, room is kept for the smallest streamed block as well.
pub(crate) fn floor(instance: &Instance) -> Option<u64> {
    let classes = || instance.classes.iter().filter(|class| !class.is_weightless);
    let least_need = |class: &crate::strategy::auto::instance::Class| match class.streamed {
        Some(_) => class.streamed_need.peak,
        None => class.need.peak,
    };
    let need = classes().map(least_need).min().unwrap_or(0);
    let rooms: Vec<u64> = instance.bins.iter().map(|bin| bin.capacity.saturating_sub(bin.shared + need)).collect();
    let room = joint_room(instance, &rooms, &instance.pools);
    // Where the cpu runs a unit that is offloaded, its cache lies there.
    let kept = classes().map(|class| class.streamed_need.exec * u64::from(class.count())).sum::<u64>();
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
    let floor = over.max(forced);
    (floor <= most).then_some(floor)
}
