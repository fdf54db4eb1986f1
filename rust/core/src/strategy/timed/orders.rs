//! In which order devices may run something: a graph whose steps are runs.

use crate::strategy::timed::model::Line;

/// States of devices in any order, of which each is a set.
const MOST_STATES: usize = 1 << 16;

/// One more run: from a state of what is used up to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) before: usize,
    pub(crate) after: usize,
    pub(crate) kind: usize,
}

/// All turns, each after those that lead to it.
#[derive(Debug)]
pub(crate) struct Orders {
    pub(crate) turns: Vec<Turn>,
    pub(crate) states: usize,
    /// A device may be passed over, so a state has all that the one before it has; else each turn leads to a state of its own.
    pub(crate) is_given: bool,
    /// By kind: its devices.
    devices: Vec<Vec<usize>>,
}

impl Orders {
    /// Devices in the order given.
    pub(crate) fn given(line: &Line) -> Self {
        let turns = line.devices.iter().enumerate();
        let turns: Vec<Turn> = turns.map(|(device, &kind)| Turn { before: device, after: device + 1, kind }).collect();
        Self { states: turns.len() + 1, turns, is_given: true, devices: devices(line) }
    }

    /// Devices in any order, like ones counted; `None` where there are too many sets of them.
    pub(crate) fn any(line: &Line) -> Option<Self> {
        let devices = devices(line);
        let (mut strides, mut states) = (Vec::with_capacity(devices.len()), 1_usize);
        for like in &devices {
            strides.push(states);
            states = states.checked_mul(like.len() + 1).filter(|&states| states <= MOST_STATES)?;
        }
        let mut turns = Vec::new();
        for before in 0..states {
            for (kind, (&stride, like)) in strides.iter().zip(&devices).enumerate() {
                if before / stride % (like.len() + 1) < like.len() {
                    turns.push(Turn { before, after: before + stride, kind });
                }
            }
        }
        Some(Self { turns, states, is_given: false, devices })
    }

    /// Entries of tables over all turns and borders, halvings counted.
    pub(crate) fn work(&self, pieces: usize) -> u64 {
        let borders = pieces as u64 + 1;
        self.turns.len() as u64 * borders * u64::from(borders.ilog2() + 1)
    }

    /// Devices for turns that follow each other.
    pub(crate) fn devices_of(&self, turns: &[usize]) -> Vec<usize> {
        let mut used = vec![0; self.devices.len()];
        let device = |&turn: &usize| {
            let Turn { before, kind, .. } = self.turns[turn];
            used[kind] += 1;
            if self.is_given { before } else { self.devices[kind][used[kind] - 1] }
        };
        turns.iter().map(device).collect()
    }
}

fn devices(line: &Line) -> Vec<Vec<usize>> {
    let mut devices = vec![Vec::new(); line.kinds.len()];
    for (device, &kind) in line.devices.iter().enumerate() {
        devices[kind].push(device);
    }
    devices
}
