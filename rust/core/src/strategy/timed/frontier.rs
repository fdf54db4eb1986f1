//! A bound on a run in which pieces may be taken in parts: the cheapest time for each bit of room.

use crate::strategy::timed::classes::{Choice, Class};
use crate::strategy::timed::model::Schedule;

/// How much running and bringing in count in a bound. Where both go side by side the longer of both is at least any mean of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Weight {
    pub(crate) run: u64,
    pub(crate) fetch: u64,
    /// The weights come to two to this.
    shift: u32,
}

impl Weight {
    /// Running alone.
    pub(crate) const RUN: Self = Self { run: 1, fetch: 0, shift: 0 };
    /// Bringing in alone.
    pub(crate) const FETCH: Self = Self { run: 0, fetch: 1, shift: 0 };

    /// The mean in which a class costs the same brought in or run by the host: `fetch` of `fetch + beside` counts as running.
    pub(crate) fn between(fetch: u64, beside: u64, shift: u32) -> Self {
        let all = u128::from(fetch) + u128::from(beside);
        let run = u64::try_from((u128::from(fetch) << shift) / all.max(1)).unwrap_or(0); // a part of `1 << shift`
        Self { run, fetch: (1 << shift) - run, shift }
    }

    /// What a time of running and of bringing in comes to, scaled.
    pub(crate) fn of(self, run_ps: u64, fetch_ps: u64) -> u64 {
        self.run * run_ps + self.fetch * fetch_ps
    }

    /// A whole time that is at least so much, scaled.
    pub(crate) fn whole(self, scaled: u64) -> u64 {
        scaled.div_ceil(1 << self.shift)
    }
}

/// Room for time: one choice of a class in the place of another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exchange {
    pub(crate) class: usize,
    pub(crate) extra: u64,
    pub(crate) freed_bits: u64,
    /// Numbers of choices.
    pub(crate) before: usize,
    pub(crate) after: usize,
}

/// What the classes take at their cheapest, and what room can be had for, the cheapest first.
#[derive(Debug)]
pub(crate) struct Frontier {
    pub(crate) weight: Weight,
    /// By class: its choices.
    pub(crate) choices: Vec<Vec<Choice>>,
    /// By class: the cheapest choice; `None` where there is none.
    pub(crate) first: Vec<Option<usize>>,
    pub(crate) exchanges: Vec<Exchange>,
}

impl Frontier {
    pub(crate) fn new(classes: &[Class], schedule: Schedule, largest: Option<u64>, weight: Weight) -> Self {
        let choices: Vec<Vec<Choice>> = classes.iter().map(|class| class.choices(schedule, largest)).collect();
        let (mut first, mut exchanges) = (Vec::with_capacity(classes.len()), Vec::new());
        for (class, choices) in choices.iter().enumerate() {
            first.push(hull(class, choices, weight, &mut exchanges));
        }
        // Exchanges of one class get dearer, so the order by price keeps theirs.
        exchanges.sort_by(|one: &Exchange, other: &Exchange| price_order(one, other));
        Self { weight, choices, first, exchanges }
    }

    /// The least, scaled, that so many of each class take, where `need_bits` is the room lacking and `scaled` what is counted with
    /// all of them at their cheapest; `None` where there is not so much to be had.
    pub(crate) fn relax(&self, need_bits: i64, scaled: u64, count: impl Fn(usize) -> u64) -> Option<u64> {
        let (mut need, mut scaled) = (u64::try_from(need_bits).unwrap_or(0), scaled);
        if need == 0 {
            return Some(scaled);
        }
        for exchange in &self.exchanges {
            let count = count(exchange.class);
            let freed = count * exchange.freed_bits;
            if freed >= need {
                return Some(scaled + part(exchange.extra, need, exchange.freed_bits));
            }
            need -= freed;
            scaled += count * exchange.extra;
        }
        None
    }
}

/// `whole * share / all`, rounded down.
fn part(whole: u64, share: u64, all: u64) -> u64 {
    match whole.checked_mul(share) {
        Some(product) => product / all,
        // At most the whole, because the share is of all.
        None => u64::try_from(u128::from(whole) * u128::from(share) / u128::from(all)).unwrap_or(whole),
    }
}

fn price_order(one: &Exchange, other: &Exchange) -> std::cmp::Ordering {
    let left = u128::from(one.extra) * u128::from(other.freed_bits);
    left.cmp(&(u128::from(other.extra) * u128::from(one.freed_bits)))
}

/// The cheapest choice, and the exchanges from it down to the least room, each dearer than the one before.
fn hull(class: usize, choices: &[Choice], weight: Weight, exchanges: &mut Vec<Exchange>) -> Option<usize> {
    let scaled = |choice: &Choice| weight.of(choice.run_ps, choice.fetch_ps);
    let numbers = || 0..choices.len();
    let first = numbers()
        .min_by_key(|&number| (scaled(&choices[number]), choices[number].fetch_ps, choices[number].room_bits))?;
    let mut before = first;
    loop {
        let (room, time) = (choices[before].room_bits, scaled(&choices[before]));
        let exchange = |after: usize| Exchange {
            class,
            extra: scaled(&choices[after]) - time,
            freed_bits: room - choices[after].room_bits,
            before,
            after,
        };
        let smaller = numbers().filter(|&number| choices[number].room_bits < room).map(exchange);
        let Some(next) =
            smaller.min_by(|one, other| price_order(one, other).then(other.freed_bits.cmp(&one.freed_bits)))
        else {
            return Some(first);
        };
        exchanges.push(next);
        before = next.after;
    }
}
