//! safetensors files with keys `layers.N.STAGE` and `STAGE`; the text entries `tokens`, `prompt` and `source` are read if there.

use std::path::Path;

use super::{About, Item, Source, token_list};
use crate::error::Result;
use crate::op::HostTensor;
use crate::trace::store::file::TensorFile;

pub struct Tensors {
    file: TensorFile,
    about: About,
    items: Vec<Item>,
}

impl Tensors {
    pub fn open(path: &Path) -> Result<Self> {
        let file = TensorFile::open(path)?;
        let text = |key| file.metadata(key).unwrap_or_default().to_string();
        let mut about = About {
            model: text("model"),
            program: text("source"),
            prompt: Some(text("prompt")).filter(|p| !p.is_empty()),
            ..About::default()
        };
        match token_list(&text("tokens")) {
            Ok(tokens) => about.tokens = tokens,
            Err(what) => about.other.push(format!("metadata tokens: {what}")),
        }
        let shape = |key: &String| file.info(key).map(|i| i.shape.clone()).unwrap_or_default();
        let mut keys = file.keys();
        keys.sort();
        let items = keys.into_iter().map(|label| Item { shape: shape(&label), label }).collect();
        Ok(Self { file, about, items })
    }
}

impl Source for Tensors {
    fn about(&self) -> &About {
        &self.about
    }
    fn items(&self) -> &[Item] {
        &self.items
    }
    fn read(&mut self, i: usize) -> Result<HostTensor> {
        self.file.read(&self.items[i].label)
    }
}
