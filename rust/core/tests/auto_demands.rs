//! Plans where running takes more than weights, against every home and every executor of few blocks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::cast_possible_truncation)] // small numbers are drawn

mod drawn;

use std::sync::Arc;

use planner_core::auto::{Demands, Execute, Failure, Mode, Options, Solution, Unit, shortfall, solve};
use planner_core::{Device, DeviceKind};

use drawn::Random;

#[derive(Debug)]
struct Instance {
    units: Vec<Unit>,
    devices: Vec<Device>,
    options: Options,
}

fn units(sizes: &[u64]) -> Vec<Unit> {
    let unit = |(position, &bits): (u32, &u64)| Unit {
        bits,
        block_bits: vec![bits],
        positions: vec![position],
        buffers_only: false,
        allowed_devices: u64::MAX,
    };
    (0..).zip(sizes).map(unit).collect()
}

fn device(kind: DeviceKind, bits: u64) -> Device {
    Device { kind, capacity_bits: Some(bits), pool: None, is_main: false }
}

fn demands(exec_bits: Vec<u64>, peak_bits: Vec<u64>, shared_bits: Vec<u64>) -> Arc<Demands> {
    Demands { exec_bits, peak_bits, shared_bits, ..Demands::default() }.into()
}

fn instance(random: &mut Random) -> Instance {
    let count = 1 + random.below(8) as usize;
    let (has_needs, has_stays) = (random.chance(80), random.chance(40));
    let kind = |random: &mut Random| {
        let bits = 1 + random.below(9);
        let stay = if has_stays && random.chance(60) { random.below(bits + 1) } else { 0 };
        let need = if has_needs { [random.below(5), random.below(4)] } else { [0, 0] };
        [bits, need[0], need[1], stay]
    };
    let kinds: Vec<[u64; 4]> = (0..=random.below(4)).map(|_| kind(random)).collect();
    let mut drawn: Vec<[u64; 4]> = (0..count).map(|_| kinds[random.below(kinds.len() as u64) as usize]).collect();
    if random.chance(40) {
        drawn.sort_unstable();
    }
    let column = |at: usize| drawn.iter().map(|row| row[at]).collect::<Vec<u64>>();
    let mut units = units(&column(0));
    let cards = 1 + random.below(3) as usize;
    let need: u64 = drawn.iter().map(|row| row[0] + row[1]).sum();
    let typical = need * (30 + random.below(130)) / 100 / cards as u64 + 1;
    let is_alike = random.chance(50);
    let mut devices: Vec<Device> = (0..cards)
        .map(|_| if is_alike { typical } else { random.below(2 * typical + 2) })
        .map(|bits| device(DeviceKind::Accelerator, bits))
        .collect();
    let is_pooled = random.chance(25);
    if is_pooled {
        devices.iter_mut().filter(|_| random.chance(70)).for_each(|device| device.pool = Some(0));
    }
    let pools = if is_pooled { vec![1 + typical * (50 + random.below(250)) / 100] } else { vec![] };
    let shared_bits = (0..cards + 2).map(|_| random.below(3) * u64::from(has_needs && random.chance(40))).collect();
    let cpu_bits = if random.chance(70) { need * 2 } else { random.below(need + 4) };
    let cpu = device(DeviceKind::Cpu, cpu_bits);
    devices.push(Device { pool: (is_pooled && random.chance(30)).then_some(0), ..cpu });
    if random.chance(50) {
        devices.push(Device::unlimited_disk());
    }
    if random.chance(20) {
        let all = (1u64 << devices.len()) - 1;
        units[random.below(count as u64) as usize].allowed_devices = 1 + random.below(all);
    }
    let demands = Demands { exec_bits: column(1), peak_bits: column(2), stay_bits: column(3), shared_bits };
    let options = Options {
        demands: Some(demands.into()),
        pools,
        mode: [Mode::Any, Mode::Any, Mode::Any, Mode::NoDisk, Mode::GpuOnly][random.below(5) as usize],
        execute_offloaded: if random.chance(15) { Execute::Cpu } else { Execute::Accelerator },
        staging_blocks: 1 + random.below(4) as u32 / 3,
        ..Options::default()
    };
    Instance { units, devices, options }
}

/// What the definition says; every block is a unit.
struct Rules<'a> {
    instance: &'a Instance,
    demands: &'a Demands,
    capacity: Vec<u64>,
    /// Devices that execute what lies there; the cpu where no accelerator has capacity.
    executes: Vec<bool>,
    may_hold: Vec<bool>,
}

impl<'a> Rules<'a> {
    fn new(instance: &'a Instance) -> Self {
        let demands = instance.options.demands.as_deref().unwrap();
        let own = |device: &Device| {
            let joint = device.pool.map_or(u64::MAX, |pool| instance.options.pools[pool as usize]);
            device.capacity_bits.unwrap_or(1 << 40).min(joint)
        };
        let capacity: Vec<u64> = instance.devices.iter().map(own).collect();
        let is = |index: usize, kind| instance.devices[index].kind == kind && capacity[index] > 0;
        let all = 0..capacity.len();
        let has_card = all.clone().any(|index| is(index, DeviceKind::Accelerator));
        let executor = if has_card { DeviceKind::Accelerator } else { DeviceKind::Cpu };
        let executes: Vec<bool> = all.clone().map(|index| is(index, executor)).collect();
        let mode = instance.options.mode;
        let may_hold = all.map(|index| match instance.devices[index].kind {
            _ if executes[index] => true,
            DeviceKind::Cpu => is(index, DeviceKind::Cpu) && mode != Mode::GpuOnly,
            DeviceKind::Disk => mode == Mode::Any,
            DeviceKind::Accelerator => false,
        });
        Self { instance, demands, may_hold: may_hold.collect(), capacity, executes }
    }

    fn cpu(&self) -> Option<usize> {
        let is_cpu = |&index: &usize| self.instance.devices[index].kind == DeviceKind::Cpu;
        (0..self.capacity.len()).filter(is_cpu).find(|&index| self.may_hold[index] && !self.executes[index])
    }

    /// Where an offloaded block may run.
    fn executors(&self, block: u64) -> Vec<usize> {
        let cards: Vec<usize> = (0..self.capacity.len()).filter(|&index| self.executes[index]).collect();
        let has_card =
            self.instance.devices.iter().zip(&self.executes).any(|(d, e)| *e && d.kind == DeviceKind::Accelerator);
        let is_above = cards.iter().all(|&card| block > self.capacity[card]);
        if has_card && (is_above || self.instance.options.execute_offloaded == Execute::Cpu) {
            self.cpu().into_iter().collect()
        } else {
            cards
        }
    }

    fn ways(&self, unit: usize) -> Vec<(usize, usize)> {
        let Unit { bits, allowed_devices, .. } = self.instance.units[unit];
        let homes = (0..self.capacity.len()).filter(|&home| self.may_hold[home] && allowed_devices >> home & 1 == 1);
        homes
            .flat_map(|home| {
                let executors = if self.executes[home] { vec![home] } else { self.executors(bits) };
                executors.into_iter().map(move |executor| (home, executor)).collect::<Vec<_>>()
            })
            .collect()
    }
}

/// What is taken of a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Taken {
    used: u64,
    exec: u64,
    peak: u64,
    reserved: u64,
    shared: u64,
}

impl Taken {
    fn sum(&self) -> u64 {
        self.used + self.exec + self.peak + self.reserved + self.shared
    }
}

fn take(rules: &Rules, taken: &mut [Taken], unit: usize, (home, executor): (usize, usize)) {
    let bits = rules.instance.units[unit].bits;
    taken[home].used += bits;
    let at = &mut taken[executor];
    at.exec += rules.demands.exec_bits[unit];
    at.peak = at.peak.max(rules.demands.peak_bits[unit]);
    at.shared = rules.demands.shared_bits[executor];
    if home != executor {
        let stay = rules.demands.stay_bits.get(unit).copied().unwrap_or(0);
        at.exec += stay;
        at.reserved = at.reserved.max((bits - stay) * u64::from(rules.instance.options.staging_blocks));
    }
}

fn fits(rules: &Rules, taken: &[Taken]) -> bool {
    let mut pools = vec![0; rules.instance.options.pools.len()];
    for (taken, device) in taken.iter().zip(&rules.instance.devices) {
        if let Some(pool) = device.pool {
            pools[pool as usize] += taken.sum();
        }
    }
    taken.iter().zip(&rules.capacity).all(|(taken, &capacity)| taken.sum() <= capacity)
        && pools.iter().zip(&rules.instance.options.pools).all(|(taken, joint)| taken <= joint)
}

/// Fewest bits offloaded, over every home and executor of every unit.
fn least(rules: &Rules) -> Option<u64> {
    fn go(rules: &Rules, ways: &[Vec<(usize, usize)>], taken: &[Taken], offloaded: u64, best: &mut Option<u64>) {
        if best.is_some_and(|best| offloaded >= best) {
            return;
        }
        let Some((first, rest)) = ways.split_first() else {
            *best = Some(offloaded);
            return;
        };
        let unit = rules.instance.units.len() - ways.len();
        for &(home, executor) in first {
            let mut taken = taken.to_vec();
            take(rules, &mut taken, unit, (home, executor));
            if fits(rules, &taken) {
                let own = if rules.executes[home] { 0 } else { rules.instance.units[unit].bits };
                go(rules, rest, &taken, offloaded + own, best);
            }
        }
    }
    let ways: Vec<_> = (0..rules.instance.units.len()).map(|unit| rules.ways(unit)).collect();
    let mut best = None;
    go(rules, &ways, &vec![Taken::default(); rules.capacity.len()], 0, &mut best);
    best
}

/// Checks a plan against the definition.
fn check(rules: &Rules, solution: &Solution) {
    let mut taken = vec![Taken::default(); rules.capacity.len()];
    for unit in 0..rules.instance.units.len() {
        let way = (solution.home[unit] as usize, solution.execution[unit][0] as usize);
        assert!(rules.ways(unit).contains(&way), "unit {unit}");
        take(rules, &mut taken, unit, way);
    }
    assert!(fits(rules, &taken), "over capacity: {taken:?}");
    for (device, taken) in taken.iter().enumerate() {
        let said = [&solution.used_bits, &solution.exec_bits, &solution.peak_bits, &solution.reserved_bits];
        let known = [taken.used, taken.exec, taken.peak + taken.shared, taken.reserved];
        assert_eq!(said.map(|bits| bits[device]), known);
    }
    let offloaded: u64 = taken.iter().zip(&rules.executes).filter(|(_, e)| !**e).map(|(taken, _)| taken.used).sum();
    assert_eq!(solution.offloaded_bits, offloaded);
    assert_eq!(solution.certificate.proven, solution.certificate.lower_bound_bits == offloaded);
}

#[derive(Debug, Default, Clone)]
struct Tally {
    feasible: u32,
    offloading: u32,
    infeasible: u32,
    /// Plans, and failures, that are said to be the best there is.
    proven: u32,
    proven_failures: u32,
    /// There is a plan, and none was found.
    missed: u32,
    /// A better one.
    worse: u32,
    /// Nothing need be offloaded, and something was.
    avoidable: u32,
}

fn compare(instance: &Instance, tally: &mut Tally) {
    let rules = Rules::new(instance);
    let truth = least(&rules);
    match (truth, solve(&instance.units, &instance.devices, &instance.options)) {
        (Some(least), Ok(solution)) => {
            check(&rules, &solution);
            let certificate = &solution.certificate;
            assert!(certificate.lower_bound_bits <= least, "{least}, but {solution:?}");
            assert!(solution.offloaded_bits >= least, "{least}, but {solution:?}");
            assert!(!certificate.proven || solution.offloaded_bits == least);
            tally.feasible += 1;
            tally.offloading += u32::from(least > 0);
            tally.proven += u32::from(certificate.proven);
            tally.worse += u32::from(solution.offloaded_bits > least);
            tally.avoidable += u32::from(solution.offloaded_bits > 0 && least == 0);
        }
        (None, Err(Failure::Infeasible { is_proven, .. })) => {
            tally.infeasible += 1;
            tally.proven_failures += u32::from(is_proven);
        }
        (Some(least), Err(Failure::Infeasible { is_proven, .. })) => {
            assert!(!is_proven, "there is a plan that offloads {least}");
            tally.feasible += 1;
            tally.missed += 1;
        }
        (truth, answer) => panic!("{truth:?}, but {answer:?}"),
    }
}

fn run(seeds: std::ops::Range<u64>) -> Tally {
    let mut tally = Tally::default();
    for seed in seeds {
        let instance = instance(&mut Random(seed));
        let mut own = tally.clone();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            compare(&instance, &mut own);
            own
        }));
        let Ok(own) = outcome else { panic!("seed {seed}: {instance:?}") };
        tally = own;
    }
    println!("{tally:?}");
    tally
}

#[test]
fn agrees_with_every_home_and_executor() {
    let tally = run(0..3_000);
    assert!(tally.offloading > 500 && tally.infeasible > 300, "the instances are one-sided: {tally:?}");
    assert_eq!(tally.avoidable, 0, "{tally:?}");
}

#[test]
#[ignore = "takes minutes"]
fn agrees_with_every_home_and_executor_of_ten_thousand() {
    let tally = run(1_000_000..1_010_000);
    assert_eq!(tally.avoidable, 0, "{tally:?}");
}

/// Two devices that stream 3 and keep 3: 3 + 3 + 3 = 9 on each. One alone would hold caches of 12 and no block.
#[test]
fn both_devices_stream_where_one_cannot() {
    let cards = [device(DeviceKind::Accelerator, 9), device(DeviceKind::Accelerator, 9), device(DeviceKind::Cpu, 100)];
    let options = Options { demands: Some(demands(vec![3; 4], vec![], vec![])), ..Options::default() };
    let solution = solve(&units(&[3; 4]), &cards, &options).unwrap();
    assert_eq!((solution.offloaded_bits, solution.certificate.proven), (12, true));
    assert_eq!(solution.execution.concat(), [0, 0, 1, 1]);
    assert_eq!((solution.reserved_bits, solution.exec_bits), (vec![3, 3, 0], vec![6, 6, 0]));
    let one = solve(&units(&[3; 4]), &cards[1..], &options).unwrap_err();
    assert!(matches!(one, Failure::Infeasible { is_proven: true, .. }), "{one:?}");
}

/// Demands of nothing are no demands.
#[test]
fn nothing_demanded_changes_nothing() {
    for seed in 0..300 {
        let Instance { units, devices, options } = instance(&mut Random(seed));
        let nothing = Options { demands: Some(demands(vec![0; units.len()], vec![0; 3], vec![])), ..options.clone() };
        let none = Options { demands: None, ..options };
        assert_eq!(solve(&units, &devices, &nothing), solve(&units, &devices, &none));
    }
}

/// What more capacity is said to be enough is enough, and one bit less is not.
#[test]
fn least_extra_capacity_is_least() {
    for seed in 0..300 {
        let mut instance = instance(&mut Random(seed));
        let more = shortfall(&instance.units, &instance.devices, &instance.options);
        instance.options.mode = Mode::GpuOnly;
        for (device, more) in more.iter().enumerate() {
            let Some(more) = *more else { continue };
            let works = |more: u64| {
                let mut devices = instance.devices.clone();
                devices[device].capacity_bits = devices[device].capacity_bits.map(|capacity| capacity + more);
                let mut options = instance.options.clone();
                // The limit of its pool rises with it.
                devices[device].pool.iter().for_each(|&pool| options.pools[pool as usize] += more);
                let grown = Instance { units: instance.units.clone(), devices, options };
                least(&Rules::new(&grown)).is_some()
            };
            // How shared memory is divided is a heuristic, so there it may be more than is needed.
            let is_least = more == 0 || !instance.options.pools.is_empty() || !works(more - 1);
            assert!(works(more) && is_least, "seed {seed}, device {device}: {more}");
        }
    }
}
