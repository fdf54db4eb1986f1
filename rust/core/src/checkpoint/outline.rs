//! What is known of an architecture before any model of it exists: which modules there are, in which order, of which class.

use crate::ids::id_at;
use crate::names::is_number;

/// Index of a form in its outline.
pub type FormId = u32;

/// A tensor that a form registers itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Local name.
    pub name: String,
    /// Whether it is saved with the model.
    pub is_saved: bool,
}

/// One shape that a module can have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Form {
    /// Class name.
    pub class: String,
    /// Local names of parameters, in order.
    pub parameters: Vec<String>,
    /// Children in order, by local name, each with the forms that it may have; `*` stands for every number.
    pub children: Vec<(String, Vec<FormId>)>,
    /// Buffers, in order.
    pub buffers: Vec<Slot>,
}

/// The forms of an architecture, the model's own first; none for an unknown architecture.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outline {
    forms: Vec<Form>,
    holds_saved: Vec<bool>,
}

impl Outline {
    /// An outline; ids that name no form, or that would put a form inside itself, are left out.
    pub fn new(mut forms: Vec<Form>) -> Self {
        let count = id_at(forms.len());
        for form in &mut forms {
            for (_, ids) in &mut form.children {
                ids.retain(|&id| id < count);
            }
        }
        let has_end = without_circles(&forms);
        for (form, _) in forms.iter_mut().zip(&has_end).filter(|&(_, &has_end)| !has_end) {
            form.children.clear();
        }
        let mut holds_saved: Vec<bool> = forms.iter().map(Form::saves).collect();
        // What a child holds, its parent holds; as many rounds as forms are deep.
        loop {
            let below = |ids: &[FormId], known: &[bool]| ids.iter().any(|&id| known[id as usize]);
            let next: Vec<bool> = (forms.iter().zip(&holds_saved))
                .map(|(form, &holds)| holds || form.children.iter().any(|(_, ids)| below(ids, &holds_saved)))
                .collect();
            if next == holds_saved {
                return Self { forms, holds_saved };
            }
            holds_saved = next;
        }
    }

    /// The form of the model itself.
    pub(crate) fn root(&self) -> &[FormId] {
        if self.forms.is_empty() { &[] } else { &[0] }
    }

    pub(crate) fn form(&self, id: FormId) -> &Form {
        &self.forms[id as usize]
    }

    /// Whether anything inside is saved with a model, so that files would show it.
    pub(crate) fn holds_saved(&self, id: FormId) -> bool {
        self.holds_saved[id as usize]
    }

    /// The form that differs least from a module of which files hold these members.
    pub(crate) fn nearest<'a>(&self, forms: &[FormId], members: impl Fn() -> Vec<&'a str>) -> Option<FormId> {
        match forms {
            [] => None,
            [only] => Some(*only),
            _ => {
                let members = members();
                forms.iter().copied().min_by_key(|&id| self.distance(id, &members))
            }
        }
    }

    fn distance(&self, id: FormId, members: &[&str]) -> usize {
        let form = self.form(id);
        let unknown = members.iter().filter(|name| form.position(name).is_none()).count();
        let is_absent = |name: &str| !members.contains(&name);
        let slots = form.parameters.iter().map(String::as_str);
        let saved = form.buffers.iter().filter(|slot| slot.is_saved).map(|slot| slot.name.as_str());
        let below = (form.children.iter())
            .filter(|(name, ids)| name != "*" && ids.iter().any(|&id| self.holds_saved(id)))
            .map(|(name, _)| name.as_str());
        unknown + slots.chain(saved).chain(below).filter(|name| is_absent(name)).count()
    }
}

/// Which forms lead to an end, whichever of their children one follows.
fn without_circles(forms: &[Form]) -> Vec<bool> {
    let mut has_end = vec![false; forms.len()];
    loop {
        let leads = |form: &Form| form.children.iter().flat_map(|(_, ids)| ids).all(|&id| has_end[id as usize]);
        let next: Vec<bool> = forms.iter().map(leads).collect();
        if next == has_end {
            return has_end;
        }
        has_end = next;
    }
}

impl Form {
    fn saves(&self) -> bool {
        !self.parameters.is_empty() || self.buffers.iter().any(|slot| slot.is_saved)
    }

    /// Where a member stands: parameters, then children, then buffers.
    pub(crate) fn position(&self, name: &str) -> Option<usize> {
        let children = self.parameters.len();
        let buffers = children + self.children.len();
        let parameter = self.parameters.iter().position(|known| known == name);
        let child = || self.child_position(name).map(|place| children + place);
        let buffer = || self.buffers.iter().position(|slot| slot.name == name).map(|place| buffers + place);
        parameter.or_else(child).or_else(buffer)
    }

    fn child_position(&self, name: &str) -> Option<usize> {
        let named = self.children.iter().position(|(known, _)| known == name);
        named.or_else(|| {
            let is_number = is_number(name);
            self.children.iter().position(|(known, _)| is_number && known == "*")
        })
    }

    /// Forms that a child of this name may have.
    pub(crate) fn child(&self, name: &str) -> &[FormId] {
        self.child_position(name).map_or(&[], |place| &self.children[place].1)
    }
}
