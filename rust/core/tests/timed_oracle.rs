//! Plans by time against every order of devices, every cut and every way of each piece, and against a pricer of their own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::cast_possible_truncation)] // small numbers are drawn

mod drawn;

use planner_core::timed::{
    Line, LineFailure, LineKind, MOST_PS, Objective, Passing, Piece, PieceWay, Question, Schedule, SummedLine,
    TimedPlan,
};

use drawn::Random;

const TABLES: u64 = 3_000;

fn time(random: &mut Random, end: u64, percent: u64) -> Option<u64> {
    random.chance(percent).then(|| random.below(end))
}

fn piece(random: &mut Random, kinds: usize) -> Piece {
    let bits = random.below(9);
    let all = (1 << kinds) - 1;
    Piece {
        bits,
        state_bits: if random.chance(30) { random.below(4) } else { 0 },
        streamed_bits: if random.chance(80) { bits } else { random.below(12) },
        homes: if random.chance(75) { all } else { random.below(all + 1) },
        run_ps: (0..kinds).map(|_| time(random, 14, 93)).collect(),
        fetch_ps: (0..kinds).map(|_| time(random, 30, 85)).collect(),
        host_ps: time(random, 25, 70),
        beside_bits: (0..kinds).map(|_| if random.chance(40) { random.below(9) } else { 0 }).collect(),
    }
}

fn line(random: &mut Random, schedule: Schedule, most_pieces: u64) -> Line {
    let accelerators = 1 + random.below(3) as usize;
    let has_host = random.chance(85);
    let kinds = accelerators + usize::from(has_host);
    let sorts: Vec<Piece> = (0..=random.below(4)).map(|_| piece(random, kinds)).collect();
    let pieces = (0..random.below(most_pieces + 1)).map(|_| sorts[random.below(sorts.len() as u64) as usize].clone());
    let pieces: Vec<Piece> = pieces.collect();
    let total: u64 = pieces.iter().map(|piece| piece.bits + piece.state_bits).sum();
    let host = if random.chance(50) { accelerators } else { 0 };
    let kind = |number| LineKind {
        capacity_bits: if random.chance(8) { 0 } else { random.below(total + 6) },
        hops_ps: random.below(6),
        is_host: has_host && number == host,
    };
    let all: Vec<LineKind> = (0..kinds).map(kind).collect();
    let mut devices: Vec<usize> = (0..random.below(4)).map(|_| random.below(kinds as u64) as usize).collect();
    devices.retain(|&kind| !all[kind].is_host);
    if has_host && random.chance(60) {
        devices.insert(random.below(devices.len() as u64 + 1) as usize, host);
    }
    let hop = random.below(8);
    let passing = pieces.iter().map(|_| Passing { on: random.below(4), back: random.below(3) }).collect();
    Line {
        pieces,
        hop_ps: (0..kinds).map(|_| (0..kinds).map(|_| random.below(hop + 1)).collect()).collect(),
        passing: if random.chance(60) { passing } else { Vec::new() },
        kinds: all,
        devices,
        schedule,
        staging_blocks: match schedule {
            _ if random.chance(10) => random.below(3),
            Schedule::Serial => 1,
            Schedule::Overlapped => 2,
        },
    }
}

/// Time of a run where its pieces are; `None` where that is not allowed or there is no room.
fn run_ps(line: &Line, kind: usize, from: usize, ways: &[PieceWay]) -> Option<u64> {
    let LineKind { capacity_bits, hops_ps, is_host } = line.kinds[kind];
    let host = line.kinds.iter().position(|kind| kind.is_host);
    let (mut room, mut largest, mut running, mut fetching) = (0, 0, 0, 0);
    for (piece, way) in line.pieces[from..].iter().zip(ways) {
        let may_leave = !is_host && host.is_some_and(|host| piece.homes & 1 << host != 0);
        match way {
            PieceWay::Resident => {
                if piece.homes & 1 << kind == 0 {
                    return None;
                }
                running += piece.run_ps[kind]?;
                room += piece.bits + piece.state_bits;
            }
            PieceWay::Fetched => {
                if !may_leave {
                    return None;
                }
                running += piece.run_ps[kind]?;
                fetching += piece.fetch_ps[kind]?;
                room += piece.state_bits;
                largest = largest.max(piece.streamed_bits);
            }
            PieceWay::Tied => return None,
            PieceWay::Beside => {
                if !may_leave || piece.state_bits > 0 {
                    return None;
                }
                running += piece.host_ps? + hops_ps;
                largest = largest.max(piece.beside_bits[kind]);
            }
        }
    }
    let time = if line.schedule == Schedule::Serial { running + fetching } else { running.max(fetching) };
    (room + line.staging_blocks * largest <= capacity_bits).then_some(time)
}

/// What passes before a piece, at which a run begins.
fn hop_ps(line: &Line, piece: usize, from: usize, to: usize) -> u64 {
    let (there, back) = (line.hop_ps[from][to], line.hop_ps[to][from]);
    line.passing.get(piece).map_or(there, |passing| there * passing.on + back * passing.back)
}

/// Whether a run of the host would end inside of a layer.
fn is_cut(line: &Line, kind: usize, to: usize) -> bool {
    line.kinds[kind].is_host && line.passing.get(to).is_some_and(|passing| passing.back > 0)
}

/// The least time of a run over every way of each piece.
fn best_run(line: &Line, kind: usize, from: usize, to: usize) -> Option<u64> {
    const WAYS: [PieceWay; 3] = [PieceWay::Resident, PieceWay::Fetched, PieceWay::Beside];
    let combinations = 3_usize.pow((to - from) as u32);
    let ways = |number: usize| -> Vec<PieceWay> {
        (0..to - from).map(|piece| WAYS[number / 3_usize.pow(piece as u32) % 3]).collect()
    };
    (0..combinations).filter_map(|number| run_ps(line, kind, from, &ways(number))).min()
}

/// The least time of every run, by kind, first border and last.
type Table = Vec<Vec<Vec<Option<u64>>>>;

fn table(line: &Line) -> Table {
    let pieces = line.pieces.len();
    let row =
        |kind, from| (0..=pieces).map(|to| if to > from { best_run(line, kind, from, to) } else { None }).collect();
    (0..line.kinds.len()).map(|kind| (0..pieces).map(|from| row(kind, from)).collect()).collect()
}

fn value(objective: Objective, latency: u64, longest: u64) -> u64 {
    match objective {
        Objective::Latency => latency,
        Objective::Throughput => longest,
        Objective::Pipeline { batches } => latency + (batches - 1) * longest,
    }
}

fn solve(line: &Line, question: &Question) -> Result<TimedPlan, LineFailure> {
    SummedLine::new(line, &[]).unwrap().solve(question)
}

struct Enumeration<'a> {
    line: &'a Line,
    question: &'a Question,
    runs: Table,
    best: Option<u64>,
}

impl Enumeration<'_> {
    fn extend(&mut self, from: usize, used: &mut Vec<usize>, latency: u64, longest: u64) {
        if from == self.line.pieces.len() {
            let value = value(self.question.objective, latency, longest);
            self.best = Some(self.best.map_or(value, |best| best.min(value)));
            return;
        }
        for device in 0..self.line.devices.len() {
            let is_next = self.question.any_order || used.last().is_none_or(|&last| device > last);
            if used.contains(&device) || !is_next {
                continue;
            }
            let kind = self.line.devices[device];
            let hop = used.last().map_or(0, |&last| hop_ps(self.line, from, self.line.devices[last], kind));
            for to in from + 1..=self.line.pieces.len() {
                if is_cut(self.line, kind, to) {
                    continue;
                }
                if let Some(ps) = self.runs[kind][from][to] {
                    used.push(device);
                    self.extend(to, used, latency + hop + ps, longest.max(ps));
                    used.pop();
                }
            }
        }
    }
}

fn optimum(line: &Line, question: &Question) -> Option<u64> {
    let mut all = Enumeration { line, question, runs: table(line), best: None };
    all.extend(0, &mut Vec::new(), 0, 0);
    all.best
}

/// Whether a plan is one, and says what it takes.
fn check(line: &Line, question: &Question, plan: &TimedPlan) {
    let (mut latency, mut longest, mut border, mut used) = (0, 0, 0, Vec::<usize>::new());
    for run in &plan.runs {
        assert_eq!((run.from, run.ways.len()), (border, run.to - run.from));
        assert!(run.to > run.from && !used.contains(&run.device));
        let kind = line.devices[run.device];
        assert!(!is_cut(line, kind, run.to));
        if let Some(&last) = used.last() {
            assert!(question.any_order || run.device > last);
            latency += hop_ps(line, run.from, line.devices[last], kind);
        }
        assert_eq!(run_ps(line, kind, run.from, &run.ways), Some(run.ps));
        (latency, longest, border) = (latency + run.ps, longest.max(run.ps), run.to);
        used.push(run.device);
    }
    assert_eq!(border, line.pieces.len());
    assert_eq!((plan.latency_ps, plan.bottleneck_ps), (latency, longest));
    assert_eq!(plan.value_ps, value(question.objective, latency, longest));
    assert!(plan.lower_bound_ps <= plan.value_ps);
}

fn against_all(seed: u64, schedule: Schedule, objective: impl Fn(&mut Random) -> Objective) {
    let random = &mut Random(seed);
    let mut feasible = 0;
    for number in 0..TABLES {
        let line = line(random, schedule, 5);
        let question = Question { objective: objective(random), any_order: random.chance(50), search_steps: 1_000_000 };
        let best = optimum(&line, &question);
        let plan = match solve(&line, &question) {
            Ok(plan) => Some(plan),
            Err(LineFailure::Infeasible { is_proven }) => {
                assert!(is_proven);
                None
            }
            Err(other) => panic!("{number}: {other}"),
        };
        if let Some(plan) = &plan {
            check(&line, &question, plan);
            assert!(plan.is_proven(), "{number}: {line:?} {question:?} {plan:?}");
        }
        assert_eq!(plan.as_ref().map(|plan| plan.value_ps), best, "{number}: {line:?} {question:?} {plan:?}");
        feasible += u64::from(best.is_some());
        // Without any steps there is a bound all the same, and a plan wherever the bound's own has room.
        if let Ok(plan) = solve(&line, &Question { search_steps: 0, ..question }) {
            check(&line, &question, &plan);
            let best = best.unwrap();
            assert!(plan.lower_bound_ps <= best && best <= plan.value_ps, "{number}: {best} {plan:?}");
        } else {
            assert_eq!(best, None, "{number}");
        }
    }
    assert!(feasible > TABLES / 4, "{feasible} tables have a plan");
}

#[test]
fn latency_one_after_the_other() {
    against_all(1, Schedule::Serial, |_| Objective::Latency);
}

#[test]
fn latency_side_by_side() {
    against_all(2, Schedule::Overlapped, |_| Objective::Latency);
}

#[test]
fn throughput_one_after_the_other() {
    against_all(3, Schedule::Serial, |_| Objective::Throughput);
}

#[test]
fn throughput_side_by_side() {
    against_all(4, Schedule::Overlapped, |_| Objective::Throughput);
}

#[test]
fn pipeline_one_after_the_other() {
    against_all(5, Schedule::Serial, |random| Objective::Pipeline { batches: 1 + random.below(9) });
}

#[test]
fn pipeline_side_by_side() {
    against_all(6, Schedule::Overlapped, |random| Objective::Pipeline { batches: 1 + random.below(9) });
}

/// Bits and times of a drawn line, as large as they may be together.
fn enlarged(mut line: Line) -> Line {
    let total: u64 = line.pieces.iter().map(|piece| piece.bits + piece.state_bits).sum();
    let most = line.kinds.iter().map(|kind| kind.capacity_bits).max().unwrap_or(0).max(total).max(1);
    let bits = (1 << 60) / most;
    let times = |times: &[Option<u64>]| times.iter().flatten().copied().max().unwrap_or(0);
    let hops = line.kinds.iter().map(|kind| kind.hops_ps).max().unwrap_or(0);
    let of = |piece: &Piece| times(&piece.run_ps) + times(&piece.fetch_ps) + piece.host_ps.map_or(0, |ps| ps + hops);
    let hop = line.hop_ps.iter().flatten().copied().max().unwrap_or(0) * line.devices.len() as u64 * 5;
    let ps = MOST_PS / (line.pieces.iter().map(of).sum::<u64>() + hop).max(1);
    for piece in &mut line.pieces {
        piece.bits *= bits;
        piece.state_bits *= bits;
        piece.streamed_bits = piece.streamed_bits.saturating_mul(bits);
        piece.beside_bits.iter_mut().for_each(|size| *size = size.saturating_mul(bits));
        piece.run_ps.iter_mut().chain(&mut piece.fetch_ps).flatten().for_each(|time| *time *= ps);
        piece.host_ps = piece.host_ps.map(|time| time * ps);
    }
    for kind in &mut line.kinds {
        kind.capacity_bits *= bits;
        kind.hops_ps *= ps;
    }
    line.hop_ps.iter_mut().flatten().for_each(|time| *time *= ps);
    line
}

#[test]
fn numbers_as_large_as_they_may_be_add_up() {
    let random = &mut Random(8);
    let mut feasible = 0;
    for number in 0..1_500 {
        let schedule = if random.chance(50) { Schedule::Serial } else { Schedule::Overlapped };
        let small = line(random, schedule, 9);
        let large = enlarged(small.clone());
        let objective = [Objective::Latency, Objective::Throughput, Objective::Pipeline { batches: 4 }];
        let question = Question {
            objective: objective[random.below(3) as usize],
            any_order: random.chance(50),
            search_steps: 1_000_000,
        };
        let (one, other) = (solve(&small, &question), solve(&large, &question));
        assert_eq!(one.is_ok(), other.is_ok(), "{number}");
        if let (Ok(one), Ok(other)) = (one, other) {
            check(&large, &question, &other);
            assert!(other.is_proven() && (one.value_ps == 0) == (other.value_ps == 0), "{number}");
            feasible += 1;
        }
    }
    assert!(feasible > 500, "{feasible} have a plan");
}
