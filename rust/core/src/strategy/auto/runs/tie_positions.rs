//! Tied units taken at the place of another member.

use crate::ids::id_at;
use crate::strategy::auto::instance::Instance;
use crate::strategy::auto::plan::Plan;
use crate::strategy::auto::runs::contiguous::{Orders, Runnable, Split, runs};
use crate::strategy::steps::Steps;

/// Sequences that are tried.
const MOST_SEQUENCES: usize = 64;

/// Places tried for one unit.
const MOST_PLACES: usize = 16;

/// The plan with the fewest returns among those with other places for tied units.
pub(crate) fn other_places(instance: &Instance, steps: &mut Steps) -> Option<Plan> {
    let sequences = sequences(instance);
    let split = Split::nothing(instance);
    let mut best: Option<(u32, Plan)> = None;
    for orders in [Orders::Given, Orders::Any] {
        for sequence in &sequences {
            if !steps.take((instance.units.len() / 16 + 1) as u64) {
                return best.map(|(_, plan)| plan);
            }
            if let Runnable::Fits(plan) = runs(instance, &split, sequence.clone(), (orders, true), steps) {
                let returns = plan.returns(instance);
                if best.as_ref().is_none_or(|(least, _)| returns < *least) {
                    best = Some((returns, plan));
                }
            }
        }
        // Plans in the order given are preferred, whatever another order would return.
        if best.is_some() {
            break;
        }
    }
    best.map(|(_, plan)| plan)
}

/// Sequences other than by first positions, as many as are tried.
fn sequences(instance: &Instance) -> Vec<Vec<u32>> {
    let tied: Vec<usize> = (0..instance.units.len()).filter(|&unit| instance.units[unit].positions.len() > 1).collect();
    let places: Vec<Vec<u32>> = tied.iter().map(|&unit| places_of(instance, unit)).collect();
    let count = places.iter().fold(1usize, |count, places| count.saturating_mul(places.len()));
    let mut all = vec![(0..id_at(instance.units.len())).collect::<Vec<u32>>()];
    // `choice` is a number with one digit for each tied unit: its place. Choice 0 is the order tried before.
    for choice in 1..count.min(MOST_SEQUENCES) {
        let mut keys: Vec<(u32, u32)> =
            instance.units.iter().zip(0..).map(|(unit, index)| (first(unit), index)).collect();
        let mut rest = choice;
        for (&unit, places) in tied.iter().zip(&places) {
            keys[unit].0 = places[rest % places.len()];
            rest /= places.len();
        }
        // By position; the number decides between equal ones, so the sequence is always the same.
        keys.sort_unstable();
        let sequence = keys.into_iter().map(|(_, unit)| unit).collect();
        if !all.contains(&sequence) {
            all.push(sequence);
        }
    }
    all.remove(0);
    all
}

fn first(unit: &crate::strategy::auto::problem::Unit) -> u32 {
    unit.positions.first().copied().unwrap_or(0)
}

/// The first, the last, and those between while there are few.
fn places_of(instance: &Instance, unit: usize) -> Vec<u32> {
    let positions = &instance.units[unit].positions;
    let mut places = positions.clone();
    if let Some(&last) = positions.last()
        && positions.len() > MOST_PLACES
    {
        // The last place is kept: a tied head belongs to the end, whatever lies between.
        places.truncate(MOST_PLACES - 1);
        places.push(last);
    }
    places
}
