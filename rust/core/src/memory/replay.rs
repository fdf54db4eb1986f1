//! The bytes of a recorded run on every device of a placement.

use crate::memory::tape::{Event, NO_STORAGE, RowSpan, Tape};

/// Offloaded blocks of which dispatch copies one ahead.
const FEWEST_AHEAD: usize = 2;

/// Where a model lies and runs, as far as memory is concerned. Devices are numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunPlacement {
    /// By block, the device that runs it.
    pub execution: Vec<u32>,
    /// Where the model's inputs go, and its results.
    pub main_device: u32,
    /// By device, bytes that lie there all the time.
    pub resident: Vec<i128>,
    /// By block, what is brought in while it runs; None where it lies.
    pub offloaded: Vec<Option<i128>>,
    /// By block, what of that is not copied ahead.
    pub never_ahead: Vec<i128>,
    /// By device, what offloaded blocks may take there together, so that the next is copied ahead.
    pub room: Vec<Option<i128>>,
    /// Where what is brought to rest on the cpu lies; None where nothing is told of it.
    pub rest: Option<u32>,
    /// What the caller takes on the main device beside the results of each forward, and lets go before the next.
    pub beside: i128,
    /// The model has run before, so that its first forward copies ahead, too.
    pub is_order_known: bool,
}

/// By phase, the most bytes on each device; None where the placement is of another number of blocks, or names other devices.
pub fn replay(tape: &Tape, sizes: &[i128], placement: &RunPlacement) -> Option<Vec<Vec<i128>>> {
    let (blocks, devices) = (tape.blocks as usize, placement.resident.len());
    let mut named = placement.execution.iter().chain([&placement.main_device]).chain(&placement.rest);
    let lengths = [placement.execution.len(), placement.offloaded.len(), placement.never_ahead.len()];
    let is_whole = lengths == [blocks; 3];
    if !is_whole || placement.room.len() != devices || named.any(|&device| device as usize >= devices) {
        return None;
    }
    let mut replay = Replay::new(tape, sizes, placement);
    for event in &tape.events {
        replay.step(event);
    }
    Some(replay.peaks)
}

struct Replay<'a> {
    tape: &'a Tape,
    sizes: &'a [i128],
    placement: &'a RunPlacement,
    main: u32,
    devices: Vec<u32>,                   // by place
    enclosing_devices: Vec<Option<u32>>, // None where dispatch leaves the arguments as they are
    alive: Vec<i128>,                    // by device
    peaks: Vec<Vec<i128>>,
    is_told: bool, // the last of these is of the forward that runs
    storages: Vec<Option<(u32, i128)>>,
    same: Vec<Vec<u32>>, // by storage, its copies that are none, because both places are on one device
    copies: Vec<Vec<(u32, i128)>>, // by tensor, its copies on other devices
    copied: Vec<u32>,    // tensors that may have some
    results: i128,
    returned: Vec<u32>,
    ahead: Ahead<'a>,
}

impl<'a> Replay<'a> {
    fn new(tape: &'a Tape, sizes: &'a [i128], placement: &'a RunPlacement) -> Self {
        let mut devices = vec![placement.main_device];
        devices.extend(&placement.execution);
        let enclosing_devices: Vec<Option<u32>> = tape
            .enclosing
            .iter()
            .map(|enclosing| {
                let mut inside = enclosing.inside.iter().map(|&place| devices[place as usize]);
                let first = inside.next();
                if first.is_some() && inside.all(|device| Some(device) == first) {
                    return first;
                }
                enclosing.own.map(|place| devices[place as usize])
            })
            .collect();
        for &(enclosing, place) in &tape.carried {
            devices.push(enclosing_devices[enclosing as usize].unwrap_or(devices[place as usize]));
        }
        Self {
            tape,
            sizes,
            placement,
            main: placement.main_device,
            ahead: Ahead::new(tape, placement, &devices),
            devices,
            enclosing_devices,
            alive: placement.resident.clone(),
            peaks: Vec::new(),
            is_told: false,
            storages: vec![None; tape.storages as usize],
            same: vec![Vec::new(); tape.storages as usize],
            copies: vec![Vec::new(); tape.tensors as usize],
            copied: Vec::new(),
            results: 0,
            returned: Vec::new(),
        }
    }

    fn step(&mut self, event: &Event) {
        match *event {
            Event::Made { storage, size, place, copy_of } => {
                let device = self.devices[place as usize];
                let is_there = copy_of.is_some_and(|(source, at)| self.device(source, at) == device);
                let size = if is_there { 0 } else { self.sizes[size as usize] };
                if let Some(made) = self.storages.get_mut(storage as usize) {
                    *made = Some((device, size));
                }
                if let Some((source, _)) = copy_of
                    && is_there
                    && let Some(same) = self.same.get_mut(source as usize)
                {
                    same.push(storage);
                }
                self.take(device, size);
            }
            Event::Free(storage) => {
                if let Some((device, size)) = self.storages.get_mut(storage as usize).and_then(Option::take) {
                    let copies = std::mem::take(&mut self.same[storage as usize]);
                    self.let_go(device, size, &copies);
                }
            }
            Event::Rest { storage, size, .. } => {
                if let (Some(device), Some(made)) = (self.placement.rest, self.storages.get_mut(storage as usize)) {
                    let size = self.sizes[size as usize];
                    *made = Some((device, size));
                    self.take(device, size);
                }
            }
            Event::Dropped { place, bytes, copy } => self.drop_weight(place, bytes.into(), copy),
            Event::Forget(tensor) => self.forget(tensor),
            Event::Enter(place, span) => {
                self.bring(self.devices[place as usize], span);
                let moves = self.ahead.enter(place);
                self.carry_out(moves);
            }
            Event::Leave(place) => {
                let moves = self.ahead.leave(place);
                self.carry_out(moves);
            }
            Event::Apart(place, span) => self.bring(self.devices[place as usize], span),
            Event::Call(enclosing, span) => {
                if let Some(device) = self.enclosing_devices[enclosing as usize] {
                    self.bring(device, span);
                }
            }
            Event::Phase(_) => {
                self.peaks.push(self.alive.clone());
                self.is_told = true;
                let moves = self.ahead.stage(0, 0);
                self.carry_out(moves);
            }
            Event::Output(span) => self.give_back(span),
            Event::After => self.after(),
        }
    }

    fn drop_weight(&mut self, place: u32, bytes: i128, copy: u32) {
        if self.ahead.size(place).is_some_and(|size| size > 0) {
            return; // it is brought in as often as its block runs
        }
        self.let_go(self.devices[place as usize], bytes, &[copy]);
    }

    /// What goes is there as long as its copies are, which on one device are none: one of these takes its bytes along.
    fn let_go(&mut self, device: u32, size: i128, copies: &[u32]) {
        let is_same = |copy: &&u32| self.storages.get(**copy as usize).copied().flatten() == Some((device, 0));
        let mut same = copies.iter().filter(is_same).copied();
        if let Some(first) = same.next() {
            let others: Vec<u32> = same.collect();
            self.storages[first as usize] = Some((device, size));
            self.same[first as usize].extend(others);
        } else {
            self.alive[device as usize] -= size;
        }
    }

    fn take(&mut self, device: u32, size: i128) {
        let device = device as usize;
        self.alive[device] += size;
        if self.is_told
            && let Some(top) = self.peaks.last_mut()
        {
            top[device] = top[device].max(self.alive[device]);
        }
    }

    /// What dispatch brings in and drops; only what comes is a new peak.
    fn carry_out(&mut self, moves: Vec<(u32, i128)>) {
        for (device, size) in moves {
            self.take(device, size);
        }
    }

    /// Where a storage is found; a weight lies where its block runs.
    fn device(&self, storage: u32, mut place: u32) -> u32 {
        while place > self.tape.blocks {
            let (enclosing, before) = self.tape.carried[(place - self.tape.blocks - 1) as usize];
            if let Some(brought) = self.enclosing_devices[enclosing as usize] {
                return brought;
            }
            place = before;
        }
        let found = if storage == NO_STORAGE { None } else { self.storages[storage as usize] };
        found.map_or(self.devices[place as usize], |(device, _)| device)
    }

    fn bring(&mut self, device: u32, span: RowSpan) {
        let tape = self.tape;
        for row in tape.rows(span) {
            if self.device(row.storage, row.place) == device {
                continue;
            }
            let copies = &mut self.copies[row.tensor as usize];
            if copies.iter().all(|&(known, _)| known != device) {
                let size = self.sizes[row.size as usize];
                copies.push((device, size));
                self.copied.push(row.tensor);
                self.take(device, size);
            }
        }
    }

    fn forget(&mut self, tensor: u32) {
        for (device, size) in std::mem::take(&mut self.copies[tensor as usize]) {
            self.alive[device as usize] -= size;
        }
    }

    /// The model's results go to where its inputs lie; then nothing is left of what the forward has copied.
    fn give_back(&mut self, span: RowSpan) {
        let tape = self.tape;
        for row in tape.rows(span) {
            if self.device(row.storage, row.place) != self.main {
                let size = self.sizes[row.size as usize];
                self.take(self.main, size);
                self.results += size;
                self.returned.push(row.storage);
            }
        }
        for tensor in std::mem::take(&mut self.copied) {
            self.forget(tensor);
        }
        let moves = self.ahead.end();
        self.carry_out(moves);
        self.take(self.main, self.placement.beside);
        self.take(self.main, -self.placement.beside);
    }

    fn after(&mut self) {
        let main = self.main as usize;
        self.alive[main] -= self.results;
        self.results = 0;
        // What the caller keeps of the results is the copy where the inputs lie.
        for storage in std::mem::take(&mut self.returned) {
            if let Some(Some((device, size))) = self.storages.get_mut(storage as usize) {
                self.alive[*device as usize] -= *size;
                *device = self.main;
                self.alive[main] += *size;
            }
        }
        self.is_told = false;
    }
}

/// Offloaded blocks as dispatch brings them in: the order is learnt in one forward, and the next is copied ahead from then on.
///
/// The first is copied ahead when a forward begins, as what follows the whole model's own code; that is place 0.
struct Ahead<'a> {
    placement: &'a RunPlacement,
    devices: Vec<u32>,  // by place
    follower: Vec<u32>, // by place; 0 for none
    last: u32,
    staged: u32,
    is_on: bool,
}

impl<'a> Ahead<'a> {
    fn new(tape: &Tape, placement: &'a RunPlacement, devices: &[u32]) -> Self {
        let has_room = |device: u32| placement.room[device as usize].is_some();
        let offloaded = placement.offloaded.iter().zip(&placement.execution);
        let served = offloaded.filter(|(size, device)| size.is_some() && has_room(**device)).count();
        let mut ahead = Self {
            placement,
            devices: devices.to_vec(),
            follower: vec![0; tape.places()],
            last: 0,
            staged: 0,
            // With one block alone, dispatch copies nothing ahead.
            is_on: served >= FEWEST_AHEAD,
        };
        if placement.is_order_known && ahead.is_on {
            ahead.learn(tape);
        }
        ahead
    }

    fn learn(&mut self, tape: &Tape) {
        let mut last = 0;
        for event in &tape.events {
            match *event {
                Event::Enter(place, _) if self.size(place).is_some() => {
                    self.follower[last as usize] = place;
                    last = place;
                }
                Event::Output(_) => last = 0,
                _ => {}
            }
        }
    }

    fn size(&self, place: u32) -> Option<i128> {
        let block = (place as usize).checked_sub(1)?;
        self.placement.offloaded.get(block).copied().flatten()
    }

    /// What is copied ahead of it.
    fn size_ahead(&self, place: u32) -> Option<i128> {
        Some(self.size(place)? - self.placement.never_ahead[place as usize - 1])
    }

    fn device(&self, place: u32) -> u32 {
        self.devices[place as usize]
    }

    fn enter(&mut self, place: u32) -> Vec<(u32, i128)> {
        let Some(size) = self.size(place) else { return Vec::new() };
        let mut moves = Vec::new();
        if self.staged == place {
            self.staged = 0;
            moves.push((self.device(place), self.placement.never_ahead[place as usize - 1]));
        } else {
            // A wrong guess goes before what is really next is brought in.
            moves = self.dropped();
            moves.push((self.device(place), size));
        }
        self.follower[self.last as usize] = place;
        self.last = place;
        moves.extend(self.stage(place, size));
        moves
    }

    /// Sends for what follows a block, if there is room for both.
    fn stage(&mut self, place: u32, size: i128) -> Vec<(u32, i128)> {
        let following = self.follower[place as usize];
        let (Some(more), Some(ahead)) = (self.size(following), self.size_ahead(following)) else { return Vec::new() };
        let device = self.device(following);
        let room = self.placement.room[device as usize].unwrap_or(0);
        if following == place || !self.is_on || size + more > room {
            return Vec::new();
        }
        self.staged = following;
        vec![(device, ahead)]
    }

    fn leave(&self, place: u32) -> Vec<(u32, i128)> {
        self.size(place).map(|size| (self.device(place), -size)).into_iter().collect()
    }

    fn end(&mut self) -> Vec<(u32, i128)> {
        self.last = 0;
        self.dropped()
    }

    fn dropped(&mut self) -> Vec<(u32, i128)> {
        let staged = std::mem::take(&mut self.staged);
        self.size_ahead(staged).map(|size| (self.device(staged), -size)).into_iter().collect()
    }
}
