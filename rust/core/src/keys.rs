//! Dotted keys as a trie.

use crate::ids::id_at;
use std::collections::HashMap;

/// Dotted keys as a trie; place 0 is the empty key.
#[derive(Debug)]
pub struct KeyTrie {
    parent: Vec<u32>,
    children: Vec<Option<HashMap<Box<str>, u32>>>,
    keys: Vec<u32>,
    names: Vec<Box<str>>,
}

impl KeyTrie {
    /// The trie of these keys; equal keys share a place.
    pub fn new<S: AsRef<str>>(keys: &[S]) -> Self {
        let mut trie = Self { parent: vec![0], children: vec![None], keys: Vec::new(), names: vec!["".into()] };
        for key in keys {
            let place = trie.insert(key.as_ref());
            trie.keys.push(place);
        }
        trie
    }

    fn insert(&mut self, key: &str) -> u32 {
        let mut place = 0;
        if key.is_empty() {
            return place;
        }
        for part in key.split('.') {
            let next = id_at(self.parent.len());
            let map = self.children[place as usize].get_or_insert_default();
            if let Some(&below) = map.get(part) {
                place = below;
                continue;
            }
            map.insert(part.into(), next);
            self.parent.push(place);
            self.children.push(None);
            self.names.push(part.into());
            place = next;
        }
        place
    }

    /// Number of places.
    pub fn len(&self) -> usize {
        self.parent.len()
    }

    /// Whether there is no key but the empty one.
    pub fn is_empty(&self) -> bool {
        self.len() == 1
    }

    /// Place of each key, in the order given.
    pub fn keys(&self) -> &[u32] {
        &self.keys
    }

    /// The place above.
    pub fn parent(&self, place: u32) -> u32 {
        self.parent[place as usize]
    }

    /// Whether any key goes on below a place.
    pub fn has_children(&self, place: u32) -> bool {
        self.children[place as usize].is_some()
    }

    /// The place below, by the next part of the key.
    pub fn child(&self, place: u32, part: &str) -> Option<u32> {
        self.children[place as usize].as_ref()?.get(part).copied()
    }

    /// The dotted key of a place.
    pub fn name(&self, mut place: u32) -> String {
        let mut parts = Vec::new();
        while place != 0 {
            parts.push(&*self.names[place as usize]);
            place = self.parent(place);
        }
        parts.reverse();
        parts.join(".")
    }
}
