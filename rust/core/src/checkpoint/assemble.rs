//! A module tree from the names of its tensors, as files hold them, and what is known of the architecture.

use std::collections::HashMap;

use crate::checkpoint::order;
use crate::checkpoint::outline::{FormId, Outline};
use crate::error::Error;
use crate::ids::{TensorId, id_at};
use crate::model::builder::TreeBuilder;
use crate::model::tree::{DType, Kind, Tensor, Tree};
use crate::names::is_number;

/// Element type of tensors that files do not hold.
const NOTHING: DType = DType { formula_bits: 8, stored_bits: 8, castable: false };

/// Most parts of a name, and most parts of all names that differ; bound what hostile names take.
const PARTS: usize = 256;
const ALL_PARTS: usize = 3 << 20;
/// Parts of a path that make a class; more would let long paths take memory that grows with their square.
const CLASS_PARTS: usize = 4;

/// Name of the first module of a list.
const FIRST: &str = "0";

/// A name and the tensor that it stands for; names with the same tensor are tied.
pub type Named = (String, TensorId);

/// Builds the tree that a live model with these tensors would have.
///
/// Where the outline knows a module, its class, the order of its members and its members without saved tensors are the
/// outline's; what it does not know is ordered by name, and its class is the end of its path with numbers as `*`. Buffers that are not
/// saved have no size here.
///
/// # Errors
///
/// A name with an empty part, a tensor below a tensor, more rows than can be planned.
///
/// # Cost
///
/// O(parts of names), and a sort among siblings.
pub fn assemble(outline: &Outline, dtypes: &[DType], tensors: &[Tensor], names: &[Named]) -> Result<Tree, Error> {
    let mut places = Places::default();
    for (name, tensor) in names {
        places.add(name, *tensor)?;
    }
    let mut builder = TreeBuilder::new();
    for &dtype in dtypes {
        builder.dtype(dtype);
    }
    let nothing = builder.dtype(NOTHING);
    Assembly { outline, places: &places, tensors, met: vec![None; tensors.len()], builder, nothing }.run()
}

#[derive(Default)]
struct Place<'a> {
    name: &'a str,
    tensor: Option<TensorId>,
    children: Vec<u32>,
}

/// Names as a tree of their parts.
struct Places<'a> {
    places: Vec<Place<'a>>,
    by_name: HashMap<(u32, &'a str), u32>,
}

impl Default for Places<'_> {
    fn default() -> Self {
        Self { places: vec![Place::default()], by_name: HashMap::new() }
    }
}

impl<'a> Places<'a> {
    fn add(&mut self, name: &'a str, tensor: TensorId) -> Result<(), Error> {
        if self.places.len() > ALL_PARTS {
            return Err(Error::TreeTooLarge { limit: ALL_PARTS });
        }
        let mut place = 0;
        for (depth, part) in name.split('.').enumerate() {
            if part.is_empty() || depth == PARTS || self.places[place as usize].tensor.is_some() {
                return Err(Error::ImpossibleName { name: name.to_string() });
            }
            let next = id_at(self.places.len());
            let below = *self.by_name.entry((place, part)).or_insert(next);
            if below == next {
                self.places.push(Place { name: part, tensor: None, children: Vec::new() });
                self.places[place as usize].children.push(below);
            }
            place = below;
        }
        let last = &mut self.places[place as usize];
        if !last.children.is_empty() {
            return Err(Error::ImpossibleName { name: name.to_string() });
        }
        last.tensor = Some(tensor);
        Ok(())
    }

    fn members(&self, place: u32) -> Vec<&'a str> {
        self.places[place as usize].children.iter().map(|&child| self.places[child as usize].name).collect()
    }
}

/// What is still to be done: steps are taken from the end.
enum Step<'a> {
    Enter { place: u32, forms: &'a [FormId], path: String },
    EnterEmpty { name: &'a str, form: FormId },
    Leaf { name: &'a str, kind: Kind, tensor: Option<TensorId> },
    Leave,
}

struct Assembly<'a> {
    outline: &'a Outline,
    places: &'a Places<'a>,
    tensors: &'a [Tensor],
    met: Vec<Option<TensorId>>, // ids in the tree go by its order, whatever the files' is
    builder: TreeBuilder,
    nothing: u16,
}

/// A member of a module on its way to its position.
struct Member<'a> {
    position: (usize, usize),
    step: Step<'a>,
}

impl<'a> Assembly<'a> {
    fn run(mut self) -> Result<Tree, Error> {
        let form = self.outline.nearest(self.outline.root(), || self.places.members(0));
        let class = form.map_or("", |form| &self.outline.form(form).class);
        self.builder.root_class(class);
        let mut steps = self.inside(0, form, "");
        while let Some(step) = steps.pop() {
            match step {
                Step::Leave => self.builder.leave(),
                Step::Leaf { name, kind, tensor } => {
                    let tensor = self.tensor(tensor);
                    self.builder.leaf(name, kind, tensor)?;
                }
                Step::EnterEmpty { name, form } => {
                    self.builder.enter(name, &self.outline.form(form).class)?;
                    steps.push(Step::Leave);
                    steps.extend(self.inside_empty(form));
                }
                Step::Enter { place, forms, path } => {
                    let form = self.outline.nearest(forms, || self.places.members(place));
                    let class = form.map_or(path.as_str(), |form| &self.outline.form(form).class);
                    self.builder.enter(self.places.places[place as usize].name, class)?;
                    steps.push(Step::Leave);
                    steps.extend(self.inside(place, form, &path));
                }
            }
        }
        Ok(self.builder.finish())
    }

    fn tensor(&mut self, id: Option<TensorId>) -> TensorId {
        let Some(id) = id.map(|id| id as usize) else {
            return self.builder.tensor(Tensor { numel: 0, dtype: self.nothing, opaque_bytes: None, width: 0 });
        };
        let (builder, tensor) = (&mut self.builder, self.tensors[id]);
        *self.met[id].get_or_insert_with(|| builder.tensor(tensor))
    }

    /// Steps for the members of a module, the first one last.
    fn inside(&self, place: u32, form: Option<FormId>, path: &str) -> Vec<Step<'a>> {
        let mut members: Vec<Member<'a>> = Vec::new();
        let mut known: Vec<&str> = Vec::new();
        for &child in &self.places.places[place as usize].children {
            known.push(self.places.places[child as usize].name);
            members.push(self.member(child, form, path));
        }
        if let Some(form) = form {
            self.add_unsaved(form, &known, &mut members);
        }
        members.sort_by(|left, right| {
            let by_name = || order::compare(left.step.name(self.places), right.step.name(self.places));
            left.position.cmp(&right.position).then_with(by_name)
        });
        members.into_iter().rev().map(|member| member.step).collect()
    }

    fn member(&self, child: u32, form: Option<FormId>, path: &str) -> Member<'a> {
        let form = form.map(|form| self.outline.form(form));
        let Place { name, tensor, .. } = self.places.places[child as usize];
        let position = form.and_then(|form| form.position(name));
        let Some(tensor) = tensor else {
            let forms = form.map_or(&[] as &[FormId], |form| form.child(name));
            let path = if forms.is_empty() { general_path(path, name) } else { String::new() };
            return Member {
                position: (1, position.unwrap_or(usize::MAX)),
                step: Step::Enter { place: child, forms, path },
            };
        };
        let is_parameter = form.is_none_or(|form| form.buffers.iter().all(|slot| slot.name != name));
        let kind = if is_parameter { Kind::Parameter } else { Kind::Buffer };
        let rank = if is_parameter { 0 } else { 2 };
        Member {
            position: (rank, position.unwrap_or(usize::MAX)),
            step: Step::Leaf { name, kind, tensor: Some(tensor) },
        }
    }

    /// Members of which files show nothing: modules without saved tensors, and buffers that are not saved.
    fn add_unsaved(&self, id: FormId, known: &[&str], members: &mut Vec<Member<'a>>) {
        let form = self.outline.form(id);
        let empty = |ids: &[FormId]| ids.iter().copied().find(|_| !ids.iter().any(|&id| self.outline.holds_saved(id)));
        for (name, ids) in form.children.iter().filter(|(name, _)| !known.contains(&name.as_str())) {
            let position = form.position(name).unwrap_or(usize::MAX);
            // How many there are in a list that no file shows is not known; one stands for all.
            let name = match name.as_str() {
                "*" if known.is_empty() => FIRST,
                "*" => continue,
                name => name,
            };
            if let Some(child) = empty(ids) {
                members.push(Member { position: (1, position), step: Step::EnterEmpty { name, form: child } });
            }
        }
        for slot in form.buffers.iter().filter(|slot| !slot.is_saved && !known.contains(&slot.name.as_str())) {
            let position = form.position(&slot.name).unwrap_or(usize::MAX);
            let step = Step::Leaf { name: &slot.name, kind: Kind::NonPersistentBuffer, tensor: None };
            members.push(Member { position: (2, position), step });
        }
    }

    fn inside_empty(&self, form: FormId) -> Vec<Step<'a>> {
        let mut members = Vec::new();
        self.add_unsaved(form, &[], &mut members);
        members.sort_by_key(|member| member.position);
        members.into_iter().rev().map(|member| member.step).collect()
    }
}

impl<'a> Step<'a> {
    fn name(&self, places: &Places<'a>) -> &'a str {
        match self {
            Self::Enter { place, .. } => places.places[*place as usize].name,
            Self::EnterEmpty { name, .. } | Self::Leaf { name, .. } => name,
            Self::Leave => "",
        }
    }
}

/// The end of a path in which every number is `*`: what repeated modules have in common.
fn general_path(path: &str, name: &str) -> String {
    let last = if is_number(name) { "*" } else { name };
    if path.is_empty() {
        return last.to_string();
    }
    let start = path.rmatch_indices('.').nth(CLASS_PARTS - 2).map_or(0, |(dot, _)| dot + 1);
    format!("{}.{last}", &path[start..])
}
