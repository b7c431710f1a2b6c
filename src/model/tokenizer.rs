//! Text to tokens and back, from the metadata of the model file: byte-level BPE (`gpt2`) with the pre-tokenizers in [`PRE`], and
//! SentencePiece's BPE (`llama`).
//!
//! - What a file does not say is what llama.cpp has for its kind of tokenizer ([`BytePre`], [`SPM_ADD_BOS`]).
//! - A pre-tokenizer that is not here is refused by name: other cuts give other tokens, and nothing would show it.

use std::collections::HashMap;

use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as DecoderSequence;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::normalizers::prepend::Prepend;
use tokenizers::normalizers::replace::Replace;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::normalizers::utils::Sequence as NormalizerSequence;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use crate::error::{Error, Result};
use crate::gguf::Gguf;

/// A pre-tokenizer of byte-level BPE.
struct BytePre {
    /// As `tokenizer.ggml.pre` has it.
    names: &'static [&'static str],
    /// How text is cut before the merges: each of these cuts what those before it left. None: each digit apart, the rest as GPT-2 cuts it.
    patterns: &'static [&'static str],
    /// Whether text is brought into Unicode's form C first.
    nfc: bool,
    /// Whether a piece that is a token as a whole is that token, whatever the merges make of it.
    whole_pieces: bool,
    /// Whether a beginning-of-text token goes in front, where the file does not say.
    add_bos: bool,
}

/// The pre-tokenizers of byte-level BPE.
static PRE: &[BytePre] = &[
    // Qwen 2 and 3.
    BytePre {
        names: &["qwen2"],
        patterns: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        nfc: true,
        whole_pieces: false,
        add_bos: false,
    },
    // Qwen 3.5, where marks belong to letters.
    BytePre {
        names: &["qwen35"],
        patterns: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        nfc: true,
        whole_pieces: false,
        add_bos: false,
    },
    // Llama 3.
    BytePre {
        names: &["llama-bpe", "llama3", "llama-v3"],
        patterns: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        nfc: false,
        whole_pieces: true,
        add_bos: true,
    },
    // GLM 4, which cuts as Llama 3 does.
    BytePre {
        names: &["glm4", "chatglm-bpe"],
        patterns: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        nfc: false,
        whole_pieces: false,
        add_bos: false,
    },
    // gpt-oss: OpenAI's o200k.
    BytePre {
        names: &["gpt-4o"],
        patterns: &[
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        nfc: false,
        whole_pieces: false,
        add_bos: false,
    },
    // DeepSeek V3 and R1.
    BytePre {
        names: &["deepseek-v3"],
        patterns: &[
            r"\p{N}{1,3}",
            r"[一-龥぀-ゟ゠-ヿ]+",
            r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
        ],
        nfc: false,
        whole_pieces: false,
        add_bos: false,
    },
    // DeepSeek V2, whose tokenizer takes each digit apart: llama.cpp takes them together, and its vocabulary has no merges of digits.
    BytePre {
        names: &["deepseek-llm"],
        patterns: &[
            r"[\r\n]",
            r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            r"[一-龥ࠀ-一가-퟿]+",
            r"\p{N}",
        ],
        nfc: false,
        whole_pieces: false,
        add_bos: false,
    },
    // Kimi K2: o200k, with Chinese characters apart from other letters.
    BytePre {
        names: &["kimi-k2"],
        patterns: &[
            r"\p{Han}+|[^\r\n\p{L}\p{N}]?(?:(?!\p{Han})[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}])*(?:(?!\p{Han})[\p{Ll}\p{Lm}\p{Lo}\p{M}])+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?(?:(?!\p{Han})[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}])+(?:(?!\p{Han})[\p{Ll}\p{Lm}\p{Lo}\p{M}])*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        nfc: false,
        whole_pieces: false,
        add_bos: false,
    },
    BytePre { names: &["smollm"], patterns: &[], nfc: false, whole_pieces: false, add_bos: false },
];

/// Whether SentencePiece's text begins with a beginning-of-text token, and with a space, where the file does not say.
const SPM_ADD_BOS: bool = true;
const SPM_SPACE_PREFIX: bool = true;

/// SentencePiece's space.
const SPACE: &str = "▁";

/// ggml's token types: ordinary ones, which text is merged into, and those that are matched whole in the text.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// Text to tokens and back, as the file says.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// End of text, where the file names one.
    pub eos: Option<u32>,
    /// What [`Tokenizer::encode`] puts in front, if anything.
    pub bos: Option<u32>,
}

/// The lists of a file that every kind of tokenizer has.
struct Lists<'a> {
    gguf: &'a Gguf,
    tokens: &'a [String],
    types: Vec<i32>,
}

impl Tokenizer {
    /// # Errors
    /// A kind of tokenizer or a pre-tokenizer that is not known, or lists that do not belong together.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let meta = &gguf.metadata;
        let lists = Lists::of(gguf)?;
        let (mut inner, add_bos) = match meta.str("tokenizer.ggml.model")? {
            "gpt2" => lists.byte_level()?,
            "llama" => lists.sentence_piece()?,
            other => {
                let what = "the kinds that are supported are \"gpt2\" and \"llama\"";
                return Err(lists.bad(format!("tokenizer.ggml.model is {other:?}; {what}")));
            }
        };
        let special: Vec<AddedToken> = lists
            .tokens
            .iter()
            .zip(&lists.types)
            .filter(|(_, ty)| matches!(**ty, CONTROL | USER_DEFINED))
            .map(|(token, ty)| AddedToken::from(token.to_string(), *ty == CONTROL).normalized(false))
            .collect();
        inner.add_tokens(&special);
        let add_bos = meta.bool_opt("tokenizer.ggml.add_bos_token")?.unwrap_or(add_bos);
        let bos = meta.u32_opt("tokenizer.ggml.bos_token_id")?.filter(|_| add_bos);
        Ok(Self { inner, eos: meta.u32_opt("tokenizer.ggml.eos_token_id")?, bos })
    }

    /// The tokens of `text`; special tokens written in it are taken as such. The file's beginning-of-text token goes in front if the file,
    /// or else its kind of tokenizer, says so and the text does not begin with it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode(text, false).map_err(|e| Error::input(format!("the prompt: {e}")))?;
        let ids = encoding.get_ids();
        let bos = self.bos.filter(|bos| ids.first() != Some(bos));
        Ok(bos.into_iter().chain(ids.iter().copied()).collect())
    }

    /// The text of `tokens`. Bytes that are not UTF-8 on their own come out as U+FFFD.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.inner.decode(tokens, false).map_err(|e| Error::input(format!("tokens {tokens:?}: {e}")))
    }
}

impl<'a> Lists<'a> {
    fn of(gguf: &'a Gguf) -> Result<Self> {
        let tokens = gguf.metadata.str_array("tokenizer.ggml.tokens")?;
        let types = gguf.metadata.i32_array("tokenizer.ggml.token_type")?;
        let lists = Self { gguf, tokens, types };
        lists.as_many("token_type", lists.types.len())?;
        Ok(lists)
    }

    fn bad(&self, what: String) -> Error {
        Error::input(format!("{}: {what}", self.gguf.name()))
    }

    fn as_many(&self, list: &str, found: usize) -> Result<()> {
        match (found, self.tokens.len()) {
            (found, tokens) if found == tokens => Ok(()),
            (found, tokens) => Err(self.bad(format!("tokenizer.ggml.{list} has {found} entries for {tokens} tokens"))),
        }
    }

    fn vocabulary(&self) -> Vocab {
        self.tokens.iter().enumerate().map(|(id, token)| (token.to_string(), id as u32)).collect()
    }

    /// Byte-level BPE, and whether a beginning-of-text token goes in front unless the file says otherwise.
    fn byte_level(&self) -> Result<(tokenizers::Tokenizer, bool)> {
        let meta = &self.gguf.metadata;
        let found = meta.str("tokenizer.ggml.pre")?;
        let pre = PRE.iter().find(|pre| pre.names.contains(&found)).ok_or_else(|| {
            let known: Vec<String> = PRE.iter().flat_map(|pre| pre.names).map(|name| format!("{name:?}")).collect();
            self.bad(format!("tokenizer.ggml.pre is {found:?}; those that are supported are {}", known.join(", ")))
        })?;
        let merges = meta.str_array("tokenizer.ggml.merges")?;
        let merges = merges.iter().map(|m| {
            let (a, b) = m.split_once(' ').ok_or_else(|| self.bad(format!("merge {m:?} is not two tokens")))?;
            Ok((a.to_string(), b.to_string()))
        });
        let bpe = BPE::builder()
            .vocab_and_merges(self.vocabulary(), merges.collect::<Result<Vec<_>>>()?)
            .ignore_merges(pre.whole_pieces)
            .build()
            .map_err(|e| self.bad(format!("tokenizer.ggml.merges: {e}")))?;

        let mut inner = tokenizers::Tokenizer::new(bpe);
        let cut = |pattern: &&str| {
            Split::new(SplitPattern::Regex((*pattern).into()), SplitDelimiterBehavior::Isolated, false)
                .map(PreTokenizerWrapper::Split)
                .map_err(|e| self.bad(format!("pre-tokenizer: {e}")))
        };
        let mut cuts = pre.patterns.iter().map(cut).collect::<Result<Vec<_>>>()?;
        if pre.patterns.is_empty() {
            cuts.push(PreTokenizerWrapper::Digits(Digits::new(true)));
        }
        let byte_level = ByteLevel::new(false, false, pre.patterns.is_empty());
        cuts.push(PreTokenizerWrapper::ByteLevel(byte_level));
        if pre.nfc {
            inner.with_normalizer(Some(NFC));
        }
        inner.with_pre_tokenizer(Some(Sequence::new(cuts)));
        inner.with_decoder(Some(byte_level));
        Ok((inner, pre.add_bos))
    }

    /// SentencePiece's BPE, as [`Lists::byte_level`]. Text is merged by the scores of what merges make; as a list of merges that is every
    /// way to make a token of two others, by score, the longer left part first where scores are equal (transformers' `generate_merges`).
    fn sentence_piece(&self) -> Result<(tokenizers::Tokenizer, bool)> {
        let meta = &self.gguf.metadata;
        let scores = meta.f32_array("tokenizer.ggml.scores")?;
        self.as_many("scores", scores.len())?;
        if let Some(i) = scores.iter().position(|score| score.is_nan()) {
            return Err(self.bad(format!("tokenizer.ggml.scores[{i}] is NaN")));
        }
        let merged = |id: usize| matches!(self.types[id], NORMAL | USER_DEFINED);
        let ids: HashMap<&str, usize> =
            self.tokens.iter().enumerate().filter(|(id, _)| merged(*id)).map(|(id, t)| (t.as_str(), id)).collect();
        let mut merges: Vec<(usize, &str, &str)> = Vec::new();
        for (&token, &id) in &ids {
            let cuts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
            merges.extend(cuts.filter(|(a, b)| ids.contains_key(a) && ids.contains_key(b)).map(|(a, b)| (id, a, b)));
        }
        merges.sort_by(|(x, a, _), (y, b, _)| {
            scores[*y].total_cmp(&scores[*x]).then(x.cmp(y)).then(b.chars().count().cmp(&a.chars().count()))
        });
        let merges = merges.into_iter().map(|(_, a, b)| (a.to_string(), b.to_string())).collect();
        let mut bpe = BPE::builder().vocab_and_merges(self.vocabulary(), merges).byte_fallback(true).fuse_unk(true);
        if let Some(unknown) = meta.u32_opt("tokenizer.ggml.unknown_token_id")?
            && let Some(token) = self.tokens.get(unknown as usize)
        {
            bpe = bpe.unk_token(token.clone());
        }
        let mut inner = tokenizers::Tokenizer::new(bpe.build().map_err(|e| self.bad(format!("tokenizer: {e}")))?);
        let space = |from: &str, to: &str| Replace::new(from, to).map_err(|e| self.bad(format!("tokenizer: {e}")));
        let mut steps = vec![NormalizerWrapper::Replace(space(" ", SPACE)?)];
        if meta.bool_opt("tokenizer.ggml.add_space_prefix")?.unwrap_or(SPM_SPACE_PREFIX) {
            steps.insert(0, NormalizerWrapper::Prepend(Prepend::new(SPACE.into())));
        }
        inner.with_normalizer(Some(NormalizerSequence::new(steps)));
        inner.with_decoder(Some(DecoderSequence::new(vec![
            DecoderWrapper::Replace(space(SPACE, " ")?),
            DecoderWrapper::ByteFallback(ByteFallback::new()),
            DecoderWrapper::Fuse(Fuse::new()),
        ])));
        Ok((inner, SPM_ADD_BOS))
    }
}
