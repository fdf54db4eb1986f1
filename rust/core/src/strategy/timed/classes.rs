//! Pieces that differ in nothing but their place: a run is a vector of counts of them.

use std::collections::HashMap;

use crate::ids::id_at;
use crate::strategy::timed::model::{Line, Schedule};
use crate::strategy::timed::sums::Ways;

/// Counts that are kept for every border; beyond that they are looked up among the places of a class.
const MOST_COUNTS: usize = 1 << 25;

/// Pieces that are alike for one kind of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Class {
    bits: u64,
    state_bits: u64,
    pub(crate) streamed_bits: u64,
    beside_bits: u64,
    pub(crate) ways: Ways,
}

/// One way of a class: room, and time of running and of bringing in. Where one follows the other, all is running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) is_fetch: bool,
    pub(crate) is_stay: bool,
    pub(crate) room_bits: u64,
    pub(crate) run_ps: u64,
    pub(crate) fetch_ps: u64,
}

impl Choice {
    fn beats(&self, other: &Self) -> bool {
        self.room_bits <= other.room_bits && self.run_ps <= other.run_ps && self.fetch_ps <= other.fetch_ps
    }
}

impl Class {
    /// No way takes longer.
    pub(crate) fn most_ps(&self) -> u64 {
        let fetch = self.ways.fetch.map(|(run, fetch)| run + fetch);
        [self.ways.stay, fetch, self.ways.beside].into_iter().flatten().max().unwrap_or(0)
    }

    /// Sizes that one of it may ask room for on the device of its run, beside what lies there.
    pub(crate) fn staged_bits(&self) -> impl Iterator<Item = u64> {
        let fetched = self.ways.fetch.map(|_| self.streamed_bits);
        let beside = self.ways.beside.map(|_| self.beside_bits).filter(|&bits| bits > 0);
        fetched.into_iter().chain(beside)
    }

    /// What may be worth doing with one of it, where room is kept for nothing larger than `largest`, or for nothing: first to stay.
    pub(crate) fn choices(&self, schedule: Schedule, largest: Option<u64>) -> Vec<Choice> {
        let stay = self.ways.stay.map(|run_ps| Choice {
            is_fetch: false,
            is_stay: true,
            room_bits: self.bits + self.state_bits,
            run_ps,
            fetch_ps: 0,
        });
        let fetch = self.ways.fetch.filter(|_| largest.is_some_and(|largest| self.streamed_bits <= largest)).map(
            |(run, fetch)| {
                let (run_ps, fetch_ps) = match schedule {
                    Schedule::Serial => (run + fetch, 0),
                    Schedule::Overlapped => (run, fetch),
                };
                Choice { is_fetch: true, is_stay: false, room_bits: self.state_bits, run_ps, fetch_ps }
            },
        );
        let is_kept = self.beside_bits == 0 || largest.is_some_and(|largest| self.beside_bits <= largest);
        let beside = self.ways.beside.filter(|_| is_kept).map(|run_ps| Choice {
            is_fetch: false,
            is_stay: false,
            room_bits: 0,
            run_ps,
            fetch_ps: 0,
        });
        let all: Vec<Choice> = [stay, fetch, beside].into_iter().flatten().collect();
        let is_beaten = |index: usize| {
            all.iter().enumerate().any(|(other, choice)| {
                other != index && choice.beats(&all[index]) && (other < index || !all[index].beats(choice))
            })
        };
        (0..all.len()).filter(|&index| !is_beaten(index)).map(|index| all[index]).collect()
    }
}

/// The classes of a line for one kind, and how many of each lie between two borders.
#[derive(Debug)]
pub(crate) struct Classes {
    pub(crate) all: Vec<Class>,
    of_piece: Vec<u32>,
    counts: Counts,
}

#[derive(Debug)]
enum Counts {
    /// By border and class: how many of the pieces before it are of the class.
    Table(Vec<u32>),
    /// By class: its pieces.
    Places(Vec<Vec<u32>>),
}

impl Classes {
    pub(crate) fn new(line: &Line, kind: usize) -> Self {
        let host = line.kinds.iter().position(|kind| kind.is_host);
        let (mut all, mut numbers, mut of_piece) = (Vec::new(), HashMap::new(), Vec::with_capacity(line.pieces.len()));
        for piece in &line.pieces {
            let class = Class {
                bits: piece.bits,
                state_bits: piece.state_bits,
                streamed_bits: piece.streamed_bits,
                beside_bits: piece.beside_bits[kind],
                ways: Ways::of(line, host, kind, piece),
            };
            let number = *numbers.entry(class).or_insert_with(|| {
                all.push(class);
                id_at(all.len() - 1)
            });
            of_piece.push(number);
        }
        let counts = Counts::new(&of_piece, all.len());
        Self { all, of_piece, counts }
    }

    /// How many pieces of a class lie between two borders.
    pub(crate) fn count(&self, class: usize, from: usize, to: usize) -> u32 {
        let width = self.all.len();
        match &self.counts {
            Counts::Table(table) => table[to * width + class] - table[from * width + class],
            Counts::Places(places) => {
                let before = |border: usize| places[class].partition_point(|&piece| (piece as usize) < border);
                id_at(before(to) - before(from))
            }
        }
    }

    /// The classes between two borders, with how many there are of each.
    pub(crate) fn between(&self, from: usize, to: usize) -> Vec<(u32, u32)> {
        if to - from < self.all.len() {
            let mut classes = self.of_piece[from..to].to_vec();
            classes.sort_unstable();
            return classes.chunk_by(|one, other| one == other).map(|like| (like[0], id_at(like.len()))).collect();
        }
        let counted = (0..self.all.len()).map(|class| (id_at(class), self.count(class, from, to)));
        counted.filter(|&(_, count)| count > 0).collect()
    }

    /// The class of a piece.
    pub(crate) fn of(&self, piece: usize) -> usize {
        self.of_piece[piece] as usize
    }
}

impl Counts {
    fn new(of_piece: &[u32], classes: usize) -> Self {
        if (of_piece.len() + 1).saturating_mul(classes) > MOST_COUNTS {
            let mut places = vec![Vec::new(); classes];
            for (piece, &class) in of_piece.iter().enumerate() {
                places[class as usize].push(id_at(piece));
            }
            return Self::Places(places);
        }
        let mut table = vec![0; (of_piece.len() + 1) * classes];
        for (piece, &class) in of_piece.iter().enumerate() {
            table.copy_within(piece * classes..(piece + 1) * classes, (piece + 1) * classes);
            table[(piece + 1) * classes + class as usize] += 1;
        }
        Self::Table(table)
    }
}
