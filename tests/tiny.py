"""
Tiny tokenizers, models and preference data, built in code and without a network.

Everything is deterministic. Weights are drawn with a large standard deviation, so that log-probabilities differ
visibly from row to row and a wrong reference, mask or sign cannot hide behind a uniform distribution.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from closeness import drawn_in_float32
from datasets import Dataset, DatasetInfo, Features, Image, List, Value
from peft import LoraConfig
from PIL import Image as PILImage
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPVisionConfig,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    SiglipVisionConfig,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil


VOCAB_SIZE = 384
PAD_TOKEN, EOS_TOKEN, BOS_TOKEN = "<|pad|>", "<|im_end|>", "<|bos|>"
IMAGE_TOKEN, BOI_TOKEN, EOI_TOKEN = "<image>", "<boi>", "<eoi>"
SPECIAL_TOKENS = [PAD_TOKEN, "<|im_start|>", EOS_TOKEN, BOS_TOKEN, IMAGE_TOKEN, BOI_TOKEN, EOI_TOKEN]

CORPUS = [
    "The film was a delight from the first scene to the last, and the cast was wonderful.",
    "The film was dull, far too long, and the ending made no sense at all.",
    "What is the weather like in Paris today? It is sunny and warm, about 21 degrees.",
    "Write a short review of the book. I could not put it down. I would not read it again.",
    "How do I cook rice? Rinse it, boil it for twelve minutes and let it rest.",
    "A question deserves a clear answer, and a clear answer deserves a good question.",
]

# ChatML with tools, tool calls, text given as a string or as parts, and one keyword of its own (`mood`).
CHAT_TEMPLATE = """\
{%- macro text(content) -%}
{%- if content is string -%}{{ content }}
{%- else -%}
{%- for part in content or [] -%}
{%- if part['type'] == 'image' -%}<image>{%- else -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- if mood -%}<|im_start|>system
Answer in a {{ mood }} mood.<|im_end|>
{% endif -%}
{%- if tools -%}<|im_start|>system
Tools:{% for tool in tools %} {{ tool | tojson }}{% endfor %}<|im_end|>
{% endif -%}
{%- for message in messages -%}<|im_start|>{{ message['role'] }}
{{ text(message['content']) }}
{%- for call in message['tool_calls'] or [] %}<call>{{ call['function'] | tojson }}</call>{% endfor -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}
"""


# Tokenizer and processors


def _byte_level_bpe(bos: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS_TOKEN} $A",
            pair=f"{BOS_TOKEN} $A {BOS_TOKEN} $B",
            special_tokens=[(BOS_TOKEN, tokenizer.token_to_id(BOS_TOKEN))],
        )
    return tokenizer


def tiny_tokenizer(chat_template: bool = True, bos: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE of `VOCAB_SIZE` tokens, EOS `<|im_end|>`, PAD `<|pad|>`; `bos` puts `<|bos|>` before a text."""
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_level_bpe(bos),
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        bos_token=BOS_TOKEN if bos else None,
        chat_template=CHAT_TEMPLATE if chat_template else None,
    )


def tiny_processor() -> LlavaProcessor:
    """Processor of `tiny_vlm`. Images become 16 x 16 pixels in 8 x 8 patches, by PIL (there is no torchvision)."""
    return LlavaProcessor(
        image_processor=LlavaImageProcessorPil(
            size={"height": 16, "width": 16}, crop_size={"height": 16, "width": 16}
        ),
        tokenizer=tiny_tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def tiny_gemma3_processor() -> Gemma3Processor:
    """Processor of `tiny_gemma3_vlm`: as above, and its batches have `token_type_ids`."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_byte_level_bpe(bos=False),
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        extra_special_tokens={"image_token": IMAGE_TOKEN, "boi_token": BOI_TOKEN, "eoi_token": EOI_TOKEN},
    )
    return Gemma3Processor(
        image_processor=Gemma3ImageProcessorPil(size={"height": 16, "width": 16}),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=CHAT_TEMPLATE.replace(IMAGE_TOKEN, BOI_TOKEN),
    )


def tiny_processing_class(model: str) -> PreTrainedTokenizerBase | ProcessorMixin:
    """The processor or tokenizer that belongs to a model of `MODELS`."""
    return {"vlm": tiny_processor, "gemma3_vlm": tiny_gemma3_processor}.get(model, tiny_tokenizer)()


# Models


_TOKEN_IDS = {
    "pad_token_id": SPECIAL_TOKENS.index(PAD_TOKEN),
    "eos_token_id": SPECIAL_TOKENS.index(EOS_TOKEN),
    "bos_token_id": None,
}


_DECODER = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.25,
    "tie_word_embeddings": False,
    **_TOKEN_IDS,
}


def _build(model_class: type[PreTrainedModel], config, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return drawn_in_float32(lambda: model_class(config).eval())


def tiny_gpt2(seed: int = 0) -> GPT2LMHeadModel:
    """Absolute positions, tied embeddings, biases, dropout 0.1."""
    config = GPT2Config(
        vocab_size=VOCAB_SIZE, n_embd=32, n_layer=2, n_head=4, n_positions=512, initializer_range=0.25, **_TOKEN_IDS
    )
    return _build(GPT2LMHeadModel, config, seed)


def tiny_llama(seed: int = 0) -> LlamaForCausalLM:
    """Rotary positions, grouped queries, untied embeddings: the default model of the tests."""
    return _build(LlamaForCausalLM, LlamaConfig(**_DECODER), seed)


def tiny_qwen2(seed: int = 0) -> Qwen2ForCausalLM:
    """Biases on queries, keys and values."""
    return _build(Qwen2ForCausalLM, Qwen2Config(**_DECODER), seed)


def tiny_qwen3(seed: int = 0) -> Qwen3ForCausalLM:
    """Normalized queries and keys."""
    return _build(Qwen3ForCausalLM, Qwen3Config(**_DECODER), seed)


def tiny_mistral(seed: int = 0) -> MistralForCausalLM:
    """Sliding window of 8 tokens in every layer."""
    return _build(MistralForCausalLM, MistralConfig(**_DECODER, sliding_window=8), seed)


def tiny_gemma2(seed: int = 0) -> Gemma2ForCausalLM:
    """Soft-capped logits, and layers that alternate between full attention and a sliding window of 8 tokens."""
    config = Gemma2Config(**_DECODER, sliding_window=8, query_pre_attn_scalar=8)
    return _build(Gemma2ForCausalLM, config, seed)


def tiny_moe(seed: int = 0) -> Qwen3MoeForCausalLM:
    """Four experts, two of them per token, auxiliary loss of weight 0.001."""
    config = Qwen3MoeConfig(
        **_DECODER, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2, router_aux_loss_coef=0.001
    )
    return _build(Qwen3MoeForCausalLM, config, seed)


_VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


def tiny_vlm(seed: int = 0) -> LlavaForConditionalGeneration:
    """LLaVA: CLIP vision tower and Llama; its processor is `tiny_processor`."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_VISION, projection_dim=16),
        text_config=LlamaConfig(**_DECODER),
        image_token_index=SPECIAL_TOKENS.index(IMAGE_TOKEN),
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    return _build(LlavaForConditionalGeneration, config, seed)


def tiny_gemma3_vlm(seed: int = 0) -> Gemma3ForConditionalGeneration:
    """Gemma 3: SigLIP vision tower, both kinds of attention, images seen in both directions."""
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(**_VISION, vision_use_head=False),
        text_config=Gemma3TextConfig(**_DECODER, sliding_window=8),
        mm_tokens_per_image=4,
        image_token_index=SPECIAL_TOKENS.index(IMAGE_TOKEN),
        boi_token_index=SPECIAL_TOKENS.index(BOI_TOKEN),
        eoi_token_index=SPECIAL_TOKENS.index(EOI_TOKEN),
    )
    return _build(Gemma3ForConditionalGeneration, config, seed)


MODELS: dict[str, Callable[..., PreTrainedModel]] = {
    "gpt2": tiny_gpt2,
    "llama": tiny_llama,
    "qwen2": tiny_qwen2,
    "qwen3": tiny_qwen3,
    "mistral": tiny_mistral,
    "gemma2": tiny_gemma2,
    "moe": tiny_moe,
    "vlm": tiny_vlm,
    "gemma3_vlm": tiny_gemma3_vlm,
}


def lora_config(**options: Any) -> LoraConfig:
    """Adapters of rank 4 on queries and values, unless told."""
    return LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | options)


def save_tiny(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | ProcessorMixin, folder: str | Path) -> str:
    """
    Saves both to `folder` and returns it as the text that trainers take.

    The file holds the weights in float64, which `closeness.in_float64` can read, and the config says float32.
    """
    model.double().save_pretrained(folder)
    config = Path(folder, "config.json")
    if config.exists():  # an adapter has none
        config.write_text(config.read_text().replace('"float64"', '"float32"'))
    tokenizer.save_pretrained(folder)
    return str(folder)


# Data

_SUBJECTS = ["film", "book", "weather in Paris", "rice with beans", "question", "answer that nobody expected"]
_CHOSEN = [
    "It was a delight from the first scene to the last.",
    "Wonderful.",
    "I could not put it down, and the cast was clear and good.",
    "It is sunny and warm, about 21 degrees today, and it will rest so.",
]
_REJECTED = [
    "Dull.",
    "It was far too long, made no sense at all, and I would not read it again in twelve minutes.",
    "No idea, sorry.",
    "The ending was a question about rice.",
    "Boil it.",
]
_TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def _plain_row(i: int) -> dict:
    # Every third prompt ends inside a word or with a space: tokens merge across the border or differ there.
    ending = ["? Answer:", "? Answer: ", "? Wonder"][i % 3]
    start = [" ", "", "ful. "][i % 3]
    return {
        "prompt": f"What do you say about the {_SUBJECTS[i % 6]} number {i}{ending}",
        "chosen": start + _CHOSEN[i % 4],
        "rejected": start + _REJECTED[i % 5],
    }


def _chat_row(i: int) -> dict:
    question = _user(f"What do you say about the {_SUBJECTS[i % 6]} number {i}?")
    turns = [question] if i % 3 else [_user("Hello."), _assistant("How can I help?"), question]
    return {"prompt": turns, "chosen": [_assistant(_CHOSEN[i % 4])], "rejected": [_assistant(_REJECTED[i % 5])]}


def _implicit_row(i: int) -> dict:
    row = _plain_row(i)
    return {side: row["prompt"] + row[side] for side in ("chosen", "rejected")}


def _implicit_chat_row(i: int) -> dict:
    row = _chat_row(i)
    return {side: row["prompt"] + row[side] for side in ("chosen", "rejected")}


def _tools_row(i: int) -> dict:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
    turns = [
        _user(f"What is the weather like in Paris, for the {i}th time?"),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": f"sunny, {20 + i} degrees"},
    ]
    return {**_chat_row(i), "prompt": turns if i % 2 else turns[:1], "tools": [_TOOL]}


def _template_row(i: int) -> dict:
    return {**_chat_row(i), "chat_template_kwargs": {"mood": ["sunny", "dull"][i % 2]}}


def _vision_row(i: int) -> dict:
    pixels = np.random.default_rng(i).integers(0, 256, size=(12 + 4 * (i % 3), 20, 3), dtype=np.uint8)
    prompt = [_user(f"What is in the picture number {i}?")]
    return {
        "images": [PILImage.fromarray(pixels)],
        "prompt": prompt,
        "chosen": [_assistant(_CHOSEN[i % 4])],
        "rejected": [_assistant(_REJECTED[i % 5])],
    }


def _mixed_vision_row(i: int) -> dict:
    row = _vision_row(i)
    return {**row, "images": row["images"] * (i % 3)}


_MESSAGES = List({"role": Value("string"), "content": Value("string")})
_VISION_FEATURES = Features({"images": List(Image()), "prompt": _MESSAGES, "chosen": _MESSAGES, "rejected": _MESSAGES})
_ROWS: dict[str, Callable[[int], dict]] = {
    "plain": _plain_row,
    "chat": _chat_row,
    "implicit": _implicit_row,
    "implicit_chat": _implicit_chat_row,
    "tools": _tools_row,
    "template": _template_row,
    "vision": _vision_row,
    "mixed_vision": _mixed_vision_row,
}


def preference_rows(n: int, kind: str = "plain", *, start: int = 0, tag: str = "") -> Dataset:
    """
    `n` preference pairs with prompts and answers of different lengths, the same on every call.

    Args:
        n (`int`):
            Number of rows.
        kind (`str`, *optional*, defaults to `"plain"`):
            One of `"plain"`, `"chat"`, `"implicit"`, `"implicit_chat"` (no `prompt` column), `"tools"` (a `tools`
            column, tool calls in every other prompt), `"template"` (a `chat_template_kwargs` column), `"vision"` (an
            `images` column with one image), `"mixed_vision"` (none, one or two images).
        start (`int`, *optional*, defaults to `0`):
            Number of the first row: another `start` gives other rows.
        tag (`str`, *optional*):
            Enters the fingerprint: sets with different tags share no cache of `datasets`.
    """
    rows = [_ROWS[kind](i) for i in range(start, start + n)]
    info = DatasetInfo(description=tag, features=_VISION_FEATURES if "vision" in kind else None)
    return Dataset.from_list(rows, info=info)


_ENDINGS = [" superb", " fine", " passable", " slow", " dull"]
_ENDINGS += [" clumsy", " loud", " endless", " dreadful"]


def ranking_rows(
    n: int, sizes: Sequence[int] = (4,), ranks: Sequence[Sequence[int]] | None = None, *, start: int = 0
) -> Dataset:
    """
    `n` prompts with two to nine completions of different lengths, the same on every call.

    Args:
        n (`int`):
            Number of rows.
        sizes (`Sequence[int]`, *optional*, defaults to `(4,)`):
            Numbers of completions, in turn.
        ranks (`Sequence[Sequence[int]]`, *optional*):
            Ranks of the completions, in turn and as many as there are completions. By default there is no such
            column, so completions are in order.
        start (`int`, *optional*, defaults to `0`):
            Number of the first row: another `start` gives other rows.
    """
    rows = []
    for i in range(start, start + n):
        size = sizes[i % len(sizes)]
        row = {
            "prompt": f"In year {1900 + 7 * i} the film" + " which nobody saw" * (i % 3) + " was",
            "completions": [f"{ending}, and number {i * j}" for j, ending in enumerate(_ENDINGS[:size])],
        }
        rows.append(row if ranks is None else row | {"ranks": list(ranks[i % len(ranks)][:size])})
    return Dataset.from_list(rows)
