//! Where in the forward pass a backend call stands.

use super::Stage;

/// Where in the forward pass a backend call stands: which stage of which layer its result is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Site {
    /// `None` for the whole-model stages.
    pub layer: Option<u32>,
    /// The stage.
    pub stage: Stage,
}

impl Site {
    /// A stage of the whole model.
    pub fn model(stage: Stage) -> Self {
        Self { layer: None, stage }
    }
    /// A stage of a layer.
    pub fn layer(layer: usize, stage: Stage) -> Self {
        Self { layer: Some(layer as u32), stage }
    }
    /// The key of this site in a trace: `layers.N.stage` or `stage`.
    pub fn key(&self) -> String {
        match self.layer {
            Some(n) => format!("layers.{n}.{}", self.stage),
            None => self.stage.name().to_string(),
        }
    }
}

impl std::fmt::Display for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.layer {
            Some(n) => write!(f, "layer {n} · {}", self.stage),
            None => write!(f, "{}", self.stage),
        }
    }
}

/// A site and the first position of the call: where in the forward pass, and where in the sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct At {
    /// The layer and stage.
    pub site: Site,
    /// The position of the operation's first row.
    pub start: usize,
}

impl At {
    /// A site, at the position of the call's first row.
    pub fn new(site: Site, start: usize) -> Self {
        Self { site, start }
    }
    /// A whole-model stage.
    pub fn model(stage: Stage, start: usize) -> Self {
        Self::new(Site::model(stage), start)
    }
    /// A stage of a layer.
    pub fn layer(layer: usize, stage: Stage, start: usize) -> Self {
        Self::new(Site::layer(layer, stage), start)
    }
}
