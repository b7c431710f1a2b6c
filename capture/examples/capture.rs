//! Writes a valid capture of two tensors with nothing but the standard library: rustc capture.rs && ./capture FILE

use std::io::Write;

fn main() -> std::io::Result<()> {
    let path = std::env::args().nth(1).expect("usage: capture FILE");
    let attn_norm: Vec<f32> = (0..12).map(|i| 0.5 * i as f32).collect(); // [T, H] = [3, 4], slowest axis first
    let layer_out: Vec<f32> = (0..12).map(|i| 0.25 * i as f32 - 1.0).collect();
    let header = r#"{"schema":"twinscope.capture/1","engine":"an example in Rust","tokens":[422,472,345],"contract":"f32"}"#;

    let (mut entries, mut data) = (String::new(), Vec::new());
    for (key, shape, values) in [("layers.0.attn_norm", [3, 4], attn_norm), ("layers.0.layer_out", [3, 4], layer_out)] {
        let start = data.len();
        data.extend(values.iter().flat_map(|x| x.to_le_bytes()));
        let end = data.len();
        entries += &format!(r#","{key}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{start},{end}]}}"#);
    }
    // The capture's own header is JSON inside JSON: its quotes are escaped, which is what {:?} does with plain text.
    let text = format!(r#"{{"__metadata__":{{"twinscope.capture":{header:?}}}{entries}}}"#);
    let mut file = std::fs::File::create(path)?;
    file.write_all(&(text.len() as u64).to_le_bytes())?;
    file.write_all(text.as_bytes())?;
    file.write_all(&data)
}
