//! Plans by time of pieces that share their weights, against every home of theirs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::cast_possible_truncation)] // small numbers are drawn

mod drawn;

use planner_core::timed::{
    Line, LineFailure, LineKind, Objective, Passing, Piece, PieceWay, Question, Schedule, SummedLine, Tie, TimedPlan,
};

use drawn::Random;

struct Instance {
    line: Line,
    tie: Tie,
    question: Question,
}

const HOST: usize = 2;

fn instance(random: &mut Random) -> Instance {
    let time = |random: &mut Random, end| random.chance(93).then(|| random.below(end));
    let count = 2 + random.below(3) as usize;
    let pieces: Vec<Piece> = (0..count)
        .map(|_| {
            let bits = random.below(9);
            Piece {
                bits,
                state_bits: if random.chance(20) { 1 + random.below(3) } else { 0 },
                streamed_bits: bits,
                homes: if random.chance(85) { 7 } else { 1 + random.below(7) },
                run_ps: (0..3).map(|_| time(random, 14)).collect(),
                fetch_ps: (0..3).map(|_| time(random, 25)).collect(),
                host_ps: time(random, 25),
                beside_bits: (0..3).map(|_| if random.chance(40) { random.below(9) } else { 0 }).collect(),
            }
        })
        .collect();
    let mut tied: Vec<usize> = (0..count).filter(|_| random.chance(60)).collect();
    if tied.len() < 2 {
        tied = vec![0, count - 1];
    }
    let kind =
        |random: &mut Random, is_host| LineKind { capacity_bits: random.below(24), hops_ps: random.below(6), is_host };
    let mut devices = vec![0, random.below(2) as usize];
    if random.chance(50) {
        devices.insert(random.below(3) as usize, HOST);
    }
    let schedule = if random.chance(50) { Schedule::Serial } else { Schedule::Overlapped };
    let objective = [Objective::Latency, Objective::Throughput, Objective::Pipeline { batches: 3 }];
    let passing = (0..count).map(|_| Passing { on: random.below(4), back: random.below(3) }).collect();
    Instance {
        line: Line {
            pieces,
            kinds: vec![kind(random, false), kind(random, false), kind(random, true)],
            devices,
            hop_ps: (0..3).map(|_| (0..3).map(|_| random.below(6)).collect()).collect(),
            passing: if random.chance(50) { passing } else { Vec::new() },
            schedule,
            staging_blocks: 1 + random.below(2),
        },
        tie: Tie { pieces: tied, bits: random.below(9) },
        question: Question {
            objective: objective[random.below(3) as usize],
            any_order: random.chance(50),
            search_steps: 1_000_000,
        },
    }
}

/// A run, and where the tie is at home: on the host, or in the run of this device.
#[derive(Clone, Copy)]
struct Asked {
    device: usize,
    from: usize,
    to: usize,
    home: Option<usize>,
}

impl Instance {
    fn kind(&self, device: usize) -> usize {
        self.line.devices[device]
    }

    /// Time and room of a piece in one way, with the largest that is brought in; `None` where that is not allowed.
    fn piece(&self, asked: Asked, number: usize, way: PieceWay) -> Option<(u64, u64, u64, u64)> {
        let (piece, kind) = (&self.line.pieces[number], self.kind(asked.device));
        let is_tied = self.tie.pieces.contains(&number);
        let is_host = kind == HOST;
        let lies = |kind: usize| piece.homes & 1 << kind != 0;
        let all_lie = |kind: usize| self.tie.pieces.iter().all(|&tied| self.line.pieces[tied].homes & 1 << kind != 0);
        let may_leave = !is_host && if is_tied { asked.home.is_none() && all_lie(HOST) } else { lies(HOST) };
        match way {
            PieceWay::Resident if is_tied => {
                let is_home = asked.home == Some(asked.device) || (asked.home.is_none() && is_host);
                (is_home && all_lie(kind)).then_some(())?;
                Some((piece.run_ps[kind]?, 0, piece.state_bits, 0))
            }
            PieceWay::Resident => {
                lies(kind).then_some(())?;
                Some((piece.run_ps[kind]?, 0, piece.bits + piece.state_bits, 0))
            }
            PieceWay::Fetched => {
                may_leave.then_some(())?;
                Some((piece.run_ps[kind]?, piece.fetch_ps[kind]?, piece.state_bits, piece.streamed_bits))
            }
            PieceWay::Beside => {
                (may_leave && piece.state_bits == 0).then_some(())?;
                Some((piece.host_ps? + self.line.kinds[kind].hops_ps, 0, 0, piece.beside_bits[kind]))
            }
            PieceWay::Tied => {
                let home = self.kind(asked.home.filter(|&home| is_tied && home != asked.device)?);
                (all_lie(home) && piece.state_bits == 0).then_some(())?;
                let hops = self.line.hop_ps[kind][home] + self.line.hop_ps[home][kind];
                Some((piece.run_ps[home]? + hops, 0, 0, 0))
            }
        }
    }

    fn run_ps(&self, asked: Asked, ways: &[PieceWay]) -> Option<u64> {
        let kind = self.kind(asked.device);
        let has_weights = |number: usize| self.tie.pieces.contains(&number);
        let is_home = asked.home == Some(asked.device) || (asked.home.is_none() && kind == HOST);
        let (mut running, mut fetching, mut largest) = (0, 0, 0);
        let mut room = if is_home && (asked.from..asked.to).any(has_weights) { self.tie.bits } else { 0 };
        for (number, &way) in (asked.from..asked.to).zip(ways) {
            let (run, fetch, bits, streamed) = self.piece(asked, number, way)?;
            (running, fetching, room, largest) = (running + run, fetching + fetch, room + bits, streamed.max(largest));
        }
        let is_serial = self.line.schedule == Schedule::Serial;
        let fits = room + self.line.staging_blocks * largest <= self.line.kinds[kind].capacity_bits;
        fits.then(|| if is_serial { running + fetching } else { running.max(fetching) })
    }

    fn best_run(&self, asked: Asked) -> Option<u64> {
        const WAYS: [PieceWay; 4] = [PieceWay::Resident, PieceWay::Fetched, PieceWay::Beside, PieceWay::Tied];
        let length = asked.to - asked.from;
        let ways = |number: usize| -> Vec<PieceWay> {
            (0..length).map(|piece| WAYS[number / 4_usize.pow(piece as u32) % 4]).collect()
        };
        (0..4_usize.pow(length as u32)).filter_map(|number| self.run_ps(asked, &ways(number))).min()
    }

    fn hop_ps(&self, piece: usize, from: usize, to: usize) -> u64 {
        let Passing { on, back } = self.line.passing.get(piece).copied().unwrap_or_default();
        on * self.line.hop_ps[from][to] + back * self.line.hop_ps[to][from]
    }

    /// Of runs by device, first piece and time.
    fn value(&self, runs: &[(usize, usize, u64)]) -> u64 {
        let hop = |pair: &[(usize, usize, u64)]| self.hop_ps(pair[1].1, self.kind(pair[0].0), self.kind(pair[1].0));
        let latency: u64 = runs.iter().map(|&(.., ps)| ps).sum::<u64>() + runs.windows(2).map(hop).sum::<u64>();
        let longest = runs.iter().map(|&(.., ps)| ps).max().unwrap_or(0);
        match self.question.objective {
            Objective::Latency => latency,
            Objective::Throughput => longest,
            Objective::Pipeline { batches } => latency + (batches - 1) * longest,
        }
    }

    /// Homes that runs of these devices leave: the host, and every device that runs some of the tie.
    fn homes(&self, runs: &[(usize, usize, usize)]) -> Vec<Option<usize>> {
        let has = |from: usize, to: usize| self.tie.pieces.iter().any(|piece| (from..to).contains(piece));
        let devices = runs.iter().filter(|&&(device, from, to)| has(from, to) && self.kind(device) != HOST);
        std::iter::once(None).chain(devices.map(|&(device, ..)| Some(device))).collect()
    }

    fn extend(&self, from: usize, runs: &mut Vec<(usize, usize, usize)>, best: &mut Option<u64>) {
        if from == self.line.pieces.len() {
            for home in self.homes(runs) {
                let time = |&(device, from, to): &(usize, usize, usize)| {
                    self.best_run(Asked { device, from, to, home }).map(|ps| (device, from, ps))
                };
                if let Some(times) = runs.iter().map(time).collect::<Option<Vec<_>>>() {
                    let value = self.value(&times);
                    *best = Some(best.map_or(value, |best| best.min(value)));
                }
            }
            return;
        }
        for device in 0..self.line.devices.len() {
            let is_next = self.question.any_order || runs.last().is_none_or(|&(last, ..)| device > last);
            if runs.iter().any(|&(used, ..)| used == device) || !is_next {
                continue;
            }
            for to in from + 1..=self.line.pieces.len() {
                let is_cut = self.line.passing.get(to).is_some_and(|passing| passing.back > 0);
                if self.kind(device) == HOST && is_cut {
                    continue;
                }
                runs.push((device, from, to));
                self.extend(to, runs, best);
                runs.pop();
            }
        }
    }

    /// Whether the plan is one, with some home of the tie, and takes what it says.
    fn check(&self, plan: &TimedPlan) {
        let runs: Vec<_> = plan.runs.iter().map(|run| (run.device, run.from, run.to)).collect();
        let takes = |home: Option<usize>| {
            let time = |run: &planner_core::timed::TimedRun| {
                self.run_ps(Asked { device: run.device, from: run.from, to: run.to, home }, &run.ways)
            };
            plan.runs.iter().map(time).collect::<Option<Vec<u64>>>()
        };
        let said: Vec<u64> = plan.runs.iter().map(|run| run.ps).collect();
        assert!(self.homes(&runs).into_iter().any(|home| takes(home).as_ref() == Some(&said)), "{plan:?}");
        let times: Vec<_> = plan.runs.iter().map(|run| (run.device, run.from, run.ps)).collect();
        assert_eq!(self.value(&times), plan.value_ps);
    }
}

#[test]
fn one_home_for_what_is_tied() {
    let random = &mut Random(7);
    let (mut feasible, mut tied) = (0, 0);
    for number in 0..3_000 {
        let instance = instance(random);
        let mut best = None;
        instance.extend(0, &mut Vec::new(), &mut best);
        let line = SummedLine::new(&instance.line, std::slice::from_ref(&instance.tie)).unwrap();
        match line.solve(&instance.question) {
            Ok(plan) => {
                instance.check(&plan);
                assert_eq!((Some(plan.value_ps), plan.is_proven()), (best, true), "{number}: {:?}", instance.line);
                feasible += 1;
                tied += u32::from(plan.runs.iter().any(|run| run.ways.contains(&PieceWay::Tied)));
            }
            Err(failure) => {
                assert_eq!((failure, best), (LineFailure::Infeasible { is_proven: true }, None), "{number}");
            }
        }
    }
    assert!(feasible > 1_000 && tied > 50, "{feasible} have a plan, {tied} one that runs something at its home");
}

#[test]
fn ties_name_pieces_of_the_line_once() {
    let line = instance(&mut Random(1)).line;
    for pieces in [vec![1, 0], vec![0, 9], vec![0, 0], vec![]] {
        let found = SummedLine::new(&line, &[Tie { pieces, bits: 1 }]).err();
        assert_eq!(found, Some(LineFailure::WrongTie { tie: 0 }));
    }
    let twice = [Tie { pieces: vec![0, 1], bits: 1 }, Tie { pieces: vec![1], bits: 1 }];
    assert_eq!(SummedLine::new(&line, &twice).err(), Some(LineFailure::WrongTie { tie: 1 }));
}
