"""Two small tokenizers as GGUF, and what they make of some texts: a part of goldens.py.

SentencePiece itself says what the tokens of its model are. For byte-level BPE it is a plain loop over the merges, on pieces that the
patterns of Llama 3, SmolLM, Qwen 2, Qwen 3.5, o200k, GLM 4, DeepSeek V2 and V3 and Kimi K2 cut, by another regex engine.
"""

import io
import unicodedata
from collections import Counter

import regex
import sentencepiece
from gguf import GGUFWriter

TEXTS = [
    "Hello world", " two  spaces   and\ttabs", "fn main() {\n    let x = 12345;\n}\n", "don't WE'LL stop", "3.14159 + 2 = 5, 1000000",
    "Größe, naïve café, Å", "你好 мир 🦀", "a\r\n\r\n  b", "", "▁under the line", "ends with a space ", "theForest QUICKBrown //fox/\n don'T Ärger",
]
# What DeepSeek's and Kimi's tokenizers cut where others do not.
ALPHABETS = [
    "東京タワーとひらがな、カタカナ。かな漢字abc", "中文English混排,123中文456", "한국어 텍스트 ！？ ａｂｃ", "x=\t!word #tag .method ~home @user",
    "it's IT'S 汉字's Ωμέγα ёлка", "  \n  end   ", "१२३ ½ Ⅷ 12345678", "कखग e\u0301tude ‘quoted’ “text”…",
]
CORPUS = ("the quick brown fox jumps over the lazy dog and then the dog sleeps while the fox runs through the forest. fn main() { let x = 1; }"
          " don't stop, we'll see what 12345 and 67890 and 123 make of it; naïve café, Größe. 123 123 123 12 345 345").split(" ")

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CASES = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


# What each of the patterns of DeepSeek's tokenizers cuts is cut by the next.
DEEPSEEK_V3 = [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
               r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
               r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""]
LETTERS = ("A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ"
           "-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰"
           "-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃")
# The letters of V2's are those of alphabets with two cases, and each digit is apart.
DEEPSEEK_LLM = ["[\r\n]", r"\s?[" + LETTERS + "]+", r"\s?[!-/:-~！-／：-～‘-‟\u3000-。]+", r"\s+$", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"]
# o200k's, of which no letter is Chinese, in the words that its authors have: by an intersection of classes.
KIMI = (r"[\p{Han}]+|" + CASES.split(r"|\p{N}{1,3}")[0].replace(r"\p{M}]", r"\p{M}&&[^\p{Han}]]")
        + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def isolated(patterns, text):
    """What the patterns match and what is between, each pattern in the pieces that the one before it left."""
    pieces = [text]
    for pattern in patterns:
        cutter = regex.compile(pattern)
        pieces = [part for piece in pieces for part in apart(cutter, piece)]
    return pieces


def apart(cutter, piece):
    at = 0
    for match in cutter.finditer(piece):
        yield from filter(None, (piece[at:match.start()], match[0]))
        at = match.end()
    if piece[at:]:
        yield piece[at:]


def cut(pre, text):
    if pre == "deepseek-v3":
        return isolated(DEEPSEEK_V3, text)
    if pre == "deepseek-llm":
        return isolated(DEEPSEEK_LLM, text)
    if pre == "kimi-k2":
        return regex.findall(KIMI, text, regex.VERSION1)
    if pre == "smollm":  # digits apart, then GPT-2's pattern
        parts = regex.findall(r"\p{N}|[^\p{N}]+", text)
        return [piece for part in parts for piece in regex.findall(GPT2, part)]
    if pre == "gpt-4o":
        return regex.findall(CASES, text)
    if pre == "qwen35":  # marks belong to letters
        pattern = (WORDS % "").replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]+", r"[^\s\p{L}\p{M}\p{N}]+")
        return regex.findall(pattern, unicodedata.normalize("NFC", text))
    if pre == "qwen2":
        return regex.findall(WORDS % "", unicodedata.normalize("NFC", text))
    return regex.findall(WORDS % "{1,3}", text)


def byte_characters():
    """GPT-2's characters for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def bpe(piece, ranks):
    while len(piece) > 1:
        pairs = [ranks.get(pair, len(ranks)) for pair in zip(piece, piece[1:])]
        best = min(range(len(pairs)), key=pairs.__getitem__)
        if pairs[best] == len(ranks):
            break
        piece = piece[:best] + [piece[best] + piece[best + 1]] + piece[best + 2:]
    return piece


def byte_level(path):
    """A byte-level vocabulary of all merges that the corpus has, and the tokens of the texts under each pre-tokenizer."""
    characters = byte_characters()
    word = lambda text: [characters[b] for b in text.encode()]
    pieces = [word(p) for w in CORPUS for p in cut("llama-bpe", " " + w)]
    ranks = {}
    while counts := Counter(pair for piece in pieces for pair in zip(piece, piece[1:])):
        ranks[min(counts, key=lambda pair: (-counts[pair], pair))] = len(ranks)
        pieces = [bpe(piece, ranks) for piece in pieces]
    # A token that no merge makes: Llama 3's tokenizer takes it for a piece that is just that, the others do not.
    tokens = characters + ["".join(pair) for pair in ranks] + ["".join(word(" main")), "<|bos|>", "<|eos|>"]
    ids = {token: i for i, token in enumerate(tokens)}
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 2) + [3, 3])
    writer.add_token_merges([" ".join(pair) for pair in ranks])
    writer.add_bos_token_id(ids["<|bos|>"])
    writer.add_eos_token_id(ids["<|eos|>"])
    write(writer)

    def encode(pre, text):
        found = []
        for piece in cut(pre, text):
            whole = "".join(word(piece))
            found += [whole] if pre == "llama-bpe" and whole in ids else bpe(word(piece), ranks)
        return ([ids["<|bos|>"]] if pre == "llama-bpe" else []) + [ids[token] for token in found]

    tokens = {pre: [[text, encode(pre, text)] for text in TEXTS] for pre in ("llama-bpe", "smollm", "qwen2", "qwen35", "gpt-4o", "glm4")}
    return tokens | {pre: [[text, encode(pre, text)] for text in TEXTS + ALPHABETS] for pre in ("deepseek-v3", "deepseek-llm", "kimi-k2")}


def sentence_piece(path):
    """A SentencePiece model as Llama 2's is made, and the tokens of the texts."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(CORPUS[i:i + 8]) for i in range(0, len(CORPUS), 4)]), model_writer=model, model_type="bpe",
        vocab_size=420, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        add_dummy_prefix=True, minloglevel=2)
    sp = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    kind = lambda i: 2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 1
    count = range(sp.vocab_size())
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([sp.id_to_piece(i) for i in count])
    writer.add_token_scores([sp.get_score(i) for i in count])
    writer.add_token_types([kind(i) for i in count])
    writer.add_bos_token_id(sp.bos_id())
    writer.add_eos_token_id(sp.eos_id())
    writer.add_unk_token_id(sp.unk_id())
    write(writer)
    return {"llama": [[text, [sp.bos_id()] + sp.encode(text)] for text in TEXTS]}


def write(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
