//! Sums along the line for one kind of device: what a run takes where all of it stays, and what it takes at the least.

use crate::strategy::timed::model::{Line, LineKind, Piece, Schedule};

/// What may be done with a piece in a run on one kind, and what each way takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Ways {
    /// Time where it stays.
    pub(crate) stay: Option<u64>,
    /// Time to run it and time to bring it in.
    pub(crate) fetch: Option<(u64, u64)>,
    /// Time where the host runs it.
    pub(crate) beside: Option<u64>,
}

impl Ways {
    pub(crate) fn of(line: &Line, host: Option<usize>, kind: usize, piece: &Piece) -> Self {
        let LineKind { hops_ps, is_host, .. } = line.kinds[kind];
        let is_on_host = !is_host && host.is_some_and(|host| piece.homes >> host & 1 == 1);
        let run = piece.run_ps[kind];
        Self {
            stay: run.filter(|_| piece.homes >> kind & 1 == 1),
            fetch: if is_on_host { run.zip(piece.fetch_ps[kind]) } else { None },
            beside: piece.host_ps.filter(|_| is_on_host && piece.state_bits == 0).map(|host| host + hops_ps),
        }
    }

    /// Some way leads away from the device.
    pub(crate) fn leaves(&self) -> bool {
        self.fetch.is_some() || self.beside.is_some()
    }
}

/// Sums over the first pieces, side by side: a question reads two of them.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    /// Time and room where each stays.
    run_ps: u64,
    room_bits: u64,
    /// The least time of each, and the least room, each at its own best way.
    least_ps: u64,
    least_bits: u64,
    /// Pieces that would rather not stay, or may not.
    odd: u32,
    /// Pieces for which there is no way.
    barred: u32,
}

impl Sum {
    fn with(self, schedule: Schedule, piece: &Piece, ways: &Ways) -> Self {
        let fetch = ways.fetch.map(|(run, fetch)| match schedule {
            Schedule::Serial => run + fetch,
            Schedule::Overlapped => run,
        });
        let least = [ways.stay, fetch, ways.beside].into_iter().flatten().min();
        let room_bits = piece.bits + piece.state_bits;
        let least_bits = match ways {
            Ways { beside: Some(_), .. } => 0,
            Ways { fetch: Some(_), .. } => piece.state_bits,
            _ => room_bits,
        };
        let resident = ways.stay.filter(|&run| ways.beside.is_none_or(|beside| beside >= run));
        Self {
            run_ps: self.run_ps + resident.unwrap_or(0),
            room_bits: self.room_bits + room_bits,
            least_ps: self.least_ps + least.unwrap_or(0),
            least_bits: self.least_bits + least_bits,
            odd: self.odd + u32::from(resident.is_none()),
            barred: self.barred + u32::from(least.is_none()),
        }
    }
}

/// The sums of one kind.
#[derive(Debug)]
pub(crate) struct Sums {
    borders: Vec<Sum>,
    capacity_bits: u64,
    /// Nothing can be done with any piece but let it stay.
    pub(crate) is_plain: bool,
}

impl Sums {
    /// By kind; of those that no device is of, nothing. One pass for all, so that each piece is read once.
    pub(crate) fn all(line: &Line) -> Vec<Self> {
        let host = line.kinds.iter().position(|kind| kind.is_host);
        let used: Vec<usize> = (0..line.kinds.len()).filter(|kind| line.devices.contains(kind)).collect();
        let new = |kind: &LineKind| Self { borders: Vec::new(), capacity_bits: kind.capacity_bits, is_plain: true };
        let mut all: Vec<Self> = line.kinds.iter().map(new).collect();
        for &kind in &used {
            all[kind].borders.reserve_exact(line.pieces.len() + 1);
            all[kind].borders.push(Sum::default());
        }
        for (border, piece) in line.pieces.iter().enumerate() {
            for &kind in &used {
                let ways = Ways::of(line, host, kind, piece);
                let sums = &mut all[kind];
                sums.is_plain &= !ways.leaves();
                sums.borders.push(sums.borders[border].with(line.schedule, piece, &ways));
            }
        }
        all
    }

    /// Time where all stays, which is then the best there is; `None` where something would rather not, or there is no room.
    pub(crate) fn resident(&self, from: usize, to: usize) -> Option<u64> {
        let (low, high) = (&self.borders[from], &self.borders[to]);
        let stays = low.odd == high.odd && high.room_bits - low.room_bits <= self.capacity_bits;
        stays.then(|| high.run_ps - low.run_ps)
    }

    /// A bound from below on the time; `None` where there is no run.
    pub(crate) fn least(&self, from: usize, to: usize) -> Option<u64> {
        let (low, high) = (&self.borders[from], &self.borders[to]);
        let may_run = low.barred == high.barred && high.least_bits - low.least_bits <= self.capacity_bits;
        may_run.then(|| high.least_ps - low.least_ps)
    }

    /// Time where each of the first pieces stays.
    pub(crate) fn run_ps(&self, to: usize) -> u64 {
        self.borders[to].run_ps
    }
}
