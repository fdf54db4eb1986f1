//! Classes of modules, by the names of what they derive from: which have a forward, and which are of a class that is named.

use std::collections::BTreeMap;

/// torch's classes that hold others in order or by name.
const LISTS: [&str; 3] = ["Sequential", "ModuleList", "ModuleDict"];

/// A class and what it derives from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassLine {
    /// Its name.
    pub name: String,
    /// Names of the class itself and its bases, in the order in which methods are looked up.
    pub bases: Vec<String>,
}

/// One class in the line of another one, as far as forwards go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// Its name.
    pub name: String,
    /// The module that defines it.
    pub module: String,
    /// It defines a forward itself.
    pub has_forward: bool,
}

/// Classes without a forward of their own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WithoutForward {
    /// Lists, which hold others in order or by name.
    pub lists: Vec<String>,
    /// Those with none at all.
    pub bare: Vec<String>,
    /// The rest are known to have one.
    pub is_known: bool,
}

/// Where a class's forward comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Forward {
    /// From itself or a base that is not torch's own container.
    Own,
    /// From `Sequential`, which calls what it holds in order, or from nowhere in a class that holds others.
    List,
    /// From nowhere.
    None,
}

impl ClassLine {
    /// The line of a class of which only the names of some bases are known.
    pub fn known(name: &str, bases: Vec<String>) -> Self {
        let own = [name.to_string()].into_iter();
        let end = ["Module".to_string(), "object".to_string()];
        Self { name: name.to_string(), bases: own.chain(bases).chain(end).collect() }
    }
}

impl WithoutForward {
    /// Of classes with all that they derive from; of several classes with one name, all must have none.
    pub fn of_live<'a>(classes: impl IntoIterator<Item = (&'a str, &'a [Base])>) -> Self {
        let mut found: BTreeMap<&str, Forward> = BTreeMap::new();
        for (name, bases) in classes {
            let forward = forward_of(bases);
            let known = found.entry(name).or_insert(forward);
            *known = if *known == forward { forward } else { Forward::Own };
        }
        let of = |kind| {
            let names = found.iter().filter(|&(_, &forward)| forward == kind);
            names.map(|(name, _)| (*name).to_string()).collect()
        };
        Self { lists: of(Forward::List), bare: of(Forward::None), is_known: true }
    }

    /// Of classes by name: a list is known by its bases, of the rest nothing is.
    pub fn of_names(classes: &[ClassLine]) -> Self {
        let is_list = |class: &&ClassLine| class.bases.iter().any(|base| LISTS.contains(&base.as_str()));
        let lists = classes.iter().filter(is_list).map(|class| class.name.clone()).collect();
        Self { lists, bare: Vec::new(), is_known: false }
    }
}

fn forward_of(bases: &[Base]) -> Forward {
    let mut is_list = false;
    for base in bases {
        let is_torchs = base.module.starts_with("torch.nn.modules.");
        is_list |= is_torchs && LISTS.contains(&base.name.as_str());
        if base.has_forward {
            return match base.name.as_str() {
                _ if is_list && is_torchs => Forward::List,
                "Module" if is_torchs => Forward::None,
                _ => Forward::Own,
            };
        }
    }
    Forward::None
}

/// Names of classes that are, or derive from, one of the classes named; and names that nothing is or derives from.
pub fn derived_classes(classes: &[ClassLine], names: Vec<String>) -> (Vec<String>, Vec<String>) {
    let mut is_met = vec![false; names.len()];
    let mut derived = Vec::new();
    for class in classes {
        let mut is_derived = false;
        for (name, met) in names.iter().zip(&mut is_met) {
            if class.bases.contains(name) {
                (*met, is_derived) = (true, true);
            }
        }
        if is_derived {
            derived.push(class.name.clone());
        }
    }
    let unknown = names.into_iter().zip(is_met).filter(|(_, is_met)| !is_met).map(|(name, _)| name).collect();
    (derived, unknown)
}

#[cfg(test)]
mod tests {
    use super::{Base, ClassLine, WithoutForward, derived_classes};

    fn base(name: &str, module: &str, has_forward: bool) -> Base {
        Base { name: name.to_string(), module: module.to_string(), has_forward }
    }

    fn torchs(name: &str, has_forward: bool) -> Base {
        base(name, "torch.nn.modules.container", has_forward)
    }

    #[test]
    fn a_forward_is_its_own_that_of_a_list_or_none() {
        let module = || torchs("Module", true);
        let of = |bases: &[Base]| {
            let found = WithoutForward::of_live([("C", bases)]);
            (found.lists.len(), found.bare.len())
        };
        assert_eq!(of(&[base("C", "mine", true), module()]), (0, 0));
        assert_eq!(of(&[base("C", "mine", false), torchs("Sequential", true), module()]), (1, 0));
        assert_eq!(of(&[base("C", "mine", false), torchs("ModuleList", false), module()]), (1, 0));
        assert_eq!(of(&[base("C", "mine", true), torchs("ModuleList", false), module()]), (0, 0));
        assert_eq!(of(&[base("C", "mine", false), module()]), (0, 1));
        assert_eq!(of(&[base("C", "mine", false), base("Sequential", "mine", true), module()]), (0, 0), "not torch's");
        assert_eq!(of(&[]), (0, 1));
    }

    #[test]
    fn of_classes_with_one_name_all_must_have_no_forward() {
        let (own, bare) = ([base("C", "mine", true)], [torchs("Module", true)]);
        let found = WithoutForward::of_live([("C", &own[..]), ("C", &bare[..]), ("D", &bare[..])]);
        assert_eq!((found.bare, found.is_known), (vec!["D".to_string()], true));
    }

    #[test]
    fn classes_are_met_by_the_names_of_their_bases() {
        let classes = [
            ClassLine::known("Layer", vec!["Block".to_string()]),
            ClassLine::known("Head", Vec::new()),
            ClassLine::known("Stack", vec!["ModuleList".to_string()]),
        ];
        let names = ["Block", "Head", "Nothing"].map(String::from).to_vec();
        let (derived, unknown) = derived_classes(&classes, names);
        assert_eq!((derived, unknown), (vec!["Layer".to_string(), "Head".to_string()], vec!["Nothing".to_string()]));
        assert_eq!(WithoutForward::of_names(&classes).lists, ["Stack"]);
        assert_eq!(derived_classes(&classes, vec!["object".to_string()]).0.len(), 3);
    }
}
