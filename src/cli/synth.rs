//! `synth`: writes a model of random weights.

use std::collections::BTreeMap;
use std::path::PathBuf;

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use crate::cli::{Outcome, output};
use crate::op::GgmlType;
use crate::synth::{Family, FfnShape, MIXES, Mix, ModelShape, Moe, Plan};
use crate::text::count;
use crate::{Error, Result};

/// Write a model of random weights, of any shape and type.
///
/// The same arguments give the same file, byte for byte, on every machine.
#[derive(clap::Args)]
pub struct Args {
    /// The GGUF file to write.
    pub out: PathBuf,
    /// Replace OUT if it exists.
    #[arg(long)]
    force: bool,
    /// The shape to begin with; the flags below change it.
    #[arg(long, default_value = "tiny", value_parser = ModelShape::NAMES)]
    shape: String,
    /// The family: of qwen3 with experts the architecture is qwen3moe. That of the shape if not given.
    #[arg(long, value_parser = Family::NAMES)]
    family: Option<String>,
    /// Types as llama.cpp's quantizer mixes them.
    #[arg(long, default_value = "Q4_K_M", value_parser = parse_mix)]
    quant: Mix,
    /// One type for every matrix, in place of a mix: F16, Q4_K, IQ2_XXS, …
    #[arg(long, conflicts_with = "quant", value_name = "TYPE", value_parser = parse_type)]
    pure: Option<Mix>,
    /// Another seed gives other weights.
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Hidden size.
    #[arg(long, value_name = "N", help_heading = "Dimensions")]
    hidden: Option<u32>,
    /// Layers.
    #[arg(long, value_name = "N", help_heading = "Dimensions")]
    layers: Option<u32>,
    /// Query heads.
    #[arg(long, value_name = "N", help_heading = "Dimensions")]
    heads: Option<u32>,
    /// Key and value heads, a divisor of the query heads.
    #[arg(long, value_name = "N", help_heading = "Dimensions")]
    kv_heads: Option<u32>,
    /// Width of a head, even.
    #[arg(long, value_name = "N", help_heading = "Dimensions")]
    head_dim: Option<u32>,
    /// Experts in a layer.
    #[arg(long, value_name = "N", help_heading = "Dimensions")]
    experts: Option<u32>,
    /// Experts that a token uses.
    #[arg(long, value_name = "N", help_heading = "Dimensions")]
    experts_used: Option<u32>,
    /// FFN width of an expert.
    #[arg(long, value_name = "N", help_heading = "Dimensions")]
    expert_ffn: Option<u32>,
    /// No experts but one FFN of this width.
    #[arg(long, value_name = "FFN", help_heading = "Dimensions", conflicts_with_all = ["experts", "experts_used", "expert_ffn"])]
    dense: Option<u32>,
    /// Tokens in the vocabulary.
    #[arg(long, value_name = "N", help_heading = "Dimensions")]
    vocab: Option<u32>,
    /// Context length.
    #[arg(long, value_name = "N", help_heading = "Dimensions")]
    ctx: Option<u32>,
    /// Base of the rotary embedding.
    #[arg(long, value_name = "X", help_heading = "Dimensions")]
    rope_base: Option<f32>,
    /// YaRN by this factor, from the context length divided by it.
    #[arg(long, value_name = "FACTOR", help_heading = "Dimensions")]
    yarn: Option<f32>,
    /// Epsilon of the norms.
    #[arg(long, value_name = "X", help_heading = "Dimensions")]
    eps: Option<f32>,
    /// Use the token embedding as output head.
    #[arg(long, help_heading = "Dimensions")]
    tied: bool,
}

pub fn run(args: &Args) -> Result<Outcome> {
    if args.out.exists() && !args.force {
        return Err(Error::usage(format!("{}: exists already; --force replaces it", args.out.display())));
    }
    let shape = args.shape()?;
    let mix = args.pure.unwrap_or(args.quant);
    let name = format!("synth {} {} seed {}", args.shape, mix.name, args.seed);
    let plan = Plan::new(&name, &shape, &mix, args.seed)?;
    report_substitutes(&plan);

    let bar = ProgressBar::new(plan.bytes());
    bar.set_style(
        ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let written = plan.write(&args.out, |bytes| bar.inc(bytes));
    bar.finish_and_clear();
    written?;
    output::print(&format!(
        "{}: {}, {}, {}, {}, {}, seed {}\n",
        args.out.display(),
        shape.architecture(),
        count(shape.layers as usize, "layer"),
        count(plan.tensors().len(), "tensor"),
        HumanBytes(plan.bytes()),
        mix.name,
        args.seed
    ))?;
    Ok(Outcome::Ok)
}

impl Args {
    /// The named shape with the flags' dimensions.
    fn shape(&self) -> Result<ModelShape> {
        let base = ModelShape::named(&self.shape).ok_or_else(|| {
            Error::usage(format!("--shape: expected one of {:?}, found {}", ModelShape::NAMES, self.shape))
        })?;
        let ffn = match (self.dense, base.ffn) {
            (Some(width), _) => FfnShape::Dense(width),
            (None, FfnShape::Moe(moe)) => FfnShape::Moe(Moe {
                experts: self.experts.unwrap_or(moe.experts),
                used: self.experts_used.unwrap_or(moe.used),
                width: self.expert_ffn.unwrap_or(moe.width),
            }),
            (None, dense) => dense,
        };
        let family = self.family.as_deref().and_then(Family::named).unwrap_or(base.family);
        Ok(ModelShape {
            family,
            hidden: self.hidden.unwrap_or(base.hidden),
            layers: self.layers.unwrap_or(base.layers),
            heads: self.heads.unwrap_or(base.heads),
            kv_heads: self.kv_heads.unwrap_or(base.kv_heads),
            head_dim: self.head_dim.unwrap_or(base.head_dim),
            ffn,
            vocab: self.vocab.unwrap_or(base.vocab),
            context: self.ctx.unwrap_or(base.context),
            rope_base: self.rope_base.unwrap_or(base.rope_base),
            eps: self.eps.unwrap_or(base.eps),
            tied: self.tied || base.tied,
            rope_freqs: base.rope_freqs && family == Family::Llama,
            yarn: self.yarn.or(base.yarn),
            window: match family {
                Family::Gemma3 => base.window.filter(|_| family == base.family).or(Some([512, 6])),
                Family::GptOss => base.window.filter(|_| family == base.family).or(Some([128, 2])),
                _ => base.window,
            },
            glm: base.glm,
            linear: base.linear,
            latent: base.latent,
        })
    }
}

/// Says which tensors have another type than the mix wanted, one line for each kind of tensor.
fn report_substitutes(plan: &Plan) {
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for tensor in plan.tensors().iter().filter(|t| t.spec.ty != t.wanted) {
        let name = match tensor.spec.name.strip_prefix("blk.").and_then(|n| n.split_once('.')) {
            Some((_, name)) => format!("blk.*.{name}"),
            None => tensor.spec.name.clone(),
        };
        let (cols, wanted, ty) = (tensor.spec.dims[0], tensor.wanted, tensor.spec.ty);
        let line = format!("{name}: rows of {cols} are not whole blocks of {wanted}; {ty} instead");
        *kinds.entry(line).or_default() += 1;
    }
    for (line, count) in kinds {
        output::remark(&format!("note: {line} ({count} tensor{})", if count == 1 { "" } else { "s" }));
    }
}

pub fn parse_mix(name: &str) -> Result<Mix, String> {
    let names = || MIXES.iter().map(|m| m.name).collect::<Vec<_>>().join(", ");
    Mix::from_name(name).ok_or_else(|| format!("expected one of {}", names()))
}

fn parse_type(name: &str) -> Result<Mix, String> {
    let weights = || GgmlType::ALL.iter().filter(|ty| Mix::pure(**ty).is_some());
    GgmlType::from_name(name)
        .and_then(Mix::pure)
        .ok_or_else(|| format!("expected one of {}", weights().map(|ty| ty.name()).collect::<Vec<_>>().join(", ")))
}
