//! Writes what fuzzing begins with, files of the repository made small, to corpus/TARGET.

use std::path::Path;
use std::{fs, io};

fn main() -> io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (name, seeds) in twinscope_fuzz::SEEDS {
        let dir = corpus.join(name);
        fs::create_dir_all(&dir)?;
        for (i, seed) in seeds().into_iter().enumerate() {
            fs::write(dir.join(format!("seed-{i}")), seed)?;
        }
    }
    Ok(())
}
