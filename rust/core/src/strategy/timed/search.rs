//! The best way of one run, by branch and bound over counts.
//!
//! Class by class it is said how many stay, are brought in, and are run by the host. The class with most pieces comes last, and
//! for it there is a formula. What the classes still open can come to is bounded by taking them in parts.

use crate::ids::id_at;
use crate::strategy::timed::classes::Choice;
use crate::strategy::timed::frontier::Frontier;

/// By how much a bound may differ from what it would be without rounding, twice.
const ROUNDING: u64 = 2;

/// How many of a class are brought in and run by the host.
pub(crate) type Away = (u64, u64);

/// The best that was found of one run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Best {
    /// Its time; `None` where nothing was found.
    pub(crate) ps: Option<u64>,
    /// By class of the run.
    pub(crate) away: Vec<Away>,
}

/// A search below one size of what is brought in.
pub(crate) struct Search<'a> {
    frontiers: &'a [Frontier],
    /// Class and count.
    classes: &'a [(u32, u32)],
    /// Classes with a choice, as places in `classes`, in the order of the search.
    order: Vec<usize>,
    /// By class of the line: its place in the order, one more, and its count.
    rank: Vec<(u32, u32)>,
    /// By frontier and place in the order: what the classes from there on take at their cheapest, as room and scaled time.
    rest: Vec<Vec<(u64, u64)>>,
    away: Vec<Away>,
    best: &'a mut Best,
    pub(crate) nodes: u64,
    most_nodes: u64,
    /// All of it was seen.
    pub(crate) is_whole: bool,
    root: State,
}

/// What is settled so far.
#[derive(Debug, Clone, Copy, Default)]
struct State {
    /// Room taken beyond what there is, or less than nothing.
    need_bits: i64,
    run_ps: u64,
    fetch_ps: u64,
}

impl State {
    fn add(self, choice: &Choice, count: u64) -> Self {
        Self {
            need_bits: self.need_bits + (choice.room_bits * count).cast_signed(),
            run_ps: self.run_ps + choice.run_ps * count,
            fetch_ps: self.fetch_ps + choice.fetch_ps * count,
        }
    }

    fn ps(self) -> u64 {
        self.run_ps.max(self.fetch_ps)
    }
}

impl<'a> Search<'a> {
    /// A search with some room, whose frontiers all have the same choices; `None` where some class has none.
    pub(crate) fn new(
        frontiers: &'a [Frontier],
        classes: &'a [(u32, u32)],
        room_bits: u64,
        best: &'a mut Best,
        most_nodes: u64,
    ) -> Option<Self> {
        let choices = &frontiers[0].choices;
        let mut root = State { need_bits: -room_bits.cast_signed(), ..State::default() };
        let mut order = Vec::new();
        for (place, &(class, count)) in classes.iter().enumerate() {
            match choices[class as usize].as_slice() {
                [] => return None,
                [only] => root = root.add(only, u64::from(count)),
                _ => order.push(place),
            }
        }
        let mut away = vec![(0, 0); classes.len()];
        for (place, &(class, count)) in classes.iter().enumerate() {
            if let [only] = choices[class as usize].as_slice() {
                away[place] = split(only, u64::from(count));
            }
        }
        order.sort_by_key(|&place| classes[place].1);
        let mut rank = vec![(0, 0); choices.len()];
        for (number, &place) in order.iter().enumerate() {
            let (class, count) = classes[place];
            rank[class as usize] = (id_at(number + 1), count);
        }
        let rest = frontiers.iter().map(|frontier| rests(frontier, classes, &order)).collect();
        Some(Self { frontiers, classes, order, rank, rest, away, best, nodes: 0, most_nodes, is_whole: true, root })
    }

    /// The least that any plan below this size can come to; `None` where there is no room.
    pub(crate) fn bound(&self) -> Option<u64> {
        self.bound_at(0, self.root)
    }

    /// Finds what is better than the best, if anything below this size can be.
    pub(crate) fn run_from(&mut self, bound: u64) {
        if !self.is_better(bound) {
            return;
        }
        for frontier in 0..self.frontiers.len() {
            self.greedy(frontier);
        }
        self.extend(0, self.root);
    }

    fn bound_at(&self, level: usize, state: State) -> Option<u64> {
        let mut bound = 0;
        for (frontier, rest) in self.frontiers.iter().zip(&self.rest) {
            let (room_bits, scaled) = rest[level];
            let open = |class: usize| {
                let (rank, count) = self.rank[class];
                if rank as usize > level { u64::from(count) } else { 0 }
            };
            let counted = frontier.weight.of(state.run_ps, state.fetch_ps) + scaled;
            let scaled = frontier.relax(state.need_bits + room_bits.cast_signed(), counted, open)?;
            bound = bound.max(frontier.weight.whole(scaled));
        }
        Some(bound)
    }

    fn is_better(&self, ps: u64) -> bool {
        self.best.ps.is_none_or(|best| ps < best)
    }

    fn keep(&mut self, ps: u64) {
        if self.is_better(ps) {
            *self.best = Best { ps: Some(ps), away: self.away.clone() };
        }
    }

    /// The bound's own plan with the piece that it takes in part taken whole.
    fn greedy(&mut self, frontier: usize) {
        let frontier = &self.frontiers[frontier];
        let mut counts: Vec<[u64; 3]> = vec![[0; 3]; self.order.len()];
        let mut state = self.root;
        for (number, &place) in self.order.iter().enumerate() {
            let (class, count) = self.classes[place];
            let Some(first) = frontier.first[class as usize] else { return };
            counts[number][first] = u64::from(count);
            state = state.add(&frontier.choices[class as usize][first], u64::from(count));
        }
        for exchange in &frontier.exchanges {
            let Some(need) = u64::try_from(state.need_bits).ok().filter(|&need| need > 0) else { break };
            let (rank, _) = self.rank[exchange.class];
            let Some(number) = (rank as usize).checked_sub(1) else { continue };
            let taken = counts[number][exchange.before].min(need.div_ceil(exchange.freed_bits));
            counts[number][exchange.before] -= taken;
            counts[number][exchange.after] += taken;
            state.need_bits -= (taken * exchange.freed_bits).cast_signed();
        }
        if state.need_bits > 0 {
            return;
        }
        let mut priced = self.root;
        for (counts, &place) in counts.iter().zip(&self.order) {
            let choices = &frontier.choices[self.classes[place].0 as usize];
            self.away[place] = (0, 0);
            for (choice, &count) in choices.iter().zip(counts) {
                let (fetched, beside) = split(choice, count);
                self.away[place] = (self.away[place].0 + fetched, self.away[place].1 + beside);
                priced = priced.add(choice, count);
            }
        }
        self.keep(priced.ps());
    }

    fn extend(&mut self, level: usize, state: State) {
        self.nodes += 1;
        if self.nodes > self.most_nodes {
            self.is_whole = false;
            return;
        }
        let Some(&place) = self.order.get(level) else {
            if state.need_bits <= 0 {
                self.keep(state.ps());
            }
            return;
        };
        let (class, count) = self.classes[place];
        let (count, choices) = (u64::from(count), &self.frontiers[0].choices[class as usize]);
        if level + 1 == self.order.len() {
            for away in last(choices, count, state) {
                let state = apply(choices, count, away, state);
                self.away[place] = away;
                self.keep(state.ps());
            }
            return;
        }
        let has_beside = choices.iter().any(|choice| !choice.is_stay && !choice.is_fetch);
        let has_fetch = choices.iter().any(|choice| choice.is_fetch);
        let has_stay = choices.iter().any(|choice| choice.is_stay);
        for beside in 0..=(if has_beside { count } else { 0 }) {
            let most = if has_fetch { count - beside } else { 0 };
            let mut before = None;
            for fetched in (if has_stay { 0 } else { most })..=most {
                if !has_stay && fetched + beside < count {
                    continue;
                }
                let state = apply(choices, count, (fetched, beside), state);
                let Some(bound) = self.bound_at(level + 1, state) else { continue };
                if self.is_better(bound) {
                    self.away[place] = (fetched, beside);
                    self.extend(level + 1, state);
                } else if before.is_some_and(|before| bound > before + ROUNDING) {
                    break; // the bound is convex in the count, and rises from here on
                }
                before = Some(bound);
            }
        }
    }
}

/// A choice as counts of what is away.
fn split(choice: &Choice, count: u64) -> Away {
    match (choice.is_stay, choice.is_fetch) {
        (true, _) => (0, 0),
        (false, true) => (count, 0),
        (false, false) => (0, count),
    }
}

fn rests(frontier: &Frontier, classes: &[(u32, u32)], order: &[usize]) -> Vec<(u64, u64)> {
    let mut rest = vec![(0, 0); order.len() + 1];
    for (number, &place) in order.iter().enumerate().rev() {
        let (class, count) = classes[place];
        let choices = &frontier.choices[class as usize];
        let choice = frontier.first[class as usize].map(|first| choices[first]);
        let (room, time) =
            choice.map_or((0, 0), |choice| (choice.room_bits, frontier.weight.of(choice.run_ps, choice.fetch_ps)));
        let (before, scaled) = rest[number + 1];
        rest[number] = (before + u64::from(count) * room, scaled + u64::from(count) * time);
    }
    rest
}

fn apply(choices: &[Choice], count: u64, (fetched, beside): Away, state: State) -> State {
    choices.iter().fold(state, |state, choice| {
        let count = match (choice.is_stay, choice.is_fetch) {
            (true, _) => count - fetched - beside,
            (false, true) => fetched,
            (false, false) => beside,
        };
        state.add(choice, count)
    })
}

/// What may be best for the last class: as few away as there must be, and of these as many run by the host as make running and
/// bringing in as long as each other.
fn last(choices: &[Choice], count: u64, state: State) -> Vec<Away> {
    let stay = choices.iter().find(|choice| choice.is_stay);
    let fetch = choices.iter().find(|choice| choice.is_fetch);
    let beside = choices.iter().find(|choice| !choice.is_stay && !choice.is_fetch);
    let least_room = choices.iter().map(|choice| choice.room_bits).min().unwrap_or(0);
    let away = match stay {
        Some(stay) => {
            let over = state.need_bits + (stay.room_bits * count).cast_signed();
            match u64::try_from(over).unwrap_or(0) {
                0 => 0,
                over if stay.room_bits > least_room => over.div_ceil(stay.room_bits - least_room),
                _ => return Vec::new(),
            }
        }
        None if state.need_bits + (least_room * count).cast_signed() > 0 => return Vec::new(),
        None => count,
    };
    if away > count {
        return Vec::new();
    }
    match (fetch, beside) {
        (Some(fetch), Some(beside)) => {
            // Both take no room; what is fetched runs as fast as what stays.
            let all_fetched = apply(choices, count, (away, 0), state);
            let lead = all_fetched.fetch_ps.saturating_sub(all_fetched.run_ps);
            let step = (beside.run_ps + fetch.fetch_ps).saturating_sub(fetch.run_ps).max(1);
            let even = (lead.div_ceil(step)).min(away);
            vec![(away - even.saturating_sub(1), even.saturating_sub(1)), (away - even, even)]
        }
        (Some(_), None) => vec![(away, 0)],
        (None, _) => vec![(0, away)],
    }
}
