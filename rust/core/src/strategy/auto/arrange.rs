//! From counts to places: which unit of a class goes where, so that execution returns to a device as seldom as can be.
//!
//! A sweep along the execution order stays on a device while that has a unit of the class to give, then goes to another.
//! Several sweeps are made and the best is kept; this is a heuristic, and the packing is not changed.

use super::packing::Packing;
use super::plan::{Place, Plan, lay_out};
use super::scene::Scene;
use super::steps::Steps;

/// How a sweep chooses the next device.
#[derive(Debug, Clone, Copy)]
struct Habit {
    first: usize,
    prefers_long_runs: bool,
}

/// Units of each class that each device executes; the cpu comes after the bins.
type Shares = Vec<Vec<u32>>;

/// The best arrangement found of a packing.
pub(crate) fn arrange(scene: &Scene, packing: &Packing, streamer: Option<usize>, steps: &mut Steps) -> Plan {
    let shares = shares_of(scene, packing, streamer);
    let mut best: Option<(u32, Plan)> = None;
    let cost = (scene.units.len() * shares.len() / 2 + 1) as u64;
    let opens = |first: &usize| scene.class_of.first().is_none_or(|&class| shares[*first][class as usize] > 0);
    let long_runs = (0..shares.len()).filter(opens).map(|first| Habit { first, prefers_long_runs: true });
    let in_order = Habit { first: 0, prefers_long_runs: false };
    for habit in long_runs.chain([in_order]) {
        if best.is_some() && !steps.take(cost) {
            break;
        }
        let executors = sweep(scene, shares.clone(), habit);
        let plan = settle(scene, packing, streamer, &executors);
        let returns = plan.returns(scene);
        if best.as_ref().is_none_or(|(least, _)| returns < *least) {
            best = Some((returns, plan));
        }
    }
    best.map_or(Plan { places: vec![Place::Disk; scene.units.len()], streamer }, |(_, plan)| plan)
}

fn shares_of(scene: &Scene, packing: &Packing, streamer: Option<usize>) -> Shares {
    let mut shares = packing.counts.clone();
    shares.push(vec![0; scene.classes.len()]);
    for (index, (class, &off)) in scene.classes.iter().zip(&packing.off).enumerate() {
        let executor = if class.leads_by_cpu { scene.bins.len() } else { streamer.unwrap_or(scene.bins.len()) };
        shares[executor][index] += off;
    }
    shares
}

/// Executor of each unit.
fn sweep(scene: &Scene, mut shares: Shares, habit: Habit) -> Vec<usize> {
    let mut executors = Vec::with_capacity(scene.units.len());
    let mut here = habit.first;
    for unit in 0..scene.units.len() {
        let class = scene.class_of[unit] as usize;
        if scene.classes[class].bits == 0 && !scene.classes[class].is_forced_off() {
            let mask = scene.classes[class].bins;
            let stays = here < scene.bins.len() && scene.classes[class].allows(here);
            executors.push(if stays { here } else { mask.trailing_zeros() as usize });
            continue;
        }
        if shares[here][class] == 0 {
            let next = next_device(scene, &mut shares, unit, habit);
            if scene.units[unit].is_silent {
                shares[next][class] -= 1;
                executors.push(next);
                continue;
            }
            here = next;
        }
        shares[here][class] -= 1;
        executors.push(here);
    }
    executors
}

fn next_device(scene: &Scene, shares: &mut Shares, unit: usize, habit: Habit) -> usize {
    let class = scene.class_of[unit] as usize;
    let able: Vec<usize> = (0..shares.len()).filter(|&device| shares[device][class] > 0).collect();
    if !habit.prefers_long_runs || able.len() < 2 {
        return able.first().copied().unwrap_or(0);
    }
    let longest = able.into_iter().max_by_key(|&device| (run(scene, &mut shares[device], unit), usize::MAX - device));
    longest.unwrap_or(0)
}

/// Units in a row, from one on, that a device can give.
fn run(scene: &Scene, share: &mut [u32], from: usize) -> usize {
    let mut end = from;
    for &class in &scene.class_of[from..] {
        match (share[class as usize], scene.classes[class as usize].bits) {
            (_, 0) => {}
            (0, _) => break,
            _ => share[class as usize] -= 1,
        }
        end += 1;
    }
    for &class in &scene.class_of[from..end] {
        share[class as usize] += u32::from(scene.classes[class as usize].bits > 0);
    }
    end - from
}

/// Decides which of the units a device executes are offloaded: the last of a class, or the first where its own run then
/// stays in one piece.
fn settle(scene: &Scene, packing: &Packing, streamer: Option<usize>, executors: &[usize]) -> Plan {
    let build = |from_the_end: bool| {
        let mut left = packing.off.clone();
        let mut off = vec![false; executors.len()];
        let mut take = |unit: usize| {
            let class = scene.class_of[unit] as usize;
            let executor =
                if scene.classes[class].leads_by_cpu { scene.bins.len() } else { streamer.unwrap_or(scene.bins.len()) };
            if executors[unit] == executor && left[class] > 0 {
                left[class] -= 1;
                off[unit] = true;
            }
        };
        if from_the_end {
            (0..executors.len()).rev().for_each(&mut take);
        } else {
            (0..executors.len()).for_each(&mut take);
        }
        let mut places: Vec<Place> = executors.iter().map(|&executor| Place::Bin(executor)).collect();
        lay_out(scene, &mut places, &off, &packing.stock);
        Plan { places, streamer }
    };
    let (last, first) = (build(true), build(false));
    if first.breaks() < last.breaks() { first } else { last }
}
