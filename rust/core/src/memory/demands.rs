//! What each block of a recorded run needs, in three numbers, and what blocks share: what planning adds up by device.
//!
//! A storage that a forward makes and leaves behind is *kept*; one that outlives the block after the one that was running is
//! *lasting*; all others pass. What so many blocks get that all devices hold it is *shared*.

use crate::memory::tape::{Event, NO_STORAGE, Tape};

/// What so many blocks get, all devices hold; what fewer get, they hold while they run.
const MANY: u32 = 3;

/// What one block needs.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// Kept from one forward to the next.
    pub cache: i128,
    /// There until the forward ends.
    pub lasting: i128,
    /// At once, beyond these, with its arguments and what the block before left.
    pub at_once: i128,
    /// Of what it keeps, what rests on the cpu.
    pub resting: i128,
}

/// What a run needs.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct RunNeeds {
    /// By place; of each number, the largest of all phases.
    pub places: Vec<Needs>,
    /// What all devices that run anything hold once.
    pub shared: i128,
    /// Places in the order in which they were called first.
    pub order: Vec<u32>,
}

/// What the forwards of one kind need; what was before them is there.
///
/// `sizes` are the bytes of the tape; `kind` is what the names of phases begin with.
pub fn demands(tape: &Tape, sizes: &[i128], kind: &str) -> RunNeeds {
    let places = tape.places();
    let mut found = RunNeeds { places: vec![Needs::default(); places], ..RunNeeds::default() };
    let mut is_met = vec![false; places];
    let beside = beside_blocks(tape);
    let mut alive: Vec<Option<(u32, i128)>> = vec![None; tape.storages as usize];
    let mut resting = Resting::new(tape);
    let mut start = None;
    for (at, event) in tape.events.iter().enumerate() {
        match *event {
            Event::Phase(phase) if tape.phases[phase as usize].starts_with(kind) => {
                start = Some((at, alive.clone()));
                resting.begin();
            }
            Event::After => {
                if let Some((begin, before)) = start.take() {
                    let phase = Phase { tape, sizes, beside: &beside, events: &tape.events[begin..at], before };
                    phase.join(&mut found, &mut is_met);
                    resting.look();
                    for (needs, most) in found.places.iter_mut().zip(&resting.most) {
                        needs.resting = needs.resting.max(*most);
                    }
                }
            }
            Event::Made { storage, size, place, .. } if storage != NO_STORAGE => {
                alive[storage as usize] = Some((beside[place as usize], sizes[size as usize]));
            }
            Event::Free(storage) if storage != NO_STORAGE => {
                alive[storage as usize] = None;
                resting.free(storage);
            }
            Event::Rest { storage, size, place } if storage != NO_STORAGE => {
                resting.rest(storage, beside[place as usize], sizes[size as usize]);
            }
            Event::Enter(..) => resting.look(),
            _ => {}
        }
    }
    found
}

/// By block, the most that rests on the cpu of what it keeps, as other blocks find it.
struct Resting {
    storages: Vec<Option<(u32, i128)>>,
    now: Vec<i128>,
    most: Vec<i128>,
    is_any: bool,
}

impl Resting {
    fn new(tape: &Tape) -> Self {
        let nothing = vec![0; tape.places()];
        Self { storages: vec![None; tape.storages as usize], most: nothing.clone(), now: nothing, is_any: false }
    }

    /// A forward begins: of what was before, only what is there counts.
    fn begin(&mut self) {
        self.most.clone_from(&self.now);
    }

    fn rest(&mut self, storage: u32, place: u32, size: i128) {
        self.is_any = true;
        self.storages[storage as usize] = Some((place, size));
        self.now[place as usize] += size;
    }

    fn free(&mut self, storage: u32) {
        if let Some((place, size)) = self.storages[storage as usize].take() {
            self.now[place as usize] -= size;
        }
    }

    fn look(&mut self) {
        if self.is_any {
            for (most, now) in self.most.iter_mut().zip(&self.now) {
                *most = (*most).max(*now);
            }
        }
    }
}

/// By place, that of the block beside which what lies there is counted: what a border around blocks has brought lies beside the
/// tensor whose device it runs on or, without one, beside the first block inside, because these are mostly on one device.
fn beside_blocks(tape: &Tape) -> Vec<u32> {
    let carried = tape.carried.iter().map(|&(enclosing, _)| {
        let around = &tape.enclosing[enclosing as usize];
        around.own.unwrap_or(around.inside[0])
    });
    (0..=tape.blocks).chain(carried).collect()
}

/// One forward of a tape.
struct Phase<'a> {
    tape: &'a Tape,
    sizes: &'a [i128],
    beside: &'a [u32],
    events: &'a [Event],
    /// By storage, place and bytes of what is there when it begins.
    before: Vec<Option<(u32, i128)>>,
}

/// A storage that the forward makes: its place, its bytes, and how many blocks had begun.
#[derive(Clone, Copy)]
struct Storage {
    place: u32,
    size: i128,
    begun: u32,
}

/// What one reading of a forward tells.
struct Read {
    made: Vec<Option<Storage>>,
    gone: Vec<Option<u32>>,
    is_shared: Vec<bool>,
    is_held: Vec<bool>, // by storage: in some shared argument
    shared: i128,
    result: i128,
    order: Vec<u32>,
}

impl Phase<'_> {
    fn join(&self, found: &mut RunNeeds, is_met: &mut [bool]) {
        let read = self.read();
        let places = self.tape.places();
        let (mut kept, mut lasting) = (vec![0; places], vec![0; places]);
        let mut stays = vec![false; read.made.len()]; // not among what passes
        for (storage, made) in read.made.iter().enumerate() {
            let Some(Storage { place, size, begun }) = *made else { continue };
            match read.gone[storage] {
                None => kept[place as usize] += size,
                // Counted as shared, wherever it was made.
                Some(_) if read.is_held[storage] => stays[storage] = true,
                Some(gone) if gone > begun + 1 => {
                    lasting[place as usize] += size;
                    stays[storage] = true;
                }
                Some(_) => {}
            }
        }
        let (was, level) = self.levels(&read, &kept);
        let passing = self.passing(&was, &level, &stays);
        let (own, left) = self.arguments(&read, &stays);
        for place in 0..places {
            let mut at_once = passing[place] + own[place] + left[place];
            if place == 0 {
                at_once = at_once.max(read.result);
            }
            let most = &mut found.places[place];
            most.cache = most.cache.max(level[place]);
            most.lasting = most.lasting.max(lasting[place]);
            most.at_once = most.at_once.max(at_once);
        }
        found.shared = found.shared.max(read.shared);
        for &place in &read.order {
            if !is_met[place as usize] {
                is_met[place as usize] = true;
                found.order.push(place);
            }
        }
    }

    fn size(&self, size: u32) -> i128 {
        self.sizes[size as usize]
    }

    fn read(&self) -> Read {
        let (storages, tensors) = (self.tape.storages as usize, self.tape.tensors as usize);
        let mut read = Read {
            made: vec![None; storages],
            gone: vec![None; storages],
            is_shared: vec![false; tensors],
            is_held: vec![false; storages],
            shared: 0,
            result: 0,
            order: Vec::new(),
        };
        let mut users = vec![(0_u32, [0_u32; MANY as usize]); tensors];
        let mut rows = vec![(NO_STORAGE, 0_i128); tensors];
        let mut begun = 0;
        for event in self.events {
            match *event {
                Event::Made { storage, size, place, .. } if storage != NO_STORAGE => {
                    let place = self.beside[place as usize];
                    read.made[storage as usize] = Some(Storage { place, size: self.size(size), begun });
                }
                Event::Free(storage) if storage != NO_STORAGE => read.gone[storage as usize] = Some(begun),
                Event::Enter(place, span) => {
                    begun += 1;
                    read.order.push(place);
                    for row in self.tape.rows(span) {
                        let (count, places) = &mut users[row.tensor as usize];
                        if *count < MANY && !places[..*count as usize].contains(&place) {
                            places[*count as usize] = place;
                            *count += 1;
                        }
                        rows[row.tensor as usize] = (row.storage, self.size(row.size));
                    }
                }
                Event::Output(span) => {
                    let beyond = self.tape.rows(span).iter().filter(|row| row.place != 0);
                    read.result = beyond.map(|row| self.size(row.size)).sum();
                }
                _ => {}
            }
        }
        for (tensor, &(count, _)) in users.iter().enumerate() {
            if count == MANY {
                read.is_shared[tensor] = true;
                if let Some(held) = read.is_held.get_mut(rows[tensor].0 as usize) {
                    *held = true;
                }
            }
        }
        read.shared = self.most_shared(&read, &rows);
        read
    }

    /// What blocks share at once: an encoder's arguments are gone when the decoder runs.
    fn most_shared(&self, read: &Read, rows: &[(u32, i128)]) -> i128 {
        let (mut now, mut most) = (0, 0);
        let mut is_alive = vec![false; rows.len()];
        for event in self.events {
            match *event {
                Event::Enter(_, span) => {
                    for row in self.tape.rows(span) {
                        let tensor = row.tensor as usize;
                        if read.is_shared[tensor] && !is_alive[tensor] {
                            is_alive[tensor] = true;
                            now += self.size(row.size);
                        }
                    }
                    most = most.max(now);
                }
                Event::Forget(tensor) if is_alive[tensor as usize] => {
                    is_alive[tensor as usize] = false;
                    now -= rows[tensor as usize].1;
                }
                _ => {}
            }
        }
        most
    }

    /// By place, what lay there before, and what lies there all the time: that, or what will be there afterwards.
    fn levels(&self, read: &Read, kept: &[i128]) -> (Vec<i128>, Vec<i128>) {
        let (mut was, mut released) = (vec![0; kept.len()], vec![0; kept.len()]);
        for (storage, before) in self.before.iter().enumerate() {
            if let Some((place, size)) = *before {
                was[place as usize] += size;
                if read.gone[storage].is_some() {
                    released[place as usize] += size;
                }
            }
        }
        let level = (0..kept.len()).map(|place| was[place].max(was[place] + kept[place] - released[place])).collect();
        (was, level)
    }

    /// The most that passes beside each block at once.
    fn passing(&self, was: &[i128], level: &[i128], stays: &[bool]) -> Vec<i128> {
        let mut now: Vec<i128> = was.iter().zip(level).map(|(was, level)| was - level).collect();
        let mut most = vec![0; now.len()];
        let mut alive = self.before.clone();
        for event in self.events {
            match *event {
                Event::Made { storage, size, place, .. } if storage != NO_STORAGE && !stays[storage as usize] => {
                    let place = self.beside[place as usize];
                    let size = self.size(size);
                    alive[storage as usize] = Some((place, size));
                    now[place as usize] += size;
                    most[place as usize] = now[place as usize].max(most[place as usize]);
                }
                Event::Free(storage) if storage != NO_STORAGE => {
                    if let Some((place, size)) = alive[storage as usize].take() {
                        now[place as usize] -= size;
                    }
                }
                _ => {}
            }
        }
        most
    }

    /// By block, its own arguments; and what the block before has left that it does not ask for.
    fn arguments(&self, read: &Read, stays: &[bool]) -> (Vec<i128>, Vec<i128>) {
        let (mut own, mut left) = (vec![0; self.tape.places()], vec![0; self.tape.places()]);
        let mut alive: Vec<u32> = Vec::new(); // few
        let mut handed: Vec<u32> = Vec::new();
        let passes =
            |storage: u32| storage != NO_STORAGE && !stays[storage as usize] && read.gone[storage as usize].is_some();
        for event in self.events {
            match *event {
                Event::Made { storage, .. } if passes(storage) => alive.push(storage),
                Event::Free(storage) => {
                    if let Some(at) = alive.iter().rposition(|&each| each == storage) {
                        alive.swap_remove(at);
                    }
                }
                Event::Leave(place) => {
                    let is_there =
                        |storage: &&u32| read.made[**storage as usize].is_some_and(|made| made.place == place);
                    handed = alive.iter().filter(is_there).copied().collect();
                }
                Event::Enter(place, span) => {
                    let rows = self.tape.rows(span);
                    let is_left =
                        |storage: &&u32| alive.contains(storage) && !rows.iter().any(|row| row.storage == **storage);
                    let still = handed.iter().filter(is_left).filter_map(|&storage| read.made[storage as usize]);
                    let place = place as usize;
                    left[place] = still.map(|made| made.size).sum::<i128>().max(left[place]);
                    own[place] = self.own(read, span).max(own[place]);
                }
                _ => {}
            }
        }
        (own, left)
    }

    /// The arguments of one call that are not shared, each once.
    fn own(&self, read: &Read, span: crate::memory::tape::RowSpan) -> i128 {
        let rows = self.tape.rows(span);
        let mut sum = 0;
        for (at, row) in rows.iter().enumerate() {
            let is_last = rows[at + 1..].iter().all(|other| other.tensor != row.tensor);
            if is_last && !read.is_shared[row.tensor as usize] {
                sum += self.size(row.size);
            }
        }
        sum
    }
}
