//! The models that faults are planted on. By number: 0 the bundled model, 1 the wide one, 2 the `llama`, 3 the `qwen2`, 4 the
//! `qwen3` with YaRN, 5 the `qwen2moe`, 6 the `olmoe`, 7 the
//! `gemma3`, 8 the `gpt-oss`, whose layer 0 has a window of 4 keys and layer 1 none, 9 the `glm4moe`, whose layer 0 has no experts, and
//! 10 one of a single layer whose prompt is long: several tiles of positions, more than a tile of an expert's slots, 11 the `qwen3next` and 12 the
//! `qwen35moe`, whose layers 0 have linear attention, and of which 12 has gate and up of its experts in one weight. From 13 on each has all its matrices in another type; 18 has a weight whose
//! scales are subnormal halves, and one with codes of -128. 19 is a `deepseek2` with queries that are taken to its latents, YaRN and groups of experts by
//! the two best of each, 20 one whose keys and values are made of the latents, with a softmax and groups by their best, and 21 one of NVFP4 with scales.

use std::sync::Arc;

use crate::backend::oracle::dequant;
use crate::environment::Environment;
use crate::error::Result;
use crate::gguf::Gguf;
use crate::model::{Ffn, LatentHeads, Mixer, Model};
use crate::op::{GgmlType, Mla, Weight};
use crate::synth::{Family, FfnShape as SynthFfn, LatentShape, Mix, ModelShape, Moe, Plan};

/// Positions of the prompt: more than the matrix-vector kernels take, and no multiple of any tile.
pub const POSITIONS: usize = 7;

/// The types of whole models: of blocks of 32 and of 256, of sub-blocks of 16 and of 32, with minimums and without.
const TYPES: [(&str, GgmlType); 5] = [
    ("q8_0", GgmlType::Q8_0),
    ("q5_1", GgmlType::Q5_1),
    ("q6_k", GgmlType::Q6_K),
    ("q2_k", GgmlType::Q2_K),
    ("iq4_xs", GgmlType::IQ4_XS),
];

/// A model and a prompt.
pub struct TestModel {
    pub name: &'static str,
    pub model: Model,
    pub tokens: Vec<u32>,
}

impl TestModel {
    /// How many there are.
    pub const COUNT: usize = 17 + TYPES.len();

    /// Those of other types.
    pub const OF_TYPES: &[usize] = &[13, 14, 15, 16, 17];

    /// Whether it stands for a family: it is the bundled one or is called after its family, and has weights and a prompt of the usual kind.
    pub fn is_of_family(&self) -> bool {
        let unusual = ["wide", "long", "extremes"];
        !unusual.contains(&self.name) && !TYPES.iter().any(|(name, _)| *name == self.name)
    }

    /// Experts that a position has, on the models of `qwen3moe` with the short prompt.
    pub fn experts_used(test_model: usize) -> usize {
        match test_model {
            0 => 2,
            1 => 8,
            _ => 4,
        }
    }

    /// Every model, by its number.
    ///
    /// # Errors
    /// If one cannot be made, which would be a defect.
    pub fn all() -> Result<[Self; Self::COUNT]> {
        let tiny = ModelShape::named("tiny").expect("a named shape");
        let dense = ModelShape { layers: 2, ffn: SynthFfn::Dense(512), tied: true, vocab: 300, ..tiny };
        let llama = ModelShape { family: Family::Llama, rope_base: 5e5, rope_freqs: true, ..dense };
        let qwen2 = ModelShape { family: Family::Qwen2, ..dense };
        let moe = ModelShape { layers: 2, vocab: 300, ..tiny };
        let yarn = ModelShape { rope_base: 1e4, context: 16_384, yarn: Some(4.0), ..dense };
        let gpt_oss = ModelShape {
            family: Family::GptOss,
            rope_base: 1.5e5,
            context: 131_072,
            yarn: Some(32.0),
            window: Some([4, 2]),
            ..moe
        };
        let of_type = |(name, ty)| Self::with_mix(name, &moe, &Mix::pure(ty).expect("a type that weights have"));
        let [a, b, c, d, e] = TYPES.map(of_type);
        Ok([
            Self::demo()?,
            Self::wide()?,
            Self::synthetic("llama", &llama)?,
            Self::synthetic("qwen2", &qwen2)?,
            Self::synthetic("yarn", &yarn)?,
            Self::synthetic("qwen2moe", &ModelShape { family: Family::Qwen2, ..moe })?,
            Self::synthetic("olmoe", &ModelShape { family: Family::Olmoe, ..moe })?,
            Self::synthetic("gemma3", &ModelShape { family: Family::Gemma3, window: Some([4, 2]), ..dense })?,
            Self::synthetic_in("gpt-oss", &gpt_oss, "MXFP4")?,
            Self::synthetic("glm4moe", &ModelShape { family: Family::Glm4Moe, ..moe })?,
            Self::long()?,
            Self::synthetic("qwen3next", &ModelShape { family: Family::Qwen3Next, ..moe })?,
            Self::joint("qwen35moe", &ModelShape { family: Family::Qwen35, ..moe })?,
            a?,
            b?,
            c?,
            d?,
            e?,
            Self::extremes(&moe)?,
            Self::synthetic("deepseek3", &ModelShape { family: Family::DeepSeek2, ..yarn_of(&moe) })?,
            Self::expanded("deepseek2", &moe)?,
            Self::with_mix("nvfp4", &moe, &Mix::pure(GgmlType::NVFP4).expect("a type that weights have"))?,
        ])
    }

    fn synthetic(name: &'static str, shape: &ModelShape) -> Result<Self> {
        Self::synthetic_in(name, shape, "Q4_K_M")
    }

    fn synthetic_in(name: &'static str, shape: &ModelShape, mix: &str) -> Result<Self> {
        Self::with_mix(name, shape, &Mix::from_name(mix).expect("a named mix"))
    }

    fn with_mix(name: &'static str, shape: &ModelShape, mix: &Mix) -> Result<Self> {
        let bytes = Plan::new(name, shape, mix, 1)?.to_bytes()?;
        let model = Model::from_gguf(Gguf::from_bytes(name, Arc::new(bytes))?)?;
        Environment::used_model(name, model.gguf.fingerprint());
        Ok(Self { name, model, tokens: vec![11, 299, 42, 211, 7, 256, 123] })
    }

    /// The bundled model: trained, 4 layers, 8 experts of which 2 are used.
    ///
    /// # Errors
    /// If the bundled model cannot be read, which would be a defect.
    fn demo() -> Result<Self> {
        let model = Model::open(None)?;
        Environment::used_model(model.gguf.name(), model.gguf.fingerprint());
        let mut tokens = model.tokenizer()?.encode("fn main() {\n    let x = 5;\n    println!")?;
        tokens.truncate(POSITIONS);
        Ok(Self { name: "demo", model, tokens })
    }

    /// A synthetic model of 2 layers with 128 experts of which 8 are used, and a vocabulary that is no multiple of a tile.
    ///
    /// # Errors
    /// If the model cannot be made, which would be a defect.
    fn wide() -> Result<Self> {
        let tiny = ModelShape::named("tiny").expect("a named shape");
        let ffn = SynthFfn::Moe(Moe { experts: 128, used: 8, width: 256 });
        let shape = ModelShape { layers: 2, ffn, vocab: 519, ..tiny };
        Ok(Self { tokens: vec![11, 300, 42, 511, 7, 256, 123], ..Self::synthetic("wide", &shape)? })
    }

    /// A synthetic model of one layer with 8 experts, and a prompt that goes past tiles and tables of 256 positions.
    ///
    /// # Errors
    /// If the model cannot be made, which would be a defect.
    fn long() -> Result<Self> {
        let tiny = ModelShape::named("tiny").expect("a named shape");
        let ffn = SynthFfn::Moe(Moe { experts: 8, used: 2, width: 256 });
        let shape = ModelShape { layers: 1, ffn, vocab: 300, ..tiny };
        let tokens = (0..272).map(|t| t * 97 % 299 + 1).collect();
        Ok(Self { tokens, ..Self::synthetic("long", &shape)? })
    }

    /// A synthetic model with numbers at the ends of their ranges: in layer 0 every third row of q has subnormal scales, in layer 1 every ninth
    /// has codes of -128.
    ///
    /// # Errors
    /// If the model cannot be made, which would be a defect.
    fn extremes(shape: &ModelShape) -> Result<Self> {
        let mut made = Self::synthetic("extremes", shape)?;
        for (layer, change) in made.model.weights.layers.iter_mut().zip([subnormal as Change, least_codes]) {
            if let Mixer::Attention(attention) = &mut layer.mixer {
                attention.q = change(&attention.q)?;
            }
        }
        Ok(made)
    }

    /// A synthetic model with latent attention whose keys and values are made of the latents, as older files have it: the same matrices, turned.
    ///
    /// # Errors
    /// If the model cannot be made, which would be a defect.
    fn expanded(name: &'static str, shape: &ModelShape) -> Result<Self> {
        let (q_rank, sigmoid, shared, weights_scale) = (None, false, 2, 1.5);
        let latent = Some(LatentShape { q_rank, sigmoid, shared, weights_scale, ..LatentShape::DEFAULT });
        let mut made = Self::synthetic(name, &ModelShape { family: Family::DeepSeek2, latent, ..*shape })?;
        for (n, layer) in made.model.weights.layers.iter_mut().enumerate() {
            let Mixer::Latent(attention) = &mut layer.mixer else { continue };
            if let LatentHeads::Absorbed { q, v } = &attention.heads {
                let name = |part: &str| format!("blk.{n}.attn_kv_b.weight ({part})");
                let (k, v) = (turned(&name("keys"), q)?, turned(&name("values"), &*turned("", v)?)?);
                attention.heads = LatentHeads::Plain { k, v };
            }
        }
        let config = &mut made.model.config;
        config.kv_heads = config.heads;
        config.mla.iter_mut().for_each(|mla| mla.form = Mla::Plain);
        Ok(made)
    }

    /// A synthetic model whose experts' gate and up are parts of one weight, as some files have it: the same matrices.
    ///
    /// # Errors
    /// If the model cannot be made, which would be a defect.
    fn joint(name: &'static str, shape: &ModelShape) -> Result<Self> {
        let mut made = Self::synthetic(name, shape)?;
        for (n, layer) in made.model.weights.layers.iter_mut().enumerate() {
            let Ffn::Moe(moe) = &mut layer.ffn else { continue };
            let (gate, up, rows) = (&moe.gate, &moe.up, moe.gate.rows);
            let of = |expert: usize| [gate, up].into_iter().flat_map(move |w| w.expert(expert));
            let bytes = (0..gate.experts).flat_map(of).copied().collect();
            let name = format!("blk.{n}.ffn_gate_up_exps.weight");
            let joint = Weight::from_vec(&name, gate.ty, [gate.cols, 2 * rows, gate.experts], bytes)?;
            moe.gate = joint.part(&format!("{name} (gate)"), 0..rows)?;
            moe.up = joint.part(&format!("{name} (up)"), rows..2 * rows)?;
        }
        Ok(made)
    }

    /// Exchanges the router of a layer for one whose experts are equal in threes, so that every position has a tie at the
    /// boundary of 2 or of 8 experts unless a pair is left over; gives back the router that was there.
    ///
    /// # Errors
    /// If the layer has no router of f32 weights.
    pub fn tie(&mut self, layer: usize) -> Result<Option<Arc<Weight>>> {
        let Ffn::Moe(moe) = &mut self.model.weights.layers[layer].ffn else { return Ok(None) };
        let router = moe.router.clone();
        let rows = (0..router.rows).flat_map(|row| router.row(0, row / 3 * 3).to_vec()).collect();
        moe.router = Weight::from_vec(&router.name, router.ty, [router.cols, router.rows, 1], rows)?;
        debug_assert_eq!(router.ty, GgmlType::F32);
        Ok(Some(router))
    }

    /// Puts the router back.
    pub fn untie(&mut self, layer: usize, router: Option<Arc<Weight>>) {
        if let (Ffn::Moe(moe), Some(router)) = (&mut self.model.weights.layers[layer].ffn, router) {
            moe.router = router;
        }
    }
}

/// The shape with YaRN.
fn yarn_of(shape: &ModelShape) -> ModelShape {
    ModelShape { rope_base: 1e4, context: 16_384, yarn: Some(4.0), ..*shape }
}

/// Each expert's matrix with its rows for columns, as f32, which is exact.
fn turned(name: &str, weight: &Weight) -> Result<Arc<Weight>> {
    let (cols, rows) = (weight.cols, weight.rows);
    let mut all = vec![0f32; cols * rows * weight.experts];
    let mut values = vec![0.0; cols];
    for (expert, of) in all.chunks_exact_mut(cols * rows).enumerate() {
        for row in 0..rows {
            dequant::row(weight.ty, weight.row(expert, row), &mut values)?;
            values.iter().enumerate().for_each(|(col, x)| of[col * rows + row] = *x as f32);
        }
    }
    let bytes = all.into_iter().flat_map(f32::to_le_bytes).collect();
    Weight::from_vec(name, GgmlType::F32, [rows, cols, weight.experts], bytes)
}

/// Makes a weight of another of the same shape.
type Change = fn(&Weight) -> Result<Arc<Weight>>;

/// Q4_K, of which every third row has subnormal halves for scale and minimum.
fn subnormal(weight: &Weight) -> Result<Arc<Weight>> {
    debug_assert_eq!(weight.ty, GgmlType::Q4_K);
    let mut bytes = weight.bytes().to_vec();
    for row in bytes.chunks_exact_mut(weight.row_bytes()).step_by(3) {
        for block in row.chunks_exact_mut(weight.ty.block_bytes()) {
            block[..2].copy_from_slice(&0x0123u16.to_le_bytes());
            block[2..4].copy_from_slice(&0x0071u16.to_le_bytes());
        }
    }
    Weight::from_vec(&weight.name, weight.ty, [weight.cols, weight.rows, 1], bytes)
}

/// The same values as Q8_0, but for a code of -128 in each block of every ninth row.
fn least_codes(weight: &Weight) -> Result<Arc<Weight>> {
    let (mut bytes, mut values) = (Vec::new(), vec![0.0; weight.cols]);
    for row in 0..weight.rows {
        dequant::row(weight.ty, weight.row(0, row), &mut values)?;
        for block in values.chunks(GgmlType::Q8_0.block_len()) {
            let largest = block.iter().fold(0f64, |m, x| m.max(x.abs()));
            let scale = half::f16::from_f64(largest.max(1e-3) / 127.0);
            bytes.extend(scale.to_le_bytes());
            let code = |(i, x): (usize, &f64)| match (row % 9, i) {
                (0, 0) => i8::MIN,
                _ => (x / scale.to_f64()).round() as i8,
            };
            bytes.extend(block.iter().enumerate().map(code).map(|code| code as u8));
        }
    }
    Weight::from_vec(&weight.name, GgmlType::Q8_0, [weight.cols, weight.rows, 1], bytes)
}
