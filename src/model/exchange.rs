//! A model whose weights come from two files.
//!
//! - Two quantizations of one model have the same places for weights, and bytes of other types in them. What a part of a file costs is
//!   found by running the one with that part of the other: the forward pass knows nothing of it.
//! - A place is one even where two operations read it: with a tied embedding the output's matrix is the embedding.

use std::sync::Arc;

use super::{Config, Model, Weights};
use crate::error::{Error, Result};
use crate::op::Weight;

/// Where in a model a weight belongs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WeightPlace {
    /// `None` outside of layers.
    pub layer: Option<usize>,
    /// `attn_q.weight`: the tensor's name without its layer.
    pub kind: String,
}

impl std::fmt::Display for WeightPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.layer {
            Some(layer) => write!(f, "blk.{layer}.{}", self.kind),
            None => f.write_str(&self.kind),
        }
    }
}

/// What two files have in one place.
#[derive(Clone, Debug)]
pub struct WeightPair {
    /// Where.
    pub place: WeightPlace,
    /// The weight of each file.
    pub weights: [Arc<Weight>; 2],
    /// Whether they are the same to the bit.
    pub same: bool,
}

/// The places of the weights outside of layers.
const EMBEDDING: &str = "token_embd.weight";
const NORM: &str = "output_norm.weight";
const OUTPUT: &str = "output.weight";

impl Weights {
    /// These weights, but in the places that `theirs` picks those of `other`, a model with the same places.
    pub fn mixed(&self, other: &Self, theirs: &dyn Fn(&WeightPlace) -> bool) -> Self {
        let mut mixed = self.clone();
        let whole = |kind: &str| theirs(&WeightPlace { layer: None, kind: kind.into() });
        let embedding = whole(EMBEDDING);
        let output = if self.is_tied() && other.is_tied() { embedding } else { whole(OUTPUT) };
        if embedding {
            mixed.token_embd = other.token_embd.clone();
        }
        if output {
            mixed.output = other.output.clone();
        }
        if whole(NORM) {
            mixed.output_norm = other.output_norm.clone();
        }
        for (n, (layer, others)) in mixed.layers.iter_mut().zip(&other.layers).enumerate() {
            for (weight, other) in layer.all_mut().into_iter().zip(others.all()) {
                if theirs(&place(Some(n), weight)) {
                    *weight = other.clone();
                }
            }
        }
        mixed
    }

    /// Whether the output's matrix is the embedding.
    fn is_tied(&self) -> bool {
        Arc::ptr_eq(&self.output, &self.token_embd)
    }
}

fn place(layer: Option<usize>, weight: &Weight) -> WeightPlace {
    WeightPlace { layer, kind: super::strip_layer(&weight.name).to_string() }
}

impl Model {
    /// What this file and `other` have in each place, in the order of the forward pass.
    ///
    /// # Errors
    /// [`Error::Usage`] if they are no two files of one model: another hyperparameter, another frequency factor of rope.
    pub fn pairs(&self, other: &Model) -> Result<Vec<WeightPair>> {
        let [a, b] = [self.gguf.name(), other.gguf.name()];
        let wrong = |what: String| Error::usage(format!("{a} and {b} are no two files of one model: {what}"));
        if let Some(key) = first_difference(&self.config, &other.config) {
            return Err(wrong(key));
        }
        let factors = |model: &Model| model.weights.rope_freqs.as_ref().map(|w| w.bytes().into_owned());
        if factors(self) != factors(other) {
            return Err(wrong("rope_freqs.weight is not the same, and every position turns by it".into()));
        }
        let (ours, others) = (&self.weights, &other.weights);
        let mut pairs = Vec::new();
        let mut add = |layer: Option<usize>, kind: Option<&str>, weights: [&Arc<Weight>; 2]| {
            let [x, y] = weights;
            let place = match kind {
                Some(kind) => WeightPlace { layer, kind: kind.into() },
                None => place(layer, x),
            };
            let experts = |x: &Weight, y: &Weight| (0..x.experts).all(|e| x.expert(e) == y.expert(e));
            let same = (x.ty, x.dims()) == (y.ty, y.dims()) && experts(x, y);
            pairs.push(WeightPair { place, weights: [x.clone(), y.clone()], same });
        };
        add(None, Some(EMBEDDING), [&ours.token_embd, &others.token_embd]);
        for (n, (x, y)) in ours.layers.iter().zip(&others.layers).enumerate() {
            for (x, y) in x.all().into_iter().zip(y.all()) {
                add(Some(n), None, [x, y]);
            }
        }
        add(None, Some(NORM), [&ours.output_norm, &others.output_norm]);
        if !(ours.is_tied() && others.is_tied()) {
            add(None, Some(OUTPUT), [&ours.output, &others.output]);
        }
        Ok(pairs)
    }
}

/// The first hyperparameter, but for names, the context length and layers that are not run, of which two models have another.
fn first_difference(a: &Config, b: &Config) -> Option<String> {
    let keys = |config: &Config| match serde_json::to_value(config) {
        Ok(serde_json::Value::Object(object)) => object,
        _ => serde_json::Map::new(), // a configuration is an object of plain values
    };
    let (a, b) = (keys(a), keys(b));
    let other = a.iter().find(|(key, value)| {
        !matches!(key.as_str(), "name" | "context" | "predicting_layers") && b.get(*key) != Some(value)
    });
    other.map(|(key, value)| {
        let found = b.get(key).map_or("nothing".into(), |v| v.to_string());
        format!("{key} is {value} in the one and {found} in the other")
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::gguf::Gguf;
    use crate::synth::{Family, FfnShape, Mix, ModelShape, Plan};

    #[test]
    fn a_mixed_model_has_each_weight_from_the_file_that_is_asked_for() {
        let (a, b) = (Model::open(None).unwrap(), Model::open(None).unwrap());
        let pairs = a.pairs(&b).unwrap();
        assert!(pairs.iter().all(|pair| pair.same), "one file, opened twice");
        for pair in &pairs {
            let mixed = a.weights.mixed(&b.weights, &|place| *place == pair.place);
            let theirs: Vec<String> = (mixed.all().iter().zip(a.weights.all()))
                .filter(|(w, own)| w.id != own.id)
                .map(|(w, _)| w.name.clone())
                .collect();
            assert_eq!(theirs, [pair.place.to_string()]);
        }
        let all = a.weights.mixed(&b.weights, &|_| true);
        let ids = |weights: &Weights| weights.all().iter().map(|w| w.id).collect::<Vec<_>>();
        assert_eq!(ids(&all), ids(&b.weights));
    }

    /// Over models made here: a published package has no model files but the bundled one.
    #[test]
    fn every_family_lists_its_weights_once_for_reading_and_for_exchange() {
        let tiny = ModelShape::named("tiny").unwrap();
        for family in Family::NAMES {
            let shape = ModelShape {
                family: Family::named(family).unwrap(),
                vocab: 300,
                ffn: if family == "gemma3" { FfnShape::Dense(256) } else { tiny.ffn },
                ..tiny
            };
            let bytes = Plan::new(family, &shape, &Mix::from_name("Q4_K_M").unwrap(), 0).unwrap().to_bytes().unwrap();
            let model = Model::from_gguf(Gguf::from_bytes(family, Arc::new(bytes)).unwrap()).unwrap();
            let mut copy = model.weights.clone();
            for (layer, same) in model.weights.layers.iter().zip(&mut copy.layers) {
                let (read, exchanged) = (layer.all(), same.all_mut());
                assert!(read.iter().zip(&exchanged).all(|(a, b)| a.id == b.id) && read.len() == exchanged.len());
            }
            assert!(model.pairs(&Model::open(None).unwrap()).is_err(), "{family} is another model");
        }
    }
}
