//! Folders of `repro`: see [`super::readers`].

use std::path::Path;
use std::rc::Rc;

use twinscope::repro::Folder;

use super::readers::{Replaced, copy, directory, repository};

fn place() -> Rc<Replaced> {
    directory("repro", |dir| copy(&repository("tests/data/repro_folders/expert_down"), dir))
}

/// A folder, of which one file is replaced; it is opened, and what it holds is looked at.
pub fn folder(data: &[u8]) {
    place().read(data, |dir: &Path| {
        if let Ok(folder) = Folder::open(dir) {
            let _ = (folder.needs(), folder.case.shape().len());
        }
    });
}

/// Its files.
pub fn seeds() -> Vec<Vec<u8>> {
    place().seeds()
}
