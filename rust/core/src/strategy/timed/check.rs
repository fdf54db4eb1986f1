//! What makes a line impossible to read, and why there is no plan of one.

use crate::devices::MOST_BITS;
use crate::strategy::timed::model::{Line, MOST_PS, Objective, Passing, Piece, Question};

/// A set of kinds, or of devices, is a word of the machine.
const MOST_DEVICES: usize = 64;

/// Numbers of pieces take half a word in tables.
const MOST_PIECES: usize = 1 << 20;

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineFailure {
    /// Occurs when no plan keeps within the rooms, or none was found.
    #[error("no plan of runs keeps within the rooms of the devices")]
    Infeasible {
        /// There is none.
        is_proven: bool,
    },
    /// Occurs when there is more of something than a plan can have.
    #[error("{count} {what}, and at most {most} can be planned")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        most: usize,
    },
    /// Occurs when a list has not one entry for each of what it is about.
    #[error("{what} of {owner} has {count} entries, not {wanted}")]
    WrongLength {
        /// The list.
        what: &'static str,
        /// Whose it is.
        owner: String,
        /// Its entries.
        count: usize,
        /// As many as there should be.
        wanted: usize,
    },
    /// Occurs when a device is of a kind that is not there.
    #[error("device {device} is of kind {kind}, and there are {kinds}, counted from 0")]
    UnknownKind {
        /// The device.
        device: usize,
        /// Its kind.
        kind: usize,
        /// Kinds.
        kinds: usize,
    },
    /// Occurs when there are several hosts, as kinds or as devices.
    #[error("{count} {what} are the host, and at most one can be")]
    SeveralHosts {
        /// Kinds or devices.
        what: &'static str,
        /// How many.
        count: usize,
    },
    /// Occurs when a tie's pieces are not there, not ascending, or tied already.
    #[error("the pieces of tie {tie} must be pieces of the line, each once, in order, and in no other tie")]
    WrongTie {
        /// The tie.
        tie: usize,
    },
    /// Occurs when numbers are too large to be added.
    #[error("{what} come to {total}, and at most {most} can be planned")]
    TooLarge {
        /// What is added.
        what: &'static str,
        /// What it comes to.
        total: u128,
        /// What it may come to.
        most: u128,
    },
    /// Occurs when a pipeline is asked for with nothing to go through it.
    #[error("a pipeline has at least one batch")]
    NoBatches,
}

/// Whether a line can be read, and the most that all its times come to.
pub(crate) fn check(line: &Line) -> Result<u64, LineFailure> {
    let kinds = line.kinds.len();
    for (what, count, most) in [
        ("kinds of devices", kinds, MOST_DEVICES),
        ("devices", line.devices.len(), MOST_DEVICES),
        ("pieces", line.pieces.len(), MOST_PIECES),
    ] {
        if count > most {
            return Err(LineFailure::TooMany { what, count, most });
        }
    }
    if let Some((device, &kind)) = line.devices.iter().enumerate().find(|&(_, &kind)| kind >= kinds) {
        return Err(LineFailure::UnknownKind { device, kind, kinds });
    }
    let hosts = line.kinds.iter().filter(|kind| kind.is_host).count();
    let host_devices = line.devices.iter().filter(|&&kind| line.kinds[kind].is_host).count();
    for (what, count) in [("kinds", hosts), ("devices", host_devices)] {
        if count > 1 {
            return Err(LineFailure::SeveralHosts { what, count });
        }
    }
    lengths(line)?;
    sums(line)
}

fn lengths(line: &Line) -> Result<(), LineFailure> {
    let wanted = line.kinds.len();
    let lists = line.pieces.iter().enumerate().flat_map(|(piece, said)| {
        let of_piece = move |what, count| (what, "piece", piece, count);
        let beside = of_piece("beside", said.beside_bits.len());
        [of_piece("run", said.run_ps.len()), of_piece("fetch", said.fetch_ps.len()), beside]
    });
    let rows = line.hop_ps.iter().enumerate().map(|(kind, row)| ("hop", "kind", kind, row.len()));
    let wrong = lists.chain(rows).find(|&(.., count)| count != wanted);
    if let Some((what, owner, number, count)) = wrong {
        return Err(LineFailure::WrongLength { what, owner: format!("{owner} {number}"), count, wanted });
    }
    let (count, borders) = (line.passing.len(), line.pieces.len());
    if count != 0 && count != borders {
        return Err(LineFailure::WrongLength { what: "passing", owner: "the line".into(), count, wanted: borders });
    }
    let count = line.hop_ps.len();
    if count == wanted {
        Ok(())
    } else {
        Err(LineFailure::WrongLength { what: "hop", owner: "the line".into(), count, wanted })
    }
}

/// So that nothing that is added later can overflow.
fn sums(line: &Line) -> Result<u64, LineFailure> {
    let most_bits = u128::from(MOST_BITS);
    let room = |piece: &Piece| u128::from(piece.bits) + u128::from(piece.state_bits);
    within("bits of all pieces", line.pieces.iter().map(room).sum(), most_bits)?;
    let capacity = line.kinds.iter().map(|kind| kind.capacity_bits).max().unwrap_or(0);
    within("bits of a device", u128::from(capacity), most_bits)?;
    let hops = line.kinds.iter().map(|kind| kind.hops_ps).max().unwrap_or(0);
    let most = |times: &[Option<u64>]| u128::from(times.iter().flatten().copied().max().unwrap_or(0));
    let time = |piece: &Piece| {
        let beside = piece.host_ps.map_or(0, |host| u128::from(host) + u128::from(hops));
        most(&piece.run_ps) + most(&piece.fetch_ps) + beside
    };
    let hop = line.hop_ps.iter().flatten().copied().max().unwrap_or(0);
    let often = |passing: &Passing| u128::from(passing.on) + u128::from(passing.back);
    let passing = line.passing.iter().map(often).max().unwrap_or(0).max(1);
    let all = line.pieces.iter().map(time).sum::<u128>() + passing * u128::from(hop) * line.devices.len() as u128;
    within("picoseconds of all pieces and hops", all, u128::from(MOST_PS))?;
    Ok(u64::try_from(all).unwrap_or(MOST_PS))
}

/// Whether a question can be asked of a line whose times come to so much.
pub(crate) fn check_question(question: &Question, all_ps: u64) -> Result<(), LineFailure> {
    match question.objective {
        Objective::Pipeline { batches: 0 } => Err(LineFailure::NoBatches),
        Objective::Pipeline { batches } => {
            within("picoseconds of all batches", u128::from(all_ps) * u128::from(batches), u128::from(MOST_PS) * 4)
        }
        Objective::Latency | Objective::Throughput => Ok(()),
    }
}

fn within(what: &'static str, total: u128, most: u128) -> Result<(), LineFailure> {
    if total <= most { Ok(()) } else { Err(LineFailure::TooLarge { what, total, most }) }
}
