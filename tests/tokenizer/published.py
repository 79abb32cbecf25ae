"""`SHAPES`: the tokenizers and chat templates of published models, by the models' names."""

from __future__ import annotations

from tokenizers import AddedToken

from tests.tokenizer.chat_templates import (
    COMMAND_CHAT,
    DEEPSEEK_CHAT,
    GEMMA3_CHAT,
    GEMMA_CHAT,
    GRANITE_CHAT,
    LLAMA2_CHAT,
    LLAMA3_CHAT,
    LLAMA31_CHAT,
    MISTRAL_CHAT,
    PHI3_CHAT,
    QWEN2_CHAT,
    QWEN25_CHAT,
    SMOLLM2_CHAT,
    SMOLLM3_CHAT,
    ZEPHYR_CHAT,
)
from tests.tokenizer.shapes import (
    GPT4_SPLIT,
    QWEN_SPLIT,
    Shape,
    byte_level,
    sentencepiece,
    settings,
    written,
)

LLAMA = ("<unk>", "<s>", "</s>")
END = "<|endoftext|>"
L3_SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
IM = (END, "<|im_start|>", "<|im_end|>")
GEMMA_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>")
PHI3_TURNS = tuple(
    AddedToken(text, rstrip=True, special=True, normalized=False)
    for text in ("<|assistant|>", "<|user|>", "<|system|>", "<|end|>")
)

SHAPES: dict[str, Shape] = {
    "Llama 2 chat": Shape(
        "llama",
        sentencepiece(prefix=True, bos="<s>"),
        LLAMA,
        settings("LlamaTokenizer", written("<s>"), written("</s>"), unk_token=written("<unk>"),
                 add_bos_token=True, add_eos_token=False, legacy=False),
        LLAMA2_CHAT,
        bos="<s>",
    ),
    "TinyLlama chat": Shape(
        "llama",
        sentencepiece(prefix=True, bos="<s>"),
        LLAMA,
        settings("LlamaTokenizer", "<s>", "</s>", unk_token="<unk>", pad_token="</s>"),
        ZEPHYR_CHAT,
        bos="<s>",
    ),
    "Llama 3 Instruct": Shape(
        "llama",
        byte_level(split=GPT4_SPLIT, bos="<|begin_of_text|>", ignore_merges=True),
        L3_SPECIAL,
        settings("PreTrainedTokenizerFast", "<|begin_of_text|>", "<|eot_id|>"),
        LLAMA3_CHAT,
        {"generation_config.json": {"eos_token_id": [1, 4]}},
        bos="<|begin_of_text|>",
    ),
    "Llama 3.1 Instruct": Shape(
        "llama",
        byte_level(split=GPT4_SPLIT, bos="<|begin_of_text|>", after=True, ignore_merges=True),
        L3_SPECIAL,
        settings("PreTrainedTokenizerFast", "<|begin_of_text|>", "<|eot_id|>", clean_up_tokenization_spaces=True),
        LLAMA31_CHAT,
        bos="<|begin_of_text|>",
    ),
    "Gemma 2 it": Shape(
        "gemma2",
        sentencepiece(prefix=False, bos="<bos>"),
        GEMMA_SPECIAL,
        settings("GemmaTokenizer", "<bos>", "<eos>", unk_token="<unk>", pad_token="<pad>", add_bos_token=True,
                 additional_special_tokens=["<start_of_turn>", "<end_of_turn>"]),
        GEMMA_CHAT,
        bos="<bos>",
    ),
    "Gemma 3 it": Shape(
        "gemma3_text",
        sentencepiece(prefix=False, bos="<bos>", split=True),
        GEMMA_SPECIAL,
        settings("GemmaTokenizer", "<bos>", "<eos>", unk_token="<unk>", pad_token="<pad>",
                 boi_token="<start_of_image>", image_token="<image_soft_token>"),
        None,
        {"chat_template.jinja": GEMMA3_CHAT},
        bos="<bos>",
    ),
    "Qwen2 Instruct": Shape(
        "qwen2",
        byte_level(split=QWEN_SPLIT, nfc=True),
        IM,
        settings("Qwen2Tokenizer", None, "<|im_end|>", unk_token=None, pad_token=END, add_prefix_space=False,
                 additional_special_tokens=["<|im_start|>", "<|im_end|>"]),
        QWEN2_CHAT,
    ),
    "Qwen2.5 Instruct": Shape(
        "qwen2",
        byte_level(split=QWEN_SPLIT, nfc=True),
        IM,
        settings("Qwen2Tokenizer", None, "<|im_end|>", add_bos_token=False, errors="replace"),
        QWEN25_CHAT,
    ),
    "Mistral 0.1 Instruct": Shape(
        "mistral",
        sentencepiece(prefix=True, bos="<s>"),
        LLAMA,
        settings("LlamaTokenizer", "<s>", "</s>", unk_token="<unk>", add_bos_token=True, legacy=True),
        MISTRAL_CHAT,
        bos="<s>",
    ),
    "Mistral 0.3 Instruct": Shape(
        "mistral",
        sentencepiece(prefix=True, bos="<s>", metaspace="first"),
        (*LLAMA, "[INST]", "[/INST]"),
        settings("LlamaTokenizer", "<s>", "</s>", unk_token="<unk>", add_bos_token=True, legacy=False),
        MISTRAL_CHAT,
        bos="<s>",
    ),
    "Phi-3 mini": Shape(
        "phi3",
        sentencepiece(prefix=True, bos=None),
        (*LLAMA, END, *PHI3_TURNS),
        settings("LlamaTokenizer", "<s>", END, unk_token="<unk>", add_bos_token=False, legacy=False),
        PHI3_CHAT,
    ),
    "GPT-2": Shape("gpt2", byte_level(), (END,), {"model_max_length": 1024}),
    "Phi-2": Shape("phi", byte_level(), (END,), settings("CodeGenTokenizer", END, END, unk_token=END)),
    "Pythia": Shape(
        "gpt_neox",
        byte_level(nfc=True),
        (END, "<|padding|>"),
        settings("GPTNeoXTokenizer", END, END, unk_token=END, add_prefix_space=False),
    ),
    "StableLM Zephyr": Shape(
        "stablelm",
        byte_level(nfc=True),
        (END, "<|padding|>"),
        settings("GPTNeoXTokenizer", END, END, unk_token=END),
        ZEPHYR_CHAT,
    ),
    "OPT": Shape(
        "opt",
        byte_level(),
        ("<pad>", "</s>"),
        settings("GPT2Tokenizer", written("</s>", normalized=True), written("</s>", normalized=True),
                 unk_token=written("</s>", normalized=True), pad_token=written("<pad>", normalized=True),
                 add_bos_token=True, errors="replace"),
        bos="</s>",
        tokenizer_file=False,
    ),
    "SmolLM2 Instruct": Shape(
        "llama",
        byte_level(digits=True),
        IM,
        settings("GPT2Tokenizer", "<|im_start|>", "<|im_end|>", unk_token=END, pad_token="<|im_end|>",
                 add_prefix_space=False),
        SMOLLM2_CHAT,
    ),
    "SmolLM3": Shape(
        "smollm3",
        byte_level(split=GPT4_SPLIT, after=True),
        IM,
        settings("PreTrainedTokenizerFast", None, "<|im_end|>", pad_token="<|im_end|>"),
        None,
        {"chat_template.jinja": SMOLLM3_CHAT},
    ),
    "Command-R": Shape(
        "cohere",
        byte_level(digits=True, nfc=True, bos="<BOS_TOKEN>"),
        ("<PAD>", "<UNK>", "<CLS>", "<SEP>", "<MASK_TOKEN>", "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>",
         "<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"),
        settings("CohereTokenizer", "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", pad_token="<PAD>", add_bos_token=True),
        [{"name": "rag", "template": "documents"}, {"name": "default", "template": COMMAND_CHAT}],
        bos="<BOS_TOKEN>",
    ),
    "OLMo 2": Shape(
        "olmo2", byte_level(split=GPT4_SPLIT), (END,), settings("GPT2Tokenizer", END, END, unk_token=END), ZEPHYR_CHAT
    ),
    "DeepSeek R1 distilled Qwen": Shape(
        "qwen2",
        byte_level(split=QWEN_SPLIT, bos="<\uff5cbegin\u2581of\u2581sentence\uff5c>"),
        ("<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>",
         "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"),
        settings("LlamaTokenizerFast", written("<\uff5cbegin\u2581of\u2581sentence\uff5c>", normalized=True),
                 written("<\uff5cend\u2581of\u2581sentence\uff5c>", normalized=True), legacy=True, add_bos_token=True),
        DEEPSEEK_CHAT,
        bos="<\uff5cbegin\u2581of\u2581sentence\uff5c>",
    ),
    "Granite 3": Shape(
        "granite",
        byte_level(digits=True),
        ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"),
        settings("GPT2Tokenizer", "<|end_of_text|>", "<|end_of_text|>", add_bos_token=False),
        GRANITE_CHAT,
    ),
    "StarCoder2": Shape("starcoder2", byte_level(digits=True), (END,), settings("GPT2Tokenizer", END, END)),
    "special_tokens_map.json alone": Shape(
        "llama",
        byte_level(bos="<s>"),
        ("<s>", "</s>"),
        {"tokenizer_class": "PreTrainedTokenizerFast"},
        MISTRAL_CHAT,
        {"special_tokens_map.json": {"bos_token": written("<s>"), "eos_token": "</s>"},
         "added_tokens.json": {"<|tool|>": 420}},
        bos="<s>",
    ),
    "added_tokens_decoder": Shape(
        "llama",
        byte_level(),
        ("<s>", "</s>"),
        settings("PreTrainedTokenizerFast", "<s>", "</s>", pad_token="[PAD]", added_tokens_decoder={
            "0": {"content": "<s>", "special": True, "lstrip": True, "rstrip": False, "normalized": False,
                  "single_word": False},
            "420": {"content": "<think>", "special": False, "lstrip": False, "rstrip": False, "normalized": False,
                    "single_word": False}}),
        MISTRAL_CHAT,
    ),
}  # fmt: skip
