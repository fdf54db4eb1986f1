//! Parts of dotted names: what they say, and strings by dense id, in one buffer.

use crate::ids::id_at;

/// Whether a part of a name is a number, as members of a list have it. The root's empty part is none.
///
/// ```
/// assert!(planner_core::is_number("10") && !planner_core::is_number("") && !planner_core::is_number("h1"));
/// ```
pub fn is_number(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit())
}

/// Local names or class names. Equal strings may have several ids: the tree's builder knows which are the same, and
/// looking that up again would cost more than it saves.
#[derive(Debug, Clone, Default)]
pub(crate) struct Names {
    text: String,
    ends: Vec<usize>,
}

impl Names {
    pub(crate) fn add(&mut self, name: &str) -> u32 {
        self.text.push_str(name);
        self.ends.push(self.text.len());
        id_at(self.ends.len() - 1)
    }

    pub(crate) fn get(&self, id: u32) -> &str {
        let id = id as usize;
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.text[start..self.ends[id]]
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn held_bytes(&self) -> usize {
        self.text.len() + self.ends.len() * size_of::<usize>()
    }

    pub(crate) fn shrink(&mut self) {
        self.text.shrink_to_fit();
        self.ends.shrink_to_fit();
    }
}
