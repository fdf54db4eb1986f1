//! What decides among plans that cost the same.

use crate::strategy::auto::instance::Instance;
use crate::strategy::auto::plan::{Place, Plan};

/// The first block is offloaded; groups of siblings that several devices run; returns.
pub(crate) type Rank = (bool, usize, u32);

/// The same without returns.
pub(crate) type Wishes = (bool, usize);

/// The first unit with a parameter: where a model says that it is.
pub(crate) fn first(instance: &Instance) -> Option<usize> {
    instance.units.iter().position(|unit| !unit.buffers_only)
}

/// The order of plans that cost the same.
pub(crate) fn rank(instance: &Instance, plan: &Plan) -> Rank {
    let (is_first_off, split_groups) = wishes(instance, plan);
    (is_first_off, split_groups, plan.returns(instance))
}

/// The first block is offloaded; groups of siblings that several devices run.
pub(crate) fn wishes(instance: &Instance, plan: &Plan) -> Wishes {
    let is_off = first(instance).is_some_and(|first| !matches!(plan.places[first], Place::Bin(_)));
    let groups = 0..instance.options.siblings.len();
    (is_off, groups.filter(|&group| is_split(instance, plan, group)).count())
}

pub(crate) fn is_split(instance: &Instance, plan: &Plan, group: usize) -> bool {
    let mut executors = instance.options.siblings[group].iter().map(|&unit| plan.executor(instance, unit));
    let first = executors.next();
    executors.any(|executor| Some(executor) != first)
}
