//! Pieces that share their weights: one home for all of them, and every place that it may have.
//!
//! Of a tie, either all lie on the host, or some neighbours among them are in one run that has the weights, and the others run there
//! too, at two hops. Each of these is a line without ties: borders between the neighbours are closed, the first of them has the
//! weights, and those elsewhere take no room and more time.

use crate::strategy::timed::check::LineFailure;
use crate::strategy::timed::model::{Line, PieceWay, TimedPlan};

/// Lines that may stand for one with ties.
const MOST_LINES: usize = 1 << 10;

/// Pieces that share their weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tie {
    /// Its pieces, ascending; their own bits do not count.
    pub pieces: Vec<usize>,
    /// What they take together where they are at home.
    pub bits: u64,
}

/// A line in which every tie has a home.
#[derive(Debug)]
pub(crate) struct Settled {
    pub(crate) line: Line,
    /// Borders at which no run may end.
    pub(crate) closed: Vec<bool>,
    /// Pieces that run at home, from within another run.
    away: Vec<usize>,
}

impl Settled {
    /// A plan of this line in words of the line with ties.
    pub(crate) fn named(&self, mut plan: TimedPlan) -> TimedPlan {
        for run in &mut plan.runs {
            for &piece in self.away.iter().filter(|&&piece| (run.from..run.to).contains(&piece)) {
                run.ways[piece - run.from] = PieceWay::Tied;
            }
        }
        plan
    }
}

/// Where the weights of one tie are.
#[derive(Debug, Clone, Copy)]
enum Home {
    /// On the host, whose own run has none of the pieces.
    Host(usize),
    /// On a device of a kind that runs these, counted within the tie.
    Device { kind: usize, first: usize, last: usize },
}

/// Whether ties can be read.
pub(crate) fn check_ties(line: &Line, ties: &[Tie]) -> Result<(), LineFailure> {
    let mut is_tied = vec![false; line.pieces.len()];
    for (number, tie) in ties.iter().enumerate() {
        let is_ascending = tie.pieces.windows(2).all(|pair| pair[0] < pair[1]);
        let is_there = tie.pieces.last().is_some_and(|&piece| piece < line.pieces.len());
        if !is_ascending || !is_there || tie.pieces.iter().any(|&piece| std::mem::replace(&mut is_tied[piece], true)) {
            return Err(LineFailure::WrongTie { tie: number });
        }
    }
    let count = ties.iter().map(|tie| homes(line, tie).len()).fold(1, usize::saturating_mul);
    if count > MOST_LINES {
        return Err(LineFailure::TooMany { what: "combinations of homes of ties", count, most: MOST_LINES });
    }
    Ok(())
}

/// Every line without ties that may stand for this one.
pub(crate) fn settled(line: &Line, ties: &[Tie]) -> Vec<Settled> {
    let mut all = vec![Settled { line: line.clone(), closed: vec![false; line.pieces.len() + 1], away: Vec::new() }];
    for tie in ties {
        let homes = homes(line, tie);
        all = all.iter().flat_map(|settled| homes.iter().map(|&home| settle(settled, tie, home))).collect();
    }
    all
}

fn homes(line: &Line, tie: &Tie) -> Vec<Home> {
    let may_be = |kind: usize| tie.pieces.iter().all(|&piece| line.pieces[piece].homes >> kind & 1 == 1);
    let host = line.kinds.iter().position(|kind| kind.is_host).filter(|&host| may_be(host));
    let mut homes: Vec<Home> = host.map(Home::Host).into_iter().collect();
    for kind in (0..line.kinds.len()).filter(|kind| line.devices.contains(kind) && may_be(*kind)) {
        // Most neighbours first: of equal plans, that one is taken in which none runs from elsewhere that need not.
        for others in (0..tie.pieces.len()).rev() {
            let firsts = 0..tie.pieces.len() - others;
            homes.extend(firsts.map(|first| Home::Device { kind, first, last: first + others }));
        }
    }
    homes
}

fn settle(before: &Settled, tie: &Tie, home: Home) -> Settled {
    let Settled { mut line, mut closed, mut away } =
        Settled { line: before.line.clone(), closed: before.closed.clone(), away: before.away.clone() };
    for (number, &piece) in tie.pieces.iter().enumerate() {
        let hop_ps = &line.hop_ps;
        let said = &mut line.pieces[piece];
        said.bits = 0;
        match home {
            Home::Device { kind, first, last } if (first..=last).contains(&number) => {
                said.bits = if number == first { tie.bits } else { 0 };
                said.homes = 1 << kind;
                said.host_ps = None;
            }
            Home::Device { kind, .. } if !line.kinds[kind].is_host => {
                // A cache never crosses, so what has one is not run from elsewhere.
                let run = said.run_ps[kind].filter(|_| said.state_bits == 0);
                let hops = |from: usize| hop_ps[from][kind] + hop_ps[kind][from];
                said.run_ps = (0..hop_ps.len()).map(|from| run.map(|run| run + hops(from))).collect();
                said.fetch_ps = vec![None; hop_ps.len()];
                said.host_ps = None;
                said.homes = u64::MAX;
                away.push(piece);
            }
            Home::Device { kind: host, .. } | Home::Host(host) => {
                said.homes = 1 << host;
                said.run_ps[host] = None;
            }
        }
    }
    if let Home::Device { first, last, .. } = home {
        closed[tie.pieces[first] + 1..=tie.pieces[last]].fill(true);
    }
    Settled { line, closed, away }
}
