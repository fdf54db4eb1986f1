//! What decides among plans that cost the same.

use crate::strategy::auto::instance::Instance;
use crate::strategy::auto::map_alone::needs_execution_map;
use crate::strategy::auto::plan::{Place, Plan};

/// The device map alone is not enough; the first block is offloaded; groups of siblings that several devices run; returns.
pub(crate) type Rank = (bool, bool, usize, u32);

/// The same without returns.
pub(crate) type Wishes = (bool, bool, usize);

/// The first unit with a parameter: where a model says that it is.
pub(crate) fn first(instance: &Instance) -> Option<usize> {
    instance.units.iter().position(|unit| !unit.buffers_only)
}

/// The order of plans that cost the same.
pub(crate) fn rank(instance: &Instance, plan: &Plan) -> Rank {
    let (needs_map, is_first_off, split_groups) = wishes(instance, plan);
    (needs_map, is_first_off, split_groups, plan.returns(instance))
}

/// What is preferred to fewer returns.
pub(crate) fn wishes(instance: &Instance, plan: &Plan) -> Wishes {
    let is_off = first(instance).is_some_and(|first| !matches!(plan.places[first], Place::Bin(_)));
    let groups = 0..instance.options.siblings.len();
    let split_groups = groups.filter(|&group| is_split(instance, plan, group)).count();
    (needs_execution_map(instance, plan), is_off, split_groups)
}

pub(crate) fn is_split(instance: &Instance, plan: &Plan, group: usize) -> bool {
    let mut executors = instance.options.siblings[group].iter().map(|&unit| plan.executor(instance, unit));
    let first = executors.next();
    executors.any(|executor| Some(executor) != first)
}
