//! Plans in which each device executes one run, once it is settled what is offloaded.

use super::fill::spread;
use super::line::{Line, Room, Runs};
use super::plan::{Place, Plan, lay_out};
use super::scene::Scene;
use super::steps::Steps;
use super::stock::Stock;

/// What is offloaded, where it lies, and to which bin it is streamed.
#[derive(Debug, Clone)]
pub(crate) struct Split {
    /// By unit.
    pub(crate) off: Vec<bool>,
    pub(crate) stock: Stock,
    pub(crate) streamer: Option<usize>,
}

/// Which orders of devices are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Orders {
    Given,
    Any,
}

/// The answer of one attempt.
#[derive(Debug)]
pub(crate) enum Runnable {
    Fits(Plan),
    /// The first unit left over, where units are taken in order.
    DoesNotFit(Option<u32>),
    Undecided,
}

/// Units, weights and rooms of one attempt.
struct Track<'a> {
    scene: &'a Scene<'a>,
    split: &'a Split,
    rooms: Vec<Room>,
    line: Line,
    /// The last room is the cpu's.
    has_cpu_room: bool,
}

impl Split {
    /// Nothing is offloaded.
    pub(crate) fn nothing(scene: &Scene) -> Self {
        Self { off: vec![false; scene.units.len()], stock: Stock::default(), streamer: None }
    }

    /// Room kept for streaming, on its bin and on the cpu.
    fn reserved(&self, scene: &Scene) -> (u64, u64) {
        let mut on_cpu = self.stock.on_cpu.clone();
        on_cpu.resize(scene.classes.len(), 0);
        let mut counts = vec![0u32; scene.classes.len()];
        for unit in (0..self.off.len()).filter(|&unit| self.off[unit]) {
            counts[scene.class_of[unit] as usize] += 1;
        }
        let classes = || scene.classes.iter().zip(counts.iter().zip(&on_cpu));
        let streamed = classes().filter(|(_, (count, _))| **count > 0).filter_map(|(class, _)| class.streamed);
        let hosted = classes().filter(|(_, (count, held))| count > held).filter_map(|(class, _)| class.hosted);
        (scene.room(streamed.max().unwrap_or(0)), scene.room(hosted.max().unwrap_or(0)))
    }
}

/// Gives each device one run. `sequence` is the order of the units; offloaded ones are part of the run of the device that
/// executes them, or of any run where `is_strict` is not set.
pub(crate) fn runs(
    scene: &Scene,
    split: &Split,
    sequence: Vec<u32>,
    (orders, is_strict): (Orders, bool),
    steps: &mut Steps,
) -> Runnable {
    let Some(track) = Track::new(scene, split, sequence, is_strict) else { return Runnable::DoesNotFit(None) };
    let given: Vec<usize> = (0..scene.bins.len()).collect();
    let found = match orders {
        Orders::Given if !track.has_cpu_room => track.line.in_order(&track.rooms, &given),
        Orders::Given => track.with_cpu_anywhere(&given),
        Orders::Any if scene.has_shared_bins() => return Runnable::Undecided,
        Orders::Any => match track.line.any_order(&track.rooms, steps) {
            Some(found) => found.map_err(|()| track.line.len()),
            None => return Runnable::Undecided,
        },
    };
    match found {
        Ok(runs) => track.plan(runs),
        Err(end) => Runnable::DoesNotFit(track.line.sequence.get(end).copied()),
    }
}

impl<'a> Track<'a> {
    fn new(scene: &'a Scene<'a>, split: &'a Split, sequence: Vec<u32>, is_strict: bool) -> Option<Self> {
        let (reserved, cpu_reserved) = split.reserved(scene);
        let held: u64 = split.stock.on_cpu.iter().zip(&scene.classes).map(|(&n, c)| u64::from(n) * c.bits).sum();
        let mut pools = scene.pools.clone();
        if let Some(pool) = scene.cpu.and_then(|cpu| cpu.pool) {
            pools[pool] = pools[pool].checked_sub(held + cpu_reserved)?;
        }
        let mut rooms = Vec::with_capacity(scene.bins.len() + 1);
        let is_alone = !scene.has_shared_bins();
        for (index, bin) in scene.bins.iter().enumerate() {
            let mut limit = bin.capacity;
            if split.streamer == Some(index) {
                limit = limit.checked_sub(reserved)?;
                if let Some(pool) = bin.pool {
                    pools[pool] = pools[pool].checked_sub(reserved)?;
                }
            }
            limit = bin.pool.map_or(limit, |pool| limit.min(pools[pool]));
            rooms.push(Room { limit, scale: bin.capacity, pool: bin.pool.filter(|_| !is_alone) });
        }
        let off = |unit: u32| split.off[unit as usize];
        let has_cpu_room = is_strict
            && (0..scene.units.len() as u32)
                .any(|unit| off(unit) && scene.class(unit).leads_by_cpu && !scene.units[unit as usize].is_silent);
        let cpu_bit = 1u128 << rooms.len();
        if has_cpu_room {
            rooms.push(Room { limit: 0, scale: 0, pool: None });
        }
        let line = Line::new(scene, sequence, rooms.len(), |unit| match (off(unit), split.streamer) {
            (false, _) => (scene.units[unit as usize].bits, u128::from(scene.class(unit).bins)),
            (true, _) if !is_strict || scene.units[unit as usize].is_silent => (0, u128::MAX),
            (true, _) if scene.class(unit).leads_by_cpu => (0, cpu_bit),
            (true, Some(bin)) => (0, 1 << bin),
            (true, None) => (0, 0),
        });
        let line = line.with_pools(pools);
        Some(Self { scene, split, rooms, line, has_cpu_room })
    }

    /// The bins in the order given, the cpu's run anywhere among theirs.
    fn with_cpu_anywhere(&self, given: &[usize]) -> Result<Runs, usize> {
        let mut furthest = 0;
        for at in (0..=given.len()).rev() {
            let mut order = given.to_vec();
            order.insert(at, given.len());
            match self.line.in_order(&self.rooms, &order) {
                Ok(runs) => return Ok(runs),
                Err(end) => furthest = furthest.max(end),
            }
        }
        Err(furthest)
    }

    fn plan(&self, runs: Runs) -> Runnable {
        let runs = spread(&self.line, &self.rooms, runs, self.scene.options.fill);
        let mut places = vec![Place::Disk; self.scene.units.len()];
        let mut from = 0;
        for (&room, &end) in runs.rooms.iter().zip(&runs.ends) {
            for &unit in &self.line.sequence[from..end] {
                places[unit as usize] = Place::Bin(room);
            }
            from = end;
        }
        lay_out(self.scene, &mut places, &self.split.off, &self.split.stock);
        let plan = Plan { places, streamer: self.split.streamer };
        if plan.is_valid(self.scene) { Runnable::Fits(plan) } else { Runnable::Undecided }
    }
}
