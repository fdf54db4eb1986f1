//! Local names, each stored once.

use std::collections::HashMap;

/// Strings by dense id, in one buffer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Names {
    text: String,
    ends: Vec<u32>,
    ids: HashMap<Box<str>, u32>,
}

impl Names {
    pub(crate) fn intern(&mut self, name: &str) -> u32 {
        if let Some(&id) = self.ids.get(name) {
            return id;
        }
        let id = self.ends.len() as u32;
        self.text.push_str(name);
        self.ends.push(self.text.len() as u32);
        self.ids.insert(name.into(), id);
        id
    }

    pub(crate) fn get(&self, id: u32) -> &str {
        let id = id as usize;
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.text[start as usize..self.ends[id] as usize]
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Forgets the way from name to id, which only building needs.
    pub(crate) fn seal(&mut self) {
        self.ids = HashMap::new();
        self.text.shrink_to_fit();
        self.ends.shrink_to_fit();
    }
}
