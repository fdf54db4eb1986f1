//! Homes of what is offloaded: as much as can be on the cpu, the rest on disk.

use crate::strategy::auto::counts::at_most;
use crate::strategy::auto::instance::Instance;
use crate::strategy::steps::Steps;

/// Where offloaded units lie.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Tiers {
    /// By class, how many are on the cpu; the other offloaded ones are on disk.
    pub(crate) on_cpu: Vec<u32>,
    pub(crate) disk_bits: u64,
}

/// What was found, and whether nothing can be better.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FoundTiers {
    pub(crate) best: Option<Tiers>,
    pub(crate) is_complete: bool,
}

/// Finds homes for offloaded units, given by class, with some room on the cpu.
pub(crate) fn tiers(instance: &Instance, offloaded: &[u32], cpu_room: u64, steps: &mut Steps) -> FoundTiers {
    let present = || instance.classes.iter().zip(offloaded).filter(|(_, count)| **count > 0);
    let total: u64 = present().map(|(class, &count)| class.bits * u64::from(count)).sum();
    if present().all(|(class, _)| class.on_cpu) && total <= cpu_room {
        return FoundTiers { best: Some(Tiers { on_cpu: offloaded.to_vec(), disk_bits: 0 }), is_complete: true };
    }
    if present().any(|(class, _)| !class.can_offload()) {
        return FoundTiers { best: None, is_complete: true };
    }
    let mut streamed: Vec<u64> = present().filter_map(|(class, _)| class.hosted).collect();
    // 0 stands for: nothing that the cpu executes lies on disk, so no room is kept there.
    streamed.push(0);
    streamed.sort_unstable();
    streamed.dedup();
    let mut result = FoundTiers { best: None, is_complete: true };
    // What the cpu keeps for streaming depends on what is on disk, which is sought; so each size is supposed in turn.
    for largest in streamed {
        let (found, is_complete) = with_streaming(instance, offloaded, (largest, total), cpu_room, steps);
        result.is_complete &= is_complete;
        if let Some(found) = found
            && result.best.as_ref().is_none_or(|best| found.disk_bits < best.disk_bits)
        {
            result.best = Some(found);
        }
    }
    result
}

/// The same when nothing larger than a size is streamed from disk to the cpu, which keeps room for it.
fn with_streaming(
    instance: &Instance,
    offloaded: &[u32],
    (largest, total): (u64, u64),
    cpu_room: u64,
    steps: &mut Steps,
) -> (Option<Tiers>, bool) {
    let Some(mut room) = cpu_room.checked_sub(instance.room(largest)) else { return (None, true) };
    let mut on_cpu = vec![0; offloaded.len()];
    let mut free = Vec::new();
    for (index, (class, &count)) in
        instance.classes.iter().zip(offloaded).enumerate().filter(|(_, (_, count))| **count > 0)
    {
        let may_disk = class.on_disk && class.hosted.is_none_or(|bits| bits <= largest);
        // What stays on the cpu that runs it takes room there from either.
        let stays = if may_disk { class.stay.hosted } else { 0 };
        let Some(left) = room.checked_sub(stays * u64::from(count)) else { return (None, true) };
        room = left;
        match (class.on_cpu, may_disk) {
            (false, false) => return (None, true),
            // No choice: these are placed first, the rest is a subset sum over what may lie on either.
            (true, false) => {
                let Some(left) = room.checked_sub(class.bits * u64::from(count)) else { return (None, true) };
                (room, on_cpu[index]) = (left, count);
            }
            (true, true) => free.push((index, class.bits - stays, count)),
            (false, true) => {}
        }
    }
    let is_complete = subset(&free, room, &mut on_cpu, steps);
    let held: u64 = instance.classes.iter().zip(&on_cpu).map(|(class, &count)| class.bits * u64::from(count)).sum();
    let disk_bits = total - held;
    let disk_room = instance.disk.map_or(0, |disk| disk.capacity);
    // Most on the cpu is least on disk, so no other choice would fit if this does not.
    if disk_bits > disk_room {
        return (None, is_complete);
    }
    (Some(Tiers { on_cpu, disk_bits }), is_complete)
}

/// The subset with the largest sum within a room, larger items first; false where the steps did not suffice.
fn subset(items: &[(usize, u64, u32)], room: u64, on_cpu: &mut [u32], steps: &mut Steps) -> bool {
    let mut after = vec![0u64; items.len() + 1];
    for (index, &(_, bits, count)) in items.iter().enumerate().rev() {
        after[index] = after[index + 1] + bits * u64::from(count);
    }
    let goal = after[0].min(room);
    let mut taken: Vec<u32> = Vec::with_capacity(items.len());
    let (mut sum, mut best, mut has_steps) = (0u64, None, true);
    loop {
        // Cut where even all that is left, or all the room, would not beat the best.
        if best.is_none_or(|best| sum + after[taken.len()].min(room - sum) > best) {
            if let Some(&(_, bits, count)) = items.get(taken.len()) {
                // Most first: the first leaf is the greedy answer. What weighs nothing is taken whole.
                let most = (room - sum).checked_div(bits).map_or(count, |most| at_most(count, most));
                taken.push(most);
                sum += bits * u64::from(most);
                has_steps &= steps.take(1);
                continue;
            }
            best = Some(sum);
            for (&(class, ..), &count) in items.iter().zip(&taken) {
                on_cpu[class] = count;
            }
        }
        if best == Some(goal) {
            return true;
        }
        while taken.last() == Some(&0) {
            taken.pop();
        }
        let Some(last) = taken.last_mut() else { return true };
        *last -= 1;
        sum -= items[taken.len() - 1].1;
        // The first leaf is reached in any case, so there is an answer, if not the best.
        if !has_steps || !steps.take(1) {
            return false;
        }
    }
}
